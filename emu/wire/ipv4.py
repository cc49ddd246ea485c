"""The IPv4 header (RFC 791). Decides where the packet ends; what is in it is the transports' business."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.errors import DropReason
from emu.wire.addr import Ip

SIZE = 20
DF, MF = 0x4000, 0x2000  # don't fragment, more fragments: as they stand in the flags and offset word

_HEADER = struct.Struct("!BBHHHBBH4s4s")


@dataclass(frozen=True, slots=True)
class Ipv4:
    """A header's fields; lengths follow from what it is emitted with.

    `flags` is DF and MF (and the reserved bit) in place, `fragment_offset` counts 8-byte units, `options` are padded to a
    multiple of 4 bytes. `checksum` is 0 on every wire inside.
    """

    src: Ip
    dst: Ip
    protocol: int
    ttl: int = 64
    tos: int = 0
    id: int = 0
    flags: int = DF
    fragment_offset: int = 0
    options: bytes = b""
    checksum: int = 0

    @property
    def is_fragment(self) -> bool:
        return bool(self.flags & MF or self.fragment_offset)

    def emit(self, length: int) -> bytes:
        """The header of a packet that carries `length` bytes; struct.error if that is more than 65,535 in all."""
        size = SIZE + len(self.options)
        word = self.flags | self.fragment_offset
        fixed = _HEADER.pack(
            0x40 | size >> 2, self.tos, size + length, self.id, word, self.ttl, self.protocol, self.checksum, self.src, self.dst
        )  # fmt: skip
        return fixed + self.options


def parse(data: bytes) -> tuple[Ipv4, bytes] | DropReason:
    """The header and its payload, without the link's padding (Linux's `ip_rcv_core`)."""
    if len(data) < SIZE:
        return DropReason.TRUNCATED
    first, tos, total, ident, word, ttl, protocol, checksum, src, dst = _HEADER.unpack_from(data)
    size = (first & 15) << 2
    if first >> 4 != 4 or size < SIZE or total < size:
        return DropReason.MALFORMED
    if total > len(data):
        return DropReason.TRUNCATED
    header = Ipv4(src, dst, protocol, ttl, tos, ident, word & 0xE000, word & 0x1FFF, data[SIZE:size], checksum)
    return header, data[size:total]
