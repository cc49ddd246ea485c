"""Packets for tests: hypothesis strategies for every header the emulator knows, and a few plain ones to begin with."""

from __future__ import annotations

from hypothesis import strategies as st

from emu.wire.addr import parse_ip
from emu.wire.icmp import Icmp
from emu.wire.ipv4 import DF, MF, Ipv4
from emu.wire.ipv6 import Ipv6
from emu.wire.packet import Packet
from emu.wire.sctp import Abort, Chunk, Init, Sctp
from emu.wire.tcp import LONGEST_OPTIONS, Mss, NoOp, Sack, SackPermitted, Tcp, Timestamps, UnknownOption, WindowScale
from emu.wire.udp import Udp

U4, U8, U13, U16, U20, U32 = (st.integers(0, 2**bits - 1) for bits in (4, 8, 13, 16, 20, 32))
IP4, IP6 = st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)
PAYLOADS = st.binary(max_size=300)

TCP_OPTIONS = (
    st.lists(
        st.builds(Mss, U16)
        | st.builds(WindowScale, U8)
        | st.just(SackPermitted())
        | st.builds(Sack, st.lists(st.tuples(U32, U32), min_size=1, max_size=4).map(tuple))
        | st.builds(Timestamps, U32, U32)
        | st.just(NoOp())
        | st.builds(UnknownOption, st.integers(9, 255), st.binary(max_size=6)),
        max_size=8,
    )
    .map(tuple)
    .filter(lambda options: sum(len(option.emit()) for option in options) <= LONGEST_OPTIONS)
)
TCPS = st.builds(Tcp, U16, U16, U32, U32, U8, U16, U16, TCP_OPTIONS, U4, U16)
UDPS = st.builds(Udp, U16, U16, U16)
ICMPS = st.builds(Icmp, U8, U8, U32, U16)
SCTP_CHUNKS = (
    st.builds(Init, U32, U32, U16, U16, U32, st.binary(max_size=40), st.booleans(), U8)
    | st.builds(Abort, st.booleans(), st.binary(max_size=20))
    | st.builds(Chunk, st.integers(7, 255), U8, st.binary(max_size=20))
)
SCTPS = st.builds(Sctp, U16, U16, U32, st.lists(SCTP_CHUNKS, max_size=3).map(tuple), U32)


def ipv4s(protocol):
    """IPv4 headers of whole packets."""
    options = st.integers(0, 10).flatmap(lambda words: st.binary(min_size=words * 4, max_size=words * 4))
    return st.builds(Ipv4, IP4, IP4, st.just(protocol), U8, U8, U16, st.sampled_from((0, DF)), st.just(0), options, U16)


def ipv6s(protocol):
    return st.builds(Ipv6, IP6, IP6, st.just(protocol), U8, U8, U20)


FRAGMENTS = st.builds(
    Packet,
    st.builds(Ipv4, IP4, IP4, U8, U8, U8, U16, st.just(MF), U13),
    st.none(),
    PAYLOADS,
)
UNKNOWN = st.builds(Packet, ipv4s(47) | ipv6s(47), st.none(), PAYLOADS)
PACKETS = (
    st.builds(Packet, ipv4s(6) | ipv6s(6), TCPS, PAYLOADS)
    | st.builds(Packet, ipv4s(17) | ipv6s(17), UDPS, PAYLOADS)
    | st.builds(Packet, ipv4s(1) | ipv6s(58), ICMPS, PAYLOADS)
    | st.builds(Packet, ipv4s(132) | ipv6s(132), SCTPS)
    | FRAGMENTS
    | UNKNOWN
)

A, B = parse_ip("10.244.1.2"), parse_ip("10.244.2.3")
SYN = Packet(
    Ipv4(A, B, 6),
    Tcp(43210, 80, 0x01020304, 0, 0x02, 64860, options=(Mss(1410), SackPermitted(), Timestamps(7, 0), NoOp(), WindowScale(7))),
)
DATAGRAM = Packet(Ipv4(A, B, 17), Udp(5353, 53), b"query")
PING = Packet(Ipv4(A, B, 1), Icmp.echo(77, 1), bytes(range(56)))
INIT = Packet(Ipv4(A, B, 132), Sctp(1000, 2000, 0, (Init(0xABCD, 106496, 10, 10, 99),)))
