"""Time as an argument. Decides nothing; only shells read a clock, everything else is handed `now` in seconds."""

from __future__ import annotations


class ManualClock:
    """A clock that tests and `--in-process` move by hand."""

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._now += seconds
