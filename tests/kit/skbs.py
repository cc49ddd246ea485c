"""Packets for netfilter's tests, as the `Skb` that the stack would hand over; addresses are `ip:port` texts."""

from __future__ import annotations

from emu.netfilter.skb import ICMP, SCTP, TCP, UDP, Skb
from emu.wire.addr import SockAddr, parse_ip

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
ECHO_REPLY, ECHO_REQUEST, UNREACHABLE = 0, 8, 3


def ipv4(src: bytes, dst: bytes, protocol: int, body: bytes, flags: int = 0x4000) -> bytes:
    """A whole IPv4 packet, checksum 0 as on every wire inside."""
    return b"\x45\x00%b\x00\x00%b\x40%c\x00\x00%b%b%b" % (
        (20 + len(body)).to_bytes(2, "big"), flags.to_bytes(2, "big"), protocol, src, dst, body,
    )  # fmt: skip


def skb(data: bytes, iif: str = "eth0") -> Skb:
    parsed = Skb.parse(data)
    assert isinstance(parsed, Skb), parsed
    parsed.iif = iif
    return parsed


def _ports(source: SockAddr, destination: SockAddr) -> bytes:
    return source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")


def tcp(src: str, dst: str, flags: int = SYN, iif: str = "eth0") -> Skb:
    source, destination = SockAddr.parse(src), SockAddr.parse(dst)
    body = _ports(source, destination) + bytes(8) + bytes((0x50, flags)) + b"\xff\xff" + bytes(4)
    return skb(ipv4(source.ip, destination.ip, TCP, body), iif)


def udp(src: str, dst: str, payload: bytes = b"", iif: str = "eth0") -> Skb:
    source, destination = SockAddr.parse(src), SockAddr.parse(dst)
    body = _ports(source, destination) + (8 + len(payload)).to_bytes(2, "big") + bytes(2) + payload
    return skb(ipv4(source.ip, destination.ip, UDP, body), iif)


def sctp(src: str, dst: str, iif: str = "eth0") -> Skb:
    source, destination = SockAddr.parse(src), SockAddr.parse(dst)
    return skb(ipv4(source.ip, destination.ip, SCTP, _ports(source, destination) + bytes(8) + b"\x01\x00\x00\x14" + bytes(16)), iif)


def echo(src: str, dst: str, ident: int, kind: int = ECHO_REQUEST, iif: str = "eth0") -> Skb:
    body = bytes((kind, 0, 0, 0)) + ident.to_bytes(2, "big") + b"\x00\x01"
    return skb(ipv4(parse_ip(src), parse_ip(dst), ICMP, body), iif)


def error(about: Skb, by: str, kind: int = UNREACHABLE, code: int = 3, iif: str = "eth0") -> Skb:
    """The ICMP error with which the host `by` answers a packet: to its source, quoting header and 8 bytes."""
    body = bytes((kind, code)) + bytes(6) + bytes(about.buf[: about.l4 + 8])
    return skb(ipv4(parse_ip(by), about.src, ICMP, body), iif)


def quoted(answer: Skb) -> Skb:
    """The packet that an ICMP error quotes, filled up to a whole one."""
    inner = bytearray(answer.buf[answer.l4 + 8 :])
    inner += bytes(max(0, (inner[2] << 8 | inner[3]) - len(inner)))
    return skb(bytes(inner))


def answer_to(packet: Skb, flags: int = SYN | ACK, iif: str = "eth0") -> Skb:
    """What the receiver of a packet sends back: a SYN with ACK, a datagram, an echo reply."""
    if packet.proto == TCP:
        return tcp(str(packet.destination), str(packet.source), flags, iif)
    if packet.proto == UDP:
        return udp(str(packet.destination), str(packet.source), b"", iif)
    if packet.proto == SCTP:
        return sctp(str(packet.destination), str(packet.source), iif)
    back = skb(ipv4(packet.dst, packet.src, packet.proto, bytes(packet.buf[packet.l4 :])), iif)
    if packet.proto == ICMP:
        back.buf[back.l4] = ECHO_REPLY
    return back
