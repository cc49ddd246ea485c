"""One packet on the slow path: Linux's sk_buff. Decides how header fields and bytes are kept in step.

First packets of flows, traced packets and whatever a rule must see travel as `Skb`; later packets of a known flow stay
bytes (`stack.flow`). `buf` is the IPv4 or IPv6 packet itself; `src`, `dst`, `sport` and `dport` mirror its bytes, and only the
setters here may change either. Checksum fields are zero on every wire inside ("offloaded", filled in where a packet
leaves the emulator), so NAT never touches them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.wire.addr import Ip, SockAddr

if TYPE_CHECKING:
    from emu.netfilter.conntrack import Conn, CtState

ICMP, TCP, UDP, DCCP, ICMPV6, SCTP = 1, 6, 17, 33, 58, 132
PROTOCOL_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6", SCTP: "sctp"}
ECHOES = {ICMP: (0, 8), ICMPV6: (128, 129)}
"""Message types whose identifier stands for both ports, as in conntrack's tuple."""
ICMP_ERRORS = frozenset((3, 4, 5, 11, 12))  # messages that quote a packet (RFC 792)
PORT_PROTOCOLS = frozenset((TCP, UDP, DCCP, SCTP))
_MIN_L4 = {TCP: 20, UDP: 8, ICMP: 8, ICMPV6: 8, DCCP: 12, SCTP: 12}
_EXTENSION_HEADERS = frozenset((0, 43, 44, 60))  # hop-by-hop, routing, fragment, destination options (RFC 8200)
_FRAGMENT = 44


class Skb:
    """A packet and what is known of it. `iif`, `oif` are device names ("" until known); `mark` is the firewall mark.

    `ct`, `ct_reply` and `ct_state` are set by conntrack; `trace` is the trace id (0: none), `gso_size` the payload bytes a
    segment (0: not a GSO packet). `cacheable` turns False when a decision rested on more than the connection, the
    devices, the mark and the connection's state; then no later packet of the flow may skip the rules.
    """

    __slots__ = (
        "buf", "cacheable", "ct", "ct_reply", "ct_state", "dport", "dst", "gso_size", "iif", "key", "l4", "mark", "oif", "origin",
        "physin", "proto", "reject_with", "rules", "sport", "src", "trace",
    )  # fmt: skip

    def __init__(self, buf: bytearray, l4: int, proto: int, src: Ip, dst: Ip, sport: int, dport: int) -> None:
        self.buf, self.l4, self.proto = buf, l4, proto
        self.src, self.dst, self.sport, self.dport = src, dst, sport, dport
        self.iif = self.oif = self.physin = ""
        self.mark = self.trace = self.gso_size = self.rules = 0
        self.ct: Conn | None = None
        self.ct_reply = False
        self.ct_state: CtState | None = None
        self.cacheable = True
        self.origin: object | None = None  # the stack's: where the flow cache may remember this packet's flow,
        self.key = b""  # and under which of its original bytes
        self.reject_with: str | None = None

    @classmethod
    def parse(cls, data: bytes | bytearray) -> Skb | DropReason:
        """Read an IP packet, trimming link padding; anything that does not hold together is a DropReason.

        A later fragment keeps ports 0 and is never a first packet of anything. For ICMP echo the identifier stands in for
        both ports (as in conntrack's tuple), for other ICMP both are 0.
        """
        size = len(data)
        if size < 20:
            return DropReason.TRUNCATED
        if data[0] >> 4 == 6:
            return cls._parse6(data)
        l4 = (data[0] & 15) << 2
        total = data[2] << 8 | data[3]
        if data[0] >> 4 != 4 or l4 < 20 or total < l4:
            return DropReason.MALFORMED
        if total > size:
            return DropReason.TRUNCATED
        buf = bytearray(data[:total]) if total != size else bytearray(data)
        proto = buf[9]
        sport = dport = 0
        if not (buf[6] & 0x1F or buf[7]):  # not a later fragment
            if total - l4 < _MIN_L4.get(proto, 0):
                return DropReason.TRUNCATED
            if proto in PORT_PROTOCOLS:
                sport, dport = buf[l4] << 8 | buf[l4 + 1], buf[l4 + 2] << 8 | buf[l4 + 3]
            elif proto == ICMP and buf[l4] in (0, 8):
                sport = dport = buf[l4 + 4] << 8 | buf[l4 + 5]
        return cls(buf, l4, proto, bytes(buf[12:16]), bytes(buf[16:20]), sport, dport)

    @classmethod
    def _parse6(cls, data: bytes | bytearray) -> Skb | DropReason:
        """The same for IPv6; extension headers are passed over to the payload's."""
        total = 40 + (data[4] << 8 | data[5])
        if len(data) < total or total < 40:
            return DropReason.TRUNCATED
        buf = bytearray(data[:total])
        proto, l4, later = buf[6], 40, False
        while proto in _EXTENSION_HEADERS and not later:
            if total < l4 + 8:
                return DropReason.TRUNCATED
            later = proto == _FRAGMENT and buf[l4 + 2 : l4 + 4] >= b"\x00\x08"
            proto, l4 = buf[l4], l4 + (8 if proto == _FRAGMENT else 8 * (buf[l4 + 1] + 1))
        sport = dport = 0
        if not later:
            if total - l4 < _MIN_L4.get(proto, 0):
                return DropReason.TRUNCATED
            if proto in PORT_PROTOCOLS:
                sport, dport = buf[l4] << 8 | buf[l4 + 1], buf[l4 + 2] << 8 | buf[l4 + 3]
            elif proto == ICMPV6 and buf[l4] in ECHOES[ICMPV6]:
                sport = dport = buf[l4 + 4] << 8 | buf[l4 + 5]
        return cls(buf, l4, proto, bytes(buf[8:24]), bytes(buf[24:40]), sport, dport)

    @property
    def fragment(self) -> bool:
        """Is it a second or further fragment, which has no ports?"""
        buf = self.buf
        if buf[0] >> 4 == 4:
            return bool(buf[6] & 0x1F or buf[7])
        return buf[6] == _FRAGMENT and buf[42:44] >= b"\x00\x08"

    @property
    def tuple_key(self) -> bytes:
        """The connection's direction as bytes: protocol, addresses, ports (13 bytes for IPv4)."""
        return b"%c%b%b%b%b" % (self.proto, self.src, self.dst, self.sport.to_bytes(2, "big"), self.dport.to_bytes(2, "big"))

    @property
    def source(self) -> SockAddr:
        return SockAddr(self.src, self.sport)

    @property
    def destination(self) -> SockAddr:
        return SockAddr(self.dst, self.dport)

    def set_source(self, ip: Ip, port: int) -> None:
        """Rewrite the source address and port (or echo identifier)."""
        self.src, self.sport = ip, port
        if len(ip) == 4:
            self.buf[12:16] = ip
        else:
            self.buf[8:24] = ip
        self._set_port(0, port)

    def set_destination(self, ip: Ip, port: int) -> None:
        """Rewrite the destination address and port (or echo identifier)."""
        self.dst, self.dport = ip, port
        if len(ip) == 4:
            self.buf[16:20] = ip
        else:
            self.buf[24:40] = ip
        self._set_port(2, port)

    def _set_port(self, offset: int, port: int) -> None:
        at = self.l4 + offset
        if self.proto in PORT_PROTOCOLS:
            self.buf[at], self.buf[at + 1] = port >> 8, port & 255
        elif self.proto in ECHOES and self.buf[self.l4] in ECHOES[self.proto]:
            at = self.l4 + 4
            self.buf[at], self.buf[at + 1] = port >> 8, port & 255
            self.sport = self.dport = port
