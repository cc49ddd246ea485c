"""What becomes of each segment on one direction of one link. tc-netem's words and meanings, with a clock that is handed in.

Decides, in this order, as netem does: a copy may be made (`duplicate`); each copy may be lost (`loss`); what is left waits for its
turn to be sent (`rate`: bits on the wire one after the other, in a queue of `LIMIT` bytes whose overflow is dropped), and then
takes `delay` ± `jitter` (uniform) to arrive; but those that chance picks (`reorder`) take no time, and so overtake those before.

- Jitter reorders, as netem's does: every segment draws its own.
- `reorder` without a delay would do nothing in netem (tc refuses it). Here the picked ones are held back by `HOLD_BACK` instead, and
  by the time of three more packets where there is a rate, so that those behind overtake them.
- A percentage is of segments, also of those that travel as one GSO packet. A long datagram is lost if any of its fragments is.

Chances are drawn as the distance to the next hit, so a packet that nothing befalls costs three comparisons; each condition has its
own random stream, from the seed and the link's name alone: neither another link's traffic nor another condition changes what is
lost. A condition that is set anew begins its stream again. Must not know packets, peers or messages. See tc-netem(8).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, log, log1p

from emu.errors import DropReason
from emu.model.links import FAIR, Conditions

LIMIT = 1000 * 1500  # bytes that may wait to be sent at the rate: netem's default limit, in full packets
HOLD_BACK = 0.001  # seconds that a reordered segment waits where nothing else is delayed

Share = tuple[int, int, float]
"""Segments that leave together: the first one's number, how many, and when."""


class Chance:
    """Independent trials of probability `p`; `left` is how many more fail before the next succeeds."""

    __slots__ = ("_log_of_failure", "_random", "left", "p")

    def __init__(self, p: float, source: str) -> None:
        self.p = p
        self._random = random.Random(source) if 0 < p < 1 else None
        self._log_of_failure = log1p(-p) if p < 1 else -inf
        self.left = self._gap()

    def _gap(self) -> float:
        if self._random is None:
            return 0 if self.p else inf
        return int(log(1.0 - self._random.random()) / self._log_of_failure)

    def hit(self) -> bool:
        if self.left:
            self.left -= 1
            return False
        self.left = self._gap()
        return True


@dataclass(slots=True)
class Tally:
    """How many segments one fault has done what to."""

    lost: int = 0
    cut: int = 0
    delayed: int = 0
    duplicated: int = 0
    reordered: int = 0
    overflowed: int = 0


class Netem:
    """One direction of one link. `busy` is when the last bit that was accepted will have been sent."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self.conditions = FAIR
        self.busy = 0.0
        self._loss, self._duplicate, self._reorder = (Chance(0.0, seed) for _ in range(3))
        self._jitter = random.Random(f"{seed}/jitter")
        self._tallies: Mapping[str, Tally] = {}

    def set(self, conditions: Conditions, tallies: Mapping[str, Tally]) -> None:
        """From now on these; `tallies` has one for each condition that is set."""
        before, self.conditions, self._tallies = self.conditions, conditions, tallies
        for name in ("loss", "duplicate", "reorder"):
            if getattr(conditions, name) != getattr(before, name):
                setattr(self, f"_{name}", Chance(getattr(conditions, name), f"{self._seed}/{name}"))
        if conditions.jitter != before.jitter:
            self._jitter = random.Random(f"{self._seed}/jitter")

    def offer(
        self, count: int, segment: int, last: int, now: float, *, divisible: bool = True
    ) -> tuple[list[Share], list[tuple[DropReason, int]]]:
        """What becomes of `count` segments of `segment` bytes, the last of `last`: when which leave, and how many are dropped why.

        If they are not `divisible`, all leave or none does.
        """
        conditions, loss, duplicate, reorder = self.conditions, self._loss, self._duplicate, self._reorder
        if conditions.cut:
            self._tallies["cut"].cut += count
            return [], [(DropReason.LINK_CUT, count)]
        if not divisible:
            return self._whole(count, segment * (count - 1) + last, now)
        if loss.left >= count and duplicate.left >= count and reorder.left >= count and not conditions.rate and not conditions.jitter:
            loss.left -= count
            duplicate.left -= count
            reorder.left -= count
            if conditions.delay:
                self._tallies["delay"].delayed += count
            return [(0, count, now + conditions.delay)], []
        shares: list[Share] = []
        lost = overflowed = 0
        for number in range(count):
            copies = 2 if duplicate.hit() else 1
            if copies == 2:
                self._tallies["duplicate"].duplicated += 1
            for _ in range(copies):
                if loss.hit():
                    lost += 1
                    continue
                at = self._leaves(segment if number + 1 < count else last, now)
                if at is None:
                    overflowed += 1
                elif shares and shares[-1][2] == at and shares[-1][0] + shares[-1][1] == number:
                    shares[-1] = shares[-1][0], shares[-1][1] + 1, at
                else:
                    shares.append((number, 1, at))
        return shares, self._drops(lost, overflowed)

    def _whole(self, count: int, size: int, now: float) -> tuple[list[Share], list[tuple[DropReason, int]]]:
        """Fragments of one datagram."""
        shares: list[Share] = []
        lost = overflowed = 0
        copies = 2 if self._duplicate.hit() else 1
        if copies == 2:
            self._tallies["duplicate"].duplicated += 1
        for _ in range(copies):
            if sum([self._loss.hit() for _ in range(count)]):
                lost += 1
            elif (at := self._leaves(size, now)) is None:
                overflowed += 1
            else:
                shares.append((0, count, at))
        return shares, self._drops(lost, overflowed)

    def _leaves(self, size: int, now: float) -> float | None:
        """When a packet of so many bytes comes out at the other end; None if the queue is full."""
        conditions, at = self.conditions, now
        takes = 0.0
        if conditions.rate:
            start = max(now, self.busy)
            takes = size * 8 / conditions.rate
            if (start - now) * conditions.rate / 8 + size > LIMIT:
                return None
            at = self.busy = start + takes
        held = bool(conditions.delay or conditions.jitter)
        if self._reorder.hit():
            self._tallies["reorder"].reordered += 1
            return at if held else at + HOLD_BACK + 3 * takes
        if held:
            self._tallies["delay" if conditions.delay else "jitter"].delayed += 1
            spread = conditions.jitter * (2 * self._jitter.random() - 1) if conditions.jitter else 0.0
            at += max(0.0, conditions.delay + spread)
        return at

    def _drops(self, lost: int, overflowed: int) -> list[tuple[DropReason, int]]:
        if lost:
            self._tallies["loss"].lost += lost
        if overflowed:
            self.overflow(overflowed)
        return [(reason, n) for reason, n in ((DropReason.LINK_LOSS, lost), (DropReason.LINK_OVERFLOW, overflowed)) if n]

    def overflow(self, count: int) -> None:
        """So many were dropped for want of room."""
        name = next(name for name in ("rate", "delay", "jitter", "reorder") if name in self._tallies)
        self._tallies[name].overflowed += count

    def cut(self, count: int) -> None:
        """So many were under way when the link was cut."""
        self._tallies["cut"].cut += count
