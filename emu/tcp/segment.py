"""One TCP segment in its IPv4 packet. Decides the layout of what is sent and what can be read at all.

Packets have IHL 5, DF set, identification 0 (RFC 6864 asks for no more of a packet that is never fragmented), TTL 64 and
zero checksum fields: those are filled in where a packet leaves the emulator.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from emu.tcp import options
from emu.tcp.options import Options
from emu.wire.addr import SockAddr

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
URGENT_AT = 18  # where the urgent pointer stands in the header

IPV4_TCP = 40  # bytes of both headers without options
TIMESTAMP_SIZE = 12  # the option and its padding, on every segment once agreed
WITH_TIMESTAMP = IPV4_TCP + TIMESTAMP_SIZE
VERSION_IHL_TOS = 0x4500

# version..tos, total length, `route` (see below), seq, ack, offset and flags, window, checksum and urgent pointer
PLAIN = struct.Struct("!HH20sIIHHI")
# and the same with the aligned timestamp option: its first word, value, echo
STAMPED = struct.Struct("!HH20sIIHHIIII")
# seq, ack, offset and flags, window, (checksum, urgent pointer), first option word, value, echo: from the ports on
PREDICTED = struct.Struct("!IIHH4xIII")
_FIXED = struct.Struct("!IIHH")
_ROUTE = struct.Struct("!HHBBH4s4sHH")


class Segment(NamedTuple):
    """A segment as read; numbers are as on the wire, `start` and `end` bound the payload in the packet."""

    seq: int
    ack: int
    flags: int
    window: int
    options: Options
    start: int
    end: int

    @property
    def length(self) -> int:
        """How far it moves the sequence number (RFC 9293's SEG.LEN): SYN and FIN count as a byte each."""
        return self.end - self.start + (self.flags >> 1 & 1) + (self.flags & FIN)


def route(local: SockAddr, remote: SockAddr) -> bytes:
    """The 20 bytes that no packet of a connection changes: IPv4 identification to destination, then the ports."""
    return _ROUTE.pack(0, 0x4000, 64, 6, 0, local.ip, remote.ip, local.port, remote.port)


def parse(buf: bytes | bytearray, l4: int) -> Segment | None:
    """Read the segment whose header is at `buf[l4:]`; None if it is cut or its offset cannot be."""
    end = len(buf)
    if end < l4 + 20:
        return None
    seq, ack, word, window = _FIXED.unpack_from(buf, l4 + 4)
    start = l4 + (word >> 12 << 2)
    if start < l4 + 20 or start > end:
        return None
    return Segment(seq, ack, word & 0x3F, window, options.parse(buf, l4 + 20, start), start, end)


def emit(path: bytes, seq: int, ack: int, flags: int, window: int, opts: bytes = b"", payload: bytes = b"") -> bytes:
    """A whole packet off the fast path. `path` is from `route`; `opts` is padded; `seq` and `ack` are 32-bit."""
    total = IPV4_TCP + len(opts) + len(payload)
    return PLAIN.pack(VERSION_IHL_TOS, total, path, seq, ack, (5 + (len(opts) >> 2)) << 12 | flags, window, 0) + opts + payload


def reset_for(buf: bytes | bytearray, l4: int) -> bytes | None:
    """The RST for a segment that no connection takes, in a packet; None if it is itself a RST or cannot be read."""
    segment = parse(buf, l4)
    if segment is None or segment.flags & RST:
        return None
    source = SockAddr(bytes(buf[12:16]), buf[l4] << 8 | buf[l4 + 1])
    destination = SockAddr(bytes(buf[16:20]), buf[l4 + 2] << 8 | buf[l4 + 3])
    return refusal(route(destination, source), segment)


def refusal(path: bytes, segment: Segment) -> bytes:
    """The RST that answers a segment nobody owns (RFC 9293, 3.10.7.1)."""
    if segment.flags & ACK:
        return emit(path, segment.ack, 0, RST, 0)
    return emit(path, 0, (segment.seq + segment.length) & 0xFFFFFFFF, RST | ACK, 0)
