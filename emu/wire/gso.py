"""Generic segmentation offload: what a network card makes of one long packet, and the long packet that some of its segments make.

Decides where a GSO packet is cut, and the headers of the parts: those of a TCP packet, also inside VXLAN, are TCP segments of
`gso_size` payload bytes; those of a UDP datagram are IPv4 fragments (Linux's UFO), each in a tunnel packet of its own. What
happens to a part (loss, a capture, a kernel's device) is the caller's. Checksum fields stay as they are, mostly zero
(`checksum.fill` sets them), but for a fragmented datagram's own, whose sum no fragment could tell. Linux: tcp_gso_segment,
inet_gso_segment, ip_do_fragment; RFC 791 3.2.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from emu.wire import checksum, vxlan

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_MORE_FRAGMENTS = 0x2000
_TUNNELLED = 8 + vxlan.SIZE + 14  # UDP, VXLAN and Ethernet headers before the packet inside


class _Layout(NamedTuple):
    """Where the parts of a packet are: every IPv4 header, the tunnel's UDP header (0: no tunnel), the transport, its payload."""

    ips: tuple[int, ...]
    tunnel: int
    l4: int
    payload: int
    proto: int


def segment_count(packet: bytes, gso_size: int) -> int:
    """How many packets a card would send for this one; 1 if it is not a GSO packet, or not one that can be cut."""
    layout = _layout(packet, gso_size)
    if layout is None:
        return 1
    start = layout.payload if layout.proto == checksum.TCP else layout.l4
    return max(1, -(-(len(packet) - start) // gso_size))


def divisible(packet: bytes, gso_size: int) -> bool:
    """Are some of its segments of use without the others? A stream's are; of a datagram's fragments all must arrive, or none does."""
    layout = _layout(packet, gso_size)
    return layout is not None and layout.proto == checksum.TCP


def segments(packet: bytes, gso_size: int) -> list[bytes]:
    """The packets that a card would send for this one, in order; itself alone if there is nothing to cut."""
    layout = _layout(packet, gso_size)
    count = segment_count(packet, gso_size)
    if layout is None or count == 1:
        return [packet]
    if layout.proto == checksum.TCP:
        return [_part(packet, gso_size, layout, number, 1, count)[0] for number in range(count)]
    return _fragments(packet, gso_size, layout)


def run(packet: bytes, gso_size: int, first: int, count: int) -> tuple[bytes, int]:
    """`count` segments in a row, from segment `first`, again as one packet with its gso_size (0 if it is one segment).

    ValueError if there are no such segments, or if the packet is not divisible and not all of it is wanted.
    """
    total = segment_count(packet, gso_size)
    if first < 0 or count < 1 or first + count > total:
        raise ValueError(f"segments {first} to {first + count - 1} of a packet that has {total}")
    if count == total:
        return packet, gso_size if total > 1 else 0
    layout = _layout(packet, gso_size)
    if layout is None or layout.proto != checksum.TCP:
        raise ValueError("fragments of a datagram are not packets of their own")
    return _part(packet, gso_size, layout, first, count, total)


def _layout(packet: bytes, gso_size: int) -> _Layout | None:
    """None if this is nothing that a card would cut: no gso_size, or not a whole IPv4 TCP or UDP packet."""
    if gso_size <= 0:
        return None
    ips: list[int] = []
    at = tunnel = 0
    while True:
        if len(packet) < at + 28 or packet[at] >> 4 != 4 or packet[at] & 15 < 5:
            return None
        ips.append(at)
        l4, proto = at + ((packet[at] & 15) << 2), packet[at + 9]
        inside = l4 + _TUNNELLED
        if proto == checksum.TCP:
            payload = l4 + (packet[l4 + 12] >> 4 << 2) if len(packet) >= l4 + 20 else 0
            return _Layout(tuple(ips), tunnel, l4, payload, proto) if l4 + 20 <= payload <= len(packet) else None
        if proto != checksum.UDP or len(packet) < l4 + 8:
            return None
        if tunnel or int.from_bytes(packet[l4 + 2 : l4 + 4], "big") != vxlan.PORT or packet[inside - 2 : inside] != b"\x08\x00":
            return _Layout(tuple(ips), tunnel, l4, l4 + 8, proto)
        tunnel, at = l4, inside


def _resized(head: bytearray, layout: _Layout, size: int, number: int) -> None:
    """Set every length that a packet of `size` bytes states; each IPv4 header's identification counts on, as the kernel's do."""
    for at in layout.ips:
        ident = int.from_bytes(head[at + 4 : at + 6], "big") + number & 0xFFFF
        struct.pack_into("!HH", head, at + 2, size - at, ident)
    if layout.tunnel:
        struct.pack_into("!H", head, layout.tunnel + 4, size - layout.tunnel)


def _part(packet: bytes, gso_size: int, layout: _Layout, first: int, count: int, total: int) -> tuple[bytes, int]:
    l4, start = layout.l4, layout.payload
    data = packet[start + first * gso_size : start + (first + count) * gso_size]
    head = bytearray(packet[:start])
    _resized(head, layout, start + len(data), first)
    seq = int.from_bytes(head[l4 + 4 : l4 + 8], "big") + first * gso_size & 0xFFFFFFFF
    struct.pack_into("!I", head, l4 + 4, seq)
    if first:
        head[l4 + 13] &= ~_CWR
    if first + count < total:
        head[l4 + 13] &= ~(_FIN | _PSH)
    return bytes(head) + data, gso_size if len(data) > gso_size else 0


def _fragments(packet: bytes, gso_size: int, layout: _Layout) -> list[bytes]:
    inner, l4 = layout.ips[-1], layout.l4
    datagram = checksum.fill(packet[inner:])[l4 - inner :]
    step = max(8, gso_size & ~7)  # offsets are told in units of 8 bytes
    # a datagram of no fragments needs no identification and has none here; its fragments must share one that others do not have
    ident = int.from_bytes(packet[inner + 4 : inner + 6], "big") or zlib.crc32(packet[inner:]) & 0xFFFF or 1
    parts = []
    for number, at in enumerate(range(0, len(datagram), step)):
        data = datagram[at : at + step]
        head = bytearray(packet[:l4])
        _resized(head, layout, l4 + len(data), number)
        more = _MORE_FRAGMENTS if at + step < len(datagram) else 0
        struct.pack_into("!HH", head, inner + 4, ident, at >> 3 | more)
        parts.append(bytes(head) + data)
    return parts
