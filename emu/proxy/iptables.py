"""iptables mode: the whole rule set of one node, in kube-proxy's chains and order.

Decides how the service ports' rules are put together and what stands around them: the jumps from the built-in chains,
forwarding, masquerade. `build` is pure; `IptablesBuilder` gives the same answer and keeps each service port's rules
while the port is the same object, so that one change among 10,000 Services makes one Service's rules, and the walk can
see by identity what changed. Why each hook is used for what: README.md.
Spec: kubernetes `pkg/proxy/iptables/proxier.go` (v1.35).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
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
from emu.proxy.chainbook import Draft
from emu.proxy.chains import DESTINATION_IS_NODE, NO_RULES, Circumstances, PortRules, host, port_rules
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


TABLES = ("mangle", "filter", "nat")
LINES = ("nat_services", "nat_node_ports", "filter_services", "filter_external", "filter_node_ports", "filter_firewall")
"""What service ports add to chains that all share, as `PortRules` calls it."""


class IptablesBuilder:
    """Builds one rule set after the other, sharing every chain that did not change. One node view for life.

    `rules` is the number of rules of the last one, by table, `endpoints` that of the service ports' endpoints.
    """

    def __init__(self, config: ProxyConfig, node: NodeView, family: int = 4) -> None:
        self._config, self._node, self._family = config, node, family
        self._place = Place(node.name, node.zone)
        self._kept: dict[ServicePortName, _Kept] = {}
        self._names: list[ServicePortName] = []  # sorted, as are
        self._rules: list[PortRules] = []  # their rules
        self._lines: dict[str, tuple[Rule, ...]] = {}
        self._draft = Draft[Chain]()
        skip = () if self._localhost_node_ports else (_TO_LOCALNET_FIREWALL,)
        self._built_in: dict[str, dict[str, Chain]] = {}
        for table, chain, rules in BUILT_IN:
            made = Chain(chain, tuple(rule for rule in rules if rule not in skip), Verdict.ACCEPT)
            self._built_in.setdefault(table, {})[chain] = made
        self._around = {large: self._circumstances(large=large) for large in (False, True)}
        self._forwarding, self._postrouting, self._node_port_end = self._forward(), self._masquerade(), self._to_node_ports()
        self._chains: dict[tuple[str, str], Chain] = {}
        self._tables: dict[str, Table] = {}
        self._own_rules = self.endpoints = 0
        self.rules: dict[str, int] = {}

    def build(self, ports: Mapping[ServicePortName, ServicePortInfo], changed: Iterable[ServicePortName] | None = None) -> RuleSet:
        """The rule set for `ports`; service ports appear in the order of their names.

        `changed` names those that came, went or are other objects than at the last call; None: look at all of them.
        """
        touched = self._update(ports, self._different(ports) if changed is None else changed)
        tables = {
            "mangle": self._table("mangle", {names.KUBE_PROXY_CANARY: ()}),
            "filter": self._table("filter", self._filter_chains()),
            "nat": self._table("nat", self._nat_chains(), own=touched),
        }
        if touched or not self.rules:
            self.rules = {name: self._fixed_rules(name) for name in tables}
            self.rules["nat"] += self._own_rules
        return RuleSet(MappingProxyType(tables))

    def _different(self, ports: Mapping[ServicePortName, ServicePortInfo]) -> list[ServicePortName]:
        gone = [name for name in self._kept if name not in ports]
        return [*gone, *(name for name, port in ports.items() if (kept := self._kept.get(name)) is None or kept.port is not port)]

    def _update(self, ports: Mapping[ServicePortName, ServicePortInfo], changed: Iterable[ServicePortName]) -> bool:
        """Bring the kept rules up to `ports`; whether any service port came, changed or went.

        Crossing the large-cluster threshold rewrites nothing: old chains keep their comments until their port changes.
        """
        moved = [(name, self._kept.get(name), ports.get(name)) for name in sorted(changed)]
        for _, kept, port in moved:
            self.endpoints += (len(port.endpoints) if port else 0) - (len(kept.port.endpoints) if kept else 0)
        around = self._around[self.endpoints > LARGE_CLUSTER_ENDPOINTS]
        stale = set(LINES) if not self._lines else set()
        for name, kept, port in moved:
            old = kept.rules if kept else NO_RULES
            new = port_rules(port, choose(port, self._place), around) if port else NO_RULES
            stale.update(field for field in LINES if getattr(old, field) != getattr(new, field))
            self._own_rules += new.size - old.size
            self._draft.change(old.chains, new.chains)
            self._keep(name, port, new)
        for field in stale:
            self._lines[field] = tuple(flatten.from_iterable(map(attrgetter(field), self._rules)))
        return bool(moved)

    def _keep(self, name: ServicePortName, port: ServicePortInfo | None, rules: PortRules) -> None:
        at = bisect_left(self._names, name)
        if port is None:
            if self._kept.pop(name, None) is not None:
                del self._names[at], self._rules[at]
            return
        if name in self._kept:
            self._rules[at] = rules
        else:
            self._names.insert(at, name)
            self._rules.insert(at, rules)
        self._kept[name] = _Kept(port, rules)

    def _circumstances(self, *, large: bool) -> Circumstances:
        return Circumstances(
            family=self._family,
            detector=detector(self._config, self._node, self._family),
            masquerade_all=self._config.iptables.masquerade_all,
            node_ip=next((ip for ip in self._node.ips if (len(ip) == 4) == (self._family == 4)), None),
            large_cluster=large,
        )

    # ---- one table

    def _table(self, table: str, fixed: Mapping[str, tuple[Rule, ...]], *, own: bool = False) -> Table:
        """Built-in chains, then the fixed KUBE chains, then those of the service ports; the old Table if all is as it was.

        `own`: there are service ports' chains in it, and they have changed.
        """
        chains = dict(self._built_in[table])
        chains.update((name, self._chain(table, name, rules)) for name, rules in fixed.items())
        old = self._tables.get(table)
        if old is not None and not own and all(old.chains[name] is chain for name, chain in chains.items()):
            return old
        book = self._draft.book(chains, self._rules) if own else MappingProxyType(chains)
        self._tables[table] = Table(table, book)
        return self._tables[table]

    def _chain(self, table: str, name: str, rules: tuple[Rule, ...]) -> Chain:
        """The chain kept from the last build if it says the same, else a new one."""
        kept = self._chains.get((table, name))
        if kept is None or (kept.rules is not rules and kept.rules != rules):
            kept = self._chains[table, name] = Chain(name, rules)
        return kept

    def _fixed_rules(self, table: str) -> int:
        chains = [*self._built_in[table].values(), *(chain for (where, _), chain in self._chains.items() if where == table)]
        return sum(len(chain.rules) for chain in chains)

    @property
    def _localhost_node_ports(self) -> bool:
        return self._config.localhost_node_ports(self._family)

    # ---- filter

    def _filter_chains(self) -> dict[str, tuple[Rule, ...]]:
        chains = {
            names.KUBE_SERVICES: self._lines["filter_services"],
            names.KUBE_EXTERNAL_SERVICES: self._lines["filter_external"],
            names.KUBE_FORWARD: self._forwarding,
            names.KUBE_NODEPORTS: self._lines["filter_node_ports"],
            names.KUBE_PROXY_FIREWALL: self._lines["filter_firewall"],
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

    def _nat_chains(self) -> dict[str, tuple[Rule, ...]]:
        mark = self._config.iptables.masquerade_mark
        return {
            names.KUBE_SERVICES: (*self._lines["nat_services"], *self._node_port_end),
            names.KUBE_NODEPORTS: self._lines["nat_node_ports"],
            names.KUBE_POSTROUTING: self._postrouting,
            names.KUBE_MARK_MASQ: (Rule((), SetMark(mark, mark, "--or-mark")),),
            names.KUBE_PROXY_CANARY: (),
        }

    def _masquerade(self) -> tuple[Rule, ...]:
        mark = self._config.iptables.masquerade_mark
        return (
            Rule((Mark(mark, mark, invert=True),), Return()),
            Rule((), SetMark(mark, 0, "--xor-mark")),  # unmark: a packet that is encapsulated passes here twice
            Rule((Comment("kubernetes service traffic requiring SNAT"),), Masquerade(random_fully=True)),
        )

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
