"""The underlay message: what goes in comes out, and nothing that comes in raises."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import DropReason
from emu.wire.message import PREAMBLE, RECORD, VERSION, decode, encode, encode_one, preamble

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
RECORDS = st.lists(st.tuples(st.binary(max_size=200), U16, U32), min_size=1, max_size=8)


def test_layout_is_the_published_one():
    assert (PREAMBLE.size, RECORD.size) == (16, 8)
    assert encode_one(0x01020304, 0x1122334455667788, b"AB", 1398, 0xDEADBEEF).hex() == (
        "01 00 0000 01020304 1122334455667788 0002 0576 deadbeef 4142".replace(" ", "")
    )


@given(U32, U64, RECORDS)
def test_decode_gives_back_what_encode_took(incarnation, sent, records):
    message = encode(incarnation, sent, records)

    assert decode(message) == records
    assert preamble(message) == (VERSION, 0, 0, incarnation, sent)


@given(U32, U64, st.binary(max_size=2000), U16, U32)
def test_a_lone_packet_is_encoded_as_a_batch_of_one(incarnation, sent, packet, gso_size, trace):
    assert encode_one(incarnation, sent, packet, gso_size, trace) == encode(incarnation, sent, [(packet, gso_size, trace)])


@given(RECORDS, st.data())
def test_a_cut_message_is_never_taken_for_a_whole_one(records, data):
    message = encode(1, 2, records)
    cut = data.draw(st.integers(0, len(message) - 1))
    got = decode(message[:cut])
    if isinstance(got, list):  # cut between two records: what is left is whole
        assert got == records[: len(got)]
    else:
        assert got is DropReason.BAD_MESSAGE


@given(st.binary(max_size=100) | st.binary(max_size=100).map(lambda tail: bytes((VERSION,)) + tail))
def test_noise_never_raises(noise):
    got = decode(noise)
    assert got is DropReason.BAD_MESSAGE or encode(*preamble(noise)[3:], got)[16:] == noise[16:]


@pytest.mark.parametrize("message", [b"", b"\x01", bytes(23), bytes(24), b"\x02" + bytes(23), encode(1, 1, [])])
def test_no_record_or_another_version_is_a_bad_message(message):
    assert decode(message) is DropReason.BAD_MESSAGE
    assert preamble(message) is DropReason.BAD_MESSAGE


def test_a_packet_over_64_kib_is_our_own_bug():
    with pytest.raises(struct.error):
        encode_one(0, 0, bytes(65536))
