"""Packets as others read them: dpkt and scapy find in every packet what we meant to put there."""

from __future__ import annotations

import dpkt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP

from emu.tcp import Connection, TcpConfig, options, reset_for
from emu.tcp.segment import ACK, FIN, PSH, RST, SYN, emit, parse, route
from emu.wire.addr import SockAddr
from tests.kit.wire_pair import CLIENT, SERVER, Pair, Weather

WORD = st.integers(0, 0xFFFFFFFF)
ADDRESS = st.builds(SockAddr, st.binary(min_size=4, max_size=4), st.integers(0, 65535))
DPKT_FLAGS = {FIN: dpkt.tcp.TH_FIN, SYN: dpkt.tcp.TH_SYN, RST: dpkt.tcp.TH_RST, PSH: dpkt.tcp.TH_PUSH, ACK: dpkt.tcp.TH_ACK}


@given(ADDRESS, ADDRESS, WORD, WORD, st.integers(0, 63), st.integers(0, 65535), st.binary(max_size=100))
def test_headers_read_back_with_dpkt(source, target, seq, ack, flags, window, payload):
    packet = dpkt.ip.IP(emit(route(source, target), seq, ack, flags, window, b"", payload))
    assert (packet.v, packet.hl, packet.df, packet.mf, packet.offset, packet.ttl, packet.sum) == (4, 5, 1, 0, 0, 64, 0)
    assert (packet.src, packet.dst, packet.p) == (source.ip, target.ip, dpkt.ip.IP_PROTO_TCP)
    tcp = packet.data
    assert (tcp.sport, tcp.dport, tcp.seq, tcp.ack, tcp.flags, tcp.win) == (source.port, target.port, seq, ack, flags, window)
    assert (tcp.sum, tcp.urp, tcp.data) == (0, 0, payload)


@given(
    WORD, WORD, st.integers(0, 63), st.integers(0, 65535), st.integers(1, 65535), st.integers(0, 14), st.booleans(), st.binary(max_size=50)
)
def test_parse_returns_what_emit_was_given(seq, ack, flags, window, mss, wscale, sack, payload):
    opts = options.emit_syn(mss, wscale=wscale, sack=sack, timestamp=(seq, ack))
    packet = emit(route(CLIENT, SERVER), seq, ack, flags, window, opts, payload)
    segment = parse(packet, 20)
    assert segment is not None
    assert segment[:4] == (seq, ack, flags, window)
    assert packet[segment.start : segment.end] == payload
    assert segment.options == options.Options(mss, wscale, sack, seq, ack)


def conversation(**switches) -> list[tuple[bytes, int]]:
    """Every kind of packet that a connection sends: SYNs, data, SACKs, D-SACKs, retransmissions, FINs."""
    pair = Pair(config=TcpConfig(**switches), seed=3).establish()
    pair.weather = Weather(delay=0.01, jitter=0.004, loss=0.05, duplicate=0.05)
    pair.pump(pair.client, pair.accepted, bytes(300_000))
    pair.client.close(pair.now)
    pair.accepted.close(pair.now)
    pair.flush()
    pair.run(200.0)
    return [(packet, gso) for _, _, packet, gso in pair.sent]


@pytest.mark.parametrize("switches", [{}, {"timestamps": False}, {"sack": False}, {"gso": False}], ids=str)
def test_scapy_and_dpkt_read_every_packet_of_a_conversation(switches):
    seen = set()
    for packet, gso_size in conversation(**switches):
        ip, other = IP(packet), dpkt.ip.IP(packet)
        tcp = ip[TCP]
        ours = parse(packet, 20)
        assert ours is not None
        assert ip.len == len(packet) == other.len
        assert (ip.ihl, str(ip.flags), ip.ttl, ip.chksum, tcp.chksum) == (5, "DF", 64, 0, 0)
        assert (tcp.seq, tcp.ack, int(tcp.flags), tcp.window) == ours[:4]
        assert len(other.data.data) == ours.end - ours.start
        assert not gso_size or len(other.data.data) > gso_size
        seen |= {name for name, _ in tcp.options}
        read = dict(tcp.options)
        assert read.get("Timestamp", (None, 0)) == (ours.options.tsval, ours.options.tsecr)
        assert read.get("MSS") == ours.options.mss
        assert read.get("WScale") == ours.options.wscale
        assert ("SAckOK" in read) == ours.options.sack_permitted
        assert read.get("SAck", ()) == tuple(edge for block in ours.options.sacks for edge in block)
    expected = {"NOP", "MSS", "WScale", "SAckOK", "SAck", "Timestamp"}
    assert seen == expected - ({"Timestamp"} if "timestamps" in switches else set()) - ({"SAck", "SAckOK"} if "sack" in switches else set())


RESETS = (
    # RFC 9293, 3.10.7.1: what comes -> the reset's flags, seq, ack
    ("a SYN", (SYN, 100, 0, b""), (RST | ACK, 0, 101)),
    ("a segment with an ACK", (ACK, 100, 7000, b"xyz"), (RST, 7000, 0)),
    ("data without ACK", (PSH, 100, 0, b"xyz"), (RST | ACK, 0, 103)),
    ("a FIN without ACK", (FIN, 0xFFFFFFFF, 0, b""), (RST | ACK, 0, 0)),
    ("a SYN-ACK", (SYN | ACK, 100, 7000, b""), (RST, 7000, 0)),
    ("a RST", (RST, 100, 0, b""), None),
    ("a RST with ACK", (RST | ACK, 100, 3, b""), None),
)


@pytest.mark.parametrize(("segment", "answer"), [row[1:] for row in RESETS], ids=[row[0] for row in RESETS])
def test_the_reset_for_a_segment_nobody_owns(segment, answer):
    flags, seq, ack, payload = segment
    reset = reset_for(emit(route(CLIENT, SERVER), seq, ack, flags, 1000, b"", payload), 20)
    if answer is None:
        assert reset is None
    else:
        assert reset is not None
        read = dpkt.ip.IP(reset)
        assert (read.src, read.dst, read.data.sport, read.data.dport) == (SERVER.ip, CLIENT.ip, SERVER.port, CLIENT.port)
        assert (read.data.flags, read.data.seq, read.data.ack) == answer


@given(st.binary(max_size=70))
def test_what_cannot_be_read_is_none(data):
    packet = bytes(20) + data
    segment = parse(packet, 20)
    if segment is None:
        assert len(data) < 20 or not 5 <= data[12] >> 4 <= len(data) // 4
        assert reset_for(packet, 20) is None
    else:
        assert 40 <= segment.start <= segment.end == len(packet)


def test_options_are_laid_out_as_linux_lays_them_out():
    """From a capture of this kernel's SYN and SYN-ACK with all options on: MSS, SACK permitted, timestamps, no-op, window scale."""
    syn = Connection.active(CLIENT, SERVER, iss=1, mtu=1500, now=0.0).out[0][0]
    assert [kind for kind, _ in IP(syn)[TCP].options] == ["MSS", "SAckOK", "Timestamp", "NOP", "WScale"]
