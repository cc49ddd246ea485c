"""A whole packet as a value: IP header, transport header, payload. What tests, captures and the edge read and build.

Decides which parser follows which. Not for the data path, which leaves packets bytes (`netfilter.skb`, `stack.flow`):
frozen values cost it five times as much. `parse` never raises and `parse(emit(p)) == p`. For the headers, see their own
files; for checksums, `checksum`.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.errors import DropReason
from emu.wire import checksum, ethernet, icmp, ipv4, ipv6, sctp, tcp, udp, vxlan
from emu.wire.addr import format_ip
from emu.wire.ethernet import Ethernet
from emu.wire.icmp import Icmp
from emu.wire.ipv4 import Ipv4
from emu.wire.ipv6 import Ipv6
from emu.wire.sctp import Sctp
from emu.wire.tcp import Tcp
from emu.wire.udp import Udp
from emu.wire.vxlan import Vxlan

Ip = Ipv4 | Ipv6
Transport = Tcp | Udp | Icmp | Sctp

_PARSERS = {
    checksum.TCP: tcp.parse, checksum.UDP: udp.parse, checksum.ICMP: icmp.parse, checksum.ICMPV6: icmp.parse, checksum.SCTP: sctp.parse,
}  # fmt: skip
_ICMP_OF = {4: checksum.ICMP, 6: checksum.ICMPV6}


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet. `transport` is None, and all is payload, for a fragment and for protocols that are not emulated."""

    ip: Ip
    transport: Transport | None
    payload: bytes = b""

    def __str__(self) -> str:
        name = checksum.NAMES.get(self.ip.protocol, str(self.ip.protocol))
        match self.transport:
            case Tcp() | Udp() | Sctp() as ports:
                return f"{name} {format_ip(self.ip.src)}:{ports.sport} > {format_ip(self.ip.dst)}:{ports.dport}"
            case _:
                return f"{name} {format_ip(self.ip.src)} > {format_ip(self.ip.dst)}"


def parse(data: bytes) -> Packet | DropReason:
    """Read one IP packet. The link's padding is cut off; what does not hold together is a DropReason."""
    if not data:
        return DropReason.TRUNCATED
    version = data[0] >> 4
    if version not in _ICMP_OF:
        return DropReason.MALFORMED
    read = ipv4.parse(data) if version == 4 else ipv6.parse(data)
    if isinstance(read, DropReason):
        return read
    header, rest = read
    parser = _PARSERS.get(header.protocol)
    wrong_family = header.protocol in _ICMP_OF.values() and header.protocol != _ICMP_OF[version]
    if parser is None or header.is_fragment or wrong_family:
        return Packet(header, None, rest)
    upper = parser(rest)
    return upper if isinstance(upper, DropReason) else Packet(header, *upper)


def emit(packet: Packet, *, checksums: bool = False) -> bytes:
    """The packet's bytes; with `checksums` all of them are filled in, else the fields are emitted as they are."""
    body = packet.payload if packet.transport is None else packet.transport.emit(packet.payload)
    data = packet.ip.emit(len(body)) + body
    return checksum.fill(data) if checksums else data


def encapsulate(inner: bytes, vni: int, dst_mac: bytes, src_mac: bytes) -> bytes:
    """An IP packet as the payload of a VXLAN datagram."""
    ethertype = ethernet.IPV4 if inner[0] >> 4 == 4 else ethernet.IPV6
    return Vxlan(vni).emit() + Ethernet(dst_mac, src_mac, ethertype).emit() + inner


def decapsulate(payload: bytes) -> tuple[Vxlan, Ethernet, bytes] | DropReason:
    """What a VXLAN datagram carries: both headers, and the bytes of the packet inside."""
    outer = vxlan.parse(payload)
    if isinstance(outer, DropReason):
        return outer
    frame = ethernet.parse(outer[1])
    if isinstance(frame, DropReason):
        return frame
    return (outer[0], *frame)
