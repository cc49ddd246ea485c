"""The IPv6 header (RFC 8200). Decides the fixed forty bytes; extension headers are not read, they stay payload of an unknown protocol."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.errors import DropReason
from emu.wire.addr import Ip

SIZE = 40

_HEADER = struct.Struct("!IHBB16s16s")


@dataclass(frozen=True, slots=True)
class Ipv6:
    """A header's fields; `protocol` is Next Header and `ttl` Hop Limit, so that both families read alike."""

    src: Ip
    dst: Ip
    protocol: int
    ttl: int = 64
    traffic_class: int = 0
    flow_label: int = 0

    @property
    def is_fragment(self) -> bool:
        return False  # a fragment's header is an extension (44), so its protocol is not a transport's

    def emit(self, length: int) -> bytes:
        """The header of a packet that carries `length` bytes."""
        return _HEADER.pack(6 << 28 | self.traffic_class << 20 | self.flow_label, length, self.protocol, self.ttl, self.src, self.dst)


def parse(data: bytes) -> tuple[Ipv6, bytes] | DropReason:
    """The header and its payload, without the link's padding."""
    if len(data) < SIZE:
        return DropReason.TRUNCATED
    word, length, protocol, ttl, src, dst = _HEADER.unpack_from(data)
    if word >> 28 != 6:
        return DropReason.MALFORMED
    if SIZE + length > len(data):
        return DropReason.TRUNCATED
    return Ipv6(src, dst, protocol, ttl, word >> 20 & 0xFF, word & 0xFFFFF), data[SIZE : SIZE + length]
