"""Second opinions on every header: what we emit dpkt and scapy read alike, and what they build we read alike."""

from __future__ import annotations

import logging

import dpkt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emu.errors import DropReason
from emu.wire import checksum
from emu.wire.icmp import Icmp
from emu.wire.ipv4 import Ipv4
from emu.wire.ipv6 import Ipv6
from emu.wire.packet import Packet, emit, encapsulate, parse
from emu.wire.sctp import Sctp
from emu.wire.tcp import Mss, Sack, SackPermitted, Tcp, Timestamps, UnknownOption, WindowScale
from emu.wire.udp import Udp
from tests.kit.packets import DATAGRAM, INIT, PACKETS, PING, SYN, TCPS, ipv4s, ipv6s

logging.getLogger("scapy").setLevel(logging.ERROR)
from scapy.layers.inet import ICMP, IP, TCP, UDP  # noqa: E402
from scapy.layers.inet6 import IPv6  # noqa: E402
from scapy.layers.l2 import Ether  # noqa: E402
from scapy.layers.sctp import SCTP, SCTPChunkInit  # noqa: E402
from scapy.layers.vxlan import VXLAN  # noqa: E402

PLAIN = pytest.mark.parametrize("packet", [SYN, DATAGRAM, PING, INIT], ids=["syn", "datagram", "ping", "init"])


def dpkt_ip(data):
    return dpkt.ip.IP(data) if data[0] >> 4 == 4 else dpkt.ip6.IP6(data)


def dpkt_fields(packet):
    """Our names for what dpkt read, transport included, None where it read none."""
    upper = packet.data
    match upper:
        case dpkt.tcp.TCP():
            return (upper.sport, upper.dport, upper.seq, upper.ack, upper.flags & 0xFF, upper.win, upper.urp, upper.sum, bytes(upper.data))
        case dpkt.udp.UDP():
            return (upper.sport, upper.dport, upper.sum, bytes(upper.data))
    return None


def our_fields(packet):
    match packet.transport:
        case Tcp() as t:
            return (t.sport, t.dport, t.seq, t.ack, t.flags, t.window, t.urgent, t.checksum, packet.payload)
        case Udp() as u:
            return (u.sport, u.dport, u.checksum, packet.payload)
    return None


@given(st.builds(Packet, ipv4s(6) | ipv6s(6), TCPS, st.binary(max_size=50)) | PACKETS)
def test_dpkt_reads_what_we_emit(packet):
    read = dpkt_ip(emit(packet))
    assert (read.src, read.dst, read.p) == (packet.ip.src, packet.ip.dst, packet.ip.protocol)
    match packet.ip:
        case Ipv4() as ip:
            assert (read.ttl, read.tos, read.id, read.opts) == (ip.ttl, ip.tos, ip.id, ip.options)
            assert (read.df << 14 | read.mf << 13, read.offset) == (ip.flags, ip.fragment_offset)
        case Ipv6() as ip:
            assert (read.hlim, read.fc, read.flow) == (ip.ttl, ip.traffic_class, ip.flow_label)
    if (ours := our_fields(packet)) is not None:
        assert dpkt_fields(read) == ours


@given(st.sampled_from((SYN, DATAGRAM)), st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=3))
def test_dpkt_reads_spoiled_packets_as_we_do(packet, changes):
    """Whatever bytes are overwritten: what we accept, dpkt reads alike; what dpkt cannot read, we drop."""
    data = bytearray(emit(packet))
    for at, value in changes:
        data[at % len(data)] = value
    ours = parse(bytes(data))
    try:
        theirs = dpkt_ip(bytes(data))
    except dpkt.UnpackError:
        assert isinstance(ours, DropReason)
        return
    if isinstance(ours, Packet) and isinstance(ours.ip, Ipv4):
        assert (theirs.src, theirs.dst, theirs.p, theirs.ttl) == (ours.ip.src, ours.ip.dst, ours.ip.protocol, ours.ip.ttl)
        read = dpkt_fields(theirs)
        if read is not None and our_fields(ours) is not None:
            assert read[:-1] == our_fields(ours)[:-1]


@given(TCPS)
def test_scapy_reads_our_tcp_options(header):
    assume(all(isinstance(option, Mss | SackPermitted | Timestamps | WindowScale | Sack) for option in header.options))
    names = {Mss: "MSS", WindowScale: "WScale", SackPermitted: "SAckOK", Timestamps: "Timestamp", Sack: "SAck"}
    values = {
        Mss: lambda o: o.size,
        WindowScale: lambda o: o.shift,
        SackPermitted: lambda o: b"",
        Timestamps: lambda o: (o.value, o.echo),
        Sack: lambda o: tuple(edge for block in o.blocks for edge in block),
    }
    ours = [(names[type(o)], values[type(o)](o)) for o in header.options]
    theirs = [option for option in TCP(header.emit(b"")).options if option[0] not in {"EOL", "NOP"}]
    assert theirs == ours


@PLAIN
def test_scapy_gives_our_packets_the_same_checksums(packet):
    """Scapy computes a checksum that is deleted when the packet is built."""
    theirs = IP(emit(packet))
    for layer in (IP, TCP, UDP, ICMP, SCTP):
        if layer in theirs:
            theirs[layer].chksum = None
    assert bytes(theirs) == emit(packet, checksums=True)


@given(st.builds(Packet, ipv4s(6) | ipv6s(6), TCPS, st.binary(max_size=50)) | PACKETS)
def test_scapy_agrees_with_every_checksum_we_fill_in(packet):
    assume(packet.transport is not None and not isinstance(packet.transport, Sctp))
    assume(packet.transport.dport != 8472 if isinstance(packet.transport, Udp) else True)
    assume(not isinstance(packet.ip, Ipv4) or not packet.ip.options)  # scapy takes source routes into the pseudo-header
    if isinstance(packet.transport, Tcp):  # scapy has its own idea of MD5, and writes it back otherwise
        assume(not any(isinstance(option, UnknownOption) for option in packet.transport.options))
    if isinstance(packet.transport, Icmp):  # scapy reads extensions into errors, and ICMPv6 by type
        assume(isinstance(packet.ip, Ipv4) and packet.transport.type in {0, 8})
    filled = emit(packet, checksums=True)
    assert checksum.wrong(filled) == ()
    theirs = IP(filled) if isinstance(packet.ip, Ipv4) else IPv6(filled)
    assume(any(layer in theirs for layer in (TCP, UDP, ICMP)))
    for layer in (IP, TCP, UDP, ICMP):
        if layer in theirs:
            theirs[layer].chksum = None
    assert bytes(theirs) == filled


@pytest.mark.parametrize(
    ("built", "transport", "payload"),
    [
        (
            lambda: IP(src="10.0.0.1", dst="10.0.0.2") / TCP(sport=1, dport=2, seq=3, flags="S", options=[("MSS", 1460)]) / b"x",
            Tcp(1, 2, 3, 0, 2, 8192, options=(Mss(1460),)),
            b"x",
        ),
        (lambda: IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2) / b"xyz", Udp(1, 2), b"xyz"),
        (lambda: IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=8, id=5, seq=6) / b"hello", Icmp.echo(5, 6), b"hello"),
        (
            lambda: IP(src="10.0.0.1", dst="10.0.0.2") / SCTP(sport=1, dport=2) / SCTPChunkInit(init_tag=7, a_rwnd=8, n_in_streams=9,
                                                                                            n_out_streams=10, init_tsn=11),
            "sctp",
            b"",
        ),
    ],
    ids=["tcp", "udp", "icmp", "sctp"],
)  # fmt: skip
def test_we_read_what_scapy_builds(built, transport, payload):
    data = bytes(built())
    read = parse(data)

    assert checksum.wrong(data) == ()
    assert read.payload == payload
    if transport == "sctp":
        (init,) = read.transport.chunks
        assert (init.tag, init.window, init.inbound_streams, init.outbound_streams, init.initial_tsn) == (7, 8, 9, 10, 11)
    else:
        fields = {name: getattr(read.transport, name) for name in transport.__slots__ if name != "checksum"}
        assert fields == {name: getattr(transport, name) for name in fields}


def test_scapy_and_dpkt_read_our_vxlan():
    inner = emit(SYN, checksums=True)
    outer = Packet(
        Ipv4(b"\xc0\xa8\0\x02", b"\xc0\xa8\0\x03", 17, flags=0),
        Udp(40000, 8472),
        encapsulate(inner, 1, b"\x0a\x58\x0a\xf4\x02\x00", b"\x0a\x58\x0a\xf4\x01\x00"),
    )
    data = emit(outer)

    assert len(data) == len(inner) + 50
    theirs = VXLAN(bytes(IP(data)[UDP].payload))
    assert (theirs.vni, theirs.flags, theirs[Ether].src) == (1, "Instance", "0a:58:0a:f4:01:00")
    assert bytes(theirs[IP]) == inner
    assert bytes(dpkt.ethernet.Ethernet(outer.payload[8:]).data) == inner


@given(PACKETS, PACKETS)
def test_dpkt_and_scapy_may_be_handed_anything_we_emit_in_an_icmp_error(packet, other):
    """An ICMP error quotes a packet: filling it in mends the quoted IP header too."""
    assume(isinstance(other.ip, Ipv4))
    error = Packet(Ipv4(b"\x0a\0\0\1", b"\x0a\0\0\2", 1), Icmp(3, 3), emit(other)[:68])
    filled = emit(error, checksums=True)
    assert checksum.wrong(filled) == ()
    quoted = filled[28:]
    size = (quoted[0] & 15) << 2
    if len(quoted) >= size:
        assert checksum.internet(quoted[:size]) == 0
