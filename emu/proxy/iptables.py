"""iptables mode: the whole rule set of one node, in kube-proxy's chains and order.

Decides how the service ports' rules are put together and what stands around them: the jumps from the built-in chains,
forwarding, masquerade. `build` is pure; `IptablesBuilder` gives the same answer and keeps each service port's rules
while the port is the same object, so that one change among 10,000 Services makes one Service's rules, and the walk can
see by identity what changed. Why each hook is used for what: README.md.
Spec: kubernetes `pkg/proxy/iptables/proxier.go` (v1.35).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain as flatten
from operator import attrgetter
from types import MappingProxyType

from emu.netfilter.hooks import Verdict
from emu.netfilter.ruleset import (
    Accept,
    Chain,
    Comment,
    ConntrackState,
    Destination,
    Drop,
    Jump,
    Mark,
    Masquerade,
    Return,
    Rule,
    RuleSet,
    SetMark,
    Source,
    Table,
)
from emu.proxy import names
from emu.proxy.chains import DESTINATION_IS_NODE, Circumstances, PortRules, host, port_rules
from emu.proxy.config import LOOPBACK_NETWORK, ProxyConfig
from emu.proxy.detector import NodeView, detector
from emu.proxy.endpoints import Place, choose
from emu.proxy.names import ServicePortName
from emu.proxy.serviceport import ServicePortInfo
from emu.wire.addr import LOOPBACK, Network

LARGE_CLUSTER_ENDPOINTS = 1000  # above it kube-proxy leaves out the comments of the many rules
LOOPBACK_NETWORK_6 = Network.parse("::1/128")

_NEW = ConntrackState(("NEW",))


def _jump(comment: str, target: str, *, new: bool = False) -> Rule:
    return Rule((*((_NEW,) if new else ()), Comment(comment)), Jump(target))


_TO_FIREWALL = _jump("kubernetes load balancer firewall", names.KUBE_PROXY_FIREWALL, new=True)
_TO_SERVICES = _jump("kubernetes service portals", names.KUBE_SERVICES, new=True)
_TO_EXTERNAL = _jump("kubernetes externally-visible service portals", names.KUBE_EXTERNAL_SERVICES, new=True)
_TO_HEALTH = _jump("kubernetes health check service ports", names.KUBE_NODEPORTS)
_TO_FORWARD = _jump("kubernetes forwarding rules", names.KUBE_FORWARD)
_TO_NAT_SERVICES = _jump("kubernetes service portals", names.KUBE_SERVICES)
_TO_POSTROUTING = _jump("kubernetes postrouting rules", names.KUBE_POSTROUTING)
_TO_LOCALNET_FIREWALL = Rule((), Jump(names.KUBE_FIREWALL))

# The jumps of the built-in chains, top to bottom, as they stand on a node where kubelet came first (it made the jump to
# KUBE-FIREWALL) and kube-proxy then prepended its own one by one. Each row: table, built-in chain, rules.
BUILT_IN: tuple[tuple[str, str, tuple[Rule, ...]], ...] = (
    ("mangle", "PREROUTING", ()),
    ("mangle", "INPUT", ()),
    ("mangle", "FORWARD", ()),
    ("mangle", "OUTPUT", ()),
    ("mangle", "POSTROUTING", ()),
    ("filter", "INPUT", (_TO_FIREWALL, _TO_HEALTH, _TO_EXTERNAL, _TO_LOCALNET_FIREWALL)),
    ("filter", "FORWARD", (_TO_FIREWALL, _TO_FORWARD, _TO_SERVICES, _TO_EXTERNAL)),
    ("filter", "OUTPUT", (_TO_FIREWALL, _TO_SERVICES, _TO_LOCALNET_FIREWALL)),
    ("nat", "PREROUTING", (_TO_NAT_SERVICES,)),
    ("nat", "INPUT", ()),
    ("nat", "OUTPUT", (_TO_NAT_SERVICES,)),
    ("nat", "POSTROUTING", (_TO_POSTROUTING,)),
)


@dataclass(frozen=True, slots=True)
class _Kept:
    """The rules of a service port, good for as long as the port is this very object."""

    port: ServicePortInfo
    rules: PortRules


def build(ports: Mapping[ServicePortName, ServicePortInfo], config: ProxyConfig, node: NodeView, family: int = 4) -> RuleSet:
    """The rule set of one node and IP family for these service ports, from nothing."""
    return IptablesBuilder(config, node, family).build(ports)


class IptablesBuilder:
    """Builds one rule set after the other, sharing every chain that did not change. One node view for life.

    `rules` is the number of rules of the last one, by table.
    """

    def __init__(self, config: ProxyConfig, node: NodeView, family: int = 4) -> None:
        self._config, self._node, self._family = config, node, family
        self._place = Place(node.name, node.zone)
        self._kept: dict[ServicePortName, _Kept] = {}
        self._chains: dict[tuple[str, str], Chain] = {}
        self._tables: dict[str, Table] = {}
        self.rules: dict[str, int] = {}

    def build(self, ports: Mapping[ServicePortName, ServicePortInfo]) -> RuleSet:
        """The rule set for `ports`; service ports appear in the order of their names."""
        rules, changed = self._rules_of(ports)
        tables = {
            "mangle": self._table("mangle", {names.KUBE_PROXY_CANARY: ()}),
            "filter": self._table("filter", self._filter_chains(rules)),
            "nat": self._table("nat", self._nat_chains(rules), rules if changed else None),
        }
        if changed or not self.rules:
            self.rules = {name: self._fixed_rules(name) for name in tables}
            self.rules["nat"] += sum(port.size for port in rules)
        return RuleSet(MappingProxyType(tables))

    def _rules_of(self, ports: Mapping[ServicePortName, ServicePortInfo]) -> tuple[list[PortRules], bool]:
        """The rules of every port, written anew only for ports that are new objects, and whether any port came, changed or went.

        Crossing the large-cluster threshold rewrites nothing: old chains keep their comments until their port changes.
        """
        around = self._circumstances(large=sum(len(port.endpoints) for port in ports.values()) > LARGE_CLUSTER_ENDPOINTS)
        old, self._kept = self._kept, {}
        changed = len(old) != len(ports)
        for name in sorted(ports):
            port, kept = ports[name], old.get(name)
            if kept is None or kept.port is not port:
                kept, changed = _Kept(port, port_rules(port, choose(port, self._place), around)), True
            self._kept[name] = kept
        return [kept.rules for kept in self._kept.values()], changed

    def _circumstances(self, *, large: bool) -> Circumstances:
        return Circumstances(
            family=self._family,
            detector=detector(self._config, self._node, self._family),
            masquerade_all=self._config.iptables.masquerade_all,
            node_ip=next((ip for ip in self._node.ips if (len(ip) == 4) == (self._family == 4)), None),
            large_cluster=large,
        )

    # ---- one table

    def _table(self, table: str, fixed: Mapping[str, tuple[Rule, ...]], own: Iterable[PortRules] | None = None) -> Table:
        """Built-in chains, then the fixed KUBE chains, then those of the service ports; the old Table if all is as it was.

        `own` is None for a table without chains of service ports, and if these are what they were.
        """
        skip = () if self._localhost_node_ports else (_TO_LOCALNET_FIREWALL,)
        chains = {
            name: self._chain(table, name, tuple(rule for rule in rules if rule not in skip), Verdict.ACCEPT)
            for where, name, rules in BUILT_IN
            if where == table
        }
        chains.update((name, self._chain(table, name, rules, None)) for name, rules in fixed.items())
        old = self._tables.get(table)
        if old is not None and own is None and all(old.chains[name] is chain for name, chain in chains.items()):
            return old
        for port in own or ():
            chains.update(port.chains)
        self._tables[table] = Table(table, MappingProxyType(chains))
        return self._tables[table]

    def _chain(self, table: str, name: str, rules: tuple[Rule, ...], policy: Verdict | None) -> Chain:
        """The chain kept from the last build if it says the same, else a new one."""
        kept = self._chains.get((table, name))
        if kept is None or kept.rules != rules:
            kept = self._chains[table, name] = Chain(name, rules, policy)
        return kept

    def _fixed_rules(self, table: str) -> int:
        return sum(len(chain.rules) for (where, _), chain in self._chains.items() if where == table)

    @property
    def _localhost_node_ports(self) -> bool:
        return self._config.localhost_node_ports(self._family)

    # ---- filter

    def _filter_chains(self, rules: list[PortRules]) -> dict[str, tuple[Rule, ...]]:
        chains = {
            names.KUBE_SERVICES: _collect(rules, attrgetter("filter_services")),
            names.KUBE_EXTERNAL_SERVICES: _collect(rules, attrgetter("filter_external")),
            names.KUBE_FORWARD: self._forward(),
            names.KUBE_NODEPORTS: _collect(rules, attrgetter("filter_node_ports")),
            names.KUBE_PROXY_FIREWALL: _collect(rules, attrgetter("filter_firewall")),
            names.KUBE_PROXY_CANARY: (),
        }
        if self._localhost_node_ports:
            chains[names.KUBE_FIREWALL] = (_block_localnet(),)
        return chains

    def _forward(self) -> tuple[Rule, ...]:
        """INVALID packets are dropped: conntrack would not translate them, and a stray answer under a pod's own address
        makes the client reset its connection to the Service."""
        mark = self._config.iptables.masquerade_mark
        return (
            Rule((ConntrackState(("INVALID",)),), Drop()),
            Rule((Comment("kubernetes forwarding rules"), Mark(mark, mark)), Accept()),
            Rule((Comment("kubernetes forwarding conntrack rule"), ConntrackState(("RELATED", "ESTABLISHED"))), Accept()),
        )

    # ---- nat

    def _nat_chains(self, rules: list[PortRules]) -> dict[str, tuple[Rule, ...]]:
        mark = self._config.iptables.masquerade_mark
        return {
            names.KUBE_SERVICES: (*_collect(rules, attrgetter("nat_services")), *self._to_node_ports()),
            names.KUBE_NODEPORTS: _collect(rules, attrgetter("nat_node_ports")),
            names.KUBE_POSTROUTING: (
                Rule((Mark(mark, mark, invert=True),), Return()),
                Rule((), SetMark(mark, 0, "--xor-mark")),  # unmark: a packet that is encapsulated passes here twice
                Rule((Comment("kubernetes service traffic requiring SNAT"),), Masquerade(random_fully=True)),
            ),
            names.KUBE_MARK_MASQ: (Rule((), SetMark(mark, mark, "--or-mark")),),
            names.KUBE_PROXY_CANARY: (),
        }

    def _to_node_ports(self) -> tuple[Rule, ...]:
        """The end of KUBE-SERVICES: node ports on every local address, or on those of `nodePortAddresses`."""
        comment = Comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")
        onward = Jump(names.KUBE_NODEPORTS)
        addresses = self._config.node_ports_on((*self._node.ips, LOOPBACK), self._family)
        if addresses is None:
            loopback = LOOPBACK_NETWORK if self._family == 4 else LOOPBACK_NETWORK_6
            not_loopback = () if self._localhost_node_ports else (Destination(loopback, invert=True),)
            return (Rule((comment, DESTINATION_IS_NODE, *not_loopback), onward),)
        allowed = [ip for ip in addresses if ip not in LOOPBACK_NETWORK or self._localhost_node_ports]
        return tuple(Rule((comment, Destination(host(ip))), onward) for ip in allowed)


def _block_localnet() -> Rule:
    """With route_localnet on, nobody on the wire may reach 127.0.0.0/8 (CVE-2020-8558)."""
    return Rule(
        (
            Comment("block incoming localnet connections"),
            Destination(LOOPBACK_NETWORK),
            Source(LOOPBACK_NETWORK, invert=True),
            ConntrackState(("RELATED", "ESTABLISHED", "DNAT"), invert=True),
        ),
        Drop(),
    )


def _collect(rules: Iterable[PortRules], which: Callable[[PortRules], tuple[Rule, ...]]) -> tuple[Rule, ...]:
    return tuple(flatten.from_iterable(map(which, rules)))
