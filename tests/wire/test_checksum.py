"""Checksums against published examples and against a sum done the slow way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.wire import checksum
from emu.wire.ipv4 import MF, Ipv4
from emu.wire.packet import Packet, emit, encapsulate
from emu.wire.udp import Udp
from tests.kit.packets import DATAGRAM, PACKETS, SYN


def slow_sum(data):
    """RFC 1071's own loop."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(max_size=200) | st.integers(0, 40).map(lambda n: b"\xff" * n))
def test_one_division_is_the_sum_of_words(data):
    assert checksum.internet(data) == slow_sum(data)


def test_the_example_of_rfc_1071():
    assert checksum.internet(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


@pytest.mark.parametrize(
    ("data", "crc"),  # RFC 3720, B.4, as numbers
    [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283)],
)
def test_crc32c_of_the_published_examples(data, crc):
    assert checksum.crc32c(data) == crc


@given(PACKETS)
def test_filled_packets_are_right_and_filling_again_changes_nothing(packet):
    filled = emit(packet, checksums=True)
    assert checksum.wrong(filled) == ()
    assert checksum.fill(filled) == filled


def test_a_flipped_bit_is_found_where_it_is():
    filled = bytearray(emit(SYN, checksums=True))
    filled[-1] ^= 1
    assert checksum.wrong(bytes(filled)) == ("tcp",)
    filled[8] ^= 1
    assert checksum.wrong(bytes(filled)) == ("ip", "tcp")


def test_a_udp_sum_of_zero_is_sent_as_all_ones():
    """RFC 768: zero would say that there is none."""
    empty = emit(Packet(DATAGRAM.ip, DATAGRAM.transport, bytes(2)), checksums=True)
    payload = empty[26:28]  # what is missing to a sum of all ones
    filled = emit(Packet(DATAGRAM.ip, DATAGRAM.transport, payload), checksums=True)
    assert filled[26:28] == b"\xff\xff"
    assert checksum.wrong(filled) == ()


def test_inside_vxlan_the_inner_packet_is_filled_and_the_outer_udp_says_none():
    payload = encapsulate(emit(SYN), 1, bytes(6), bytes(6))
    filled = emit(Packet(Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 17), Udp(1, 8472), payload), checksums=True)
    assert filled[26:28] == b"\0\0"
    assert filled[50:] == emit(SYN, checksums=True)
    assert checksum.wrong(filled) == ()
    spoiled = filled[:-1] + bytes((filled[-1] ^ 1,))
    assert checksum.wrong(spoiled) == ("tcp",)


def test_a_fragment_keeps_its_transport_field():
    fragment = Packet(Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 17, flags=MF), None, bytes(16))
    filled = emit(fragment, checksums=True)
    assert filled[20:] == bytes(16)
    assert checksum.wrong(filled) == ()


@pytest.mark.parametrize("data", [b"", b"\x45", bytes(20), b"\x45" + bytes(19), b"\x60" + bytes(20)])
def test_what_is_no_packet_is_left_alone(data):
    assert checksum.fill(data) == data
    assert checksum.wrong(data) == ("malformed",)


def test_both_zeros_of_ones_complement_are_right_and_nothing_else_is():
    """A TCP segment whose checksum is 0 may as well carry 0xFFFF, as software segmentation writes it."""
    segment = bytes.fromhex("4500002800004000400600000a0000010a000002") + bytes.fromhex("04d20050000000000000000050100000") + bytes(4)
    for last in range(1 << 16):  # an urgent pointer that makes the sum come out as zero
        packet = checksum.fill(segment[:-2] + last.to_bytes(2, "big"))
        if packet[36:38] == b"\0\0":
            break
    assert packet[36:38] == b"\0\0"
    assert checksum.wrong(packet) == ()
    assert checksum.wrong(packet[:36] + b"\xff\xff" + packet[38:]) == ()
    assert checksum.wrong(packet[:36] + b"\x00\x01" + packet[38:]) == ("tcp",)
