"""The TCP header and its options (RFC 9293, RFC 7323, RFC 2018). Decides how they are read and written, not what they mean.

Options that do not hold together are passed over with all that follow them, as Linux's `tcp_parse_options` does: a peer
with an odd option is still a peer. `checksum` is 0 on every wire inside.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

from emu.errors import DropReason

SIZE = 20
LONGEST_OPTIONS = 40

_HEADER = struct.Struct("!HHIIBBHHH")
_EOL, _NOP, _MSS, _WINDOW, _SACK_PERM, _SACK, _TIMESTAMP = 0, 1, 2, 3, 4, 5, 8


class Flags(IntFlag):
    """The flag bits, with Linux's names; the lowest of the reserved bits (AE) is left alone."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


@dataclass(frozen=True, slots=True)
class Mss:
    """Maximum segment size, bytes."""

    size: int

    def emit(self) -> bytes:
        return struct.pack("!BBH", _MSS, 4, self.size)


@dataclass(frozen=True, slots=True)
class WindowScale:
    """The shift that applies to every later window."""

    shift: int

    def emit(self) -> bytes:
        return bytes((_WINDOW, 3, self.shift))


@dataclass(frozen=True, slots=True)
class SackPermitted:
    """Says that SACK blocks are welcome; on a SYN only."""

    def emit(self) -> bytes:
        return bytes((_SACK_PERM, 2))


@dataclass(frozen=True, slots=True)
class Sack:
    """Blocks of (first, last + 1) sequence numbers received out of order, at most four."""

    blocks: tuple[tuple[int, int], ...]

    def emit(self) -> bytes:
        edges = [edge for block in self.blocks for edge in block]
        return struct.pack(f"!BB{len(edges)}I", _SACK, 2 + 4 * len(edges), *edges)


@dataclass(frozen=True, slots=True)
class Timestamps:
    """TSval and TSecr."""

    value: int
    echo: int

    def emit(self) -> bytes:
        return struct.pack("!BBII", _TIMESTAMP, 10, self.value, self.echo)


@dataclass(frozen=True, slots=True)
class NoOp:
    """One byte of alignment."""

    def emit(self) -> bytes:
        return b"\x01"


@dataclass(frozen=True, slots=True)
class UnknownOption:
    """An option that is not read here; `data` is what follows kind and length."""

    kind: int
    data: bytes

    def emit(self) -> bytes:
        return bytes((self.kind, 2 + len(self.data))) + self.data


Option = Mss | WindowScale | SackPermitted | Sack | Timestamps | NoOp | UnknownOption


@dataclass(frozen=True, slots=True)
class Tcp:
    """A segment's header. `window` is as it stands there, unscaled. `flags` is any sum of `Flags`."""

    sport: int
    dport: int
    seq: int = 0
    ack: int = 0
    flags: int = Flags.ACK
    window: int = 0
    urgent: int = 0
    options: tuple[Option, ...] = ()
    reserved: int = 0
    checksum: int = 0

    def emit(self, payload: bytes) -> bytes:
        """The segment, its options padded; struct.error or ValueError if a field or the options do not fit."""
        options = b"".join(option.emit() for option in self.options)
        options += bytes(-len(options) & 3)
        if len(options) > LONGEST_OPTIONS:
            raise ValueError(f"{len(options)} bytes of TCP options, at most {LONGEST_OPTIONS} fit")
        offset = (SIZE + len(options)) << 2 | self.reserved
        fixed = _HEADER.pack(
            self.sport, self.dport, self.seq, self.ack, offset, self.flags, self.window, self.checksum, self.urgent
        )  # fmt: skip
        return fixed + options + payload


def parse(data: bytes) -> tuple[Tcp, bytes] | DropReason:
    """The header and the segment's data."""
    if len(data) < SIZE:
        return DropReason.TRUNCATED
    sport, dport, seq, ack, offset, flags, window, checksum, urgent = _HEADER.unpack_from(data)
    size = offset >> 4 << 2
    if size < SIZE:
        return DropReason.MALFORMED
    if size > len(data):
        return DropReason.TRUNCATED
    options = parse_options(data[SIZE:size])
    return Tcp(sport, dport, seq, ack, flags, window, urgent, options, offset & 15, checksum), data[size:]


def parse_options(data: bytes) -> tuple[Option, ...]:
    """The options up to the end mark, or up to the first whose length cannot be."""
    options: list[Option] = []
    at = 0
    while at < len(data) and (kind := data[at]) != _EOL:
        if kind == _NOP:
            options.append(NoOp())
            at += 1
            continue
        length = data[at + 1] if at + 1 < len(data) else 0
        if length < 2 or at + length > len(data):
            break
        options.append(_option(kind, data[at + 2 : at + length]))
        at += length
    return tuple(options)


_READERS: dict[tuple[int, int], Callable[[bytes], Option]] = {  # by kind and length of data; any other length is not that option
    (_MSS, 2): lambda data: Mss(int.from_bytes(data, "big")),
    (_WINDOW, 1): lambda data: WindowScale(data[0]),
    (_SACK_PERM, 0): lambda data: SackPermitted(),
    (_TIMESTAMP, 8): lambda data: Timestamps(*struct.unpack("!II", data)),
    **{(_SACK, 8 * blocks): lambda data: Sack(tuple(struct.iter_unpack("!II", data))) for blocks in (1, 2, 3, 4)},
}


def _option(kind: int, data: bytes) -> Option:
    reader = _READERS.get((kind, len(data)))
    return UnknownOption(kind, data) if reader is None else reader(data)
