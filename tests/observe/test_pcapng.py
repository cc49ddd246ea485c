"""pcapng: what is written is read again, in whatever pieces it comes, and dpkt reads it too."""

from __future__ import annotations

import io

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.observe import pcapng
from emu.observe.pcapng import Counts, Malformed, Reader

WHOLE = (
    pcapng.section("test", "note")
    + pcapng.interface("node-1/eth0", 65535, "mtu 1500", "tcp")
    + pcapng.packet(0, 1_700_000_000_123_456_789, b"\x45abc", 9, 2, "trace 4")
    + pcapng.packet(0, 1_700_000_000_123_456_790, b"\x45ab", 3, 1)
    + pcapng.statistics(0, 1_700_000_001_000_000_000, Counts(5, 4, 3), "gone")
)


@given(st.lists(st.integers(1, 40), max_size=20))
def test_a_stream_is_read_in_whatever_pieces_it_comes(sizes):
    reader, blocks, rest = Reader(), [], WHOLE
    for size in [*sizes, len(WHOLE)]:
        blocks += reader.feed(rest[:size])
        rest = rest[size:]
    assert b"".join(block.raw for block in blocks) == WHOLE
    assert reader.pending == b""
    section, interface, first, second, statistics = blocks
    assert section.comment == "note"
    assert interface.name == "node-1/eth0"
    assert (first.at, first.data, first.length, first.direction, first.comment) == (1_700_000_000_123_456_789, b"\x45abc", 9, 2, "trace 4")
    assert (second.at, second.data, second.length, second.direction, second.comment) == (1_700_000_000_123_456_790, b"\x45ab", 3, 1, "")
    assert (statistics.counts, statistics.comment) == (Counts(5, 4, 3), "gone")


def test_dpkt_reads_it():
    found = list(dpkt.pcapng.Reader(io.BytesIO(WHOLE)))
    assert [bytes(data) for _, data in found] == [b"\x45abc", b"\x45ab"]
    assert abs(found[0][0] - 1_700_000_000.123456789) < 1e-6


@given(st.binary(max_size=200))
def test_what_is_none_is_malformed_and_nothing_worse(data):
    try:
        list(Reader().feed(data))
    except Malformed:
        pass


@pytest.mark.parametrize("size", [0, 8, 13, 1 << 25])
def test_a_block_whose_length_cannot_be_is_malformed(size):
    with pytest.raises(Malformed):
        list(Reader().feed(WHOLE[:4] + size.to_bytes(4, "little") + WHOLE[8:]))
