"""One packet on the slow path: Linux's sk_buff. Decides how header fields and bytes are kept in step.

First packets of flows, traced packets and whatever a rule must see travel as `Skb`; later packets of a known flow stay
bytes (`stack.flow`). `buf` is the IPv4 packet itself; `src`, `dst`, `sport` and `dport` mirror its bytes, and only the
setters here may change either. Checksum fields are zero on every wire inside ("offloaded", filled in where a packet
leaves the emulator), so NAT never touches them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.wire.addr import Ip, SockAddr

if TYPE_CHECKING:
    from emu.netfilter.conntrack import Conn, CtState

ICMP, TCP, UDP, SCTP = 1, 6, 17, 132
PROTOCOL_NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", SCTP: "sctp"}
ICMP_ERRORS = frozenset((3, 4, 5, 11, 12))  # messages that quote a packet (RFC 792)
PORT_PROTOCOLS = frozenset((TCP, UDP, SCTP))
_MIN_L4 = {TCP: 20, UDP: 8, ICMP: 8, SCTP: 12}


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
        """Read an IPv4 packet, trimming link padding; anything that does not hold together is a DropReason.

        A later fragment keeps ports 0 and is never a first packet of anything. For ICMP echo the identifier stands in for
        both ports (as in conntrack's tuple), for other ICMP both are 0.
        """
        size = len(data)
        if size < 20:
            return DropReason.TRUNCATED
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
        self.buf[12:16] = ip
        self._set_port(0, port)

    def set_destination(self, ip: Ip, port: int) -> None:
        """Rewrite the destination address and port (or echo identifier)."""
        self.dst, self.dport = ip, port
        self.buf[16:20] = ip
        self._set_port(2, port)

    def _set_port(self, offset: int, port: int) -> None:
        at = self.l4 + offset
        if self.proto in PORT_PROTOCOLS:
            self.buf[at], self.buf[at + 1] = port >> 8, port & 255
        elif self.proto == ICMP and self.buf[self.l4] in (0, 8):
            at = self.l4 + 4
            self.buf[at], self.buf[at + 1] = port >> 8, port & 255
            self.sport = self.dport = port
