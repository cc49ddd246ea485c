"""What clients in pods of a real cluster meet: Services, neighbours, loopback, faults; and what traces tell of it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.kit.live import cluster, curl, eventually, ip_of, manifests, netexec, obj, pod, podwire, service, trace

pytestmark = pytest.mark.cluster

VIP, EMPTY = "10.96.7.10", "10.96.7.20"


def program(name, *arguments, port=None):
    return {"name": name, "image": "example.com/mine", "args": list(arguments), **({"ports": [{"containerPort": port}]} if port else {})}


WORLD = (
    pod("client", netexec(), node="node-1"),
    pod("server-1", netexec(), node="node-1"),
    pod("server-2", netexec(), node="node-2"),
    pod("lonely", netexec(), netexec("other", 8081), node="node-2"),
    service("server", VIP, "server", type="NodePort", ports=[{"port": 80, "targetPort": 8080, "nodePort": 30123}]),
    service("lonely", "10.96.7.30", "lonely"),
    service("empty", EMPTY, "nobody"),
)


@pytest.fixture(scope="module", autouse=True)
def network():
    programs = str(Path(__file__).parent / "programs")
    with cluster("net", "--nodes", "3", "--debug-assertions", "--path", programs, "-f", "-", stdin=manifests(*WORLD)) as path:
        yield path


def test_between_pods_of_two_nodes_nobody_translates_either_way():
    for client, server in (("client", "server-2"), ("server-2", "client")):
        seen = curl(client, f"http://{ip_of(server)}:8080/clientip")
        assert seen.rpartition(":")[0] == ip_of(client)


def test_containers_of_a_pod_share_localhost_and_no_other_pod_has_it():
    assert podwire("exec", "lonely", "-c", "other", "--", "curl", "-s", "http://127.0.0.1:8080/hostname").stdout == "lonely"
    assert curl("lonely", "http://localhost:8081/hostname") == "lonely"
    assert curl("client", "http://127.0.0.1:8081/hostname", status=7) == ""


def test_a_second_listener_on_a_port_of_the_pod_gets_address_already_in_use():
    twice = pod("twice", program("second"), netexec(), annotations={"podwire.dev/program": "holding:second"})
    twice["spec"]["containers"].reverse()
    twice["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] = "second"
    podwire("apply", "-f", "-", stdin=manifests(twice))
    eventually(lambda: "Address already in use" in podwire("logs", "twice", "-c", "second", status=None).stdout)
    podwire("delete", "pod", "twice")


def test_a_service_without_endpoints_refuses_at_once():
    began = time.monotonic()
    done = podwire("exec", "client", "--", "curl", "-sS", f"http://{EMPTY}/", status=7)
    assert "Connection refused" in done.stderr
    assert time.monotonic() - began < 1.5
    traced = trace("client", "svc/empty")
    assert traced["outcome"] == "rejected"
    assert any("-j REJECT" in hop.get("rule", "") for hop in traced["request"])


def test_a_closed_port_is_refused_and_the_refusal_names_the_pod():
    podwire("exec", "client", "--", "nc", "-z", "-v", ip_of("server-2"), "99", status=1)
    traced = trace("client", "pod/server-2", "--port", "99")
    assert traced["outcome"] == "rejected"
    assert traced["backend"] == f"{ip_of('server-2')}:99"


def test_a_pod_gone_from_a_live_node_is_no_route_to_host_after_three_seconds():
    podwire("apply", "-f", "-", stdin=manifests(pod("gone", netexec(), node="node-2")))
    address = eventually(lambda: json.loads(podwire("get", "pod", "gone", "-o", "json").stdout)["status"].get("podIP"))
    assert curl("client", f"http://{address}:8080/hostname", "--retry", "3") == "gone"
    podwire("delete", "pod", "gone")
    began = time.monotonic()
    done = podwire("exec", "client", "--", "curl", "-sS", f"http://{address}:8080/", status=7)
    assert "No route to host" in done.stderr
    assert 2.5 < time.monotonic() - began < 4.5


def test_a_pod_that_reaches_itself_through_its_service_is_masqueraded():
    assert curl("lonely", "http://10.96.7.30/clientip").rpartition(":")[0] == "10.244.2.1"
    assert trace("lonely", "svc/lonely")["masquerade"] is True
    assert trace("client", "svc/lonely")["masquerade"] is False


@pytest.mark.parametrize("node", [1, 2, 3])
def test_the_node_port_answers_on_every_node(node):
    assert curl("client", f"http://192.168.0.{node + 1}:30123/hostname") in ("server-1", "server-2")


def test_connections_spread_evenly_over_the_pods():
    """2,000 connections from one pod; 10.83 is χ²'s 0.001 quantile for one degree of freedom."""
    spread = pod(
        "spread", program("spread", VIP, "80", "2000", port=9000), node="node-3", annotations={"podwire.dev/program": "holding:spread"}
    )
    podwire("apply", "-f", "-", stdin=manifests(spread))
    tally = json.loads(eventually(lambda: podwire("logs", "spread", status=None).stdout, 60))
    podwire("delete", "pod", "spread")
    assert set(tally) == {"server-1", "server-2"}
    assert sum((count - 1000) ** 2 / 1000 for count in tally.values()) < 10.83


def test_a_connection_keeps_its_pod_while_others_come_and_go():
    holder = pod("holder", program("hold", VIP, "80", port=9000), node="node-3", annotations={"podwire.dev/program": "holding:hold"})
    podwire("apply", "-f", "-", stdin=manifests(holder))
    eventually(lambda: "True" in str([c for c in status_of("holder").get("conditions", []) if c["type"] == "Ready"]))
    url = f"http://{ip_of('holder')}:9000/"
    first = curl("client", url)
    podwire("apply", "-f", "-", stdin=manifests(*(pod(f"server-{n}", netexec()) for n in range(3, 7))))
    assert [curl("client", url) for _ in range(3)] == [first] * 3
    podwire("delete", "pod", *(f"server-{n}" for n in range(3, 7)))
    assert curl("client", url) == first
    podwire("delete", "pod", "holder")


def status_of(name):
    return obj("pod", name)["status"]


def test_a_crash_is_a_restart_of_the_container_not_the_end_of_the_node():
    podwire(
        "apply",
        "-f",
        "-",
        stdin=manifests(pod("crash", program("crash"), node="node-1", annotations={"podwire.dev/program": "holding:crash"})),
    )
    eventually(lambda: (status_of("crash").get("containerStatuses") or [{}])[0].get("restartCount", 0) >= 2)
    assert "RuntimeError: this program always fails" in podwire("logs", "crash", "-p").stdout
    assert curl("client", f"http://{VIP}/hostname").startswith("server-")
    podwire("delete", "pod", "crash")


def test_an_image_that_is_not_known_is_stood_in_for_and_answers_on_its_ports():
    stranger = {"name": "db", "image": "postgres:17", "command": ["postgres"], "ports": [{"containerPort": 5432}]}
    podwire("apply", "-f", "-", stdin=manifests(pod("stranger", stranger, node="node-3")))
    eventually(lambda: status_of("stranger").get("phase") == "Running")
    podwire("exec", "client", "--", "nc", "-z", ip_of("stranger"), "5432")
    assert status_of("stranger")["containerStatuses"][0]["restartCount"] == 0
    eventually(lambda: "default/stranger/db" in json.dumps(json.loads(podwire("status", "--json").stdout)))
    podwire("delete", "pod", "stranger")


def test_a_command_that_is_not_there_is_127():
    assert "executable file not found" in podwire("exec", "client", "--", "nosuch", status=127).stderr


def test_a_long_command_line_runs():
    words = [f"word-{number:04}" for number in range(3000)]
    assert podwire("exec", "client", "--", "echo", *words).stdout.split() == words


# ---- traces ----------------------------------------------------------------------------------------------------------------------


def test_a_trace_has_the_shape_of_its_contract():
    traced = trace("client", "svc/server")
    assert traced["outcome"] == "delivered"
    assert traced["backend"] in (f"{ip_of('server-1')}:8080", f"{ip_of('server-2')}:8080")
    assert traced["masquerade"] is False
    assert traced["rules_evaluated"] > 5
    for hop in (*traced["request"], *traced["reply"]):
        assert set(hop) <= {"node", "netns", "where", "packet", "rule", "note"}
        assert {"node", "netns", "where", "packet"} <= set(hop)
        assert set(hop["packet"]) == {"src", "dst", "proto", "sport", "dport"}
        assert hop["netns"] == "node" or re.fullmatch(r"pod/default/[\w-]+", hop["netns"])
    assert traced["request"][0]["netns"] == "pod/default/client"
    assert traced["reply"][-1]["netns"] == "pod/default/client"


@pytest.mark.parametrize("server", ["server-1", "server-2"])
def test_a_trace_by_icmp_or_udp_needs_no_listener_of_tcp(server):
    ping = trace("client", f"pod/{server}")
    assert (ping["outcome"], ping["request"][0]["packet"]["proto"]) == ("delivered", "icmp")
    udp = trace("client", f"pod/{server}", "--proto", "udp", "--port", "99")
    assert (udp["outcome"], udp["request"][0]["packet"]["proto"]) == ("rejected", "udp")


def test_a_trace_leaves_no_connection_behind():
    before = {node: podwire("conntrack", node).stdout for node in ("node-1", "node-2")}
    traced = trace("client", "svc/server")
    port = traced["request"][0]["packet"]["sport"]
    for node in before:
        assert f"sport={port} " not in podwire("conntrack", node).stdout


def test_a_trace_from_a_node_to_an_address_that_nobody_claims_is_unrouted():
    assert trace("node/node-1", "203.0.113.9", "--port", "80")["outcome"] == "unrouted"
    assert trace("client", "node/node-1", "--port", "1")["outcome"] == "rejected"
    assert trace("client", "node/node-1")["outcome"] in ("local", "delivered")


def test_what_a_paused_or_dead_node_swallows_is_lost_after_the_last_hop_that_was_seen():
    podwire("fault", "node", "node-3", "pause")
    try:
        lost = trace("client", "10.244.3.2", "--port", "80")
        assert lost["outcome"] == "dropped"
        assert lost["request"][-1].get("note", "").startswith("lost after") or "lost after" in json.dumps(lost)
        began = time.monotonic()
        assert curl("client", "http://10.244.3.2:8080/", "--max-time", "2", status=28) == ""
        assert time.monotonic() - began > 1.9
    finally:
        podwire("fault", "node", "node-3", "resume")


# ---- manifests that are wrong ----------------------------------------------------------------------------------------------------

DEPLOYMENT = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "odd"},
    "spec": {"selector": {"matchLabels": {"app": "odd"}}, "template": {
        "metadata": {"labels": {"app": "odd"}}, "spec": {"containers": [{"name": "c", "image": "x"}]},
    }},
}  # fmt: skip


def changed(path, value):
    found = json.loads(json.dumps(DEPLOYMENT))
    *way, last = path.split(".")
    place = found
    for key in way:
        place = place[key]
    place[last] = value
    return found


BROKEN = {
    "unknown field": (changed("spec.replica", 2), r'Deployment.*odd.*unknown field "spec\.replica"'),
    "wrong type": (changed("spec.replicas", "two"), r"Deployment.*odd.*spec\.replicas"),
    "selector": (changed("spec.template.metadata.labels", {"app": "other"}), r"Deployment.*odd.*selector"),
    "node port": (
        service("twin", "10.96.7.40", "x", type="NodePort", ports=[{"port": 80, "nodePort": 30123}]),
        r"Service.*twin.*spec\.ports\[0\]\.nodePort.*already allocated",
    ),
    "cluster IP": (service("outside", "10.97.0.1", "x"), r"Service.*outside.*spec\.clusterIPs.*not in the valid range"),
    "CIDR": (
        {**service("ranges", "10.96.7.41", "x", type="LoadBalancer", loadBalancerSourceRanges=["10.0.0.0/99"])},
        r"Service.*ranges.*loadBalancerSourceRanges",
    ),
    "kind": ({"apiVersion": "v1", "kind": "Gadget", "metadata": {"name": "g"}}, r"Gadget"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_one_broken_object_in_a_file_leaves_all_unapplied_and_is_named(what, tmp_path):
    broken, complaint = BROKEN[what]
    path = tmp_path / "broken.yaml"
    path.write_text(manifests(service("before", "10.96.7.50", "x"), broken, service("after", "10.96.7.51", "x")))
    done = podwire("apply", "-f", str(path), status=None)
    assert done.returncode != 0
    assert "broken.yaml" in done.stderr
    assert re.search(complaint, done.stderr), done.stderr
    for name in ("before", "after"):
        podwire("get", "svc", name, status=1)
