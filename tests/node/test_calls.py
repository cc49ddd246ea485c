"""Every method that the controller may call: the shape of its answer, its errors, and that nobody else's is disturbed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emu.netfilter.reader import read_rules
from emu.netfilter.text import save_text
from emu.stack.sockets import UdpSocket
from emu.trace import REPLY
from emu.wire.addr import SockAddr, parse_ip
from tests.kit.nodes import RealNode, pod, real_node
from tests.kit.services import value


@pytest.fixture
def node() -> Iterator[RealNode]:
    with real_node() as node:
        yield node


def serve(node: RealNode) -> None:
    """One Service with an endpoint, through the node's proxy."""
    node.proxy.on_snapshot({"ns1/svc1": value(endpoints=["10.244.1.2"])}, node.kernel.now())
    result = node.proxy.sync(node.kernel.now() + 1)
    assert result is not None
    node.kernel.enter()
    node.machine.swap(result.ruleset)
    node.kernel.leave()


@pytest.mark.parametrize("format_", ["iptables-save", "iptables-restore", None])
def test_rules_are_text_that_reads_back_as_the_same_rules(node: RealNode, format_: str | None) -> None:
    serve(node)
    (body,) = node.call("rules", **({"format": format_} if format_ else {}))
    assert list(body) == ["text"]
    assert save_text(read_rules(body["text"])) == save_text(node.machine.node.netfilter.ruleset)
    assert "KUBE-SVC-" in body["text"]


def test_conntrack_lists_connections_as_conntrack_does(node: RealNode) -> None:
    serve(node)
    assert node.call("conntrack") == [{"text": ""}]
    node.kernel.enter()
    UdpSocket(node.machine.node).send_to(b"x", SockAddr.parse("192.168.0.3:53"))
    node.kernel.leave()
    (body,) = node.call("conntrack")
    assert body["text"].startswith("udp      17 ")
    assert "src=192.168.0.2 dst=192.168.0.3" in body["text"]
    assert "[UNREPLIED]" in body["text"]


def test_routes_shows_devices_with_what_is_on_them(node: RealNode) -> None:
    node.run(pod("web"))
    node.kernel.enter()
    node.machine.set_peers([{"name": "node-2", "ip": "192.168.0.3", "pod_cidr": "10.244.2.0/24", "endpoint": "node-2", "incarnation": 1}])
    node.kernel.leave()
    (body,) = node.call("routes")
    assert set(body) == {"routes", "devices"}
    assert body["routes"] == [
        "default via 192.168.0.1 dev eth0",
        "10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1",
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        "192.168.0.0/16 dev eth0 proto kernel scope link src 192.168.0.2",
    ]
    devices = {device["name"]: device for device in body["devices"]}
    (veth,) = (name for name in devices if name.startswith("veth"))
    assert list(devices) == ["lo", "eth0", "flannel.1", "cni0", veth]
    assert devices["eth0"]["addresses"] == ["192.168.0.2/16"]
    assert devices["cni0"]["ports"] == [veth]
    assert devices[veth]["master"] == "cni0"
    assert devices["flannel.1"]["fdb"] == {"1a:2b:c0:a8:00:03": "192.168.0.3"}
    assert all({"name", "kind", "mtu", "mac", "addresses", "master"} <= set(device) for device in body["devices"])


def test_stats_add_up_what_pods_and_node_dropped(node: RealNode) -> None:
    node.run(pod("web"), pod("stranger", "nginx"))
    for ns in (node.machine.node, node.namespace("web")):
        node.kernel.enter()
        UdpSocket(ns).send_to(b"x", SockAddr(parse_ip("127.0.0.1"), 9))
        node.kernel.leave()
    (body,) = node.call("stats")
    assert body["drops"] == {"no-socket": 2}
    assert body["stand_ins"] == ["default/stranger/main"]
    assert body["conntrack"] == 0


def test_a_trace_answers_when_its_probe_ends_and_can_be_forgotten(node: RealNode) -> None:
    serve(node)
    node.run(pod("web", port=8080), pod("client"))
    to = {"dst": "172.30.0.41", "dport": 80, "proto": "tcp", "id": 6, "deadline": 3.0}
    assert node.call("trace", netns="pod/default/client", **to) == [{"result": "connected"}]
    node.kernel.enter()
    hops = node.machine.take_hops()
    node.kernel.leave()
    assert {hop.trace & ~REPLY for hop in hops} == {6}
    (body,) = node.call("forget", id=6)
    assert body["forgotten"] >= 1
    assert node.call("forget", id=6) == [{"forgotten": 0}]
    assert node.call("conntrack") == [{"text": ""}]


def test_a_trace_that_nobody_waits_for_any_more_ends(node: RealNode) -> None:
    node.run(pod("client"))
    params = {"netns": "pod/default/client", "dst": "192.168.0.77", "dport": 80, "proto": "tcp", "id": 8, "deadline": 60.0}
    node.posted.clear()
    node.calls.on_message({"t": "call", "id": 3, "method": "trace", "params": params})
    assert node.posted == []
    node.calls.on_message({"t": "cancel", "id": 3})
    assert [message["body"] for message in node.posted] == [{"result": "cancelled"}]
    assert node.namespace("client").sockets.established == {}


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("reboot", {}, (404, "NotFound", "a node has no method 'reboot'")),
        (
            "rules",
            {"format": "nft"},
            (400, "BadRequest", "format 'nft' is not one of iptables-save, iptables-restore (the proxy's mode is not nftables)"),
        ),
        ("trace", {"netns": "pod/default/nobody"}, (404, "NotFound", "pod/default/nobody is not on node node-1")),
        ("logs", {"namespace": "default", "pod": "nobody"}, (400, "BadRequest", "pod nobody has no running container on its node")),
    ],
)
def test_errors_are_the_body_s_and_the_last_answer(
    node: RealNode, method: str, params: dict[str, object], error: tuple[int, str, str]
) -> None:
    assert tuple(node.error(method, **params).values()) == error
    assert node.posted[-1]["last"]


@pytest.mark.parametrize("kind", ["input", "cancel"])
def test_a_word_about_a_call_that_is_over_is_ignored(node: RealNode, kind: str) -> None:
    node.calls.on_message({"t": kind, "id": 99, "data": {"stdin": b"x"}})
    assert node.posted == []
