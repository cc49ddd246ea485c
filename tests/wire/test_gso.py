"""What a card makes of a GSO packet: the parts carry the bytes of the whole, and runs of parts are what the parts are."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.wire import gso, packet
from emu.wire.checksum import fill, wrong
from emu.wire.ipv4 import Ipv4
from emu.wire.tcp import Tcp
from emu.wire.udp import Udp

HOSTS = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
NODES = bytes((192, 168, 0, 1)), bytes((192, 168, 0, 2))
FIN_PSH_ACK, CWR = 0x19, 0x80


def tcp(payload: bytes, *, seq: int = 1000, flags: int = FIN_PSH_ACK, options: bytes = b"") -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(options) + len(payload), 7, 0x4000, 64, 6, 0, *HOSTS)
    offset = (20 + len(options)) // 4 << 4
    return head + struct.pack("!HHIIBBHHH", 5555, 80, seq, 9, offset, flags, 512, 0, 0) + options + payload


def udp(payload: bytes) -> bytes:
    return packet.emit(packet.Packet(Ipv4(*HOSTS, 17), Udp(5555, 53), payload))


def tunnelled(inner: bytes) -> bytes:
    frame = packet.encapsulate(inner, 1, bytes(6), bytes(6))
    return packet.emit(packet.Packet(Ipv4(*NODES, 17, id=65535), Udp(40000, 8472), frame))


def inner_of(outer: bytes) -> bytes:
    return outer[50:]


@given(st.binary(max_size=5000), st.integers(1, 1400), st.booleans(), st.sampled_from((b"", bytes(12))))
def test_the_segments_of_a_stream_carry_its_bytes_once_and_in_order(data, size, inside_vxlan, options):
    whole = tcp(data, seq=2**32 - 700, flags=FIN_PSH_ACK | CWR, options=options)
    sent = tunnelled(whole) if inside_vxlan else whole
    parts = gso.segments(sent, size)
    assert len(parts) == gso.segment_count(sent, size) == max(1, -(-len(data) // size))
    seq = 2**32 - 700
    got = b""
    for number, part in enumerate(parts):
        assert wrong(fill(part)) == ()
        parsed = packet.parse(inner_of(part) if inside_vxlan else part)
        assert isinstance(parsed, packet.Packet)
        assert isinstance(parsed.transport, Tcp)
        assert parsed.transport.seq == seq
        assert bool(parsed.transport.flags & CWR) == (number == 0)
        assert parsed.transport.flags & 0x1F == (FIN_PSH_ACK if number == len(parts) - 1 else 0x10)
        seq = seq + len(parsed.payload) & 0xFFFFFFFF
        got += parsed.payload
    assert got == data


@given(st.binary(min_size=1, max_size=5000), st.integers(100, 1400), st.booleans(), st.data())
def test_a_run_is_what_its_segments_are(data, size, inside_vxlan, draw):
    whole = tunnelled(tcp(data)) if inside_vxlan else tcp(data)
    parts = gso.segments(whole, size)
    first = draw.draw(st.integers(0, len(parts) - 1))
    count = draw.draw(st.integers(1, len(parts) - first))
    merged, merged_size = gso.run(whole, size, first, count)
    assert merged_size == (size if count > 1 else 0)
    assert gso.segments(merged, merged_size) == parts[first : first + count]


@given(st.binary(min_size=1, max_size=9000), st.integers(64, 1480), st.booleans())
def test_a_long_datagram_becomes_fragments_that_make_it_again(data, size, inside_vxlan):
    whole = udp(data)
    sent = tunnelled(whole) if inside_vxlan else whole
    parts = gso.segments(sent, size)
    fragments = [inner_of(part) if inside_vxlan else part for part in parts]
    together = bytearray()
    for number, fragment in enumerate(fragments):
        flags = int.from_bytes(fragment[6:8], "big")
        if len(fragments) > 1:
            assert (flags & 0x1FFF) * 8 == len(together)
            assert bool(flags & 0x2000) == (number < len(fragments) - 1)
            assert fragment[4:6] == fragments[0][4:6] != b"\0\0"
        assert int.from_bytes(fragment[2:4], "big") == len(fragment) <= 20 + max(8, size)
        together += fragment[20:]
    again = whole[:20] + together
    assert again[28:] == data
    assert len(fragments) == 1 or wrong(fill(whole)[:20] + bytes(together)) == ()


@pytest.mark.parametrize("odd", [b"", b"\x45", bytes(40), tcp(b"x" * 3000)[:35], b"\x60" + bytes(60), b"\x4f" + tcp(b"")[1:]])
def test_what_is_no_packet_is_not_cut(odd):
    assert gso.segments(odd, 100) == [odd]
    assert gso.segment_count(odd, 100) == 1


def test_what_is_no_gso_packet_is_not_cut():
    long = tcp(bytes(3000))
    assert gso.segments(long, 0) == [long]
    assert gso.run(long, 0, 0, 1) == (long, 0)


def test_a_run_that_is_not_there_and_a_part_of_a_datagram_are_refused():
    with pytest.raises(ValueError, match="segments 1 to 3 of a packet that has 3"):
        gso.run(tcp(bytes(3000)), 1000, 1, 3)
    assert not gso.divisible(udp(bytes(3000)), 1000)
    with pytest.raises(ValueError, match="fragments"):
        gso.run(udp(bytes(3000)), 1000, 0, 1)
