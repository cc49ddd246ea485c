"""The flow cache: what was decided for a packet, repeated for the next one of the same flow without an object or a rule.

A flow is keyed by bytes 6 to 24 of the IPv4 packet (fragment bits, TTL, protocol, a zero checksum, addresses, ports) at the
device where it came in. Everything that a namespace may change of a packet lies in those 18 bytes, so the answer is 18
other bytes and a way to send. An entry holds as long as nothing it rests on has moved: the connection's `epoch` counts its
changes of state, and `NetNamespace.invalidate` drops all entries when rules, routes, neighbours or devices change.
Segments with SYN, FIN or RST, fragments, options, traced packets and what exceeds the MTU always take the slow path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emu.netfilter.skb import TCP, UDP, Skb

if TYPE_CHECKING:
    from emu.netfilter.conntrack import Conn

KEY = slice(6, 24)
MAX_FLOWS = 1 << 16
"""A device that has seen this many flows starts afresh: a bound on memory, not a policy."""

SYN_FIN_RST = 0x07
HELD = 64  # entries of a holder that are not worth a look

Send = Callable[[bytes, bytes, int], None]
"""Takes the packet as it came, the 18 bytes that replace its bytes 6 to 24, and its gso_size."""


class Flow:
    """One direction of a connection at one device. `limit` is the MTU ahead; `conn` is None where nothing is tracked."""

    __slots__ = ("conn", "epoch", "head", "limit", "reply", "send", "tcp")

    def __init__(self, skb: Skb, limit: int, send: Send) -> None:
        conn: Conn | None = skb.ct
        self.conn, self.reply = conn, skb.ct_reply
        self.epoch = conn.epoch if conn is not None else 0
        self.head = bytes(skb.buf[KEY])
        self.limit, self.send = limit, send
        self.tcp = skb.proto == TCP


def hold(held: list[tuple[dict[bytes, Any], bytes]], entries: dict[bytes, Any], key: bytes) -> None:
    """Note under a holder (a connection, a socket) an entry that ends with it.

    Entries also end without their holder, and a server's socket outlives those of all its clients: whenever the list has doubled, what
    is no entry any more leaves it.
    """
    held.append((entries, key))
    size = len(held)
    if size >= HELD and not size & size - 1:
        held[:] = {(id(where), name): (where, name) for where, name in held if name in where}.values()


def cacheable(skb: Skb) -> bool:
    """May later packets with the same bytes 6 to 24 be treated as this one was?"""
    if skb.origin is None or skb.trace or not skb.cacheable or skb.buf[0] != 0x45:
        return False
    if skb.buf[6] & 0x3F or skb.buf[7]:
        return False
    if skb.proto == TCP:
        if skb.buf[33] & SYN_FIN_RST:
            return False
    elif skb.proto != UDP:
        return False
    return skb.ct is None or skb.ct.steady
