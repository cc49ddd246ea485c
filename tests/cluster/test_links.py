"""Trouble on the links of a real cluster: what ping sees of it, what mends it, and that neither controller nor node forgets it."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest

from tests.cluster.programs.bulk import digest
from tests.kit.live import cluster, eventually, ip_of, manifests, netexec, pod, podwire, trace

pytestmark = pytest.mark.cluster

PROGRAMS = Path(__file__).parent / "programs"
SIZE = 100_000_000
CONFIG = """
nodes: [{labels: {topology.kubernetes.io/zone: a}}, {labels: {topology.kubernetes.io/zone: b}}, {labels: {topology.kubernetes.io/zone: b}}]
links: {node-2<->node-3: {delay: 30ms}}
debugAssertions: true
"""


def program(name, *arguments, node):
    container = {"name": name, "image": "example.com/mine", "args": [str(argument) for argument in arguments]}
    return pod(name, container, node=node, annotations={"podwire.dev/program": f"bulk:{name.partition('-')[0]}"})


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory):
    config = tmp_path_factory.mktemp("config") / "cluster.yaml"
    config.write_text(CONFIG)
    pods = [pod(f"pod-{number}", netexec(), node=f"node-{number}") for number in (1, 2, 3)]
    serve = program("serve", SIZE, node="node-1")
    with cluster("links", "--config", str(config), "--path", str(PROGRAMS), "-f", "-", stdin=manifests(*pods, serve)) as path:
        yield path


@pytest.fixture(autouse=True)
def healed():
    yield
    podwire("fault", "heal", "--all")


def ping(source, target, count=5, interval=0.05, status=0):
    """Packets received, and the least round trip in milliseconds."""
    done = podwire(
        "exec", f"pod-{source}", "--", "ping", "-q", "-c", str(count), "-i", str(interval), "-W", "1", ip_of(f"pod-{target}"), status=None
    )
    assert done.returncode == status, done
    least = re.search(r"= ([\d.]+)/", done.stdout)
    return int(re.search(r"(\d+) received", done.stdout)[1]), float(least[1]) if least else None


def faults():
    return {item["metadata"]["name"]: item for item in json.loads(podwire("fault", "status", "--json").stdout)["faults"]}


def test_delay_shows_in_round_trips_each_way_by_itself_until_it_is_healed():
    podwire("fault", "link", "node-1->node-2", "--delay", "40ms")
    assert 40 <= ping(1, 2)[1] < 75
    podwire("fault", "link", "zone/b->zone/a", "--delay", "60ms")
    assert 100 <= ping(1, 2)[1] < 135
    podwire("fault", "heal", "node-1->node-2")
    assert 60 <= ping(1, 2)[1] < 95
    assert list(faults()) == [name for name, item in faults().items() if item["spec"]["link"] == "zone/b->zone/a"]
    podwire("fault", "heal", *faults())
    assert ping(1, 2)[1] < 35


def test_the_links_of_the_cluster_file_are_there_from_the_start_and_below_faults():
    assert 60 <= ping(2, 3)[1] < 95
    podwire("fault", "link", "*<->*", "--delay", "5ms")
    assert 10 <= ping(2, 3)[1] < 45


def test_loss_is_as_said_and_told_by_fault_and_by_reason():
    name = podwire("fault", "link", "node-1->node-2", "--loss", "25%", "--json").stdout
    name = json.loads(name)["metadata"]["name"]
    received, _ = ping(1, 2, 200, 0.01)
    assert 150 - 4 * 6.2 < received < 150 + 4 * 6.2
    assert eventually(lambda: faults()[name]["status"].get("lost")) == 200 - received
    told = json.loads(podwire("status", "--json").stdout)["controller"]
    assert told["drops"]["link-loss"] >= 200 - received
    assert told["faults"] == 1
    assert "dropped, link-loss: " in podwire("status").stdout


def test_a_partition_is_silence_and_outlives_controller_and_node():
    podwire("fault", "partition", "node-1", "|", "zone/b")
    assert ping(1, 2, 3, status=1)[0] == ping(3, 1, 3, status=1)[0] == 0
    assert ping(2, 3, 3)[0] == 3
    last = trace("pod-1", "pod/pod-2")["request"][-1]
    assert (last["node"], last["where"], last["note"]) == ("node-1", "link", "link-cut")
    podwire("fault", "controller", "kill")
    podwire("fault", "controller", "start")
    assert [item["spec"] for item in faults().values()] == [{"partition": [["node-1"], ["zone/b"]]}]
    podwire("fault", "node", "node-2", "kill")
    podwire("fault", "node", "node-2", "start")
    eventually(lambda: podwire("exec", "pod-2", "--", "true", status=None).returncode == 0)
    assert ping(2, 1, 3, status=1)[0] == 0
    podwire("fault", "heal", "--all")
    assert ping(2, 1, 3)[0] == 3


def test_what_is_asked_for_wrongly_is_told_with_what_would_be_right():
    for argv, complaint in (
        (("link", "node-1->node-7", "--cut"), "link: there is no node 'node-7'; did you mean node-"),
        (("link", "node-1", "--cut"), "is not a link: A->B or A<->B"),
        (("link", "node-1->node-2", "--loss", "120%"), "loss: '120%' is not a percentage from 0 to 100"),
        (("link", "node-1->node-2"), "must say at least one of delay, jitter"),
        (("partition", "node-1"), "partition: must be a list of two or more groups"),
        (("heal", "fault-0"), 'faults "fault-0" not found'),
        (("heal", "node-1->node-2"), "there is no fault on the link node-1->node-2"),
    ):
        done = podwire("fault", *argv, status=1)
        assert complaint in done.stderr, done.stderr
    assert "give the fault or link to heal, or --all" in podwire("fault", "heal", status=2).stderr
    assert podwire("fault", "status").stdout == "nothing is broken\n"


# ---- a long stream ------------------------------------------------------------------------------------------------------------------


def fetched(name, meanwhile=None):
    """What a program on node 2 says of the bytes that it had from the one on node 1."""
    podwire("apply", "-f", "-", stdin=manifests(program(name, ip_of("serve"), node="node-2")))
    try:
        if meanwhile is not None:
            eventually(lambda: "connected" in podwire("logs", name, status=None).stdout)
            meanwhile()
        lines = eventually(lambda: len(told := podwire("logs", name, status=None).stdout.splitlines()) == 2 and told, 100)
        return json.loads(lines[1])
    finally:
        podwire("delete", "pod", name)


@pytest.mark.long
def test_a_hundred_megabytes_through_loss_reordering_and_duplication_are_the_same_bytes():
    podwire("fault", "link", "node-1<->node-2", "--loss", "2%", "--reorder", "1%", "--duplicate", "1%")
    told = fetched("fetch-foul")
    assert (told["bytes"], told["sha256"]) == (SIZE, digest(SIZE))
    assert told["seconds"] < 15, told


@pytest.mark.long
def test_a_cut_of_five_seconds_stalls_and_recovers_by_the_retransmission_timer():
    """With an RTO of 200 ms at the cut, retransmissions come after 0.2, 0.6, 1.4, 3.0, 6.2 s: the stream goes on 6.2 s after the cut,
    later by as much as the RTO was longer (a fifth, for a loaded machine's round trips)."""
    podwire("fault", "link", "node-1->node-2", "--rate", "50mbit")

    def cut():
        podwire("fault", "link", "node-1<->node-2", "--cut")
        mend = threading.Timer(5.0, podwire, ["fault", "heal", "--all"])
        mend.start()
        time.sleep(0.1)
        mend.join()

    told = fetched("fetch-cut", cut)
    assert (told["bytes"], told["sha256"]) == (SIZE, digest(SIZE))
    assert 5.0 <= told["gap"] < 12.8, told
