"""Checksums: filled in where a packet leaves the emulator, checked where one comes in. Decides nothing else.

Inside, checksum fields are zero ("offloaded", as Linux leaves them to a network card), so these run on no packet's usual
path. Works on bytes, since a packet may be odd in ways that a value could not hold. RFC 1071 (the sum), RFC 768 (UDP's zero),
RFC 8200 8.1 (IPv6's pseudo-header), RFC 9260 appendix A (SCTP's CRC32c).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from emu.errors import DropReason
from emu.wire.vxlan import PORT as VXLAN_PORT
from emu.wire.vxlan import SIZE as VXLAN_SIZE

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmpv6", SCTP: "sctp"}
_FIELD = {ICMP: 2, TCP: 16, UDP: 6, ICMPV6: 2, SCTP: 8}  # where the field is in its header
_SHORTEST = {ICMP: 8, TCP: 20, UDP: 8, ICMPV6: 8, SCTP: 12}
_ICMP_ERRORS = frozenset((3, 4, 5, 11, 12))
_ETHERNET = 14
_BOTH_ZEROS = {b"\0\0", b"\xff\xff"}


def internet(data: bytes) -> int:
    """The Internet checksum of the data, zero bytes added to an even length (RFC 1071).

    Ones' complement addition of 16-bit words is arithmetic modulo 65,535, so one big division does it. `data` that holds
    its own right checksum gives 0.
    """
    value = int.from_bytes(data, "big") << (8 if len(data) & 1 else 0)
    remainder = value % 0xFFFF
    return 0xFFFF - (remainder or (0xFFFF if value else 0))


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC of the data, reflected, as SCTP carries it (least significant byte first)."""
    crc = 0xFFFFFFFF
    table = _CRC32C
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc_table()


class _Layout(NamedTuple):
    """Where an IP packet's parts are; `field` is the transport checksum's place, 0 if there is none to be had."""

    l4: int
    total: int
    proto: int
    src: bytes
    dst: bytes
    field: int


def fill(packet: bytes) -> bytes:
    """The IPv4 or IPv6 packet with all its checksums set: IP, transport, the packet inside VXLAN, the header an ICMP error quotes.

    VXLAN's outer UDP keeps 0, "none", as Linux's vxlan devices send it (RFC 7348). Fragments keep their transport's field,
    whose sum spans bytes that are elsewhere. What is not a whole IP packet comes back unchanged.
    """
    layout = _layout(packet)
    if layout is None:
        return packet
    data = bytearray(packet)
    _fill_ip_header(data, 0, layout.l4)
    if not layout.field:
        return bytes(data)
    inner = _inner_at(packet, layout)
    if inner:
        data[layout.field : layout.field + 2] = b"\0\0"
        data[inner : layout.total] = fill(bytes(data[inner : layout.total]))
        return bytes(data)
    if layout.proto == ICMP and data[layout.l4] in _ICMP_ERRORS and layout.total >= layout.l4 + 28:
        quoted = layout.l4 + 8
        _fill_ip_header(data, quoted, (data[quoted] & 15) << 2)
    width = 4 if layout.proto == SCTP else 2
    data[layout.field : layout.field + width] = bytes(width)
    data[layout.field : layout.field + width] = _transport(bytes(data), layout)
    return bytes(data)


def wrong(packet: bytes) -> tuple[str, ...]:
    """The layers whose checksum is wrong, outermost first, such as ("ip", "tcp"); empty if all are right.

    A UDP checksum of 0 over IPv4 means "none" and is right. ("malformed",) if the packet is not a whole IP packet.
    """
    layout = _layout(packet)
    if layout is None:
        return ("malformed",)
    bad = ["ip"] if packet[0] >> 4 == 4 and internet(packet[: layout.l4]) else []
    if not layout.field:
        return tuple(bad)
    width = 4 if layout.proto == SCTP else 2
    carried = packet[layout.field : layout.field + width]
    if not (layout.proto == UDP and carried == b"\0\0" and packet[0] >> 4 == 4):
        zeroed = packet[: layout.field] + bytes(width) + packet[layout.field + width :]
        expected = _transport(zeroed, layout)
        # in ones' complement 0 and 0xFFFF are one number, and who updates a sum in place (a kernel that segments) may write either
        if carried != expected and (layout.proto == SCTP or {carried, expected} != _BOTH_ZEROS):
            bad.append(NAMES[layout.proto])
    inner = _inner_at(packet, layout)
    return (*bad, *(wrong(packet[inner : layout.total]) if inner else ()))


def accept(packet: bytes, *, vouched: bool = False) -> bytes | DropReason:
    """An IPv4 packet from outside as the wires inside carry it: without the link's padding, IP's and the transport's checksum zero.

    TRUNCATED or MALFORMED if it is not whole, BAD_CHECKSUM if a sum is wrong; the transport's is not looked at if `vouched` for. A
    fragment keeps its transport's field (see `fill`). IPv6 is UNSUPPORTED.
    """
    if len(packet) < 20:
        return DropReason.TRUNCATED
    l4, total, proto = (packet[0] & 15) << 2, packet[2] << 8 | packet[3], packet[9]
    if packet[0] >> 4 != 4:
        return DropReason.UNSUPPORTED if packet[0] >> 4 == 6 else DropReason.MALFORMED
    if l4 < 20 or total < l4:
        return DropReason.MALFORMED
    if total > len(packet):
        return DropReason.TRUNCATED
    packet = packet[:total]
    if internet(packet[:l4]) or not (vouched or not wrong(packet)):
        return DropReason.BAD_CHECKSUM
    if packet[6] & 0x3F or packet[7] or total - l4 < _SHORTEST.get(proto, 1 << 16):
        return packet[:10] + b"\0\0" + packet[12:]
    at = l4 + _FIELD[proto]
    width = 4 if proto == SCTP else 2
    return b"".join((packet[:10], b"\0\0", packet[12:at], bytes(width), packet[at + width :]))


def _layout(packet: bytes) -> _Layout | None:
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        l4, total, proto = (packet[0] & 15) << 2, int.from_bytes(packet[2:4], "big"), packet[9]
        src, dst = packet[12:16], packet[16:20]
        fragment = int.from_bytes(packet[6:8], "big") & 0x3FFF
    elif version == 6 and len(packet) >= 40:
        l4, total, proto = 40, 40 + int.from_bytes(packet[4:6], "big"), packet[6]
        src, dst, fragment = packet[8:24], packet[24:40], 0
    else:
        return None
    if l4 < 20 or not l4 <= total <= len(packet):
        return None
    has_field = not fragment and total - l4 >= _SHORTEST.get(proto, 1 << 16)
    return _Layout(l4, total, proto, src, dst, l4 + _FIELD[proto] if has_field else 0)


def _inner_at(packet: bytes, layout: _Layout) -> int:
    """Where the packet inside VXLAN begins; 0 if this is not VXLAN with an IP packet in it."""
    at = layout.l4 + 8 + VXLAN_SIZE + _ETHERNET
    if layout.proto != UDP or packet[layout.l4 + 2 : layout.l4 + 4] != VXLAN_PORT.to_bytes(2, "big") or at >= layout.total:
        return 0
    return at if packet[at - 2 : at] in {b"\x08\x00", b"\x86\xdd"} else 0


def _fill_ip_header(data: bytearray, at: int, length: int) -> None:
    if data[at] >> 4 == 4 and length >= 20 and at + length <= len(data):
        data[at + 10 : at + 12] = b"\0\0"
        data[at + 10 : at + 12] = internet(bytes(data[at : at + length])).to_bytes(2, "big")


def _transport(packet: bytes, layout: _Layout) -> bytes:
    """The transport checksum's bytes, of a packet in which the field is zero."""
    segment = packet[layout.l4 : layout.total]
    if layout.proto == SCTP:
        return crc32c(segment).to_bytes(4, "little")
    if layout.proto == UDP:  # a UDP length below IP's leaves padding that is not the datagram's
        segment = segment[: max(8, int.from_bytes(segment[4:6], "big"))]
    pseudo = b"" if layout.proto == ICMP else layout.src + layout.dst + struct.pack("!II", len(segment), layout.proto)
    total = internet(pseudo + segment)
    return (0xFFFF if layout.proto == UDP and not total else total).to_bytes(2, "big")  # 0 would say "none"
