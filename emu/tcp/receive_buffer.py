"""What arrived in order and the application has not read yet. Decides nothing: a queue of bytes that is cut without copying."""

from __future__ import annotations

from collections import deque


class ReceiveBuffer:
    """`size` is the number of bytes that wait. Chunks belong to the buffer once appended."""

    __slots__ = ("chunks", "size")

    def __init__(self) -> None:
        self.chunks: deque[bytes | bytearray | memoryview] = deque()
        self.size = 0

    def append(self, chunk: bytes | bytearray) -> None:
        self.chunks.append(chunk)
        self.size += len(chunk)

    def take(self, limit: int) -> bytes:
        """Up to `limit` of the bytes that wait, as many as there are."""
        chunks = self.chunks
        pieces, wanted = [], min(limit, self.size)
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
        self.size = 0
