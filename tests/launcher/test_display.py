"""Traces and tables as text: what stands where, that nothing is wider than asked, and what the brief picture leaves out."""

from __future__ import annotations

import click
import pytest

from launcher.display import tables
from launcher.display import trace as picture

SVC, SEP = "KUBE-SVC-ENL7VS5BCG2244AR", "KUBE-SEP-UPLA2LM5ORK623W3"
CLIENT, VIP, BACKEND = "10.244.1.2", "10.96.0.10", "10.244.2.3"
COMMENT = '-m comment --comment "default/order-service:http cluster IP"'


def packet(dst=VIP, dport=80, src=CLIENT, sport=4711, proto="tcp"):
    return {"src": src, "dst": dst, "proto": proto, "sport": sport, "dport": dport}


def hop(node, netns, where, pkt=None, **more):
    return {"node": node, "netns": netns, "where": where, "packet": pkt or packet(), **more}


OUTER = packet("192.168.0.3", 8472, "192.168.0.2", 50000, "udp")
RESULT = {
    "outcome": "delivered", "backend": f"{BACKEND}:8080", "masquerade": False, "rules_evaluated": 18,
    "request": [
        hop("node-1", "pod/default/web", "route", note="default via 10.244.1.1 dev eth0"),
        hop("node-1", "node", "nat/PREROUTING", rule=f"-A PREROUTING {COMMENT} -j KUBE-SERVICES"),
        hop("node-1", "node", "nat/KUBE-SERVICES", rule=f"-A KUBE-SERVICES -d {VIP}/32 -p tcp {COMMENT} -m tcp --dport 80 -j {SVC}"),
        hop("node-1", "node", f"nat/{SVC}", rule=f"-A {SVC} {COMMENT} -j {SEP}"),
        hop("node-1", "node", f"nat/{SEP}", rule=f"-A {SEP} -p tcp -m tcp -j DNAT --to-destination 10.244.2.3:8080"),
        hop("node-1", "node", "conntrack", packet(BACKEND, 8080), note=f"destination {VIP}:80 becomes {BACKEND}:8080"),
        hop("node-1", "node", "filter/FORWARD", packet(BACKEND, 8080), rule="-A FORWARD -j KUBE-EXTERNAL-SERVICES"),
        hop("node-1", "node", "filter/FORWARD", packet(BACKEND, 8080), note="policy ACCEPT"),
        hop("node-1", "node", "nat/OUTPUT", OUTER, rule="-A OUTPUT -j KUBE-SERVICES"),
        hop("node-1", "node", "wire", OUTER, note="to 192.168.0.3"),
        hop("node-2", "pod/default/order", "socket", packet(BACKEND, 8080), note="TCP LISTEN"),
    ],
    "reply": [hop("node-1", "pod/default/web", "socket", packet(CLIENT, 4711, VIP, 80), note="TCP SYN_SENT")],
}  # fmt: skip
REQUEST = {"from": "pod/default/web", "to": "svc/default/order-service"}


def drawn(width=100, **how):
    return [click.unstyle(line) for line in picture.lines(REQUEST, RESULT, width, **how)]


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("brief", [False, True])
def test_a_trace_is_never_wider_than_asked(width, brief):
    assert max(map(len, drawn(width, brief=brief))) <= width


def test_a_trace_shows_every_hop_and_every_rule_whole():
    text = " ".join(" ".join(drawn()).split())
    for step in RESULT["request"] + RESULT["reply"]:
        assert step["where"] in text
        assert " ".join((step.get("rule") or step.get("note")).split()) in text


def test_a_change_of_the_packet_stands_where_it_happens():
    lines = drawn()
    at = next(i for i, line in enumerate(lines) if "becomes 10.244.2.3:8080" in line)
    assert lines[at + 1].strip() == "= 10.244.1.2:4711 > 10.244.2.3:8080 tcp"


def test_a_trace_ends_with_outcome_counts_and_the_nodes_crossed():
    assert drawn(120)[-1] == "delivered to 10.244.2.3:8080 · source kept · 18 rules evaluated · 2 nodes: node-1, node-2 · 11 + 1 hops"


def test_the_brief_picture_leaves_out_what_decided_nothing():
    text = "\n".join(drawn(brief=True))
    assert "KUBE-EXTERNAL-SERVICES" not in text  # a jump that led nowhere
    assert "policy ACCEPT" not in text
    assert "nat/OUTPUT" not in text  # the tunnel's outside
    assert "--comment" not in text
    assert "-d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j" in text
    assert "--to-destination 10.244.2.3:8080" in text
    assert "to 192.168.0.3" in text


def test_a_trace_without_a_reply_says_so():
    result = {
        "outcome": "dropped",
        "backend": None,
        "masquerade": False,
        "rules_evaluated": 0,
        "request": RESULT["request"][:1],
        "reply": [],
    }
    lines = [click.unstyle(line) for line in picture.lines(REQUEST, result, 80)]
    assert "REPLY  none" in lines
    assert lines[-1].startswith("dropped · source kept · 0 rules evaluated · 1 node: node-1")


TABLE = [{"name": "Name", "priority": 0}, {"name": "Ready", "priority": 0}, {"name": "Node", "priority": 1}]
ROWS = [
    {"cells": ["web", "1/1", "node-1"], "object": {"metadata": {"namespace": "default"}}},
    {"cells": ["order-service", "0/1", "node-2"], "object": {"metadata": {"namespace": "shop"}}},
]


def test_get_is_laid_out_as_kubectl_lays_it_out():
    assert tables.kubectl(TABLE, ROWS, wide=False, namespaces=False) == "NAME            READY\nweb             1/1\norder-service   0/1\n"
    assert (
        tables.kubectl(TABLE, ROWS[:1], wide=True, namespaces=True)
        == "NAMESPACE   NAME   READY   NODE\ndefault     web    1/1     node-1\n"
    )
    assert tables.kubectl(TABLE, ROWS[:1], wide=False, namespaces=False, headers=False) == "web   1/1\n"


def test_status_notes_what_stands_in_and_what_has_no_effect():
    told = {
        "standIns": ["default/two/a"],
        "nodes": [{"abandoned": 1}, {"abandoned": 0}],
        "notEmulated": [{"kind": "Ingress", "field": "", "objects": 2, "example": "default/i"}],
    }
    assert tables.notes(told) == [
        "",
        "stand-ins for images we do not know: default/two/a",
        "stored, not emulated: Ingress (2 objects, as default/i)",
        "threads that did not heed their end: 1",
    ]
    assert tables.notes({}) == []
