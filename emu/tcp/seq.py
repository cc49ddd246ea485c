"""Sequence numbers. Decides how a 32-bit number on the wire becomes one that never wraps (RFC 9293, 3.4).

A number on the wire means the nearest of all integers equal to it modulo 2**32, seen from one that is known.
"""

from __future__ import annotations

MASK = 0xFFFFFFFF
HALF = 0x80000000


def widen(wire: int, near: int) -> int:
    """The integer that is `wire` modulo 2**32 and within 2**31 of `near`."""
    return near + ((wire - near + HALF) & MASK) - HALF


def older(timestamp: int, than: int) -> bool:
    """Whether one 32-bit timestamp precedes another (RFC 7323, 5.2)."""
    return (timestamp - than) & MASK >= HALF
