"""Everything that may become of a new connection's first packet, read from the rule set: every backend, with its probability.

The packet is taken through the real hooks once for each way in which the dice of its `statistic` rules may fall, so there is
no second reading of the rules that could differ from the first. A draw is a number that, compared with a probability,
notes it and answers as the way under trial says; n backends cost n walks. Connections that exist are not considered: the
question is what a new one meets.

Decides the order of hooks as the stack does (net/ipv4: ip_rcv, ip_forward, ip_local_out); where packets are routed is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

from emu.netfilter.hooks import Hook, Surroundings, Verdict
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import Skb
from emu.wire.addr import Ip, SockAddr

Route = Callable[[Skb], str | None]
"""The device by which a packet leaves for its (present) destination, which is not local; None if there is no route."""

LOCAL = "lo"


@dataclass(frozen=True, slots=True)
class Fate:
    """One end that the packet may come to.

    `destination` and `source` are the packet's at that end (the port of a masqueraded source is chosen by the packet, and is not
    told); `device` is where it then goes: "lo" to this node itself, None nowhere, for want of a route. `rules` is the largest
    number of rules evaluated on the way.
    """

    verdict: Verdict
    destination: SockAddr
    source: Ip
    device: str | None
    masqueraded: bool
    reject_with: str | None = None
    probability: float = 1.0
    rules: int = 0


def fates(ruleset: RuleSet, packet: bytes, around: Surroundings, route: Route, *, iif: str = "", mark: int = 0) -> tuple[Fate, ...]:
    """What may become of a first packet, the likeliest first; probabilities sum to 1.

    `packet` is a whole IPv4 packet; it comes in by device `iif`, or is sent by the node itself if that is empty.
    """
    found: dict[Fate, tuple[float, int]] = {}
    for fate in _ways(ruleset, packet, around, route, iif, mark):
        bare = replace(fate, probability=1.0, rules=0)
        probability, rules = found.get(bare, (0.0, 0))
        found[bare] = probability + fate.probability, max(rules, fate.rules)
    ends = [replace(fate, probability=probability, rules=rules) for fate, (probability, rules) in found.items()]
    return tuple(sorted(ends, key=lambda fate: -fate.probability))


def _ways(ruleset: RuleSet, packet: bytes, around: Surroundings, route: Route, iif: str, mark: int) -> Iterator[Fate]:
    """One fate for each sequence of draws that may happen, each sequence once, depth first."""
    pending: list[tuple[bool, ...]] = [()]
    while pending:
        script = pending.pop()
        dice = _Dice(around, script)
        skb = Skb.parse(packet)
        assert isinstance(skb, Skb), f"a first packet must be whole: {skb}"
        skb.iif, skb.mark = iif, mark
        fate = _Journey(ruleset, dice, route).take(skb)
        yield replace(fate, probability=prod(dice.probabilities), rules=skb.rules)
        pending.extend((*dice.fallen[:at], False) for at in range(len(script), len(dice.fallen)) if dice.either[at])


class _Draw(float):
    """A random number that is decided when it is compared."""

    dice: _Dice

    def __lt__(self, bound: float) -> bool:
        return self.dice.fall(bound)


class _Dice:
    """The packet's surroundings, with dice that fall as `script` says, and first with True where it says nothing."""

    def __init__(self, around: Surroundings, script: tuple[bool, ...]) -> None:
        self._around, self._script = around, script
        self.memory = around.memory.trial()
        self.fallen: list[bool] = []
        self.probabilities: list[float] = []
        self.either: list[bool] = []

    def fall(self, bound: float) -> bool:
        number = len(self.fallen)
        holds = self._script[number] if number < len(self._script) else bound > 0.0
        self.fallen.append(holds)
        self.probabilities.append(bound if holds else 1.0 - bound)
        self.either.append(0.0 < bound < 1.0)
        return holds

    def random(self) -> float:
        draw = _Draw(0.5)
        draw.dice = self
        return draw

    def is_local(self, ip: Ip) -> bool:
        return self._around.is_local(ip)

    def is_local_on(self, ip: Ip, device: str) -> bool:
        return self._around.is_local_on(ip, device)

    def is_broadcast(self, ip: Ip) -> bool:
        return self._around.is_broadcast(ip)

    def masquerade_address(self, oif: str, dst: Ip) -> Ip | None:
        return self._around.masquerade_address(oif, dst)

    def hop(self, skb: Skb, where: str, rule: str | None = None, note: str | None = None, rules: int = 0) -> None:
        """These packets tell no story."""


class _Journey:
    """One packet's way through a node that has no connections yet."""

    def __init__(self, ruleset: RuleSet, around: _Dice, route: Route) -> None:
        self._netfilter = Netfilter(around)
        self._netfilter.swap(ruleset)
        self._around, self._route = around, route

    def take(self, skb: Skb) -> Fate:
        source = skb.src
        verdict, device = self._sent(skb) if not skb.iif else self._received(skb)
        reject_with = skb.reject_with if verdict is Verdict.REJECT else None
        return Fate(verdict, skb.destination, skb.src, device, skb.src != source, reject_with)

    def _next(self, skb: Skb) -> str | None:
        return LOCAL if self._around.is_local(skb.dst) else self._route(skb)

    def _hooks(self, skb: Skb, *hooks: Hook) -> Verdict:
        for hook in hooks:
            if (verdict := self._netfilter.run(hook, skb, 0.0)) is not Verdict.ACCEPT:
                return verdict
        return Verdict.ACCEPT

    def _received(self, skb: Skb) -> tuple[Verdict, str | None]:
        verdict = self._hooks(skb, Hook.PREROUTING)
        device = self._next(skb)
        if verdict is not Verdict.ACCEPT or device is None:
            return verdict, device
        if device == LOCAL:
            return self._hooks(skb, Hook.INPUT), device
        skb.oif = device
        return self._hooks(skb, Hook.FORWARD, Hook.POSTROUTING), device

    def _sent(self, skb: Skb) -> tuple[Verdict, str | None]:
        device = self._next(skb)
        if device is None:
            return Verdict.ACCEPT, None
        skb.oif = device
        verdict = self._hooks(skb, Hook.OUTPUT)
        device = self._next(skb)
        if verdict is not Verdict.ACCEPT or device is None:
            return verdict, device
        skb.oif = device
        verdict = self._hooks(skb, Hook.POSTROUTING)
        return (self._looped(skb), device) if device == LOCAL and verdict is Verdict.ACCEPT else (verdict, device)

    def _looped(self, skb: Skb) -> Verdict:
        """What the node sends to itself comes in again by `lo`, and meets INPUT there; NAT has been decided."""
        again = Skb.parse(skb.buf)
        assert isinstance(again, Skb), again
        again.iif, again.mark = LOCAL, skb.mark
        verdict = self._hooks(again, Hook.PREROUTING, Hook.INPUT)
        skb.reject_with = again.reject_with
        skb.rules += again.rules
        return verdict
