"""Netfilter of one namespace: at each hook, conntrack, the tables and NAT in the order of Linux's priorities.

    priority     PREROUTING  INPUT      FORWARD  OUTPUT     POSTROUTING
    -200         conntrack                       conntrack
    -150         mangle      mangle     mangle   mangle     mangle
    -100         nat (dst)                       nat (dst)
       0                     filter     filter   filter
     100                     nat (src)                      nat (src)
     last                    confirm                        confirm

Decides that order, and what a table's outcome means for the packet. As Linux registers its hooks on demand, an empty rule set
leaves the namespace without conntrack and NAT. The `raw` and `security` tables are not there yet: a rule set with one is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from emu.errors import ConfigError, DropReason
from emu.netfilter.conn import Conn, CtState
from emu.netfilter.conntrack import Conntrack
from emu.netfilter.hooks import Hook, Surroundings, Verdict
from emu.netfilter.nat import bind_destination, bind_source, needs_binding, translate, translate_error
from emu.netfilter.ruleset import EMPTY, Accept, Dnat, Drop, Masquerade, Reject, RuleSet, Snat
from emu.netfilter.skb import ICMP, ICMP_ERRORS, Skb
from emu.netfilter.walk import Outcome, walk
from emu.wire.addr import SockAddr

PRI_CONNTRACK, PRI_MANGLE, PRI_NAT_DST, PRI_FILTER, PRI_NAT_SRC, PRI_LAST = -200, -150, -100, 0, 100, 2**31 - 1

STATIONS: tuple[tuple[int, str, tuple[Hook, ...]], ...] = (
    (PRI_CONNTRACK, "conntrack", (Hook.PREROUTING, Hook.OUTPUT)),  # whoever asks for a state or an address must find it known
    (PRI_MANGLE, "mangle", tuple(Hook)),
    (PRI_NAT_DST, "nat", (Hook.PREROUTING, Hook.OUTPUT)),  # the destination decides the route, so before routing
    (PRI_FILTER, "filter", (Hook.INPUT, Hook.FORWARD, Hook.OUTPUT)),
    (PRI_NAT_SRC, "nat", (Hook.POSTROUTING, Hook.INPUT)),  # the source depends on the outgoing device
    (PRI_LAST, "confirm", (Hook.POSTROUTING, Hook.INPUT)),  # only what really left or arrived is a connection
)
"""`enum nf_ip_hook_priorities`, and where each is registered."""

TABLES = ("mangle", "nat", "filter")

Station = Callable[[Hook, Skb, float], Verdict]


class Netfilter:
    """The hooks of one namespace. `drop_reason` tells why the latest DROP was one; `active` is False while there is nothing to do."""

    def __init__(self, surroundings: Surroundings, conntrack: Conntrack | None = None) -> None:
        self.around = surroundings
        self.conntrack = Conntrack() if conntrack is None else conntrack
        self.ruleset = EMPTY
        self.active = False
        self.drop_reason = DropReason.NETFILTER_DROP
        self._plan: tuple[tuple[Station, ...], ...] = ((),) * len(Hook)

    def swap(self, ruleset: RuleSet) -> None:
        """Put another rule set in place, at once. Costs nothing that grows with it: chains are compiled when walked."""
        unknown = [name for name in ruleset.tables if name not in TABLES]
        if unknown:
            raise ConfigError(f"table {unknown[0]} is not supported, only {', '.join(TABLES)}")
        self.ruleset = ruleset
        self.active = bool(ruleset.tables)
        tables: dict[str, Station] = {"mangle": self._filter_of("mangle"), "nat": self._nat, "filter": self._filter_of("filter")}
        stations = {name: station for name, station in tables.items() if name in ruleset.tables}
        if stations:
            stations |= {"conntrack": self._conntrack, "confirm": self._confirm}
        ordered = sorted(STATIONS, key=lambda row: row[0])
        self._plan = tuple(tuple(stations[name] for _, name, hooks in ordered if hook in hooks and name in stations) for hook in Hook)

    def run(self, hook: Hook, skb: Skb, now: float) -> Verdict:
        """Take a packet through a hook; NAT rewrites it in place, REJECT leaves `skb.reject_with`."""
        for station in self._plan[hook]:
            verdict = station(hook, skb, now)
            if verdict is not Verdict.ACCEPT:
                return verdict
        return Verdict.ACCEPT

    # ---- stations --------------------------------------------------------------------------------------------------------------

    def _conntrack(self, hook: Hook, skb: Skb, now: float) -> Verdict:
        if not self.conntrack.ingress(skb, now):
            self.drop_reason = DropReason.CONNTRACK_FULL
            return Verdict.DROP
        if skb.trace:
            state = skb.ct_state.value if skb.ct_state is not None else "NONE"
            self.around.hop(skb, "conntrack", note=f"{state}, reply" if skb.ct_reply else state)
        return Verdict.ACCEPT

    def _filter_of(self, name: str) -> Station:
        def station(hook: Hook, skb: Skb, now: float) -> Verdict:
            return self._verdict(walk(self.ruleset.tables[name], hook.name, skb, self.around), skb, name)

        return station

    def _verdict(self, outcome: Outcome, skb: Skb, table: str) -> Verdict:
        match outcome:
            case Accept():
                return Verdict.ACCEPT
            case Drop():
                self.drop_reason = DropReason.NETFILTER_DROP
                return Verdict.DROP
            case Reject(reject_with):
                skb.reject_with = reject_with
                return Verdict.REJECT
            case Dnat() | Snat() | Masquerade():
                raise ConfigError(f"{type(outcome).__name__.upper()} in table {table}: only nat translates")
            case _:
                assert_never(outcome)

    def _nat(self, hook: Hook, skb: Skb, now: float) -> Verdict:
        conn = skb.ct
        if conn is None:
            return Verdict.ACCEPT
        if skb.ct_state is CtState.RELATED and skb.proto == ICMP and skb.buf[skb.l4] in ICMP_ERRORS:
            if translate_error(skb, conn, hook) and skb.trace:
                self.around.hop(skb, "conntrack", note="error translated, inside and out")
            return Verdict.ACCEPT
        if not skb.ct_reply and needs_binding(conn, hook):
            verdict = self._bind(walk(self.ruleset.tables["nat"], hook.name, skb, self.around), conn, hook, skb)
            if verdict is not Verdict.ACCEPT:
                return verdict
        before = (skb.source, skb.destination) if skb.trace else None
        if translate(skb, conn, hook) and before is not None:
            self._tell_translation(skb, *before)
        return Verdict.ACCEPT

    def _bind(self, outcome: Outcome, conn: Conn, hook: Hook, skb: Skb) -> Verdict:
        """Decide a connection's NAT at this hook by what the nat table said."""
        taken, random = self.conntrack.taken, self.around.random
        destination = hook in (Hook.PREROUTING, Hook.OUTPUT)
        match outcome:
            case Dnat(to) if destination:
                bind_destination(conn, to)
            case Snat(to, random_fully) if not destination:
                bind_source(conn, to, taken, random, random_fully=random_fully)
            case Masquerade(random_fully) if hook is Hook.POSTROUTING:
                address = self.around.masquerade_address(skb.oif, skb.dst)
                if address is None:  # "... ate my IP address"
                    self.drop_reason = DropReason.NETFILTER_DROP
                    return Verdict.DROP
                bind_source(conn, SockAddr(address, 0), taken, random, random_fully=random_fully)
            case Accept():
                if destination:
                    bind_destination(conn, None)
                else:
                    bind_source(conn, None, taken, random)
            case Drop():
                self.drop_reason = DropReason.NETFILTER_DROP
                return Verdict.DROP
            case _:
                raise ConfigError(f"{type(outcome).__name__.upper()} in table nat at {hook.name}, where Linux does not allow it")
        return Verdict.ACCEPT

    def _tell_translation(self, skb: Skb, source: SockAddr, destination: SockAddr) -> None:
        if skb.source != source:
            self.around.hop(skb, "conntrack", note=f"source {source} becomes {skb.source}")
        if skb.destination != destination:
            self.around.hop(skb, "conntrack", note=f"destination {destination} becomes {skb.destination}")

    def _confirm(self, hook: Hook, skb: Skb, now: float) -> Verdict:
        if self.conntrack.confirm(skb, now):
            return Verdict.ACCEPT
        self.drop_reason = DropReason.NETFILTER_DROP
        return Verdict.DROP
