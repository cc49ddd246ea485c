"""The packet that opens a connection: what a question about rules is asked with, when nobody sends one.

Decides what such a packet says beyond addresses and ports: a SYN without options, an empty datagram, an INIT, an echo request.
"""

from __future__ import annotations

from emu.netfilter.skb import ICMP, ICMPV6, SCTP, TCP, UDP
from emu.wire.addr import Ip
from emu.wire.ipv4 import Ipv4
from emu.wire.ipv6 import Ipv6

_AFTER_PORTS = {
    TCP: bytes(8) + b"\x50\x02\xff\xff" + bytes(4),  # a SYN
    UDP: b"\x00\x08\x00\x00",
    SCTP: bytes(8) + b"\x01\x00\x00\x14" + bytes(16),  # an INIT
}
_ECHO_REQUEST = {ICMP: 8, ICMPV6: 128}


def first_packet(proto: int, src: Ip, dst: Ip, sport: int, dport: int) -> bytes:
    """A whole IPv4 or IPv6 packet, checksums 0; for ICMP `sport` is the identifier. A protocol without ports has an empty body."""
    if proto in _ECHO_REQUEST:
        body = bytes((_ECHO_REQUEST[proto], 0, 0, 0)) + sport.to_bytes(2, "big") + bytes(2)
    elif proto in _AFTER_PORTS:
        body = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + _AFTER_PORTS[proto]
    else:
        body = bytes(8)
    header = Ipv4(src, dst, proto) if len(src) == 4 else Ipv6(src, dst, proto)
    return header.emit(len(body)) + body
