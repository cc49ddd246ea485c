"""Surroundings of a packet whose node is not at hand: what the facts say, and for the rest questions with two answers.

One oracle answers for one way: chance and open questions fall as its script says, and first as they like where it says nothing.
Every turn is recorded, so that whoever tries all scripts has tried all ways. A question asked twice is answered alike, also by other
words: who said that the device is eth0 has said that it is not cni0. Nothing here knows rules but to name the one that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from emu.netfilter.facts import Facts
from emu.netfilter.memory import Memory, Recall, Token
from emu.netfilter.skb import Skb
from emu.wire.addr import Ip, format_ip

UNKNOWN_ADDRESS = {4: bytes(4), 16: bytes(16)}
"""Stands for the address of a device that is not known; no packet has it otherwise."""

RulePlace = tuple[str, str, int]
"""Table, chain, and the rule's index in it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What had to be known. `option` is what would tell it; `asked_by` the rule that asked first (None: the routing decision)."""

    text: str
    option: str
    asked_by: RulePlace | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One point where the way forks: by chance (`question` None), where `probability` is that of what was taken, or by a question."""

    holds: bool
    probability: float
    question: Question | None = None
    forks: bool = True


class Oracle:
    """The `Surroundings` of one way. `standing` is the rule that is being asked, kept by the walk."""

    def __init__(self, facts: Facts, script: tuple[bool, ...], assumed: Mapping[str, bool], line_of: Callable[[RulePlace], int]) -> None:
        self.facts, self._script, self._assumed, self._line_of = facts, script, assumed, line_of
        self.turns: list[Turn] = []
        self.standing: RulePlace | None = None
        self.memory: Memory = Unremembered(self)
        self._answers: dict[tuple[object, ...], bool] = {}
        self._devices: dict[str, str] = {}
        self._prefixes: dict[str, list[tuple[str, bool]]] = {"in": [], "out": [], "physdev-in": []}

    # ---- turns

    def chance(self, probability: float) -> bool:
        holds = self._next(first=probability > 0.0)
        self.turns.append(Turn(holds, probability if holds else 1.0 - probability, None, 0.0 < probability < 1.0))
        return holds

    def ask(self, key: tuple[object, ...], text: str, option: str, kind: str, *, first: bool = False) -> bool:
        """A question that may be asked again by the same key. `--assume LINE=…` and `--assume KIND=…` answer it."""
        known = self._answers.get(key)
        if known is None:
            known = self._assumption(kind)
        if known is None:
            known = self._next(first=first)
            self.turns.append(Turn(known, 1.0, Question(text, option, self.standing)))
        self._answers[key] = known
        return known

    def _assumption(self, kind: str) -> bool | None:
        line = str(self._line_of(self.standing)) if self.standing is not None else ""
        return self._assumed.get(line, self._assumed.get(kind))

    def _next(self, *, first: bool) -> bool:
        return self._script[len(self.turns)] if len(self.turns) < len(self._script) else first

    # ---- Surroundings

    def random(self) -> float:
        draw = _Draw(0.5)
        draw.oracle = self
        return draw

    def choose(self, count: int) -> int:
        raise NotImplementedError("numgen stands in nftables' rules, and a dump of iptables has none")

    def is_local(self, ip: Ip) -> bool:
        known = self.facts.is_local(ip)
        if known is not None:
            return known
        address = format_ip(ip)
        return self.ask(("local", ip), f"is {address} an address of the node", f"--addresses FILE (or --node-ip {address} if so)", "local")

    def is_local_on(self, ip: Ip, device: str) -> bool:
        known = None if isinstance(device, UnknownDevice) else self.facts.is_local_on(ip, device)
        if known is not None:
            return known
        return self.ask(("local on", ip), f"is {format_ip(ip)} an address of that very device", "--addresses FILE", "local")

    def is_broadcast(self, ip: Ip) -> bool:
        known = self.facts.is_broadcast(ip)
        if known is not None:
            return known
        return self.ask(
            ("broadcast", ip), f"is {format_ip(ip)} a broadcast address of the node's networks", "--addresses FILE", "broadcast"
        )

    def masquerade_address(self, oif: str, dst: Ip) -> Ip | None:
        """An unknown one where the device or its addresses are: that a packet is masqueraded hangs on neither."""
        if isinstance(oif, UnknownDevice) or self.facts.addresses is None:
            return UNKNOWN_ADDRESS[len(dst)]
        route = self.facts.route(dst)
        return self.facts.source_on(oif, route.gateway if route is not None and route.gateway is not None else dst)

    def hop(self, skb: Skb, where: str, rule: str | None = None, note: str | None = None, rules: int = 0) -> None:
        """What conntrack and NAT tell is told by the rules that made them."""

    # ---- devices

    def device(self, side: str, pattern: str, *, prefix: bool) -> bool:
        """Is the device of this side ("in", "out", "physdev-in") called so, or does its name begin so?"""
        name = self._devices.get(side)
        if name is not None:
            return name.startswith(pattern) if prefix else name == pattern
        if prefix and not pattern:
            return True
        if self.facts.devices is not None and not any(d.startswith(pattern) if prefix else d == pattern for d in self.facts.devices):
            return False
        for said, held in self._prefixes[side]:
            if held and prefix and said.startswith(pattern):
                return True
            if pattern.startswith(said) is not held:
                return False
        option = {"in": "--in-interface NAME", "out": "--routes FILE or --out-interface NAME", "physdev-in": "--physdev-in NAME"}[side]
        called = f"{pattern}…" if prefix else pattern
        holds = self.ask(("device", side, pattern, prefix), f"is the {side}-interface {called}", option, f"{side}-interface")
        if prefix:
            self._prefixes[side].append((pattern, holds))
        elif holds:
            self._devices[side] = pattern
        return holds

    def bridged(self) -> bool:
        """Does the packet come in by a port of a bridge, with bridge-nf-call-iptables set?"""
        return self.ask(
            ("bridged",), "does the packet come in by a port of a bridge", "--physdev-in NAME or --assume physdev=no", "physdev"
        )


class _Draw(float):
    """A random number that is decided when it is compared."""

    oracle: Oracle

    def __lt__(self, bound: float) -> bool:
        return self.oracle.chance(bound)


class UnknownDevice(str):
    """A device's name that is decided when it is compared."""

    oracle: Oracle
    side: str

    __slots__ = ("oracle", "side")

    @classmethod
    def of(cls, oracle: Oracle, side: str) -> UnknownDevice:
        made = cls("?")
        made.oracle, made.side = oracle, side
        return made

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, str):
            return NotImplemented
        if other in ("", "lo"):  # what comes from or goes to the node itself is known to do so
            return other == "" and self.side == "physdev-in" and not self.oracle.bridged()
        return self.oracle.device(self.side, other, prefix=False)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def startswith(self, prefix: str | tuple[str, ...], *_: object) -> bool:
        return self.oracle.device(self.side, str(prefix), prefix=True)

    __hash__ = str.__hash__


class Unremembered(Memory):
    """Memory of a node that is not at hand: its sets if they were given, and what this packet itself has left there."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self._oracle = oracle
        self.sets = dict(oracle.facts.sets)
        self._seen: dict[tuple[str, Ip], bool] = {}

    def nth(self, token: Token, every: int, packet: int) -> bool:
        """In turn, not at random; of many first packets as many take it."""
        return self._oracle.chance(1 / every)

    def within(self, token: Token, key: bytes, rate: float, burst: int) -> bool:
        return self._oracle.ask(("limit", id(token), key), f"is the rate still under the limit ({rate:g} a second, burst {burst})",
                                "--assume limit=yes|no", "limit", first=True)  # fmt: skip

    def recall(self, ip: Ip, asked: Recall) -> bool:
        place = asked.name, ip
        present = self._seen.get(place)
        if asked.action == "set":
            self._seen[place] = True
            return not asked.invert
        if present is None or (present and asked.hits > 1):
            how = f" within {asked.seconds} s" if asked.seconds else ""
            often = f" {asked.hits} times" if asked.hits > 1 else ""
            present = self._oracle.ask(("recent", *place, asked.seconds, asked.hits), f"is {format_ip(ip)} in the recent list "
                                       f"{asked.name}{often}{how}", "--assume recent=yes|no", "recent")  # fmt: skip
        if asked.action == "remove":
            self._seen[place] = False
        elif asked.action == "update" and present:
            self._seen[place] = True
        return present is not asked.invert

    def in_set(self, name: str, sides: tuple[str, ...], skb: Skb, *, nomatch: bool = False) -> bool:
        if name in self.sets:
            return super().in_set(name, sides, skb, nomatch=nomatch)
        what = (skb.src, skb.dst, skb.sport, skb.dport)
        return self._oracle.ask(("set", name, sides, what), f"is the packet's {','.join(sides)} in the set {name}", "--ipset FILE", "set")

    def change_set(self, name: str, sides: tuple[str, ...], skb: Skb, *, add: bool, timeout: int | None, exist: bool) -> None:
        if name in self.sets:
            self.sets[name] = self.sets[name].copy()
            super().change_set(name, sides, skb, add=add, timeout=timeout, exist=exist)

    def header(self, module: str, *, holds: bool) -> bool:
        if module == "CT --zone":
            return True
        return self._oracle.ask((module, self._oracle.standing), f"does the packet match -m {module}", f"--assume {module}=yes|no", module,
                                first=holds)  # fmt: skip

    def unknown(self, what: str) -> bool:
        kind = what.partition(":")[0].split()[1]
        return self._oracle.ask((what, self._oracle.standing), f"does {what} hold" if what.startswith("-m") else f"is it so that {what}",
                                f"--assume {kind}=yes|no", kind)  # fmt: skip
