"""Ethernet II frames, as VXLAN carries them inside. Decides the fourteen bytes; there are no VLAN tags here. See RFC 894."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.errors import DropReason
from emu.wire.addr import format_mac

IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
SIZE = 14

_HEADER = struct.Struct("!6s6sH")


@dataclass(frozen=True, slots=True)
class Ethernet:
    """Where a frame goes and comes from; MACs are 6 bytes."""

    dst: bytes
    src: bytes
    ethertype: int = IPV4

    def __str__(self) -> str:
        return f"{format_mac(self.src)} > {format_mac(self.dst)}"

    def emit(self) -> bytes:
        return _HEADER.pack(self.dst, self.src, self.ethertype)


def parse(data: bytes) -> tuple[Ethernet, bytes] | DropReason:
    """The header and what it carries. An 802.3 length in place of the type is not Ethernet II and not emulated."""
    if len(data) < SIZE:
        return DropReason.TRUNCATED
    header = Ethernet(*_HEADER.unpack_from(data))
    return (header, data[SIZE:]) if header.ethertype >= 0x0600 else DropReason.UNSUPPORTED
