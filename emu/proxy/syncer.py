"""The proxy of one node: changes in, rule sets out. The node agent's only door to this package.

Decides when a sync happens and what comes of it: a rule set to swap in, and conntrack entries to delete afterwards. Pure
and clock-free; the agent owns the loop:

    proxy.on_services(changes, now) or on_late(changes, now), proxy.on_listed(now) once the first snapshot is in; proxy.on_node(node, now)
    proxy.poll_at()                          when to come back, None for "when something arrives"
    result = proxy.sync(now)                 None if nothing is due
    swap(result.ruleset); delete what result.stale names; proxy.on_swapped(seconds)

A rule set may be late: what has changed is read, and the rules are written, when a packet first walks them. `sync` makes one if
nobody has looked at the one before, for then the next may go unseen too; where packets do walk, the rules are there when they come.
Whoever looks at a late one, and calls `on_late` and `sync` with `late`, must hold the node's lock.

Nothing is written before the first snapshot: half a world would refuse connections to Services not yet heard of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from emu.netfilter.ruleset import LateTables, RuleSet
from emu.proxy.changes import Applied, ServiceChanges, Value
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.iptables import TABLES, IptablesBuilder
from emu.proxy.names import ServicePortName
from emu.proxy.nftables import NftablesBuilder
from emu.proxy.schedule import SyncSchedule
from emu.proxy.serviceport import ServicePortInfo
from emu.proxy.stale import StaleUdp

Late = Callable[[], Value]
"""Reads a value of the stream."""


class Builder(Protocol):
    """One mode: builds one rule set after the other. `rules` are counted by table or map, `endpoints` over all service ports."""

    rules: dict[str, int]
    endpoints: int

    def build(self, ports: Mapping[ServicePortName, ServicePortInfo], changed: Iterable[ServicePortName] | None = None) -> RuleSet:
        """The rule set for `ports`; `changed` names those that came, went or are other objects than at the last call."""


BUILDERS: dict[str, Callable[[ProxyConfig, NodeView, int], Builder]] = {"iptables": IptablesBuilder, "nftables": NftablesBuilder}


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync asks for, in this order: swap `ruleset` in, then delete the conntrack entries that `stale` names."""

    ruleset: RuleSet
    stale: StaleUdp | None
    full: bool
    services_changed: int


@dataclass(frozen=True, slots=True)
class ProxyStats:
    """Counters since the start, and the size of the last rule set; `rules` by table, `last_seconds` as the caller measured it."""

    syncs: int = 0
    full_syncs: int = 0
    services_changed: int = 0
    service_ports: int = 0
    endpoints: int = 0
    rules: Mapping[str, int] | None = None
    last_sync: float | None = None
    last_seconds: float = 0.0


class Proxy:
    """kube-proxy of one node and IP family."""

    def __init__(self, config: ProxyConfig, node: NodeView, family: int = 4) -> None:
        self._config, self._node, self._family = config, node, family
        self._changes = ServiceChanges(node.name, family)
        self._schedule = SyncSchedule(config.min_sync_period)
        self._builder: Builder | None = None  # None: the next sync is a full one
        self._listed = False
        self._heard: dict[str, Late | None] = {}  # not read yet, and in no rule set
        self._accepted: dict[str, Late | None] = {}  # not read yet, but in force with the last rule set
        self._tables: LateTables | None = None  # the last rule set's
        self._stats = ProxyStats()

    @property
    def route_localnet(self) -> bool:
        """Must the node's stack route to 127.0.0.0/8 (sysctl route_localnet), so that node ports answer on localhost?"""
        return self._config.localhost_node_ports(self._family)

    def on_snapshot(self, values: Mapping[str, Value], now: float) -> None:
        """The whole `services` stream: key `namespace/name` to value; Services not in it are gone."""
        self._changes.replace(values)
        self.on_listed(now)

    def on_listed(self, now: float) -> None:
        """All that existed at some moment has been handed over; from now on rules are written."""
        self._listed = True
        self._plan(pending=self._pending, now=now)

    def on_late(self, changes: Iterable[tuple[str, Late | None]], now: float) -> None:
        """As `on_services`, with values that are read when the rules are written: a burst is read once, if at all."""
        self._heard.update(changes)
        self._plan(pending=self._pending, now=now)

    @property
    def _pending(self) -> bool:
        return bool(self._changes.pending or self._heard)

    def on_services(self, changes: Iterable[tuple[str, Value | None]], now: float) -> None:
        """Changed keys of the stream with their values, None for a deleted one."""
        for key, value in changes:
            self._changes.update(key, value)
        self._plan(pending=self._pending, now=now)

    def on_node(self, node: NodeView, now: float) -> None:
        """This node's labels, addresses or pod CIDRs changed: everything may depend on them, so the next sync is full."""
        assert node.name == self._node.name
        if node != self._node:
            self._node, self._builder, self._tables = node, None, None
            self._plan(pending=True, now=now)

    def _plan(self, *, pending: bool, now: float) -> None:
        """Have a sync when there is something to do, and none when it was taken back."""
        if not self._listed:
            return
        if pending or (self._builder is None and self._tables is None):
            self._schedule.on_change(now)
        else:
            self._schedule.on_nothing()

    def poll_at(self) -> float | None:
        """When `sync` will next have something to do; None if only a change can bring that about."""
        return self._schedule.poll_at()

    @property
    def seen(self) -> bool:
        """Has anybody looked at the rules of the last sync? Then the next ones are worth writing at once, as nftables' always are."""
        return self._config.mode != "iptables" or (self._tables is not None and self._tables.looked_at)

    def sync(self, now: float, *, late: bool = False) -> SyncResult | None:
        """Bring the rule set up to all that has been heard; None if no sync is due at `now`.

        With `late`, which is not for nodes that have flows of UDP to endpoints of Services, it may be a late one.
        """
        if not self._schedule.due(now):
            return None
        self._schedule.ran(now)
        self._accepted.update(self._heard)
        self._heard.clear()
        changed, full = len(self._accepted) + len(self._changes.pending), self._builder is None
        self._stats = replace(self._stats, syncs=self._stats.syncs + 1, full_syncs=self._stats.full_syncs + full, last_sync=now)
        if late and not self.seen:
            self._tables = LateTables(TABLES, lambda: self._write()[0].tables)
            return SyncResult(RuleSet(self._tables), None, full, changed)
        ruleset, applied = self._write()
        stale = StaleUdp(self._changes.ports.values()) if applied.udp_endpoints else None
        if self._config.mode == "iptables":
            written = ruleset.tables
            self._tables = LateTables(TABLES, lambda: written)
            ruleset = RuleSet(self._tables)
        return SyncResult(ruleset, stale, full, applied.services)

    def _write(self) -> tuple[RuleSet, Applied]:
        """Read what has been accepted, and write the rules for it."""
        full = self._builder is None
        if self._builder is None:
            self._builder = BUILDERS[self._config.mode](self._config, self._node, self._family)
        for key, read in self._accepted.items():
            self._changes.update(key, None if read is None else read())
        self._accepted.clear()
        applied = self._changes.apply()
        ruleset = self._builder.build(self._changes.ports, None if full else applied.ports)
        self._count(self._builder, changed=applied.services)
        return ruleset, applied

    def on_swapped(self, seconds: float) -> None:
        """The rule set of the last sync is in force; building and swapping took this long by the caller's clock."""
        self._stats = replace(self._stats, last_seconds=seconds)

    def stats(self) -> ProxyStats:
        return self._stats

    def _count(self, builder: Builder, *, changed: int) -> None:
        ports, old = self._changes.ports, self._stats
        self._stats = replace(
            old,
            services_changed=old.services_changed + changed,
            service_ports=len(ports),
            endpoints=builder.endpoints,
            rules=builder.rules,
        )
