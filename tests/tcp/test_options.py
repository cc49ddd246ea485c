"""Options that no honest peer sends, and those that every one does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP

from emu.tcp.options import Options, emit_sacks, parse

READ = (
    ("nothing", "", Options()),
    ("MSS", "02 04 05 b4", Options(mss=1460)),
    ("an unknown option is skipped", "fe 04 aa aa 02 04 05 b4", Options(mss=1460)),
    ("what follows the end is not read", "00 02 04 05 b4", Options()),
    ("an option of length 0 ends the reading", "fe 00 02 04 05 b4", Options()),
    ("an option of length 1 ends the reading", "fe 01 02 04 05 b4", Options()),
    ("a length beyond the header ends the reading", "01 01 08 0a 00 00", Options()),
    ("a kind without length ends the reading", "01 02", Options()),
    ("MSS of the wrong length is skipped", "02 03 05 04 02", Options(sack_permitted=True)),
    ("a scale beyond 14 is 14", "03 03 ff", Options(wscale=14)),
    ("SACK of half a block is skipped", "05 06 00 00 00 01", Options()),
    ("two blocks", "05 12 00000001 00000002 00000005 00000009", Options(sacks=((1, 2), (5, 9)))),
)


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_parse(data, expected):
    raw = bytes.fromhex(data)
    assert parse(raw, 0, len(raw)) == expected


@given(st.binary(max_size=40))
def test_parse_stays_within_its_bounds(data):
    inside = parse(data, 0, len(data))
    assert parse(b"\x02\x04\xff\xff" + data + b"\x02\x04\xff\xff", 4, 4 + len(data)) == inside


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=4))
def test_scapy_reads_our_sack_blocks(blocks):
    raw = emit_sacks(blocks)
    assert len(raw) % 4 == 0
    assert parse(raw, 0, len(raw)).sacks == tuple(blocks)
    header = bytes(12) + bytes(((5 + len(raw) // 4) << 4,)) + bytes(7) + raw
    assert dict(TCP(header).options)["SAck"] == tuple(edge for block in blocks for edge in block)
