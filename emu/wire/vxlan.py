"""VXLAN (RFC 7348): an Ethernet frame inside UDP. Decides the eight bytes only; the frame is `ethernet`'s, tunnels are the stack's."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.errors import DropReason

PORT = 8472  # Linux's default, which flannel keeps; IANA's is 4789
SIZE = 8
VALID_VNI = 0x08  # the I flag, the only one that RFC 7348 defines

_HEADER = struct.Struct("!II")


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN network identifier, 24 bits."""

    vni: int

    def emit(self) -> bytes:
        return _HEADER.pack(VALID_VNI << 24, self.vni << 8)


def parse(data: bytes) -> tuple[Vxlan, bytes] | DropReason:
    """The header and the frame behind it. Reserved bits are ignored on receipt, as the RFC asks; without the I flag there is no VNI."""
    if len(data) < SIZE:
        return DropReason.TRUNCATED
    flags, vni = _HEADER.unpack_from(data)
    return (Vxlan(vni >> 8), data[SIZE:]) if flags >> 24 & VALID_VNI else DropReason.MALFORMED
