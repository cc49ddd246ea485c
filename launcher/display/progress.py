"""Progress of work that takes a while: one line on stderr that changes, on a terminal only, and not before a second has passed."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status

QUIET_FOR = 0.8  # seconds; what is over sooner needs no words


class Progress:
    """`say` what is being waited for, as often as it pleases. The line appears by itself, also during a call that blocks."""

    def __init__(self, text: str = "") -> None:
        self._text = text
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._timer = threading.Timer(QUIET_FOR, self._appear)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def say(self, text: str) -> None:
        """What is waited for now."""
        with self._lock:
            self._text = text
            if self._status is not None:
                self._status.update(f"{text} ({time.monotonic() - self._started:.0f} s)")

    def _appear(self) -> None:
        from rich.console import Console
        from rich.status import Status

        with self._lock:
            if not self._timer.finished.is_set():  # `cancel` sets it: the work is over
                self._status = Status(self._text, console=Console(stderr=True))
                self._status.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            if self._status is not None:
                self._status.stop()
