"""pcapng: packets of many devices in one stream of blocks. Decides block layouts, both ways, and nothing about packets.

    section header   interface description, one a device   enhanced packet, packet, ...   interface statistics

Little endian, nanoseconds, link type IPV4 (the packet begins with its IPv4 header): there are no Ethernet frames between devices
here, so none are made up, and libpcap reads no file whose interfaces differ in their link type (nor one with several of type RAW,
whose two numbers it confuses). Blocks are whole in themselves:
a stream that is cut between two blocks is a file. draft-ietf-opsawg-pcapng. Written here because blocks are made by the ten
thousand a second next to the control plane, where each is one `struct` of a known shape; python-pcapng builds each from a schema, and
scapy, which would do, is a test's dependency.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

MEDIA_TYPE = "application/x-pcapng"
LINKTYPE_IPV4 = 228
SECTION, INTERFACE, PACKET, STATISTICS = 0x0A0D0D0A, 1, 6, 5
_BYTE_ORDER = 0x1A2B3C4D
_NANOSECONDS = 9  # if_tsresol: 10 to the power of -9
_LONGEST = 1 << 24  # bytes of a block; no writer makes a longer one

COMMENT = 1  # an option of every block
_SHB_APPLICATION = 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _IF_FILTER = 2, 3, 9, 11
_EPB_FLAGS = 2
_ISB_RECEIVED, _ISB_ACCEPTED, _ISB_LOST = 4, 6, 7  # seen by the tap, accepted by the filter, accepted but dropped

_HEAD = struct.Struct("<II")
_TAIL = struct.Struct("<I")
_SECTION_BODY = struct.Struct("<IHHq")
_INTERFACE_BODY = struct.Struct("<HHI")
_PACKET_BODY = struct.Struct("<IIIII")
_PACKET_HEAD = struct.Struct("<IIIIIII")
_FLAGS_AND_END = struct.Struct("<HHIHHI")  # the option epb_flags, the end of options, the block's length
_STATISTICS_BODY = struct.Struct("<III")
_OPTION = struct.Struct("<HH")


class Counts(NamedTuple):
    """Packets that a device's tap has seen, that the filter let pass, and that were lost of these."""

    received: int = 0
    accepted: int = 0
    lost: int = 0


def section(application: str, comment: str = "") -> bytes:
    """The block that every file begins with; its length is left open."""
    options = _text(COMMENT, comment) + _text(_SHB_APPLICATION, application)
    return _block(SECTION, _SECTION_BODY.pack(_BYTE_ORDER, 1, 0, -1), options)


def interface(name: str, snaplen: int, description: str = "", filter_text: str = "") -> bytes:
    """A device; packets name it by its number, counted from 0 in the order of these blocks."""
    options = _text(_IF_NAME, name) + _text(_IF_DESCRIPTION, description) + _option(_IF_TSRESOL, bytes((_NANOSECONDS,)))
    if filter_text:
        options += _option(_IF_FILTER, b"\0" + filter_text.encode())  # 0: in libpcap's language
    return _block(INTERFACE, _INTERFACE_BODY.pack(LINKTYPE_IPV4, 0, snaplen), options)


def packet(device: int, at: int, data: bytes, length: int, direction: int, comment: str = "") -> bytes:
    """A packet: `at` is nanoseconds since 1970, `length` what it had before it was cut to `data`, `direction` 1 for in, 2 for out."""
    size = len(data)
    pad = -size & 3
    if comment:
        body = _PACKET_BODY.pack(device, at >> 32, at & 0xFFFFFFFF, size, length) + data + bytes(pad)
        return _block(PACKET, body, _option(_EPB_FLAGS, _TAIL.pack(direction)) + _text(COMMENT, comment))
    whole = 44 + size + pad
    head = _PACKET_HEAD.pack(PACKET, whole, device, at >> 32, at & 0xFFFFFFFF, size, length)
    return b"".join((head, data, bytes(pad), _FLAGS_AND_END.pack(_EPB_FLAGS, 4, direction, 0, 0, whole)))


def statistics(device: int, at: int, counts: Counts, comment: str = "") -> bytes:
    """What has become of a device's packets so far."""
    numbers = ((_ISB_RECEIVED, counts.received), (_ISB_ACCEPTED, counts.accepted), (_ISB_LOST, counts.lost))
    options = b"".join(_option(code, struct.pack("<Q", number)) for code, number in numbers) + _text(COMMENT, comment)
    return _block(STATISTICS, _STATISTICS_BODY.pack(device, at >> 32, at & 0xFFFFFFFF), options)


def _option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value + bytes(-len(value) & 3)


def _text(code: int, text: str) -> bytes:
    return _option(code, text.encode()[:0xFFFF]) if text else b""


def _block(kind: int, body: bytes, options: bytes) -> bytes:
    if options:
        options += bytes(4)
    size = 12 + len(body) + len(options)
    return b"".join((_HEAD.pack(kind, size), body, options, _TAIL.pack(size)))


# ---- reading -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """One block; `raw` is all of it. Fields that its kind has not are as here."""

    kind: int
    raw: bytes
    device: int = 0
    at: int = 0
    data: bytes = b""
    length: int = 0
    direction: int = 0
    name: str = ""
    comment: str = ""
    counts: Counts = field(default_factory=Counts)


class Malformed(ValueError):
    """The bytes are no pcapng stream as this file's writer makes them."""


class Reader:
    """Takes a stream of this file's making in pieces, as they come, and gives its blocks. `pending` is the part of one not yet whole."""

    def __init__(self) -> None:
        self.pending = b""

    def feed(self, data: bytes) -> Iterator[Block]:
        """The blocks that these bytes complete; Malformed if they are none."""
        self.pending += data
        at, end = 0, len(self.pending)
        try:
            while at + 12 <= end:
                kind, size = _HEAD.unpack_from(self.pending, at)
                if size < 12 or size & 3 or size > _LONGEST:
                    raise Malformed(f"a block of {size} bytes")
                if at + size > end:
                    break
                raw = self.pending[at : at + size]
                at += size
                yield _parse(kind, raw)
        finally:
            self.pending = self.pending[at:]


def _parse(kind: int, raw: bytes) -> Block:
    try:
        if kind == SECTION:
            if _SECTION_BODY.unpack_from(raw, 8)[0] != _BYTE_ORDER:
                raise Malformed("not little endian")
            return Block(kind, raw, comment=_comment(_options(raw, 8 + _SECTION_BODY.size)))
        if kind == INTERFACE:
            options = _options(raw, 8 + _INTERFACE_BODY.size)
            return Block(kind, raw, name=options.get(_IF_NAME, b"").decode(), comment=_comment(options))
        if kind == PACKET:
            device, high, low, size, length = _PACKET_BODY.unpack_from(raw, 8)
            start = 8 + _PACKET_BODY.size
            options = _options(raw, start + size + (-size & 3))
            direction = _TAIL.unpack(options.get(_EPB_FLAGS, bytes(4)))[0] & 3
            data = raw[start : start + size]
            return Block(kind, raw, device, high << 32 | low, data, length, direction, comment=_comment(options))
        if kind == STATISTICS:
            device, high, low = _STATISTICS_BODY.unpack_from(raw, 8)
            options = _options(raw, 8 + _STATISTICS_BODY.size)
            numbers = (int.from_bytes(options.get(code, b""), "little") for code in (_ISB_RECEIVED, _ISB_ACCEPTED, _ISB_LOST))
            return Block(kind, raw, device, high << 32 | low, comment=_comment(options), counts=Counts(*numbers))
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from error
    return Block(kind, raw)


def _options(raw: bytes, at: int) -> Mapping[int, bytes]:
    options: dict[int, bytes] = {}
    while at + 8 <= len(raw):  # the block's length again comes after them
        code, size = _OPTION.unpack_from(raw, at)
        if code == 0:
            break
        options[code] = raw[at + 4 : at + 4 + size]
        at += 4 + size + (-size & 3)
    return options


def _comment(options: Mapping[int, bytes]) -> str:
    return options.get(COMMENT, b"").decode()
