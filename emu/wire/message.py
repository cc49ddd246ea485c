"""The underlay message: what one node's device says to another's. Decides its layout and nothing about what is in it.

    preamble   version u8 | flags u8 | reserved u16 | receiver's incarnation u32 | sent u64 (microseconds, sender's clock)
    records    length u16 | gso_size u16 | trace u32 | the IPv4 packet (length bytes)        one or more

All big endian, one ZeroMQ frame (a second frame costs half to four fifths of the rate). A lone packet is the common case,
so `encode_one` is one concatenation. Never raises on what comes in: a message is whole, or it is `BAD_MESSAGE`. Must not
know what a packet is, what a peer is, or the time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from emu.errors import DropReason

VERSION = 1
PREAMBLE = struct.Struct("!BBHIQ")
RECORD = struct.Struct("!HHI")
FIRST = struct.Struct("!BBHIQHHI")  # preamble and first record header in one go: the lone packet's

_DATA = PREAMBLE.size + RECORD.size
_RECORD_SIZE = RECORD.size

Record = tuple[bytes, int, int]
"""A packet's bytes, its gso_size (0: not a GSO packet) and its trace id (0: not traced)."""


class Preamble(NamedTuple):
    """What every message says of itself. `sent` is microseconds on the sender's clock; `incarnation` the receiver's."""

    version: int
    flags: int
    reserved: int
    incarnation: int
    sent: int


def encode_one(incarnation: int, sent_us: int, packet: bytes, gso_size: int = 0, trace: int = 0) -> bytes:
    """A message with one packet. struct.error if a field is out of its range (a packet over 65,535 bytes, say)."""
    return FIRST.pack(VERSION, 0, 0, incarnation, sent_us, len(packet), gso_size, trace) + packet


def encode(incarnation: int, sent_us: int, records: Iterable[Record]) -> bytes:
    """A message with these packets, in order. struct.error as `encode_one`."""
    pack = RECORD.pack
    parts = [PREAMBLE.pack(VERSION, 0, 0, incarnation, sent_us)]
    for packet, gso_size, trace in records:
        parts += (pack(len(packet), gso_size, trace), packet)
    return b"".join(parts)


def preamble(message: bytes) -> Preamble | DropReason:
    """The message's preamble, if it is of our version and could hold a record."""
    if len(message) < _DATA or message[0] != VERSION:
        return DropReason.BAD_MESSAGE
    return Preamble._make(PREAMBLE.unpack_from(message))


def decode(message: bytes) -> list[Record] | DropReason:
    """The packets of a message, in order; `BAD_MESSAGE` unless its records fill it exactly."""
    size = len(message)
    if size < _DATA or message[0] != VERSION:
        return DropReason.BAD_MESSAGE
    length, gso_size, trace = RECORD.unpack_from(message, 16)
    end = _DATA + length
    if end == size:
        return [(message[_DATA:], gso_size, trace)]
    if end > size:
        return DropReason.BAD_MESSAGE
    records = [(message[_DATA:end], gso_size, trace)]
    while end != size:
        if end + _RECORD_SIZE > size:
            return DropReason.BAD_MESSAGE
        length, gso_size, trace = RECORD.unpack_from(message, end)
        start = end + _RECORD_SIZE
        end = start + length
        if end > size:
            return DropReason.BAD_MESSAGE
        records.append((message[start:end], gso_size, trace))
    return records
