"""Packet flows: who reaches whom by which address, and as whom. Each row is a sentence; the facts are kube-proxy's own flow tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from emu.proxy.changes import ServiceChanges
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.syncer import BUILDERS
from emu.wire.addr import parse_ip
from tests.kit.flows import FlowNode
from tests.kit.services import endpoint, value

NODE_IPS = ("192.168.0.2", "192.168.1.2")
POD, OUTSIDE, BLOCKED, NODE, ALT_NODE, LOCALHOST = "10.0.0.2", "203.0.113.2", "203.0.113.130", *NODE_IPS, "127.0.0.1"
HERE, THERE = endpoint("10.0.1.1", "test-node"), endpoint("10.0.2.1", "node2")
BOTH = {"10.0.1.1:80", "10.0.2.1:80"}
LOCAL = {"10.0.1.1:80"}


def rules_for(*values: dict[str, Any], **settings: Any):
    changes = ServiceChanges("test-node")
    changes.replace({f"{v['service']['metadata']['namespace']}/{v['service']['metadata']['name']}": v for v in values})
    changes.apply()
    node = NodeView("test-node", tuple(map(parse_ip, NODE_IPS)))
    config = ProxyConfig.parse(settings, cluster_cidr="10.0.0.0/8", service_cidr="172.30.0.0/16")
    return BUILDERS[config.mode](config, node, 4).build(changes.ports)


def service(endpoints=(HERE, THERE), **fields: Any) -> dict[str, Any]:
    return value("ns1/svc1", endpoints, **{"cluster_ip": "172.30.0.41", "target": 80, **fields})


def node_port(**fields: Any) -> dict[str, Any]:
    return service(type="NodePort", node_port=3001, **fields)


def load_balancer(**fields: Any) -> dict[str, Any]:
    return service(type="LoadBalancer", node_port=3001, ingress=["1.2.3.4", "5.6.7.8"], **{"externalIPs": ["192.168.99.11"], **fields})


class Flow(NamedTuple):
    claim: str
    value: dict[str, Any]
    src: str
    dst: str
    outcome: str = "delivered"
    to: set[str] = frozenset()  # type: ignore[assignment]
    masq: bool = False
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed
    protocol: str = "tcp"


SVC, NP, LB, EXT = "172.30.0.41:80", "192.168.0.2:3001", "1.2.3.4:80", "192.168.99.11:80"
RANGES = {"loadBalancerSourceRanges": ["192.168.0.0/24", " 203.0.113.0/25"]}
E_LOCAL, I_LOCAL = {"externalTrafficPolicy": "Local"}, {"internalTrafficPolicy": "Local"}
NO_DETECTOR = {"clusterCIDR": ""}
ALL = {"iptables": {"masqueradeAll": True}}
NO_LOCALHOST = {"iptables": {"localhostNodePorts": False}}
ONE_NETWORK = {"nodePortAddresses": ["192.168.0.0/24"]}

FLOWS = [
    # ClusterIP
    Flow("a pod reaches every endpoint by the ClusterIP, as itself", service(), POD, SVC, to=BOTH),
    Flow("a pod reaching itself through its Service is masqueraded", service([HERE]), "10.0.1.1", SVC, to=LOCAL, masq=True),
    Flow("a node reaching a ClusterIP is masqueraded", service(), NODE, SVC, to=BOTH, masq=True),
    Flow("a source outside the cluster reaching a ClusterIP is masqueraded", service(), OUTSIDE, SVC, to=BOTH, masq=True),
    Flow("under masqueradeAll a pod is masqueraded too", service(), POD, SVC, to=BOTH, masq=True, settings=ALL),
    Flow("without a detector nobody is masqueraded", service(), OUTSIDE, SVC, to=BOTH, settings=NO_DETECTOR),
    Flow("without a detector a hairpin still is", service([HERE]), "10.0.1.1", SVC, to=LOCAL, masq=True, settings=NO_DETECTOR),
    Flow("a port that the Service does not have is not handled", service(), POD, "172.30.0.41:443", "unrouted"),
    Flow("a TCP port does not take UDP", service(), POD, SVC, "unrouted", protocol="udp"),
    Flow("a UDP port takes UDP", service(protocol="UDP"), POD, SVC, to=BOTH, protocol="udp"),
    Flow("an SCTP port takes SCTP", service(protocol="SCTP"), POD, SVC, to=BOTH, protocol="sctp"),
    Flow("a pod's own address is none of the proxy's business", service(), POD, "10.0.1.1:80", "unrouted"),
    # nobody there
    Flow("a ClusterIP without endpoints refuses a pod", service([]), POD, SVC, "rejected"),
    Flow("a ClusterIP without endpoints refuses the node", service([]), NODE, SVC, "rejected"),
    Flow("a node port without endpoints refuses an outside client", node_port(endpoints=[]), OUTSIDE, NP, "rejected"),
    Flow("a node port without endpoints refuses a pod", node_port(endpoints=[]), POD, NP, "rejected"),
    Flow("an external IP without endpoints refuses", load_balancer(endpoints=[]), OUTSIDE, EXT, "rejected"),
    Flow("a load balancer's IP without endpoints refuses a pod", load_balancer(endpoints=[]), POD, LB, "rejected"),
    Flow("only terminating endpoints: they answer", service([endpoint("10.0.1.1", ready=False, serving=True, terminating=True)]), POD, SVC,
         to=LOCAL),
    # internalTrafficPolicy
    Flow("iTP Local: only this node's endpoints", service(**I_LOCAL), POD, SVC, to=LOCAL),
    Flow("iTP Local with none here is silent", service([THERE], **I_LOCAL), POD, SVC, "dropped"),
    Flow("iTP Local with none anywhere refuses", service([], **I_LOCAL), POD, SVC, "rejected"),
    Flow("iTP Local does not touch node ports", node_port(**I_LOCAL), OUTSIDE, NP, to=BOTH, masq=True),
    # node ports
    Flow("an outside client reaches every endpoint by a node port, masqueraded", node_port(), OUTSIDE, NP, to=BOTH, masq=True),
    Flow("a pod by a node port is masqueraded too", node_port(), POD, NP, to=BOTH, masq=True),
    Flow("the node itself by its node port", node_port(), NODE, NP, to=BOTH, masq=True),
    Flow("a node port answers on the node's other address", node_port(), OUTSIDE, f"{ALT_NODE}:3001", to=BOTH, masq=True),
    Flow("a node port answers on localhost, masqueraded", node_port(), LOCALHOST, "127.0.0.1:3001", to=BOTH, masq=True),
    Flow("not when that is off", node_port(), LOCALHOST, "127.0.0.1:3001", "local", settings=NO_LOCALHOST),
    Flow("a node port answers only on nodePortAddresses", node_port(), OUTSIDE, NP, to=BOTH, masq=True, settings=ONE_NETWORK),
    Flow("so not on an address outside them", node_port(), OUTSIDE, f"{ALT_NODE}:3001", "local", settings=ONE_NETWORK),
    Flow("nor on localhost", node_port(), LOCALHOST, "127.0.0.1:3001", "local", settings=ONE_NETWORK),
    Flow("any other port of the node is left alone", node_port(), OUTSIDE, "192.168.0.2:22", "local"),
    Flow("another node's node port is none of ours", node_port(), OUTSIDE, "192.168.0.99:3001", "unrouted"),
    # externalTrafficPolicy Local
    Flow("eTP Local: an outside client reaches this node's endpoints only, as itself", node_port(**E_LOCAL), OUTSIDE, NP, to=LOCAL),
    Flow("eTP Local with none here is silent to the outside", node_port(endpoints=[THERE], **E_LOCAL), OUTSIDE, NP, "dropped"),
    Flow("eTP Local with none anywhere refuses", node_port(endpoints=[], **E_LOCAL), OUTSIDE, NP, "rejected"),
    Flow("eTP Local: a pod takes the short cut to all, as itself", node_port(**E_LOCAL), POD, NP, to=BOTH),
    Flow("even with none here", node_port(endpoints=[THERE], **E_LOCAL), POD, NP, to={"10.0.2.1:80"}),
    Flow("eTP Local: the node itself reaches all, masqueraded", node_port(**E_LOCAL), NODE, NP, to=BOTH, masq=True),
    Flow("eTP Local without a detector takes a pod for an outside client", node_port(**E_LOCAL), POD, NP, to=LOCAL, settings=NO_DETECTOR),
    Flow("eTP Local never touches the ClusterIP", node_port(**E_LOCAL), POD, SVC, to=BOTH),
    Flow("masqueradeAll does not touch eTP Local", node_port(**E_LOCAL), OUTSIDE, NP, to=LOCAL, settings=ALL),
    # external IPs, load balancers, source ranges
    Flow("an external IP leads to every endpoint, masqueraded", load_balancer(), OUTSIDE, EXT, to=BOTH, masq=True),
    Flow("a load balancer's IP too", load_balancer(), OUTSIDE, LB, to=BOTH, masq=True),
    Flow("and its second one", load_balancer(), OUTSIDE, "5.6.7.8:80", to=BOTH, masq=True),
    Flow("a load balancer's IP in Proxy mode is not handled", service(type="LoadBalancer", ingress=[{"ip": "1.2.3.4", "ipMode": "Proxy"}]),
         POD, LB, "unrouted"),
    Flow("eTP Local counts for a load balancer's IP", load_balancer(**E_LOCAL), OUTSIDE, LB, to=LOCAL),
    Flow("a source inside the ranges is let in", load_balancer(**RANGES), OUTSIDE, LB, to=BOTH, masq=True),
    Flow("a source outside the ranges is dropped", load_balancer(**RANGES), BLOCKED, LB, "dropped"),
    Flow("a pod is not exempt from the ranges", load_balancer(**RANGES), POD, LB, "dropped"),
    Flow("a node in the ranges is let in", load_balancer(**RANGES), NODE, LB, to=BOTH, masq=True),
    Flow("also under the load balancer's own address", load_balancer(**RANGES), "1.2.3.4", LB, to=BOTH, masq=True),
    Flow("ranges do not guard the node port", load_balancer(**RANGES), BLOCKED, NP, to=BOTH, masq=True),
    Flow("ranges do not guard external IPs", load_balancer(**RANGES), BLOCKED, EXT, to=BOTH, masq=True),
    Flow("a blocked source is refused like all others when there are no endpoints", load_balancer(endpoints=[], **RANGES), BLOCKED, LB,
         "rejected"),
    Flow("a health check port is open", load_balancer(healthCheckNodePort=30000, **E_LOCAL), OUTSIDE, "192.168.0.2:30000", "local"),
]  # fmt: skip


# Where nftables mode differs, for its users as upstream documents it: what is no port of a cluster IP is refused, what is no cluster IP
# is dropped, node ports are the primary address's unless told otherwise and never localhost's, and ranges come before the lack of
# endpoints.
IN_NFTABLES = {
    "a port that the Service does not have is not handled": ("rejected", set(), False),
    "a TCP port does not take UDP": ("rejected", set(), False),
    "a node port answers on the node's other address": ("local", set(), False),
    "a node port answers on localhost, masqueraded": ("local", set(), False),
    "a blocked source is refused like all others when there are no endpoints": ("dropped", set(), False),
}


@pytest.mark.parametrize("flow", FLOWS, ids=[flow.claim for flow in FLOWS])
def test_a_first_packet_in_nftables_mode(flow):
    own = flow.settings.get("iptables", {})
    settings = {key: value for key, value in flow.settings.items() if key != "iptables"}
    nftables = {key: value for key, value in own.items() if key != "localhostNodePorts"}
    rules = rules_for(flow.value, mode="nftables", **settings, **({"nftables": nftables} if nftables else {}))
    answer = FlowNode(rules, NODE_IPS).ask(f"{flow.src}:40000", flow.dst, flow.protocol)
    expected = IN_NFTABLES.get(flow.claim, (flow.outcome, set(flow.to), flow.masq))
    assert (answer.outcome, answer.to, answer.masquerade) == expected


@pytest.mark.parametrize("flow", FLOWS, ids=[flow.claim for flow in FLOWS])
def test_a_first_packet(flow):
    answer = FlowNode(rules_for(flow.value, **flow.settings), NODE_IPS).ask(f"{flow.src}:40000", flow.dst, flow.protocol)
    assert (answer.outcome, answer.to, answer.masquerade) == (flow.outcome, set(flow.to), flow.masq)


@pytest.mark.parametrize(("endpoints", "worst"), [(2, 10.83), (3, 13.82), (4, 16.27), (7, 22.46)])
def test_connections_spread_evenly_over_the_endpoints(endpoints, worst):
    """χ² over 2,000 seeded connections stays below its 99.9 % point for n-1 degrees of freedom."""
    node = FlowNode(rules_for(service([f"10.0.1.{i}" for i in range(1, endpoints + 1)])), NODE_IPS)
    counts = node.sample(f"{POD}:40000", SVC, 2000, seed=1)
    expected = 2000 / endpoints
    assert len(counts) == endpoints
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < worst


def test_the_walk_grows_with_the_services_before_the_match():
    """Rule by rule is what iptables mode costs: the last of 300 Services is 299 rules later than the first."""
    rules = rules_for(*(value(f"ns1/svc{i:03}", ["10.0.1.1"], cluster_ip=f"172.30.{i >> 8}.{i & 255}", target=80) for i in range(300)))
    node = FlowNode(rules, NODE_IPS)
    first, last = node.ask(f"{POD}:40000", "172.30.0.0:80"), node.ask(f"{POD}:40000", "172.30.1.43:80")
    assert last.rules - first.rules == 299


class Clients:
    """A node under one rule set, whose clients come one after the other at times of their own."""

    def __init__(self, mode: str, *values: dict[str, Any], seed: int = 3) -> None:
        self.node = FlowNode(rules_for(*values, mode=mode), NODE_IPS, seed=seed)

    def __call__(self, src: str, dst: str, at: float) -> str:
        self.node.now = at
        (backend,) = self.node.once(f"{src}:40000", dst).to
        return backend


STICKY = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 100}}}
MANY = [f"10.0.1.{i}" for i in range(1, 9)]


@pytest.mark.parametrize("mode", BUILDERS)
def test_a_client_keeps_its_backend_by_every_address_of_the_service_until_it_was_quiet_for_the_time(mode):
    ask = Clients(mode, node_port(endpoints=MANY, **STICKY))
    first = ask(POD, SVC, 0.0)
    assert {ask(POD, SVC, at) for at in (1.0, 90.0, 189.0, 288.0)} == {first}, "each connection renews the time"
    assert ask(POD, NP, 300.0) == first
    assert len({ask(f"10.0.9.{i}", SVC, 301.0) for i in range(40)}) > 4, "others are spread"
    later = {ask(POD, SVC, 300.0 + 101.0 * (i + 1)) for i in range(30)}
    assert len(later) > 3, "who comes after the time is drawn anew"


@pytest.mark.parametrize("mode", BUILDERS)
def test_affinity_is_a_port_s_own_and_goes_with_its_endpoint(mode):
    other = value("ns1/svc2", MANY, cluster_ip="172.30.0.42", target=80, **STICKY)
    ask = Clients(mode, service(endpoints=MANY, **STICKY), other)
    pairs = {(ask(f"10.0.9.{i}", SVC, 1.0) == ask(f"10.0.9.{i}", "172.30.0.42:80", 1.0)) for i in range(40)}
    assert False in pairs
    gone = ask(POD, SVC, 2.0)
    ask.node.ruleset = rules_for(service(endpoints=[ip for ip in MANY if not gone.startswith(f"{ip}:")], **STICKY), mode=mode)
    assert ask(POD, SVC, 3.0) != gone
