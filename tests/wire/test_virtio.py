"""Frames for a kernel: what was left to it is what it must fill in, and what comes back is what went."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import DropReason
from emu.wire import checksum, virtio
from emu.wire.packet import emit
from tests.kit.packets import DATAGRAM, PACKETS, SYN
from tests.wire.test_gso import tcp


def completed(frame):
    """What a kernel makes of a frame: the sum over all from csum_start on, put at csum_offset, over the seed that is there."""
    flags, _, _, _, start, offset = virtio.HEADER.unpack_from(frame)
    packet = bytearray(frame[virtio.HEADER.size :])
    if flags & virtio.NEEDS_CSUM:
        packet[start + offset : start + offset + 2] = checksum.internet(bytes(packet[start:])).to_bytes(2, "big")
    return bytes(packet)


@given(PACKETS.map(emit))
def test_what_a_kernel_completes_has_all_its_checksums_right(packet):
    blank = checksum.accept(checksum.fill(packet), vouched=True) if packet[0] >> 4 == 4 else DropReason.UNSUPPORTED
    if isinstance(blank, DropReason):
        return
    whole = completed(virtio.emit(blank, 0))
    assert not checksum.wrong(whole)
    assert virtio.parse(virtio.HEADER.pack(0, 0, 0, 0, 0, 0) + whole) == (checksum.accept(whole), 0)


def test_a_gso_packet_says_its_header_and_segment_sizes():
    packet = tcp(b"x" * 4000)
    header = virtio.HEADER.unpack_from(virtio.emit(packet, 1448))
    assert header == (virtio.NEEDS_CSUM, virtio.GSO_TCPV4, 40, 1448, 20, 16)
    assert virtio.parse(virtio.emit(packet, 1448)) == (packet, 1448)


def test_a_packet_of_one_segment_is_no_gso_packet():
    assert virtio.HEADER.unpack_from(virtio.emit(tcp(b"x" * 1448), 1448))[1:4:2] == (virtio.GSO_NONE, 0)


ANY = virtio.HEADER.pack(0, 0, 0, 0, 0, 0)
GOOD = checksum.fill(tcp(b"data"))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", DropReason.TRUNCATED),
        (ANY[:-1], DropReason.TRUNCATED),
        (ANY + GOOD[:19], DropReason.TRUNCATED),
        (ANY + GOOD[:-1], DropReason.TRUNCATED),
        (ANY + b"\x60" + bytes(39), DropReason.UNSUPPORTED),
        (ANY + b"\x50" + GOOD[1:], DropReason.MALFORMED),
        (ANY + b"\x44" + GOOD[1:], DropReason.MALFORMED),
        (ANY + GOOD[:-1] + b"!", DropReason.BAD_CHECKSUM),
        (ANY + GOOD[:8] + b"\x01" + GOOD[9:], DropReason.BAD_CHECKSUM),
        (virtio.HEADER.pack(1, 0, 40, 0, 20, 16) + GOOD[:8] + b"\x01" + GOOD[9:], DropReason.BAD_CHECKSUM),  # IP's is never open
        (virtio.HEADER.pack(1, 4, 40, 1448, 20, 16) + GOOD, DropReason.UNSUPPORTED),
        (virtio.HEADER.pack(1, 1, 40, 0, 20, 16) + GOOD, DropReason.MALFORMED),
        (virtio.HEADER.pack(1, 0, 40, 1448, 20, 16) + GOOD, DropReason.MALFORMED),
    ],
)
def test_what_does_not_hold_together_has_a_reason(frame, reason):
    assert virtio.parse(frame) is reason


@pytest.mark.parametrize("flags", [virtio.NEEDS_CSUM, virtio.DATA_VALID])
def test_a_sum_that_the_kernel_vouches_for_is_not_looked_at(flags):
    frame = struct.pack("=BBHHHH", flags, 0, 40, 0, 20, 16) + GOOD[:36] + b"??" + GOOD[38:]
    assert virtio.parse(frame) == (tcp(b"data"), 0)


def test_padding_of_the_link_is_cut_off():
    assert virtio.parse(ANY + GOOD + bytes(6)) == (tcp(b"data"), 0)


@given(
    st.binary(max_size=120)
    | st.tuples(st.sampled_from((emit(SYN), emit(DATAGRAM))), st.integers(0, 40)).map(lambda pair: pair[0][: pair[1]])
)
def test_nothing_is_raised_whatever_comes(data):
    assert isinstance(virtio.parse(data), (DropReason, tuple))
    assert isinstance(checksum.accept(data), (DropReason, bytes))
