"""Out-of-order data against a model that is a dict of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emu.tcp.reassembly import MAX_BLOCKS, Reassembly

STREAM = bytes(range(256)) * 2
PIECE = st.tuples(st.integers(1, 300), st.integers(1, 60))


def runs(positions: set[int]) -> list[tuple[int, int]]:
    """The maximal ranges of a set of integers, ascending."""
    out: list[tuple[int, int]] = []
    for position in sorted(positions):
        if out and out[-1][1] == position:
            out[-1] = (out[-1][0], position + 1)
        else:
            out.append((position, position + 1))
    return out


@given(st.lists(PIECE, max_size=30), st.integers(0, 300))
def test_ranges_blocks_and_duplicates_are_those_of_the_model(pieces, upto):
    queue, held = Reassembly(), set()
    for start, size in pieces:
        fresh = set(range(start, start + size))
        duplicate = queue.insert(start, STREAM[start : start + size])
        overlap = runs(fresh & held)
        assert (duplicate is None) == (not overlap)
        if duplicate is not None:
            assert duplicate == overlap[0]
        held |= fresh
        assert queue.size == len(held)
        assert bool(queue) == bool(held)
        assert set(queue.blocks) <= set(runs(held))
        assert len(queue.blocks) == min(len(runs(held)), MAX_BLOCKS) or len(queue.blocks) < MAX_BLOCKS
        assert queue.blocks[0][0] <= start < queue.blocks[0][1], "the block that grew last comes first (RFC 2018, 4)"
    ready = b"".join(queue.take(upto))
    end = upto
    while end in held:
        end += 1
    if any(position <= upto for position in held):
        assert ready == STREAM[upto:end]
    held = {position for position in held if position > end}
    assert queue.size == len(held)


def test_blocks_are_kept_in_the_order_they_grew():
    """RFC 2018, section 4, and its example of every other segment lost."""
    queue = Reassembly()
    for start in (10, 20, 30, 40, 50):
        queue.insert(start, b"12345")
    assert queue.blocks == [(50, 55), (40, 45), (30, 35), (20, 25)]
    queue.insert(25, b"12345")
    assert queue.blocks == [(20, 35), (50, 55), (40, 45)]


def test_what_was_taken_is_not_reported():
    queue = Reassembly()
    queue.insert(10, b"12345")
    queue.insert(20, b"12345")
    assert queue.take(12) == [b"345"]
    assert queue.blocks == [(20, 25)]
    queue.clear()
    assert not queue
    assert queue.size == 0
