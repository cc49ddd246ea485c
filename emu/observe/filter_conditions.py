"""What a filter may ask of a packet: protocols, addresses, ports, bytes, arithmetic on them. Decides the answers, not the language.

A packet is bytes from its IP header on, and may be anything at all: reading beyond its end raises IndexError, which `Filter` takes
for a rejection as BPF does (a load out of bounds ends the program with 0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from emu.wire import checksum, vxlan

Data = bytes | memoryview
Test = Callable[[Data, int], bool]  # a packet, and the length that it was captured with
Number = Callable[[Data, int], int]

MASK = 0xFFFFFFFF
PORT_PROTOCOLS = frozenset((checksum.TCP, checksum.UDP, checksum.SCTP))
_INSIDE = 8 + vxlan.SIZE + 14


class Value(NamedTuple):
    """A number that a packet gives, and what must hold for it to be there: without that, a comparison is false."""

    value: Number
    needs: tuple[Test, ...] = ()


def joined(joint: str, left: Test, right: Test) -> Test:
    if joint in {"and", "&&"}:
        return lambda data, size: left(data, size) and right(data, size)
    return lambda data, size: left(data, size) or right(data, size)


def operation(operator: str, left: Number, right: Number) -> Number:
    match operator:
        case "+":
            return lambda data, size: left(data, size) + right(data, size) & MASK
        case "-":
            return lambda data, size: left(data, size) - right(data, size) & MASK
        case "*":
            return lambda data, size: left(data, size) * right(data, size) & MASK
        case "/":
            return lambda data, size: left(data, size) // right(data, size)
        case "%":
            return lambda data, size: left(data, size) % right(data, size)
        case "&":
            return lambda data, size: left(data, size) & right(data, size)
        case "|":
            return lambda data, size: left(data, size) | right(data, size)
        case "^":
            return lambda data, size: left(data, size) ^ right(data, size)
        case "<<":
            return lambda data, size: _shifted(left(data, size), right(data, size))
    return lambda data, size: left(data, size) >> min(right(data, size), 32)


def _shifted(value: int, by: int) -> int:
    return value << by & MASK if by < 32 else 0


def load(data: Data, at: int, width: int) -> int:
    if at + width > len(data):
        raise IndexError
    return int.from_bytes(data[at : at + width], "big")


def is_ip(data: Data, size: int) -> bool:
    return data[0] & 0xF0 == 0x40


def is_first_fragment(data: Data, size: int) -> bool:
    return not load(data, 6, 2) & 0x1FFF


def protocol_is(number: int) -> Test:
    return lambda data, size: data[0] & 0xF0 == 0x40 and data[9] == number


def addressed(direction: str, value: int, mask: int) -> Test:
    def source(data: Data) -> bool:
        return load(data, 12, 4) & mask == value

    def destination(data: Data) -> bool:
        return load(data, 16, 4) & mask == value

    match direction:
        case "src":
            return lambda data, size: is_ip(data, size) and source(data)
        case "dst":
            return lambda data, size: is_ip(data, size) and destination(data)
        case "and":
            return lambda data, size: is_ip(data, size) and source(data) and destination(data)
    return lambda data, size: is_ip(data, size) and (source(data) or destination(data))


def ports(protocols: frozenset[int], direction: str, low: int, high: int) -> Test:
    def test(data: Data, size: int) -> bool:
        if data[0] & 0xF0 != 0x40 or data[9] not in protocols or load(data, 6, 2) & 0x1FFF:
            return False
        at = (data[0] & 15) << 2
        if direction != "dst":
            source = low <= load(data, at, 2) <= high
            if direction == "src" or source != (direction == "and"):
                return source
        return low <= load(data, at + 2, 2) <= high

    return test


def inside_at(data: Data, vni: int | None = None) -> int:
    """Where the packet inside a VXLAN packet begins, 0 if this is none (or not of the VNI)."""
    if len(data) < 28 or data[0] & 0xF0 != 0x40 or data[9] != checksum.UDP or load(data, 6, 2) & 0x1FFF:
        return 0
    at = (data[0] & 15) << 2
    if len(data) <= at + _INSIDE or load(data, at + 2, 2) != vxlan.PORT or not data[at + 8] & vxlan.VALID_VNI:
        return 0
    if vni is not None and load(data, at + 12, 4) >> 8 != vni:
        return 0
    return at + _INSIDE if load(data, at + _INSIDE - 2, 2) == 0x0800 else 0


def within(test: Test) -> Test:
    def inner(data: Data, size: int) -> bool:
        at = inside_at(data)
        return at > 0 and test(memoryview(data)[at:], size)

    return inner
