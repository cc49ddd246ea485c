"""TCP options. Decides what is read from and written to the bytes after the fixed header, in Linux's order and padding.

Known: end, no-op, MSS, window scale, SACK permitted, SACK (RFC 2018) and timestamps (RFC 7323); all others are skipped by
their length, and a length that cannot be ends the reading, as in Linux's `tcp_parse_options`.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

END, NOP, MSS, WSCALE, SACK_PERMITTED, SACK, TIMESTAMP = 0, 1, 2, 3, 4, 5, 8
TIMESTAMP_WORD = 0x0101080A  # no-op, no-op, timestamp, length 10: how every sender aligns it
MAX_WSCALE = 14  # RFC 7323, 2.3

_SIZES = {MSS: 4, WSCALE: 3, SACK_PERMITTED: 2, TIMESTAMP: 10}
_PAIR = struct.Struct("!II")


class Options(NamedTuple):
    """What one segment's options said; numbers are as on the wire. `tsval` None means that there was no timestamp."""

    mss: int | None = None
    wscale: int | None = None
    sack_permitted: bool = False
    tsval: int | None = None
    tsecr: int = 0
    sacks: tuple[tuple[int, int], ...] = ()


NO_OPTIONS = Options()


def parse(data: bytes | bytearray, start: int, end: int) -> Options:
    """Read the options in `data[start:end]`."""
    if start == end:
        return NO_OPTIONS
    mss = wscale = tsval = None
    permitted, tsecr = False, 0
    sacks: tuple[tuple[int, int], ...] = ()
    while start < end:
        kind = data[start]
        if kind == END:
            break
        if kind == NOP:
            start += 1
            continue
        size = data[start + 1] if start + 1 < end else 0
        if size < 2 or start + size > end:
            break
        if kind == SACK:
            if (size - 2) % 8 == 0:
                sacks = tuple(_PAIR.iter_unpack(bytes(data[start + 2 : start + size])))
        elif _SIZES.get(kind) == size:
            if kind == TIMESTAMP:
                tsval, tsecr = _PAIR.unpack_from(data, start + 2)
            elif kind == MSS:
                mss = data[start + 2] << 8 | data[start + 3]
            elif kind == WSCALE:
                wscale = min(data[start + 2], MAX_WSCALE)
            else:
                permitted = True
        start += size
    return Options(mss, wscale, permitted, tsval, tsecr, sacks)


def emit_syn(mss: int, *, wscale: int | None, sack: bool, timestamp: tuple[int, int] | None) -> bytes:
    """The options of a SYN or SYN-ACK as Linux lays them out; `wscale` None leaves it out, `timestamp` is (value, echo)."""
    out = struct.pack("!BBH", MSS, 4, mss)
    if timestamp is not None:
        out += bytes((SACK_PERMITTED, 2) if sack else (NOP, NOP)) + struct.pack("!BBII", TIMESTAMP, 10, *timestamp)
    elif sack:
        out += bytes((NOP, NOP, SACK_PERMITTED, 2))
    if wscale is not None:
        out += bytes((NOP, WSCALE, 3, wscale))
    return out


def emit_sacks(blocks: list[tuple[int, int]]) -> bytes:
    """A SACK option of up to four blocks (32-bit edges), padded to a multiple of four."""
    if not blocks:
        return b""
    return bytes((NOP, NOP, SACK, 2 + 8 * len(blocks))) + b"".join(_PAIR.pack(left, right) for left, right in blocks)
