"""ICMP and ICMPv6 messages (RFC 792, RFC 4443). Decides the eight bytes that all of them have; what an error quotes is payload.

Which message answers what is the stack's; only the numbers are here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.errors import DropReason

SIZE = 8

ECHO_REPLY, DEST_UNREACH, SOURCE_QUENCH, REDIRECT, ECHO, TIME_EXCEEDED, PARAMETERPROB = 0, 3, 4, 5, 8, 11, 12
NET_UNREACH, HOST_UNREACH, PROT_UNREACH, PORT_UNREACH, FRAG_NEEDED = range(5)  # codes of DEST_UNREACH
NET_ANO, HOST_ANO, PKT_FILTERED = 9, 10, 13  # administratively prohibited, RFC 1812 5.2.7.1

_HEADER = struct.Struct("!BBHI")


@dataclass(frozen=True, slots=True)
class Icmp:
    """A message's type, code and `rest`, the four bytes whose meaning depends on the type."""

    type: int
    code: int = 0
    rest: int = 0
    checksum: int = 0

    @classmethod
    def echo(cls, identifier: int, sequence: int, *, reply: bool = False) -> Icmp:
        """An echo request, or the reply to one."""
        return cls(ECHO_REPLY if reply else ECHO, 0, identifier << 16 | sequence)

    @property
    def identifier(self) -> int:
        """Of an echo: whose it is; stands in for both ports in conntrack."""
        return self.rest >> 16

    @property
    def sequence(self) -> int:
        """Of an echo: which one it is."""
        return self.rest & 0xFFFF

    @property
    def mtu(self) -> int:
        """Of FRAG_NEEDED: the next hop's MTU (RFC 1191)."""
        return self.rest & 0xFFFF

    def emit(self, payload: bytes) -> bytes:
        return _HEADER.pack(self.type, self.code, self.checksum, self.rest) + payload


def parse(data: bytes) -> tuple[Icmp, bytes] | DropReason:
    """The header and what follows it: an echo's data, or the packet that an error quotes."""
    if len(data) < SIZE:
        return DropReason.TRUNCATED
    kind, code, checksum, rest = _HEADER.unpack_from(data)
    return Icmp(kind, code, rest, checksum), data[SIZE:]
