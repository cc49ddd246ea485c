"""Packets as values: what is emitted is what was parsed, and nothing that comes in raises."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emu.errors import DropReason
from emu.netfilter.skb import Skb
from emu.wire import checksum, ethernet, sctp, tcp, udp, vxlan
from emu.wire.packet import Packet, decapsulate, emit, encapsulate, parse
from emu.wire.tcp import Mss, Tcp
from tests.kit.packets import DATAGRAM, FRAGMENTS, INIT, PACKETS, PING, SYN, TCPS

PLAIN = pytest.mark.parametrize("packet", [SYN, DATAGRAM, PING, INIT], ids=["syn", "datagram", "ping", "init"])


@given(PACKETS)
@example(SYN)
def test_parsing_what_was_emitted_gives_the_same_value(packet):
    assert parse(emit(packet)) == packet


@given(PACKETS, st.binary(max_size=30))
def test_the_link_may_pad_a_packet(packet, padding):
    assert parse(emit(packet) + padding) == packet


@given(PACKETS, st.data())
def test_a_packet_cut_anywhere_is_truncated(packet, data):
    whole = emit(packet)
    assert parse(whole[: data.draw(st.integers(0, len(whole) - 1))]) is DropReason.TRUNCATED


@given(st.binary(max_size=120) | st.binary(min_size=19, max_size=80).map(lambda rest: b"\x45" + rest))
def test_noise_is_a_packet_or_a_drop_reason_and_never_raises(noise):
    got = parse(noise)
    assert isinstance(got, Packet | DropReason)


@given(PACKETS, st.data())
def test_a_packet_with_a_flipped_byte_never_raises_and_what_is_read_can_be_written(packet, data):
    mutated = bytearray(emit(packet))
    mutated[data.draw(st.integers(0, len(mutated) - 1))] ^= data.draw(st.integers(1, 255))
    got = parse(bytes(mutated))
    if isinstance(got, Packet):
        assert parse(emit(got)) == got
    checksum.fill(bytes(mutated))
    checksum.wrong(bytes(mutated))


@given(PACKETS)
def test_the_slow_path_reads_the_same_packet(packet):
    if len(packet.ip.src) == 16:
        return
    skb = Skb.parse(emit(packet))
    assert (skb.src, skb.dst, skb.proto) == (packet.ip.src, packet.ip.dst, packet.ip.protocol)
    if isinstance(packet.transport, Tcp):
        assert (skb.sport, skb.dport) == (packet.transport.sport, packet.transport.dport)


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (0, 0x55, DropReason.MALFORMED),  # version 5
        (0, 0x44, DropReason.MALFORMED),  # a header of 16 bytes
        (2, 0xFF, DropReason.TRUNCATED),  # longer than what there is
        (32, 0x40, DropReason.MALFORMED),  # a TCP header of 16 bytes
        (32, 0xF0, DropReason.TRUNCATED),  # a TCP header of 60 bytes, and 44 are there
    ],
)
def test_a_header_that_no_sender_makes_is_dropped_for_its_reason(at, value, reason):
    data = bytearray(emit(SYN))
    data[at] = value
    assert parse(bytes(data)) is reason


@pytest.mark.parametrize(
    ("read", "data", "reason"),
    [
        (udp.parse, bytes(7), DropReason.TRUNCATED),
        (udp.parse, bytes((0, 1, 0, 2, 0, 7, 0, 0)), DropReason.MALFORMED),
        (udp.parse, bytes((0, 1, 0, 2, 0, 9, 0, 0)), DropReason.TRUNCATED),
        (sctp.parse, bytes(11), DropReason.TRUNCATED),
        (sctp.parse, bytes(12) + bytes((1, 0, 0, 3)), DropReason.MALFORMED),
        (sctp.parse, bytes(12) + bytes((1, 0, 0, 8, 0, 0, 0, 0)), DropReason.TRUNCATED),
        (ethernet.parse, bytes(13), DropReason.TRUNCATED),
        (ethernet.parse, bytes(14), DropReason.UNSUPPORTED),
        (vxlan.parse, bytes(7), DropReason.TRUNCATED),
        (vxlan.parse, bytes(8), DropReason.MALFORMED),
    ],
)
def test_each_header_gives_its_reason(read, data, reason):
    assert read(data) is reason


@pytest.mark.parametrize(
    ("options", "read"),
    [
        ("020405b4", (Mss(1460),)),
        ("02040578 00 ff", (Mss(1400),)),  # nothing counts behind the end mark
        ("02040578 0300", (Mss(1400),)),  # a length below 2
        ("02040578 08 0a 0000", (Mss(1400),)),  # longer than the header
        ("02040578 08", (Mss(1400),)),  # no length at all
    ],
)
def test_options_that_do_not_hold_together_are_passed_over(options, read):
    assert tcp.parse_options(bytes.fromhex(options)) == read


def test_more_options_than_a_header_holds_are_our_own_bug():
    with pytest.raises(ValueError, match="44 bytes of TCP options"):
        Tcp(1, 2, options=(Mss(1),) * 11).emit(b"")


@given(FRAGMENTS)
def test_a_fragment_has_no_transport(packet):
    assert parse(emit(packet)).transport is None


@given(PACKETS)
def test_what_a_tunnel_carries_comes_out_of_it(packet):
    inner = emit(packet)
    header, frame, got = decapsulate(encapsulate(inner, 1, b"\x0a\x58\x0a\xf4\x02\x00", b"\x0a\x58\x0a\xf4\x01\x00"))
    assert (header.vni, str(frame), got) == (1, "0a:58:0a:f4:01:00 > 0a:58:0a:f4:02:00", inner)


@PLAIN
def test_emit_leaves_checksums_to_the_card_unless_asked(packet):
    assert checksum.wrong(emit(packet))
    assert checksum.wrong(emit(packet, checksums=True)) == ()


@given(TCPS)
def test_a_header_is_a_value(header):
    assert hash(header) == hash(tcp.parse(header.emit(b""))[0])
