"""nftables mode: one table of one node, in kube-proxy's chains, sets and maps (the layout up to Kubernetes 1.35).

    services        daddr . proto . dport -> vmap @service-ips         -> service- (cluster IP), local-, external-
                    nodeport-ips: proto . dport -> @service-nodeports  -> external-
    external-       mark, then service-; under externalTrafficPolicy Local: short cuts, then local-
    service-        affinity sets, then numgen random -> endpoint-     DNAT to one endpoint

Decides which chains, sets and elements exist and what they say; who the endpoints are is `endpoints`'. A first packet costs look-ups,
not a walk over Services. `NftablesBuilder` keeps each service port's part while the port is the same object.
Spec: kubernetes `pkg/proxy/nftables/proxier.go`, README.md there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from emu.netfilter import nft
from emu.netfilter.hooks import Hook
from emu.netfilter.ruleset import RuleSet
from emu.proxy.chainbook import Draft
from emu.proxy.chains import host
from emu.proxy.config import LOOPBACK_NETWORK, ProxyConfig
from emu.proxy.detector import NodeView, nft_detector
from emu.proxy.elements import Elements
from emu.proxy.endpoints import Choice, Place, choose
from emu.proxy.names import ServicePortName, nft_base, nft_endpoint_base
from emu.proxy.serviceport import EndpointInfo, ServicePortInfo
from emu.wire.addr import Ip

TABLE, COMMENT = "kube-proxy", "rules for kube-proxy"
MARK_CHAIN, REJECT_CHAIN = "mark-for-masquerade", "reject-chain"
CLUSTER_IPS, NODE_PORT_IPS = "cluster-ips", "nodeport-ips"

# name, type, hook, priority and how kube-proxy writes it
BASES: tuple[tuple[str, nft.Base], ...] = (
    ("filter-prerouting-pre-dnat", nft.Base("filter", Hook.PREROUTING, -110, "dstnat - 10")),
    ("filter-output-pre-dnat", nft.Base("filter", Hook.OUTPUT, -110, "-110")),  # `dstnat` is a word in prerouting alone
    ("filter-input", nft.Base("filter", Hook.INPUT, 0, "filter")),
    ("filter-forward", nft.Base("filter", Hook.FORWARD, 0, "filter")),
    ("filter-output", nft.Base("filter", Hook.OUTPUT, 0, "filter")),
    ("nat-prerouting", nft.Base("nat", Hook.PREROUTING, -100, "dstnat")),
    ("nat-output", nft.Base("nat", Hook.OUTPUT, -100, "-100")),
    ("nat-postrouting", nft.Base("nat", Hook.POSTROUTING, 100, "srcnat")),
)
# base chain to the chains that it jumps to, and whether for new connections only
JUMPS: tuple[tuple[str, str, bool], ...] = (
    ("filter-prerouting-pre-dnat", "firewall-check", True),
    ("filter-output-pre-dnat", "firewall-check", True),
    ("filter-input", "nodeport-endpoints-check", True),
    ("filter-input", "service-endpoints-check", True),
    ("filter-forward", "service-endpoints-check", True),
    ("filter-forward", "cluster-ips-check", True),
    ("filter-output", "service-endpoints-check", True),
    ("filter-output", "cluster-ips-check", True),
    ("nat-prerouting", "services", False),
    ("nat-output", "services", False),
    ("nat-postrouting", "masquerading", False),
)
MAPS: tuple[tuple[str, bool, str], ...] = (  # name, by address, comment
    ("no-endpoint-services", True, "vmap to drop or reject packets to services with no endpoints"),
    ("no-endpoint-nodeports", False, "vmap to drop or reject packets to service nodeports with no endpoints"),
    ("firewall-ips", True, "destinations that are subject to LoadBalancerSourceRanges"),
    ("service-ips", True, "ClusterIP, ExternalIP and LoadBalancer IP traffic"),
    ("service-nodeports", False, "NodePort traffic"),
)
UNANSWERED = ("no-endpoint-services", "no-endpoint-nodeports")  # whose elements say by a comment which Service it is
Element = tuple[nft.ElementVerdict, str]


@dataclass(slots=True)
class PortPart:
    """What one service port adds: elements by map, and its own chains and sets."""

    maps: dict[str, dict[bytes, Element]] = field(default_factory=dict)
    chains: dict[str, nft.Chain] = field(default_factory=dict)
    sets: dict[str, nft.AddressSet] = field(default_factory=dict)
    cluster_ip: Ip | None = None


NOTHING = PortPart()


class NftablesBuilder:
    """Builds one rule set after the other, sharing what did not change. One node view for life.

    `rules` is the number of rules of the fixed chains and of map elements, by name; `endpoints` that of all endpoints.
    """

    def __init__(self, config: ProxyConfig, node: NodeView, family: int = 4) -> None:
        self._config, self._node, self._family = config, node, family
        self._place = Place(node.name, node.zone)
        self._mark = config.nftables.masquerade_mark
        self._local = nft_detector(config, node, family)
        self._node_ip = next((ip for ip in node.ips if (len(ip) == 4) == (family == 4)), None)
        self._node_ports_on = config.node_ports_on(node.ips, family)
        self._kept: dict[ServicePortName, tuple[ServicePortInfo, PortPart]] = {}
        self._cluster_ips: dict[Ip, int] = {}
        self._draft = Draft[nft.Chain]()
        self._own: Mapping[str, nft.Chain] = {}
        self._own_sets: dict[str, nft.AddressSet] = {}
        self._elements = {name: Elements[Element]() for name, _, _ in MAPS}
        self._maps: dict[str, nft.VerdictMap] = {}
        self._fixed = {chain.name: chain for chain in self._fixed_chains()}
        self._bases = tuple(self._fixed[name] for name, _ in BASES)
        self._fixed_sets: dict[str, nft.AddressSet] = {}
        self.endpoints = 0
        self.rules: dict[str, int] = {}

    def build(self, ports: Mapping[ServicePortName, ServicePortInfo], changed: Iterable[ServicePortName] | None = None) -> RuleSet:
        """The rule set for `ports`; `changed` names those that are other objects than at the last call (None: look at all)."""
        moved = self._different(ports) if changed is None else sorted(changed)
        touched: set[str] = set() if self._maps else {name for name, _, _ in MAPS}
        addresses = len(self._cluster_ips)
        for port_name in moved:
            self._replace(port_name, ports.get(port_name), touched)
        if moved or not self._own:
            self._own = self._draft.book(self._fixed, [part for _, part in self._kept.values()])
        if touched or len(self._cluster_ips) != addresses or not self._fixed_sets:
            self._fixed_sets = {one.name: one for one in self._shared_sets()}
        for name, by_address, comment in MAPS:
            if name in touched:
                self._maps[name] = nft.VerdictMap(name, by_address, dict(self._elements[name].now), comment)
        sets = {**self._fixed_sets, **self._own_sets}
        table = nft.Table(TABLE, self._family, self._own, sets, dict(self._maps), self._bases, COMMENT)
        self.rules = {name: len(found.elements) for name, found in self._maps.items()}
        return RuleSet(nft=table)

    def _different(self, ports: Mapping[ServicePortName, ServicePortInfo]) -> list[ServicePortName]:
        gone = [name for name in self._kept if name not in ports]
        return sorted([*gone, *(name for name, port in ports.items() if self._kept.get(name, (None,))[0] is not port)])

    def _replace(self, name: ServicePortName, port: ServicePortInfo | None, touched: set[str]) -> None:
        """Take the old part of a service port out, and put its new one in."""
        old_port, old = self._kept.pop(name, (None, NOTHING))
        new = NOTHING
        if port is not None:
            new = _Writer(port, choose(port, self._place), self).write()
            self._kept[name] = (port, new)
        self.endpoints += (len(port.endpoints) if port else 0) - (len(old_port.endpoints) if old_port else 0)
        for map_name in old.maps.keys() | new.maps.keys():
            before, after = old.maps.get(map_name, {}), new.maps.get(map_name, {})
            if before == after:
                continue
            touched.add(map_name)
            self._elements[map_name].change(name, before, after)
        self._draft.change(old.chains, new.chains)
        for one in old.sets.keys() - new.sets.keys():
            del self._own_sets[one]
        self._own_sets.update(new.sets)
        for part, step in ((old, -1), (new, 1)):
            if part.cluster_ip is not None:
                count = self._cluster_ips.get(part.cluster_ip, 0) + step
                self._cluster_ips[part.cluster_ip] = count
                if not count:
                    del self._cluster_ips[part.cluster_ip]

    # ---- what all Services share -------------------------------------------------------------------------------------------------

    def _shared_sets(self) -> Iterator[nft.AddressSet]:
        yield nft.AddressSet(CLUSTER_IPS, frozenset(self._cluster_ips), comment="Active ClusterIPs")
        if self._node_ports_on is not None:
            yield nft.AddressSet(NODE_PORT_IPS, frozenset(self._node_ports_on), comment="IPs that accept NodePort traffic")

    def _fixed_chains(self) -> Iterator[nft.Chain]:
        own = {
            MARK_CHAIN: (nft.Rule((), (nft.MarkOr(self._mark),)),),
            "masquerading": (
                nft.Rule((nft.MarkIsClear(self._mark),), (nft.Return(),)),
                nft.Rule((), (nft.MarkXor(self._mark),)),
                nft.Rule((), (nft.Masquerade(),)),
            ),
            "cluster-ips-check": (
                nft.Rule((nft.AddressInSet("daddr", CLUSTER_IPS),), (nft.Reject(),), "Reject traffic to invalid ports of ClusterIPs"),
                *self._unallocated(),
            ),
            REJECT_CHAIN: (nft.Rule((), (nft.Reject(),)),),
            "service-endpoints-check": (nft.Rule((), (nft.Lookup("no-endpoint-services"),)),),
            "nodeport-endpoints-check": (self._by_node_port("no-endpoint-nodeports"),),
            "firewall-check": (nft.Rule((), (nft.Lookup("firewall-ips"),)),),
            "services": (nft.Rule((), (nft.Lookup("service-ips"),)), self._by_node_port("service-nodeports")),
        }
        comments = {REJECT_CHAIN: "helper for @no-endpoint-services / @no-endpoint-nodeports"}
        new = (nft.CtStateNew(),)
        for name, base in BASES:
            jumps = [nft.Rule(new if for_new else (), (nft.Jump(to),)) for start, to, for_new in JUMPS if start == name]
            yield nft.Chain(name, tuple(jumps), base)
        for name, rules in own.items():
            yield nft.Chain(name, rules, comment=comments.get(name, ""))

    def _unallocated(self) -> Iterator[nft.Rule]:
        """What is left of the Service network answers nobody."""
        networks = tuple(cidr for cidr in self._config.service_cidrs if (len(cidr.address) == 4) == (self._family == 4))
        if networks:
            yield nft.Rule((nft.AddressIn("daddr", networks),), (nft.Drop(),), "Drop traffic to unallocated ClusterIPs")

    def _by_node_port(self, name: str) -> nft.Rule:
        """A look-up by port alone, for packets to an address of the node that answers node ports."""
        conditions: tuple[nft.Condition, ...] = (nft.AddressInSet("daddr", NODE_PORT_IPS),)
        if self._node_ports_on is None:
            loopback = LOOPBACK_NETWORK if self._family == 4 else host(bytes(15) + b"\x01")
            conditions = (nft.FibLocal("daddr"), nft.Address("daddr", loopback, invert=True))
        return nft.Rule(conditions, (nft.Lookup(name, by_address=False),))

    # ---- what writers ask --------------------------------------------------------------------------------------------------------

    @property
    def local(self) -> tuple[nft.Condition, nft.Condition] | None:
        """What tells a pod's traffic, and everybody else's; None without a detector."""
        return self._local

    @property
    def masquerade_all(self) -> bool:
        return self._config.nftables.masquerade_all

    @property
    def node_ip(self) -> Ip | None:
        return self._node_ip


class _Writer:
    """Writes one service port's part. Late chains keep it."""

    __slots__ = ("builder", "choice", "external", "firewall", "label", "local", "port", "service")

    def __init__(self, port: ServicePortInfo, choice: Choice, builder: NftablesBuilder) -> None:
        self.port, self.choice, self.builder = port, choice, builder
        base = nft_base(port.name)
        self.service, self.local = f"service-{base}", f"local-{base}"
        self.external, self.firewall = f"external-{base}", f"firewall-{base}"
        self.label = str(port.name)

    def write(self) -> PortPart:
        port, choice = self.port, self.choice
        part = PortPart(cluster_ip=port.cluster_ip)
        internal = (choice.local if port.internal_local else choice.cluster) or ()
        external = (choice.local if port.external_local else choice.cluster) or ()
        key = nft.service_key(port.cluster_ip, port.protocol, port.port)
        if internal:
            self._add(part, "service-ips", key, nft.Jump(self.local if port.internal_local else self.service, goto=True))
        else:
            self._add(part, "no-endpoint-services", key, self._nobody())
        for ip in (*port.external_ips, *port.load_balancer_ips):
            key = nft.service_key(ip, port.protocol, port.port)
            if choice.has_any:
                self._add(part, "service-ips", key, nft.Jump(self.external, goto=True))
            if not external:
                self._add(part, "no-endpoint-services", key, self._nobody())
            if ip in port.load_balancer_ips and port.source_ranges:
                self._add(part, "firewall-ips", key, nft.Jump(self.firewall, goto=True))
        if port.node_port:
            key = nft.port_key(port.protocol, port.node_port)
            if choice.has_any:
                self._add(part, "service-nodeports", key, nft.Jump(self.external, goto=True))
            if not external:
                self._add(part, "no-endpoint-nodeports", key, self._nobody())
        for chain in self._chains():
            part.chains[chain.name] = chain
        if port.affinity_seconds:
            for endpoint in choice.used:
                name = self._affinity(endpoint)
                part.sets[name] = nft.AddressSet(name, timeout=port.affinity_seconds)
        return part

    def _add(self, part: PortPart, name: str, key: bytes, verdict: nft.ElementVerdict) -> None:
        part.maps.setdefault(name, {})[key] = (verdict, self.label if name in UNANSWERED else "")

    def _nobody(self) -> nft.ElementVerdict:
        """Nobody anywhere: say so at once. Nobody here: stay silent."""
        return nft.Drop() if self.choice.has_any else nft.Jump(REJECT_CHAIN, goto=True)

    def _affinity(self, endpoint: EndpointInfo) -> str:
        return f"affinity-{nft_endpoint_base(self.port.name, endpoint.to)}"

    def _endpoint(self, endpoint: EndpointInfo) -> str:
        return f"endpoint-{nft_endpoint_base(self.port.name, endpoint.to)}"

    def _chains(self) -> Iterator[nft.Chain]:
        port, choice = self.port, self.choice
        if port.source_ranges and port.load_balancer_ips:
            yield nft.Chain(self.firewall, (self._guard(),))
        if choice.has_any and port.externally_accessible:
            yield nft.Chain(self.external, tuple(self._external_rules()))
        if choice.cluster:
            yield nft.LateChain(self.service, self._balancing, (choice.cluster, not port.internal_local))
        if choice.local:
            yield nft.LateChain(self.local, self._balancing, (choice.local, port.internal_local))
        for endpoint in choice.used:
            yield nft.LateChain(self._endpoint(endpoint), self._endpoint_rules, endpoint)

    def _guard(self) -> nft.Rule:
        """Before DNAT: a source outside the ranges sees nothing, endpoints or not. The node itself speaks from the VIP."""
        port, node_ip = self.port, self.builder.node_ip
        ranges = port.source_ranges
        if node_ip is not None and any(node_ip in cidr for cidr in ranges):
            ranges = (*ranges, *map(host, port.load_balancer_ips))
        return nft.Rule((nft.AddressIn("saddr", ranges, invert=True),), (nft.Drop(),))

    def _external_rules(self) -> Iterator[nft.Rule]:
        if not self.port.external_local:
            yield nft.Rule((), (nft.Jump(MARK_CHAIN),))
            yield nft.Rule((), (nft.Jump(self.service, goto=True),))
            return
        onward, local = (nft.Jump(self.service, goto=True),), self.builder.local
        if local is not None:
            yield nft.Rule((local[0],), onward, "short-circuit pod traffic")
        here = (nft.FibLocal("saddr"),)
        yield nft.Rule(here, (nft.Jump(MARK_CHAIN),), "masquerade local traffic")
        yield nft.Rule(here, onward, "short-circuit local traffic")
        if self.choice.local:
            yield nft.Rule((), (nft.Jump(self.local, goto=True),))

    def _balancing(self, subject: tuple[tuple[EndpointInfo, ...], bool]) -> Iterator[nft.Rule]:
        endpoints, internal = subject
        to_cluster_ip = nft.Address("daddr", host(self.port.cluster_ip))
        if internal and self.builder.masquerade_all:
            yield nft.Rule((to_cluster_ip,), (nft.Jump(MARK_CHAIN),))
        elif internal and self.builder.local is not None:
            yield nft.Rule((to_cluster_ip, self.builder.local[1]), (nft.Jump(MARK_CHAIN),))
        chains = tuple(self._endpoint(endpoint) for endpoint in endpoints)
        if self.port.affinity_seconds:
            for endpoint, chain in zip(endpoints, chains, strict=True):
                yield nft.Rule((nft.AddressInSet("saddr", self._affinity(endpoint)),), (nft.Jump(chain, goto=True),))
        yield nft.Rule((), (nft.Spread(chains),))

    def _endpoint_rules(self, endpoint: EndpointInfo) -> Iterator[nft.Rule]:
        yield nft.Rule((nft.Address("saddr", host(endpoint.to.ip)),), (nft.Jump(MARK_CHAIN),))
        if self.port.affinity_seconds:
            yield nft.Rule((), (nft.Update(self._affinity(endpoint)),))
        yield nft.Rule((nft.L4Proto(self.port.protocol),), (nft.Dnat(endpoint.to),))


def build(ports: Mapping[ServicePortName, ServicePortInfo], config: ProxyConfig, node: NodeView, family: int = 4) -> RuleSet:
    """The rule set of one node and IP family for these service ports, from nothing."""
    return NftablesBuilder(config, node, family).build(ports)
