"""The UDP header (RFC 768). Decides where the datagram ends. `checksum` is 0 on every wire inside."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.errors import DropReason

SIZE = 8

_HEADER = struct.Struct("!HHHH")


@dataclass(frozen=True, slots=True)
class Udp:
    """A datagram's ports."""

    sport: int
    dport: int
    checksum: int = 0

    def emit(self, payload: bytes) -> bytes:
        return _HEADER.pack(self.sport, self.dport, SIZE + len(payload), self.checksum) + payload


def parse(data: bytes) -> tuple[Udp, bytes] | DropReason:
    """The header and the payload, without what the length field leaves out (Linux's `__udp4_lib_rcv`)."""
    if len(data) < SIZE:
        return DropReason.TRUNCATED
    sport, dport, length, checksum = _HEADER.unpack_from(data)
    if length < SIZE:
        return DropReason.MALFORMED
    if length > len(data):
        return DropReason.TRUNCATED
    return Udp(sport, dport, checksum), data[SIZE:length]
