"""The controller killed and paused at any moment, under writes: nothing acknowledged is lost, traffic goes on, nodes are back in sync."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest

from launcher import control, rundir
from tests.kit.live import cluster, eventually, manifests, netexec, pod, podwire, service
from tests.kit.writers import TROUBLE, Watcher, Writer, ask

pytestmark = pytest.mark.cluster

NAME, VIP = "ctl", "10.96.7.10"
IN_SYNC = 2.0  # seconds between the API's first answer and every node having applied all that is published
WRITERS = 4
SERVICES = "/api/v1/namespaces/default/services"
PORTS = [{"name": "tcp", "port": 80, "targetPort": 8080}, {"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP"}]


def pinging(name, node):
    container = {"name": "ping", "image": "example.com/mine", "args": [VIP, "80", "81"]}
    return pod(name, container, node=node, annotations={"podwire.dev/program": "pinging:ping"})


WORLD = (
    pod("server-1", netexec(udp=8081), node="node-1"),
    pod("server-2", netexec(udp=8081), node="node-2"),
    service("server", VIP, "server", ports=PORTS),
    pinging("ping-1", "node-1"),
    pinging("ping-3", "node-3"),
)


@pytest.fixture(scope="module", autouse=True)
def world():
    programs = str(Path(__file__).parent / "programs")
    with cluster(NAME, "--nodes", "3", "--debug-assertions", "--path", programs, "-f", "-", stdin=manifests(*WORLD)) as path:
        for name in ("ping-1", "ping-3"):
            eventually(lambda name=name: answered(name))
        yield path


def tally(name):
    lines = podwire("logs", name, "--tail", "1", status=None).stdout.splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def answered(name):
    """Whether both of its pings have been answered. A SYN sent before its node knew the Service fails 5 s later."""
    seen = tally(name)
    return seen and all(seen[proto][0] for proto in ("tcp", "udp"))


def url():
    return json.loads(podwire("status", "--json").stdout)["url"]


def status_of(where):
    return ask(where, "GET", "/apis/podwire.dev/v1alpha1/status")[1]


def answering(where):
    """When the API first answers, as a time."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            ask(where, "GET", "/version")
            return time.monotonic()
        except TROUBLE:
            time.sleep(0.005)
    raise AssertionError("the API does not come back")


def in_sync(where):
    """When every node is Ready and has applied everything published, as a time."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        nodes = status_of(where)["nodes"]
        if len(nodes) == 3 and all(node["ready"] and node["behind"] == 0 and node["applied"] for node in nodes):
            return time.monotonic()
        time.sleep(0.01)
    raise AssertionError("nodes do not come back in sync")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.long)])
def test_a_controller_killed_under_writes_has_lost_nothing_that_it_acknowledged(kills, record_property):
    where, run, chance = url(), rundir.find(NAME), random.Random(kills)
    writers, watcher = [Writer(where, kills * WRITERS + number) for number in range(WRITERS)], Watcher(where)
    before = {name: tally(name) for name in ("ping-1", "ping-3")}
    for thread in (*writers, watcher):
        thread.start()
    synced = []
    for number in range(kills):
        time.sleep(chance.uniform(0.1, 1.5))
        control.ask(run, {"controller": "restarted"})  # SIGKILL
        back = answering(where)
        marker = service(f"marker-{number}", f"10.96.8.{number + 1}", "server")
        assert ask(where, "POST", SERVICES, marker)[0] == 201  # something for nodes to hear of
        synced.append(in_sync(where) - back)
        assert f"10.96.8.{number + 1}/32" in ask(where, "GET", "/apis/podwire.dev/v1alpha1/nodes/node-3/rules")[1]["text"]
        assert ask(where, "DELETE", f"{SERVICES}/marker-{number}")[0] == 200
    for thread in writers:
        thread.over.set()
        thread.join()
    for writer in writers:
        writer.check()
    listed = {
        obj["metadata"]["name"]: obj["metadata"]["resourceVersion"]
        for obj in ask(where, "GET", "/api/v1/namespaces/default/configmaps")[1]["items"]
    }
    eventually(lambda: watcher.seen == listed)
    watcher.over.set()

    after = {name: tally(name) for name in before}
    told = {
        "writes": sum(w.writes for w in writers), "unanswered": sum(w.unanswered for w in writers),
        "in_sync_worst_s": round(max(synced), 3), "pings": after, "watch_lists": watcher.lists, "watches": watcher.resumed,
    }  # fmt: skip
    record_property("crash", json.dumps(told))
    sys.stdout.write(f"{json.dumps(told)}\n")
    assert [wrong for one in (*writers, watcher) for wrong in one.wrong] == []
    assert all(writer.writes > kills for writer in writers)
    assert max(synced) < IN_SYNC, synced
    for name, seen in after.items():
        for proto in ("tcp", "udp"):
            answers, failed, longest = seen[proto]
            assert answers - before[name][proto][0] > 10 * kills
            assert failed == before[name][proto][1], (name, seen)
            assert longest < 1.0, (name, seen)


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.long)])
def test_a_controller_paused_for_longer_than_any_lease_blames_no_node_and_evicts_no_pod(seconds):
    """The silence was its own: nodes and pods are as before, traffic never noticed, nothing floods in."""
    where, before = url(), {name: tally(name) for name in ("ping-1", "ping-3")}
    pods = podwire("get", "pods", "-o", "name").stdout
    ready = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in ask(where, "GET", "/api/v1/pods")[1]["items"]}
    podwire("fault", "controller", "pause")
    time.sleep(seconds)
    assert "controller   paused" in podwire("status").stdout
    podwire("fault", "controller", "resume")
    began = time.monotonic()
    in_sync(where)
    assert time.monotonic() - began < IN_SYNC
    time.sleep(2)
    assert podwire("get", "pods", "-o", "name").stdout == pods
    found = ask(where, "GET", "/api/v1/pods")[1]["items"]
    assert {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found} == ready
    events = podwire("get", "events").stdout
    assert "NodeNotReady" not in events
    assert "TaintManagerEviction" not in events
    for name, seen in before.items():
        assert [tally(name)[proto][1] for proto in ("tcp", "udp")] == [seen[proto][1] for proto in ("tcp", "udp")]
