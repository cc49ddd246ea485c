"""Progress of work that takes a while: one line on stderr that changes, on a terminal only, and not before a second has passed."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status

QUIET_FOR = 0.7  # seconds


class Progress:
    """`say` what is being waited for, as often as it pleases."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._status: Status | None = None

    def __enter__(self) -> Self:
        return self

    def say(self, text: str) -> None:
        if not self._terminal or time.monotonic() - self._started < QUIET_FOR:
            return
        if self._status is None:
            from rich.console import Console
            from rich.status import Status

            self._status = Status(text, console=Console(stderr=True))
            self._status.start()
        self._status.update(f"{text} ({time.monotonic() - self._started:.0f} s)")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()
