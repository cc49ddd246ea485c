"""SCTP (RFC 9260), as much as tells reached from refused from dropped: the common header, INIT, INIT ACK and ABORT.

Decides how chunks are read and written; other chunks are carried as they came. There are no associations here. `checksum`,
a CRC32c, is 0 on every wire inside.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.errors import DropReason

SIZE = 12
INIT, INIT_ACK, ABORT = 1, 2, 6

_HEADER = struct.Struct("!HHI4s")
_CHUNK = struct.Struct("!BBH")
_INIT = struct.Struct("!IIHHI")


@dataclass(frozen=True, slots=True)
class Init:
    """An INIT, or with `ack` an INIT ACK; `parameters` as they stand there (an INIT ACK's state cookie among them)."""

    tag: int
    window: int
    outbound_streams: int
    inbound_streams: int
    initial_tsn: int
    parameters: bytes = b""
    ack: bool = False
    flags: int = 0

    def emit(self) -> bytes:
        fixed = _INIT.pack(self.tag, self.window, self.outbound_streams, self.inbound_streams, self.initial_tsn)
        return _emit_chunk(INIT_ACK if self.ack else INIT, self.flags, fixed + self.parameters)


@dataclass(frozen=True, slots=True)
class Abort:
    """An ABORT; `reflected_tag` is the T bit: the verification tag is the one of the packet that is answered."""

    reflected_tag: bool = False
    causes: bytes = b""

    def emit(self) -> bytes:
        return _emit_chunk(ABORT, int(self.reflected_tag), self.causes)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Any other chunk, unread."""

    type: int
    flags: int
    value: bytes

    def emit(self) -> bytes:
        return _emit_chunk(self.type, self.flags, self.value)


AnyChunk = Init | Abort | Chunk


@dataclass(frozen=True, slots=True)
class Sctp:
    """The common header and its chunks; an SCTP packet has no payload beside them."""

    sport: int
    dport: int
    tag: int = 0
    chunks: tuple[AnyChunk, ...] = ()
    checksum: int = 0

    def emit(self, payload: bytes = b"") -> bytes:
        assert not payload, "an SCTP packet is all chunks"
        header = _HEADER.pack(self.sport, self.dport, self.tag, self.checksum.to_bytes(4, "little"))
        return header + b"".join(chunk.emit() for chunk in self.chunks)


def parse(data: bytes) -> tuple[Sctp, bytes] | DropReason:
    """The packet, and no bytes beside it. A chunk that is longer than what there is makes the packet TRUNCATED."""
    if len(data) < SIZE:
        return DropReason.TRUNCATED
    sport, dport, tag, checksum = _HEADER.unpack_from(data)
    chunks: list[AnyChunk] = []
    at = SIZE
    while at < len(data):
        if at + _CHUNK.size > len(data):
            return DropReason.TRUNCATED
        kind, flags, length = _CHUNK.unpack_from(data, at)
        if length < _CHUNK.size:
            return DropReason.MALFORMED
        if at + length > len(data):
            return DropReason.TRUNCATED
        chunk = _chunk(kind, flags, data[at + _CHUNK.size : at + length])
        if isinstance(chunk, DropReason):
            return chunk
        chunks.append(chunk)
        at += length + (-length & 3)
    return Sctp(sport, dport, tag, tuple(chunks), int.from_bytes(checksum, "little")), b""


def _chunk(kind: int, flags: int, value: bytes) -> AnyChunk | DropReason:
    if kind in {INIT, INIT_ACK}:
        if len(value) < _INIT.size:
            return DropReason.TRUNCATED
        tag, window, outbound, inbound, tsn = _INIT.unpack_from(value)
        return Init(tag, window, outbound, inbound, tsn, value[_INIT.size :], kind == INIT_ACK, flags)
    if kind == ABORT and flags <= 1:
        return Abort(bool(flags), value)
    return Chunk(kind, flags, value)


def _emit_chunk(kind: int, flags: int, value: bytes) -> bytes:
    return _CHUNK.pack(kind, flags, _CHUNK.size + len(value)) + value + bytes(-len(value) & 3)
