"""Everything that may become of a new connection's first packet, read from the rule set: every backend, with its probability.

The packet is taken through the real hooks once for each way in which the dice of its `statistic` rules may fall, so there is
no second reading of the rules that could differ from the first. A draw is a number that, compared with a probability,
notes it and answers as the way under trial says; n backends cost n walks. Connections that exist are not considered: the
question is what a new one meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

from emu.netfilter.hooks import Surroundings
from emu.netfilter.journey import Fate, Journey, Route
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import Skb
from emu.wire.addr import Ip


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
        netfilter = Netfilter(dice)
        netfilter.swap(ruleset)
        fate = Journey(netfilter, dice.is_local, route).take(skb)
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

    def choose(self, count: int) -> int:
        """As a row of draws, the i-th of which takes 1/(count-i) of what is left."""
        return next((number for number in range(count - 1) if self.fall(1 / (count - number))), count - 1)

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


__all__ = ["Fate", "fates"]
