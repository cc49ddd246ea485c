"""Where a container's output goes: text streams for programs, and the container's log as the kubelet keeps it.

Decides line splitting, timestamps and what a bounded log forgets. Knows no clock: lines are stamped by whoever adds them.
See KEP-1602 (kubectl logs) and the CRI log format, whose timestamp, stream and line these are.
"""

from __future__ import annotations

import io
import sys
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

Write = Callable[[str, bytes], None]
MAX_BYTES = 256 * 1024  # a container; the kubelet keeps 10 MiB, for far fewer containers


class LogLine(NamedTuple):
    """One line of a log: Unix time in seconds, "stdout" or "stderr", and the line without its newline."""

    at: float
    stream: str
    data: bytes

    def render(self, *, timestamps: bool = False) -> bytes:
        """As `kubectl logs` prints it, newline included."""
        return (f"{rfc3339_nano(self.at)} ".encode() if timestamps else b"") + self.data + b"\n"


def rfc3339_nano(at: float) -> str:
    """Unix time as the kubelet stamps log lines, microseconds padded to nanoseconds."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


class Log:
    """The last lines of one run of a container, oldest first. Safe to add to and read from any thread."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._lines: deque[LogLine] = deque()
        self._open: dict[str, bytes] = {}
        self._size, self._max = 0, max_bytes
        self._followers: list[Callable[[LogLine | None], None]] = []
        self._ended = False
        self._lock = threading.Lock()

    def write(self, at: float, stream: str, data: bytes) -> None:
        """Add output; what has no newline yet waits for it (or for `finish`)."""
        with self._lock:
            *lines, rest = (self._open.pop(stream, b"") + data).split(b"\n")
            if rest:
                self._open[stream] = rest
            self._add([LogLine(at, stream, line) for line in lines])

    def finish(self, at: float) -> None:
        """The run is over: its last, unended lines count."""
        with self._lock:
            rest, self._open, self._ended = self._open, {}, True
            self._add([LogLine(at, stream, data) for stream, data in rest.items()])
            followers, self._followers = self._followers, []
            for follower in followers:
                follower(None)

    def _add(self, lines: list[LogLine]) -> None:
        for line in lines:
            self._lines.append(line)
            self._size += len(line.data) + 1
            for follower in self._followers:
                follower(line)
        while self._size > self._max and self._lines:
            self._size -= len(self._lines.popleft().data) + 1

    def read(self, tail: int | None = None, since: float | None = None) -> list[LogLine]:
        """The kept lines, at most the last `tail`, none older than `since` (Unix time)."""
        with self._lock:
            lines = [line for line in self._lines if since is None or line.at >= since]
        return lines if tail is None else lines[max(0, len(lines) - tail) :]

    def follow(self, tell: Callable[[LogLine | None], None], tail: int | None = None) -> Callable[[], None]:
        """Tell the kept lines and then every new one, none missed or told twice, and None at the end of the run.

        Returns how to stop before that. `tell` is called by whichever thread writes, and must not block.
        """
        with self._lock:
            kept = list(self._lines)
            for line in kept if tail is None else kept[max(0, len(kept) - tail) :]:
                tell(line)
            if self._ended:
                tell(None)
            else:
                self._followers.append(tell)
        return lambda: self._unfollow(tell)

    def _unfollow(self, tell: Callable[[LogLine | None], None]) -> None:
        with self._lock:
            if tell in self._followers:
                self._followers.remove(tell)


class LineStream(io.RawIOBase):
    """A program's stdout or stderr; `text` is its TextIO."""

    def __init__(self, name: str, write: Write) -> None:
        super().__init__()
        self._name, self._write = name, write
        self.text: Any = io.TextIOWrapper(self, encoding="utf-8", errors="backslashreplace", write_through=True)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(self._name, bytes(data))
        return len(data)


# ---- print() in programs ---------------------------------------------------------------------------------------------------------

_current = threading.local()


def on_this_thread(write: Write | None) -> None:
    """What this thread prints goes to `write` (None: to the host process again)."""
    _current.write = write


class ThreadStream(io.TextIOBase):
    """Stands in for sys.stdout or sys.stderr of a node: containers' threads print into their logs, others where they did."""

    def __init__(self, name: str, host: Any) -> None:
        super().__init__()
        self._stream, self._host = name, host

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        write: Write | None = getattr(_current, "write", None)
        if write is None:
            return int(self._host.write(text))
        write(self._stream, text.encode(errors="backslashreplace"))
        return len(text)

    def flush(self) -> None:
        if getattr(_current, "write", None) is None:
            self._host.flush()


def route_prints() -> None:
    """Let print() of container threads reach their logs; a node calls this once. Event handlers use `ctx.stdout`."""
    sys.stdout, sys.stderr = ThreadStream("stdout", sys.stdout), ThreadStream("stderr", sys.stderr)
