"""Time as an argument. Decides nothing; only shells read a clock, everything else is handed `now` in seconds."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since some fixed start; never goes backwards."""

    def now(self) -> float: ...


class MonotonicClock:
    """The machine's CLOCK_MONOTONIC, one for all processes of a host."""

    now = staticmethod(time.monotonic)


class ManualClock:
    """A clock that tests and `--in-process` move by hand."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._now += seconds
