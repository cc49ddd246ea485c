"""Data that arrived out of order. Decides what is kept, what becomes deliverable, and which SACK blocks tell of it.

Ranges are disjoint, sorted and never adjacent; positions are widened sequence numbers. Blocks are in the order of RFC 2018,
section 4: first the one that grew last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

MAX_BLOCKS = 4  # what an option without timestamps has room for


class Range:
    """Received bytes from `start` up to `end`."""

    __slots__ = ("chunks", "end", "start")

    def __init__(self, start: int, chunk: bytes | bytearray) -> None:
        self.start, self.end = start, start + len(chunk)
        self.chunks: deque[bytes | bytearray] = deque((chunk,))


def _start(held: Range) -> int:
    return held.start


class Reassembly:
    """False when nothing is held. `blocks` are (start, end), the most recent first; `size` is the bytes held."""

    __slots__ = ("_ranges", "blocks", "size")

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self.blocks: list[tuple[int, int]] = []
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._ranges)

    @property
    def first(self) -> tuple[int, int]:
        """The lowest range that is held, as (start, end)."""
        held = self._ranges[0]
        return held.start, held.end

    def insert(self, start: int, data: bytes | bytearray) -> tuple[int, int] | None:
        """Hold `data` at `start`; what of it was held before comes back as a range to report as duplicate (RFC 2883)."""
        end = start + len(data)
        ranges = self._ranges
        index = bisect_left(ranges, start, key=_start)
        if index and ranges[index - 1].end >= start:
            index -= 1
        duplicate = None
        at, position = index, start
        while position < end:  # fill each gap of [start, end) that no range covers
            held = ranges[at] if at < len(ranges) else None
            if held is not None and held.start <= position:
                if held.end > position and duplicate is None:
                    duplicate = (position, min(held.end, end))
                position = max(position, held.end)
                at += 1
                continue
            gap_end = end if held is None else min(end, held.start)
            ranges.insert(at, Range(position, data[position - start : gap_end - start]))
            self.size += gap_end - position
            position = gap_end
            at += 1
        self._merge(index, end)
        return duplicate

    def _merge(self, index: int, end: int) -> None:
        """Join the ranges from `index` that touch, up to the one that begins at `end`, and put their block first."""
        ranges = self._ranges
        merged = ranges[index]
        last = index + 1
        while last < len(ranges) and ranges[last].start <= merged.end and ranges[last].start <= end:
            merged.chunks.extend(ranges[last].chunks)
            merged.end = ranges[last].end
            last += 1
        del ranges[index + 1 : last]
        others = [block for block in self.blocks if not merged.start <= block[0] < merged.end]
        self.blocks = [(merged.start, merged.end), *others[: MAX_BLOCKS - 1]]

    def take(self, position: int) -> list[bytes | bytearray]:
        """The chunks that follow on from `position`, which everything before has now reached."""
        ready: list[bytes | bytearray] = []
        ranges = self._ranges
        while ranges and ranges[0].start <= position:
            first = ranges.pop(0)
            self.size -= first.end - first.start
            if first.end > position:
                skip = position - first.start
                for chunk in first.chunks:
                    if skip < len(chunk):
                        ready.append(chunk[skip:] if skip else chunk)
                    skip = max(0, skip - len(chunk))
                position = first.end
        self.blocks = [block for block in self.blocks if block[0] > position]
        return ready

    def clear(self) -> None:
        self._ranges.clear()
        self.blocks.clear()
        self.size = 0
