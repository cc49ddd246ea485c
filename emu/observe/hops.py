"""Hops on the wire: a list of plain values each. Reading never raises; what is malformed is None, for the caller to count."""

from __future__ import annotations

from typing import Any

from emu.trace import Hop, PacketSummary

_TEXT, _NUMBER, _MAYBE = (str,), (int, float), (str, type(None))
_SHAPE: tuple[tuple[type, ...], ...] = (
    (int,), _TEXT, _TEXT, _TEXT, (list, tuple), _NUMBER, (int,), _MAYBE, _MAYBE, (int,), _MAYBE,
)  # fmt: skip
_PACKET: tuple[tuple[type, ...], ...] = (_TEXT, _TEXT, _TEXT, (int, type(None)), (int, type(None)))


def pack(hop: Hop) -> list[Any]:
    """A hop as msgpack takes it."""
    summary = hop.packet
    packet = [summary.src, summary.dst, summary.proto, summary.sport, summary.dport]
    return [hop.trace, hop.node, hop.netns, hop.where, packet, hop.at, hop.seq, hop.rule, hop.note, hop.rules, hop.verdict]


def unpack(value: Any) -> Hop | None:
    """The inverse of `pack`, or None."""
    if not _fits(value, _SHAPE) or not _fits(value[4], _PACKET):
        return None
    trace, node, netns, where = value[:4]
    return Hop(trace, node, netns, where, PacketSummary(*value[4]), *value[5:])


def _fits(value: object, shape: tuple[tuple[type, ...], ...]) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == len(shape)
        and all(isinstance(item, kinds) and not isinstance(item, bool) for item, kinds in zip(value, shape, strict=True))
    )
