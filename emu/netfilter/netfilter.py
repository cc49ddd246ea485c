"""Netfilter of one namespace: at each hook, conntrack, the tables and NAT in the order of Linux's priorities.

    priority     PREROUTING  INPUT      FORWARD  OUTPUT     POSTROUTING
    -300         raw                             raw
    -200         conntrack                       conntrack
    -150         mangle      mangle     mangle   mangle     mangle
    -100         nat (dst)                       nat (dst)
       0                     filter     filter   filter
      50                     security   security security
     100                     nat (src)                      nat (src)
     last                    confirm                        confirm

nftables' base chains stand where their own priorities put them, after iptables where those are equal; of several that translate
at one hook, the first that does decides. Decides that order, and what a table's outcome means for the packet. As Linux registers
its hooks on demand, an empty rule set leaves the namespace without conntrack and NAT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from emu.errors import ConfigError, DropReason
from emu.netfilter import nft_walk
from emu.netfilter.conn import Conn, CtState
from emu.netfilter.conntrack import Conntrack
from emu.netfilter.hooks import Hook, Surroundings, Verdict
from emu.netfilter.nat import (
    DST_HOOKS,
    NatRange,
    bind_destination,
    bind_source,
    conn_destination,
    conn_source,
    mapped,
    needs_binding,
    translate,
    translate_error,
)
from emu.netfilter.nft import Chain as NftChain
from emu.netfilter.ruleset import EMPTY, Accept, Dnat, Drop, Masquerade, Netmap, Redirect, Reject, RuleSet, Snat, Spread
from emu.netfilter.skb import ICMP, ICMP_ERRORS, Skb
from emu.netfilter.walk import ACCEPT, Outcome, Walk, walk
from emu.wire.addr import Ip, SockAddr

PRI_RAW, PRI_CONNTRACK, PRI_MANGLE, PRI_NAT_DST, PRI_FILTER, PRI_SECURITY, PRI_NAT_SRC = -300, -200, -150, -100, 0, 50, 100
PRI_LAST = 2**31 - 1

STATIONS: tuple[tuple[int, str, tuple[Hook, ...]], ...] = (
    (PRI_RAW, "raw", (Hook.PREROUTING, Hook.OUTPUT)),  # before conntrack, which it may forbid to look (NOTRACK)
    (PRI_CONNTRACK, "conntrack", (Hook.PREROUTING, Hook.OUTPUT)),  # whoever asks for a state or an address must find it known
    (PRI_MANGLE, "mangle", tuple(Hook)),
    (PRI_NAT_DST, "nat", (Hook.PREROUTING, Hook.OUTPUT)),  # the destination decides the route, so before routing
    (PRI_FILTER, "filter", (Hook.INPUT, Hook.FORWARD, Hook.OUTPUT)),
    (PRI_SECURITY, "security", (Hook.INPUT, Hook.FORWARD, Hook.OUTPUT)),
    (PRI_NAT_SRC, "nat", (Hook.POSTROUTING, Hook.INPUT)),  # the source depends on the outgoing device
    (PRI_LAST, "confirm", (Hook.POSTROUTING, Hook.INPUT)),  # only what really left or arrived is a connection
)
"""`enum nf_ip_hook_priorities`, and where each is registered."""

TABLES = ("raw", "mangle", "nat", "filter", "security")

LOOPBACK_OF = {4: bytes((127, 0, 0, 1)), 16: bytes(15) + b"\x01"}
"""Where REDIRECT leads what the namespace itself sends."""

Station = Callable[[Hook, Skb, float], Verdict]


class Netfilter:
    """The hooks of one namespace. `drop_reason` tells why the latest DROP was one; `active` is False while there is nothing to do.

    `kind` is the walk that packets take through a table; who explains rules brings one that tells more.
    """

    def __init__(self, surroundings: Surroundings, conntrack: Conntrack | None = None, kind: type[Walk] = Walk) -> None:
        self.around, self.kind = surroundings, kind
        self.conntrack = Conntrack() if conntrack is None else conntrack
        self.ruleset = EMPTY
        self.active = False
        self.drop_reason = DropReason.NETFILTER_DROP
        self._plan: tuple[tuple[Station, ...], ...] = ((),) * len(Hook)
        self._nat_chains: dict[Hook, tuple[NftChain, ...]] = {}

    def swap(self, ruleset: RuleSet) -> None:
        """Put another rule set in place, at once. Costs nothing that grows with it: chains are compiled when walked."""
        unknown = [name for name in ruleset.tables if name not in TABLES]
        if unknown:
            raise ConfigError(f"table {unknown[0]} is not supported, only {', '.join(TABLES)}")
        self.ruleset = ruleset
        bases = [(chain.base, chain) for chain in ruleset.nft.bases if chain.base is not None] if ruleset.nft is not None else []
        self._nat_chains = {hook: tuple(chain for base, chain in bases if (base.kind, base.hook) == ("nat", hook)) for hook in Hook}
        self.active = bool(ruleset.tables or bases)
        tables: dict[str, Station] = {name: self._nat if name == "nat" else self._filter_of(name) for name in TABLES}
        there = {*ruleset.tables, *(("nat",) if any(self._nat_chains.values()) else ())}
        stations = {name: station for name, station in tables.items() if name in there}
        if self.active:
            stations |= {"conntrack": self._conntrack, "confirm": self._confirm}
        rows = [(priority, hook, stations[name]) for priority, name, hooks in STATIONS if name in stations for hook in hooks]
        rows += [(base.priority, base.hook, self._chain_of(chain)) for base, chain in bases if base.kind == "filter"]
        rows.sort(key=lambda row: row[0])
        self._plan = tuple(tuple(station for _, at, station in rows if at is hook) for hook in Hook)

    def run(self, hook: Hook, skb: Skb, now: float) -> Verdict:
        """Take a packet through a hook; NAT rewrites it in place, REJECT leaves `skb.reject_with`."""
        self.around.memory.now = now
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
            return self._verdict(walk(self.ruleset.tables[name], hook.name, skb, self.around, self.kind), skb, name)

        return station

    def _chain_of(self, chain: NftChain) -> Station:
        def station(hook: Hook, skb: Skb, now: float) -> Verdict:
            return self._verdict(self._in_nft(chain, skb), skb, chain.name)

        return station

    def _in_nft(self, chain: NftChain, skb: Skb) -> Outcome:
        assert self.ruleset.nft is not None
        return nft_walk.walk(self.ruleset.nft, chain, skb, self.around)

    def _translation(self, hook: Hook, skb: Skb) -> Outcome:
        """What the first of the tables that translate here says; ACCEPT if none does."""
        outcome: Outcome = ACCEPT
        if "nat" in self.ruleset.tables:
            outcome = walk(self.ruleset.tables["nat"], hook.name, skb, self.around, self.kind)
        for chain in self._nat_chains[hook]:
            if not isinstance(outcome, Accept):
                break
            outcome = self._in_nft(chain, skb)
        return outcome

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
            case Dnat() | Snat() | Masquerade() | Redirect() | Netmap():
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
            verdict = self._bind(self._translation(hook, skb), conn, hook, skb)
            if verdict is not Verdict.ACCEPT:
                return verdict
        before = (skb.source, skb.destination) if skb.trace else None
        if translate(skb, conn, hook) and before is not None:
            self._tell_translation(skb, *before)
        return Verdict.ACCEPT

    def _bind(self, outcome: Outcome, conn: Conn, hook: Hook, skb: Skb) -> Verdict:
        """Decide a connection's NAT at this hook by what the nat table said."""
        destination = hook in DST_HOOKS
        match outcome:
            case Accept():
                self._bind_to(conn, None, hook)
            case Drop():
                self.drop_reason = DropReason.NETFILTER_DROP
                return Verdict.DROP
            case Dnat(to, spread) if destination:
                self._bind_to(conn, self.range_of(to, spread), hook)
            case Snat(to, random_fully, spread) if not destination:
                self._bind_to(conn, self.range_of(to, spread, fully=random_fully), hook)
            case Netmap(network):
                own = conn_destination(conn) if destination else conn_source(conn)
                self._bind_to(conn, NatRange(mapped(own, network)), hook)
            case Redirect(ports, random) if destination:
                address = LOOPBACK_OF[len(skb.dst)] if hook is Hook.OUTPUT else self.around.masquerade_address(skb.iif, skb.src)
                return self._bind_device(conn, address, ports, hook, random=random)
            case Masquerade(random_fully, ports, random) if hook is Hook.POSTROUTING:
                address = self.around.masquerade_address(skb.oif, skb.dst)
                return self._bind_device(conn, address, ports, hook, random=random or random_fully)
            case _:
                raise ConfigError(f"{type(outcome).__name__.upper()} in table nat at {hook.name}, where Linux does not allow it")
        return Verdict.ACCEPT

    def _bind_device(self, conn: Conn, address: Ip | None, ports: tuple[int, int] | None, hook: Hook, *, random: bool) -> Verdict:
        """Translate to a device's own address; a device without one takes the packet ("... ate my IP address")."""
        if address is None:
            self.drop_reason = DropReason.NETFILTER_DROP
            return Verdict.DROP
        first, last = ports or (0, 0)
        self._bind_to(conn, NatRange(address, first=first, last=last, random=random), hook)
        return Verdict.ACCEPT

    def _bind_to(self, conn: Conn, to: NatRange | None, hook: Hook) -> None:
        bind = bind_destination if hook in DST_HOOKS else bind_source
        bind(conn, to, self.conntrack.taken, self.around.random)

    def range_of(self, to: SockAddr, spread: Spread | None, *, fully: bool = False) -> NatRange:
        """What a rule translates to."""
        if spread is None:
            return NatRange(to.ip, first=to.port, last=to.port, random=fully)
        last = spread.last or to
        return NatRange(to.ip, last.ip, to.port, last.port, spread.random or fully, spread.persistent, spread.shifted_from)

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
