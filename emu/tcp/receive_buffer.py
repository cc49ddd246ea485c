"""What arrived in order and the application has not read yet. Decides nothing: a queue of bytes that is cut without copying."""

from __future__ import annotations

from collections import deque


class ReceiveBuffer:
    """`size` is the number of bytes that wait. Chunks belong to the buffer once appended; `ends` is how far reads may go at a time."""

    __slots__ = ("chunks", "ends", "size")

    def __init__(self) -> None:
        self.chunks: deque[bytes | bytearray | memoryview] = deque()
        self.ends: deque[int] = deque()  # bytes from the one before, or the start, to where a read must end
        self.size = 0

    def mark_end(self) -> None:
        """No read goes beyond what has come so far: here was an urgent byte (Linux's urgent mark)."""
        if self.size > sum(self.ends):
            self.ends.append(self.size - sum(self.ends))

    def append(self, chunk: bytes | bytearray | memoryview) -> None:
        if chunk:
            self.chunks.append(chunk)
            self.size += len(chunk)

    def take(self, limit: int) -> bytes:
        """Up to `limit` of the bytes that wait, as many as there are."""
        chunks = self.chunks
        pieces, wanted = [], min(limit, self.size)
        if self.ends:
            wanted = min(wanted, self.ends[0])
            self.ends[0] -= wanted
            if not self.ends[0]:
                self.ends.popleft()
        self.size -= wanted
        while wanted:
            chunk = chunks[0]
            if len(chunk) <= wanted:
                pieces.append(chunks.popleft())
                wanted -= len(chunk)
            else:
                view = memoryview(chunk)
                pieces.append(view[:wanted])
                chunks[0] = view[wanted:]
                break
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def clear(self) -> None:
        self.chunks.clear()
        self.ends.clear()
        self.size = 0
