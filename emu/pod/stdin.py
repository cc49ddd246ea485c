"""Standard input of a process: bytes that arrive from afar (`exec -i`), read as from a pipe.

Decides waiting and end of file. Guarded by the kernel's lock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from emu.pod.errors import ContainerKilled
from emu.stack.sockets import Waiter

if TYPE_CHECKING:
    from emu.pod.process import Process


class Stdin:
    """A pipe's reading end; `feed` and `feed_eof` are for whoever holds the other."""

    def __init__(self, process: Process, *, attached: bool) -> None:
        self._process = process
        self._chunks: deque[bytes] = deque()
        self._eof = not attached  # as from /dev/null

    def read(self, size: int = 65536) -> bytes:
        """At least one byte, at most `size`; b"" at the end. Blocks."""
        process = self._process
        process.kernel.enter()
        try:
            while not self._chunks and not self._eof:
                process.wait(Waiter(), None)
            if process.killed:
                raise ContainerKilled
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if len(chunk) > size:
                self._chunks.appendleft(chunk[size:])
            return chunk[:size]
        finally:
            process.kernel.leave()

    def feed(self, data: bytes) -> None:
        """Bytes for the process to read."""
        self._put(data)

    def feed_eof(self) -> None:
        """There is no more."""
        self._put(b"")

    def _put(self, data: bytes) -> None:
        self._process.kernel.enter()
        try:
            if data:
                self._chunks.append(data)
            else:
                self._eof = True
            self._process.wake()
        finally:
            self._process.kernel.leave()
