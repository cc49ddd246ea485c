"""What the application wrote and TCP has not sent yet. Decides nothing: a queue of bytes that is cut without copying.

Chunks are kept as they were written; `take` copies only where a packet spans two of them.
"""

from __future__ import annotations

from collections import deque


class SendBuffer:
    """`size` is the number of bytes that wait."""

    __slots__ = ("_chunks", "_offset", "size")

    def __init__(self) -> None:
        self._chunks: deque[memoryview] = deque()
        self._offset = 0  # of the first chunk, what was taken already
        self.size = 0

    def append(self, data: bytes | bytearray | memoryview, size: int) -> None:
        """Queue the first `size` bytes of `data`, copying them unless nobody can change them."""
        view = memoryview(data)[:size]
        self._chunks.append(view if isinstance(data, bytes) else memoryview(bytes(view)))
        self.size += size

    def take(self, size: int) -> bytes | memoryview:
        """The next `size` bytes, which must be there."""
        assert 0 < size <= self.size
        self.size -= size
        chunks, start = self._chunks, self._offset
        end = start + size
        if end < len(chunks[0]):
            self._offset = end
            return chunks[0][start:end]
        if end == len(chunks[0]):
            self._offset = 0
            return chunks.popleft()[start:]
        return self._gather(size)

    def _gather(self, size: int) -> bytes:
        pieces, chunks, start = [], self._chunks, self._offset
        while size:
            piece = chunks[0][start : start + size]
            pieces.append(piece)
            size -= len(piece)
            start += len(piece)
            if start == len(chunks[0]):
                chunks.popleft()
                start = 0
        self._offset = start
        return b"".join(pieces)

    def clear(self) -> None:
        self._chunks.clear()
        self._offset = self.size = 0
