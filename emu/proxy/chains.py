"""The rules of one service port, iptables mode: its own chains, and its lines in the chains that all Services share.

    KUBE-SERVICES    ClusterIP ------------------------> KUBE-SVC --+-> KUBE-SEP  DNAT to one endpoint
                     external IP, LB VIP -> [KUBE-FW] -> KUBE-EXT --+-> KUBE-SEP  DNAT to another
    KUBE-NODEPORTS   node port ------------------------> KUBE-EXT --+
                                                            +-> KUBE-SVL -> KUBE-SEP of this node's endpoints only

Decides which chains exist and what they say, order included; who the endpoints are is `endpoints`' decision. A pure
function of the service port, so that the result can be kept for as long as the service port and the node stay the same.
Spec: kubernetes `pkg/proxy/iptables/proxier.go` (`syncProxyRules`, `writeServiceToEndpointRules`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from emu.netfilter.late import LateRules
from emu.netfilter.ruleset import (
    Accept,
    AddressType,
    Chain,
    Comment,
    Destination,
    DestinationPort,
    Dnat,
    Drop,
    Extension,
    Jump,
    Match,
    Option,
    Protocol,
    Reject,
    Rule,
    Source,
    Statistic,
    Target,
)
from emu.proxy.detector import Detector
from emu.proxy.endpoints import Choice
from emu.proxy.names import KUBE_MARK_MASQ, endpoint_chain, port_hash
from emu.proxy.serviceport import EndpointInfo, ServicePortInfo
from emu.wire.addr import Ip, Network

MARK_FOR_MASQUERADE = Jump(KUBE_MARK_MASQ)
SOURCE_IS_NODE = AddressType("src")
DESTINATION_IS_NODE = AddressType("dst")
WHOLE = {4: "255.255.255.255", 6: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}  # xt_recent's own mask: every client by himself


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What all service ports of one rule set have in common."""

    family: int
    detector: Detector | None
    masquerade_all: bool
    node_ip: Ip | None  # the primary address, which may lie in a source range
    large_cluster: bool = False  # leave comments out of the many rules (kube-proxy above 1,000 endpoints)


@dataclass(frozen=True, slots=True)
class PortRules:
    """What one service port adds: lines of shared chains, by table, and its own nat chains in printing order."""

    nat_services: tuple[Rule, ...]
    nat_node_ports: tuple[Rule, ...]
    filter_services: tuple[Rule, ...]
    filter_external: tuple[Rule, ...]
    filter_node_ports: tuple[Rule, ...]
    filter_firewall: tuple[Rule, ...]
    chains: Mapping[str, Chain]
    size: int  # rules in `chains`


NO_RULES = PortRules((), (), (), (), (), (), {}, 0)


class LateChain(LateRules, Chain):
    """A late chain of `length` rules."""

    __slots__ = ("_subject", "_write", "length")
    length: int

    def __init__(self, name: str, length: int, write: Callable[[Any], Iterable[Rule]], subject: object) -> None:
        put = object.__setattr__
        put(self, "name", name)
        put(self, "policy", None)
        put(self, "program", None)
        put(self, "length", length)
        put(self, "_write", write)
        put(self, "_subject", subject)


def host(ip: Ip) -> Network:
    """The /32 or /128 of one address."""
    return Network(ip, len(ip) * 8, int.from_bytes(ip, "big"), (1 << len(ip) * 8) - 1)


def port_rules(port: ServicePortInfo, choice: Choice, around: Circumstances) -> PortRules:
    """All rules of one service port."""
    return _Writer(port, choice, around).write()


class _Writer:
    """Holds what the rules of one service port share while they are written: names, matches, verdicts. Late chains keep it."""

    __slots__ = (
        "around",
        "choice",
        "ext",
        "fw",
        "has_firewall",
        "label",
        "plain_comment",
        "port",
        "protocol",
        "reject",
        "sep",
        "svc",
        "svl",
    )

    def __init__(self, port: ServicePortInfo, choice: Choice, around: Circumstances) -> None:
        self.port, self.choice, self.around = port, choice, around
        digest = port_hash(port.name)
        self.svc, self.svl = f"KUBE-SVC-{digest}", f"KUBE-SVL-{digest}"
        self.ext, self.fw = f"KUBE-EXT-{digest}", f"KUBE-FW-{digest}"
        self.label = str(port.name)
        self.plain_comment = Comment(self.label)
        self.sep = {endpoint.text: endpoint_chain(port.name, endpoint.text) for endpoint in choice.used}
        self.protocol: Match = Protocol(port.protocol)
        self.reject: Target = Reject("icmp-port-unreachable" if around.family == 4 else "icmp6-port-unreachable")
        self.has_firewall = bool(port.source_ranges and port.load_balancer_ips)

    def write(self) -> PortRules:
        port, choice = self.port, self.choice
        health_port = port.health_check_node_port
        chains = {chain.name: chain for chain in self.chains()}
        health: Iterable[Rule] = (
            [Rule((self.comment("health check node port"), self.protocol, self.to_port(health_port)), Accept())] if health_port else ()
        )
        return PortRules(
            nat_services=tuple(self.nat_services()),
            nat_node_ports=tuple(self.nat_node_ports()),
            filter_services=tuple(self.unanswered_cluster_ip()),
            filter_external=tuple(self.unanswered_external()),
            filter_node_ports=tuple(health),
            filter_firewall=tuple(self.firewall_drops()) if choice.has_any else (),
            chains=chains,
            size=sum(chain.length if isinstance(chain, LateChain) else len(chain.rules) for chain in chains.values()),
        )

    # ---- pieces of rules

    def comment(self, text: str) -> Comment:
        return Comment(f"{self.label} {text}")

    def to_port(self, number: int) -> DestinationPort:
        return DestinationPort(self.port.protocol, number, number)

    def toward(self, ip: Ip, what: str, *more: Match, target: Target) -> Rule:
        """A line for traffic to `ip` and the Service's port."""
        return Rule((self.comment(what), self.protocol, Destination(host(ip)), self.to_port(self.port.port), *more), target)

    # ---- lines of the shared nat chains: addresses to chains

    def nat_services(self) -> Iterable[Rule]:
        port = self.port
        if self.candidates_for_cluster_ip():
            yield self.toward(port.cluster_ip, "cluster IP", target=Jump(self.svl if port.internal_local else self.svc))
        if not self.choice.has_any:
            return
        for ip in port.external_ips:
            yield self.toward(ip, "external IP", target=Jump(self.ext))
        for ip in port.load_balancer_ips:
            yield self.toward(ip, "loadbalancer IP", target=Jump(self.fw if self.has_firewall else self.ext))

    def nat_node_ports(self) -> Iterable[Rule]:
        """Node ports are never subject to source ranges: those guard the load balancer's address only."""
        if self.port.node_port and self.choice.has_any:
            yield Rule((self.plain_comment, self.protocol, self.to_port(self.port.node_port)), Jump(self.ext))

    # ---- lines of the shared filter chains: what nobody can answer

    def candidates_for_cluster_ip(self) -> tuple[EndpointInfo, ...]:
        return (self.choice.local if self.port.internal_local else self.choice.cluster) or ()

    def candidates_for_external(self) -> tuple[EndpointInfo, ...]:
        return (self.choice.local if self.port.external_local else self.choice.cluster) or ()

    def refusal(self) -> tuple[str, Target]:
        """Nobody anywhere: say so at once. Nobody here: stay silent, as a load balancer's health check would have us."""
        return ("has no local endpoints", Drop()) if self.choice.has_any else ("has no endpoints", self.reject)

    def unanswered_cluster_ip(self) -> Iterable[Rule]:
        if not self.candidates_for_cluster_ip():
            text, target = self.refusal()
            yield self.toward(self.port.cluster_ip, text, target=target)

    def unanswered_external(self) -> Iterable[Rule]:
        """In filter, after DNAT: what the short circuit of KUBE-EXT has translated no longer has this destination."""
        port = self.port
        if self.candidates_for_external():
            return
        text, target = self.refusal()
        for ip in (*port.external_ips, *port.load_balancer_ips):
            yield self.toward(ip, text, target=target)
        if port.node_port:
            yield Rule((self.comment(text), DESTINATION_IS_NODE, self.protocol, self.to_port(port.node_port)), target)

    def firewall_drops(self) -> Iterable[Rule]:
        """Accepted traffic has been translated; what still bears the VIP was not let through by KUBE-FW."""
        for ip in self.port.load_balancer_ips if self.has_firewall else ():
            yield self.toward(ip, f"traffic not accepted by {self.fw}", target=Drop())

    # ---- the service port's own chains

    def chains(self) -> Iterable[Chain]:
        choice, external = self.choice, self.port.externally_accessible
        if choice.has_any and external:
            yield Chain(self.ext, tuple(self.external_chain()))
        if choice.has_any and self.has_firewall:
            yield Chain(self.fw, tuple(self.firewall_chain()))
        if choice.cluster:
            yield self.balancing_chain(self.svc, choice.cluster, internal=not self.port.internal_local)
        if choice.local:
            yield self.balancing_chain(self.svl, choice.local, internal=self.port.internal_local)
        write, length = self.endpoint_rules, 2
        for endpoint in choice.used:
            yield LateChain(self.sep[endpoint.text], length, write, endpoint)

    def external_chain(self) -> Iterable[Rule]:
        """KUBE-EXT: traffic from outside, which under `Cluster` must come back through this node, hence the mark."""
        destinations = f"{self.label} external destinations"
        if not self.port.external_local:
            yield Rule((Comment(f"masquerade traffic for {destinations}"),), MARK_FOR_MASQUERADE)
            yield Rule((), Jump(self.svc))
            return
        if self.around.detector is not None:
            yield Rule((Comment(f"pod traffic for {destinations}"), self.around.detector.local), Jump(self.svc))
        yield Rule((Comment(f"masquerade LOCAL traffic for {destinations}"), SOURCE_IS_NODE), MARK_FOR_MASQUERADE)
        yield Rule((Comment(f"route LOCAL traffic for {destinations}"), SOURCE_IS_NODE), Jump(self.svc))
        if self.choice.local:
            yield Rule((), Jump(self.svl))

    def firewall_chain(self) -> Iterable[Rule]:
        """KUBE-FW: who may use the load balancer's address. The node itself speaks from the VIP when it is in a range."""
        node_ip, comment, onward = self.around.node_ip, self.comment("loadbalancer IP"), Jump(self.ext)
        for cidr in self.port.source_ranges:
            yield Rule((comment, Source(cidr)), onward)
        if node_ip is not None and any(node_ip in cidr for cidr in self.port.source_ranges):
            for ip in self.port.load_balancer_ips:
                yield Rule((comment, Source(host(ip))), onward)
        yield Rule((Comment(f"other traffic to {self.label} will be dropped by KUBE-PROXY-FIREWALL"),))

    def balancing_chain(self, name: str, endpoints: tuple[EndpointInfo, ...], *, internal: bool) -> Chain:
        """KUBE-SVC and KUBE-SVL: what comes from no pod is marked, then the endpoints share the rest."""
        first = internal and (self.around.masquerade_all or self.around.detector is not None)
        length = first + len(endpoints) * (2 if self.port.affinity_seconds else 1)
        return LateChain(name, length, self.balancing_rules, (first, endpoints))

    def balancing_rules(self, subject: tuple[bool, tuple[EndpointInfo, ...]]) -> Iterable[Rule]:
        """Whom a client has had of late he gets again; then the i-th of n rules takes 1/(n-i) of what is left, so each gets 1/n."""
        first, endpoints = subject
        if first:
            yield from self.cluster_ip_masquerade()
        if self.port.affinity_seconds:
            yield from map(self.affinity_rule, endpoints)
        last = len(endpoints) - 1
        for i, endpoint in enumerate(endpoints):
            matches: tuple[Match, ...] = () if self.around.large_cluster else (self.comment(f"-> {endpoint.text}"),)
            if i < last:
                matches += (Statistic(1 / (last - i + 1)),)
            yield Rule(matches, Jump(self.sep[endpoint.text]))

    def affinity_rule(self, endpoint: EndpointInfo) -> Rule:
        """Is the client in the endpoint's list, and was there a connection of his in so many seconds?"""
        chain = self.sep[endpoint.text]
        comment: tuple[Match, ...] = () if self.around.large_cluster else (self.comment(f"-> {endpoint.text}"),)
        timed = (Option("--rcheck"), Option("--seconds", (str(self.port.affinity_seconds),)), Option("--reap"))
        return Rule((*comment, Extension("recent", (*timed, *self.client_list(chain)))), Jump(chain))

    def client_list(self, chain: str) -> tuple[Option, ...]:
        """The list of an endpoint's clients, by source address."""
        return Option("--name", (chain,)), Option("--mask", (WHOLE[self.around.family],)), Option("--rsource")

    def cluster_ip_masquerade(self) -> Iterable[Rule]:
        """A source that is no pod of ours is told to come back through this node; nobody else knows the ClusterIP."""
        if self.around.masquerade_all:
            yield self.toward(self.port.cluster_ip, "cluster IP", target=MARK_FOR_MASQUERADE)
        elif self.around.detector is not None:
            yield self.toward(self.port.cluster_ip, "cluster IP", self.around.detector.not_local, target=MARK_FOR_MASQUERADE)

    def endpoint_rules(self, endpoint: EndpointInfo) -> Iterable[Rule]:
        """KUBE-SEP: mark a pod that reaches itself (else its answer would never leave it), note who came, then DNAT."""
        comment: tuple[Match, ...] = () if self.around.large_cluster else (self.plain_comment,)
        noted: tuple[Match, ...] = ()
        if self.port.affinity_seconds:
            noted = (Extension("recent", (Option("--set"), *self.client_list(self.sep[endpoint.text]))),)
        yield Rule((*comment, Source(host(endpoint.to.ip))), MARK_FOR_MASQUERADE)
        yield Rule((*comment, *noted, self.protocol), Dnat(endpoint.to))
