"""What rules remember from one packet to the next: lists of recent addresses, sets, buckets of credit, counts of every n-th packet.

One for a namespace, as the kernel keeps them, so that a rule set in trial disturbs no other. Decides how such memories answer and
change; which rule asks is `extensions`'. Spec: xt_recent.c, xt_limit.c, xt_hashlimit.c, xt_statistic.c.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

from emu.errors import ConfigError
from emu.netfilter.ipset import IpSet
from emu.netfilter.skb import Skb
from emu.wire.addr import Ip

_LIST_TOTAL = 100  # ip_list_tot: addresses in a recent list
_STAMPS = 32  # of one address, where no rule counts further
_ENTRIES = 65536  # of one table of buckets


class Token:
    """Stands for one rule's own state; it goes when the rule goes."""

    __slots__ = ("__weakref__",)


class Recall(Protocol):
    """What `-m recent` asks: `action` is set, rcheck, update or remove; `seconds` and `hits` are 0 where they do not matter."""

    @property
    def name(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def seconds(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def reap(self) -> bool: ...
    @property
    def invert(self) -> bool: ...


class Memory:
    """`now` is the time of the packet on its way, in seconds. `sets` are the namespace's ipsets by name."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sets: dict[str, IpSet] = {}
        self.recent: dict[str, dict[Ip, list[float]]] = {}  # the longest unseen first
        self.dynamic: dict[str, dict[Ip, float]] = {}  # nftables sets that packets fill: address to when it is forgotten
        self.counts: WeakKeyDictionary[Token, int] = WeakKeyDictionary()
        self.credit: WeakKeyDictionary[Token, dict[bytes, tuple[float, float]]] = WeakKeyDictionary()

    def nth(self, token: Token, every: int, packet: int) -> bool:
        """Is this the `packet`-th (from 0) of `every`? One more has been counted."""
        count = self.counts.get(token, 0)
        self.counts[token] = (count + 1) % every
        return count == packet

    def remembers(self, name: str, ip: Ip) -> bool:
        """Is the address in this dynamic set, and not out of time?"""
        return self.dynamic.get(name, {}).get(ip, 0.0) > self.now

    def remember(self, name: str, ip: Ip, seconds: float) -> None:
        """`update @NAME { IP timeout … }`: it is in the set for so long from now."""
        entries = self.dynamic.setdefault(name, {})
        if len(entries) >= _ENTRIES:
            self.dynamic[name] = entries = {known: until for known, until in entries.items() if until > self.now}
        entries[ip] = self.now + seconds

    def within(self, token: Token, key: bytes, rate: float, burst: int) -> bool:
        """Is there credit for one packet, of a bucket that fills by `rate` packets a second up to `burst`? Then it is spent."""
        buckets = self.credit.setdefault(token, {})
        credit, since = buckets.get(key, (float(burst), self.now))
        credit = min(float(burst), credit + (self.now - since) * rate)
        enough = credit >= 1.0
        if key in buckets or len(buckets) < _ENTRIES:
            buckets[key] = (credit - 1.0 if enough else credit, self.now)
        return enough

    def recall(self, ip: Ip, asked: Recall) -> bool:
        """recent_mt: look an address up in a list, and change the list as the rule says."""
        entries = self.recent.setdefault(asked.name, {})
        stamps = entries.get(ip)
        holds = asked.invert
        if stamps is None:
            if asked.action != "set":
                return holds
            if len(entries) >= _LIST_TOTAL:
                del entries[next(iter(entries))]
            entries[ip] = [self.now]
            return not holds
        if asked.action == "remove":
            del entries[ip]
            return not holds
        if asked.action == "set":
            holds = not holds
        else:
            since = self.now - asked.seconds
            hits = sum(1 for stamp in stamps if not asked.seconds or stamp >= since)
            if hits >= max(asked.hits, 1):
                holds = not holds
            if asked.reap and entries and next(iter(entries.values()))[-1] < since:
                del entries[next(iter(entries))]
        if asked.action == "set" or (asked.action == "update" and holds):
            stamps.append(self.now)
            del stamps[: -max(_STAMPS, asked.hits)]
            entries.pop(ip, None)
            entries[ip] = stamps
        return holds

    def in_set(self, name: str, sides: tuple[str, ...], skb: Skb, *, nomatch: bool = False) -> bool:
        """Does a set hold what the packet has at these sides ("src", "dst")? ConfigError if there is no such set."""
        return self.set_of(name).holds(skb, sides, self.sets, self.now, nomatch=nomatch)

    def change_set(self, name: str, sides: tuple[str, ...], skb: Skb, *, add: bool, timeout: int | None, exist: bool) -> None:
        """`-j SET`: put the packet's row into a set, or take it out. One that is there is renewed only if `exist` says so."""
        target = self.set_of(name)
        row = target.row_of(skb, sides)
        if row is None:
            return
        if not add:
            target.remove(row)
        elif exist or target.rows.get(row, (0.0, False))[0] <= self.now:
            seconds = timeout if timeout is not None else int(target.options.get("timeout", "0"))
            target.add(row, self.now + seconds if seconds else float("inf"))

    def set_of(self, name: str) -> IpSet:
        found = self.sets.get(name)
        if found is None:
            raise ConfigError(f"set {name} does not exist; `ipset save` of the node would give it")
        return found

    def trial(self) -> Memory:
        """A memory that answers like this one now and keeps to itself what it learns."""
        return _Trial(self)

    # ---- what an emulated namespace knows, and somebody who reads a dump may not -------------------------------------------------

    def header(self, module: str, *, holds: bool) -> bool:
        """Whether a match holds that rests on what only the real packet has: its length, its TTL, its options."""
        return holds

    def unknown(self, what: str) -> bool:
        """Whether a match holds, or a target ends the walk, that is not evaluated here."""
        raise ConfigError(f"{what} is not evaluated")


class _Trial(Memory):
    """Copies a list, a set or a count when it is first asked for."""

    def __init__(self, real: Memory) -> None:
        super().__init__()
        self._real, self.now = real, real.now

    def nth(self, token: Token, every: int, packet: int) -> bool:
        self.counts.setdefault(token, self._real.counts.get(token, 0))
        return super().nth(token, every, packet)

    def remembers(self, name: str, ip: Ip) -> bool:
        self._copied(name)
        return super().remembers(name, ip)

    def remember(self, name: str, ip: Ip, seconds: float) -> None:
        self._copied(name)
        super().remember(name, ip, seconds)

    def _copied(self, name: str) -> None:
        if name not in self.dynamic:
            self.dynamic[name] = dict(self._real.dynamic.get(name, {}))

    def within(self, token: Token, key: bytes, rate: float, burst: int) -> bool:
        self.credit.setdefault(token, dict(self._real.credit.get(token, {})))
        return super().within(token, key, rate, burst)

    def recall(self, ip: Ip, asked: Recall) -> bool:
        if asked.name not in self.recent:
            self.recent[asked.name] = {known: [*stamps] for known, stamps in self._real.recent.get(asked.name, {}).items()}
        return super().recall(ip, asked)

    def set_of(self, name: str) -> IpSet:
        if name not in self.sets:
            self.sets = {**self._real.sets, **self.sets, name: self._real.set_of(name).copy()}
        return super().set_of(name)
