"""A trace from scattered hops: the order is the packet's, whatever order the hops came in, and what is missing is named."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.observe.assembly import Assembly
from emu.observe.hops import pack, unpack
from emu.trace import Hop, PacketSummary

NODES = {"192.168.0.2": "node-1", "192.168.0.3": "node-2"}
CLIENT, SERVER, VIP = ("10.244.1.2", 40000), ("10.244.2.5", 8080), ("10.96.0.10", 80)
_seq = itertools.count(1)


def packet(src, dst, proto="tcp"):
    return PacketSummary(src[0], dst[0], proto, src[1] if proto != "icmp" else None, dst[1] if proto != "icmp" else None)


def hop(trace, node, netns, where, src, dst, note=None, verdict=None, rules=0, rule=None, proto="tcp", at=0.0):
    return Hop(trace, node, netns, where, packet(src, dst, proto), at, next(_seq), rule, note, rules, verdict)


OUTER = (("192.168.0.2", 50000), ("192.168.0.3", 8472))
WEB, ORDER = "pod/default/web", "pod/default/order"


def request(end="delivered", dst=SERVER):
    """Pod on node-1 through the VIP to a pod on node-2, over VXLAN."""
    return [
        hop(2, "node-1", WEB, "eth0", CLIENT, VIP, "out"),
        hop(2, "node-1", "node", "cni0", CLIENT, VIP, "in"),
        hop(2, "node-1", "node", "nat/KUBE-SERVICES", CLIENT, VIP, rules=7, rule="-A KUBE-SERVICES -j KUBE-SVC-X"),
        hop(2, "node-1", "node", "nat/KUBE-SEP-X", CLIENT, dst, f"DNAT to {dst[0]}:{dst[1]}", rules=2),
        hop(2, "node-1", "node", "flannel.1", CLIENT, dst, "VXLAN 1"),
        hop(2, "node-1", "node", "wire", *OUTER, "to 192.168.0.3", proto="udp"),
        hop(2, "node-2", "node", "eth0", *OUTER, "in", proto="udp"),
        hop(2, "node-2", "node", "cni0", CLIENT, dst, "out"),
        hop(2, "node-2", ORDER, "socket", CLIENT, dst, "TCP LISTEN", verdict=end),
    ]


def reply(end="delivered", src=SERVER):
    return [
        hop(3, "node-2", ORDER, "eth0", src, CLIENT, "out"),
        hop(3, "node-2", "node", "wire", *OUTER[::-1], "to 192.168.0.2", proto="udp"),
        hop(3, "node-1", "node", "eth0", *OUTER[::-1], "in", proto="udp"),
        hop(3, "node-1", WEB, "socket", VIP, CLIENT, "TCP SYN_SENT", verdict=end),
    ]


def assembled(hops, result, proto="tcp"):
    assembly = Assembly(2, "node-1", NODES, proto)
    for one in hops:
        assembly.add(one)
    assembly.result = result
    return assembly


def wheres(story):
    return [f"{one['node']} {one['where']}" for one in story]


@given(st.permutations(request() + reply()), st.randoms())
def test_the_order_is_the_packet_s_whatever_order_hops_come_in(hops, chance):
    assembly = assembled([*hops, chance.choice(hops)], "connected")
    assert assembly.complete
    report = assembly.report()
    assert wheres(report["request"]) == [
        "node-1 eth0", "node-1 cni0", "node-1 nat/KUBE-SERVICES", "node-1 nat/KUBE-SEP-X", "node-1 flannel.1", "node-1 wire",
        "node-2 eth0", "node-2 cni0", "node-2 socket",
    ]  # fmt: skip
    assert wheres(report["reply"]) == ["node-2 eth0", "node-2 wire", "node-1 eth0", "node-1 socket"]
    assert {key: report[key] for key in ("outcome", "backend", "masquerade", "rules_evaluated", "nodes_crossed")} == {
        "outcome": "delivered", "backend": "10.244.2.5:8080", "masquerade": False, "rules_evaluated": 9, "nodes_crossed": 2,
    }  # fmt: skip
    assert report["request"][2]["rule"] == "-A KUBE-SERVICES -j KUBE-SVC-X" and report["request"][2]["netns"] == "node"


@given(st.integers(0, 12))
def test_a_trace_with_any_last_hops_missing_is_incomplete_and_says_where_it_was_lost(kept):
    hops = request() + reply()
    assembly = assembled(hops[:kept], "connected")
    assert not assembly.complete
    report = assembly.report()
    journey = report["request"] if kept < 9 else report["reply"]
    if kept not in (0, 9):
        last = hops[kept - 1]
        assert journey[-1]["where"] == "lost"
        assert journey[-1]["note"].startswith(f"lost after {last.node} {last.netns} {last.where}")


def test_a_packet_that_crosses_a_node_twice_is_told_in_order():
    """Node port of another node whose endpoint is at home: node-1, node-2, node-1."""
    hops = [
        hop(2, "node-1", WEB, "eth0", CLIENT, ("192.168.0.3", 30080), "out"),
        hop(2, "node-1", "node", "wire", CLIENT, ("192.168.0.3", 30080), "to 192.168.0.3"),
        hop(2, "node-2", "node", "eth0", CLIENT, ("192.168.0.3", 30080), "in"),
        hop(2, "node-2", "node", "POSTROUTING", ("192.168.0.3", 1234), CLIENT, "MASQUERADE"),
        hop(2, "node-2", "node", "wire", ("192.168.0.3", 1234), CLIENT, "to 192.168.0.2"),
        hop(2, "node-1", "node", "eth0", ("192.168.0.3", 1234), CLIENT, "in"),
        hop(2, "node-1", WEB, "socket", ("192.168.0.3", 1234), CLIENT, "TCP LISTEN", verdict="delivered"),
    ]
    report = assembled(hops[::-1], "connected").report()
    assert wheres(report["request"]) == [f"{one.node} {one.where}" for one in hops]
    assert report["masquerade"] is True and report["nodes_crossed"] == 2


def test_what_is_lost_on_a_link_ends_there_and_not_somewhere_after_the_wire():
    hops = [*request()[:6], hop(2, "node-1", "node", "link", *OUTER, "link-loss", verdict="dropped", proto="udp")]
    assembly = assembled(hops, "silent")
    assert assembly.complete
    assert assembly.report()["outcome"] == "dropped"
    assert wheres(assembly.report()["request"])[-2:] == ["node-1 wire", "node-1 link"]
    assert assembly.report()["request"][-1]["note"] == "link-loss"


def icmp_back(end="rejected"):
    return hop(3, "node-1", WEB, "icmp", ("10.244.1.1", 0), CLIENT, "error type 3 code 3", verdict=end, proto="icmp")


def home(verdict, where="FORWARD", dst=VIP, netns="node", note=None):
    return [
        hop(2, "node-1", WEB, "eth0", CLIENT, VIP, "out"),
        hop(2, "node-1", netns, where, CLIENT, dst, note, verdict=verdict),
    ]


@pytest.mark.parametrize(
    ("name", "hops", "result", "proto", "outcome", "backend", "complete"),
    [
        ("delivered", request() + reply(), "connected", "tcp", "delivered", "10.244.2.5:8080", True),
        ("the pod itself refuses", request("rejected") + reply("rejected"), "refused", "tcp", "rejected", "10.244.2.5:8080", True),
        ("no endpoints: REJECT at home", [*home("rejected"), icmp_back()], "refused", "tcp", "rejected", None, True),
        ("a REJECT whose answer was lost is a drop to the client", home("rejected"), "silent", "tcp", "dropped", None, True),
        ("dropped by a rule", home("dropped"), "silent", "tcp", "dropped", None, True),
        ("dropped after DNAT: the choice was made", home("dropped", dst=SERVER), "silent", "tcp", "dropped", "10.244.2.5:8080", True),
        ("no neighbour", [*home("dropped", "cni0", SERVER), icmp_back()], "unreachable", "tcp", "rejected", "10.244.2.5:8080", True),
        ("nobody's address", home("unrouted", "route"), "unreachable", "tcp", "unrouted", None, True),
        ("to the node itself", home("delivered", "socket"), "connected", "tcp", "local", None, False),
        ("UDP that nobody answers is delivered", request(), "silent", "udp", "delivered", "10.244.2.5:8080", True),
        ("TCP delivered, its reply lost", request() + reply()[:2], "silent", "tcp", "dropped", "10.244.2.5:8080", False),
        ("lost on the wire", request()[:6], "silent", "tcp", "dropped", "10.244.2.5:8080", False),
        ("the probe has no answer yet", request() + reply(), None, "tcp", "dropped", "10.244.2.5:8080", False),
        ("not one hop", [], "unreachable", "tcp", "rejected", None, False),
    ],
)  # fmt: skip
def test_the_outcome_is_what_the_client_experiences(name, hops, result, proto, outcome, backend, complete):
    assembly = assembled(hops, result, proto)
    report = assembly.report()
    assert assembly.complete is complete, name
    if name != "the probe has no answer yet":
        assert (report["outcome"], report["backend"]) == (outcome, backend), name


def test_an_echo_has_a_backend_without_a_port():
    sent = hop(2, "node-1", WEB, "eth0", CLIENT, SERVER, proto="icmp")
    hops = [sent, hop(2, "node-1", ORDER, "icmp", CLIENT, SERVER, verdict="delivered", proto="icmp")]
    assert assembled(hops, "answered", "icmp").report()["backend"] == "10.244.2.5"


def test_a_hop_survives_the_wire_and_nonsense_is_none():
    for one in request():
        assert unpack(pack(one)) == one
        for i in range(11):
            assert unpack([object() if j == i else value for j, value in enumerate(pack(one))]) is None
    for nonsense in (None, 3, [], "x" * 11, [None] * 11, {"trace": 1}):
        assert unpack(nonsense) is None
