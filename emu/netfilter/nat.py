"""Network address translation: how a connection's reply key is chosen once, and how packets are rewritten after it.

A connection's packets, translated, are the opposite of the key of the other direction; so the reply key alone holds all that
NAT decided. Rules are asked for its first packet only: destination at PREROUTING and OUTPUT, source at POSTROUTING and
INPUT. Where no rule speaks, the null binding keeps the addresses but still sees to it that the reply key is free, changing
the source port if need be. Replies are rewritten backwards at the opposite hooks. ICMP errors are rewritten inside and out.

Not here: ranges of addresses or ports, NETMAP, and the reuse of an earlier mapping of the same source (find_appropriate_src).
Spec: net/netfilter/nf_nat_core.c (get_unique_tuple, nf_nat_l4proto_unique_tuple, nf_nat_packet) and nf_nat_proto.c
(nf_nat_icmp_reply_translation).
"""

from __future__ import annotations

from collections.abc import Callable

from emu.netfilter.conn import DST_NAT, NAT_MASK, SRC_NAT, Conn, Status, invert, make_key, parts
from emu.netfilter.conntrack import quoted_tuple
from emu.netfilter.hooks import Hook
from emu.netfilter.skb import ICMP, PORT_PROTOCOLS, Skb
from emu.wire.addr import Ip, SockAddr

DST_HOOKS = frozenset((Hook.PREROUTING, Hook.OUTPUT))
"""Here destinations are translated; at POSTROUTING and INPUT sources are (HOOK2MANIP)."""

_SRC_DONE, _DST_DONE = int(Status.SRC_NAT_DONE), int(Status.DST_NAT_DONE)
_MAX_ATTEMPTS, _MIN_ATTEMPTS = 128, 16  # nf_nat_l4proto_unique_tuple

PORT_CLASSES = (
    (512, 1, 511),  # the well-known ports of rsh and friends stay among themselves
    (1024, 600, 1023),
    (65536, 1024, 65535),
)
"""A chosen port stays in the class of the original one: (ports below this, first, last)."""

Taken = Callable[[bytes], bool]
Random = Callable[[], float]


def needs_binding(conn: Conn, hook: Hook) -> bool:
    """Has NAT at this hook still to be decided for an unconfirmed connection?"""
    return not conn.confirmed and not conn.status & (_DST_DONE if hook in DST_HOOKS else _SRC_DONE)


def bind_destination(conn: Conn, to: SockAddr | None) -> None:
    """Decide the destination (None: null binding). Port 0 keeps the port. A clash is left to the source binding."""
    src, sport, dst, dport = parts(invert(conn.reply))
    if to is not None:
        dst = to.ip
        if to.port and conn.proto in PORT_PROTOCOLS:
            dport = to.port
    _alter(conn, make_key(conn.proto, src, dst, sport, dport), DST_NAT)
    conn.status |= _DST_DONE


def bind_source(conn: Conn, to: SockAddr | None, taken: Taken, random: Random, *, random_fully: bool = False) -> None:
    """Decide the source (None: null binding): the port is kept if the reply key is then free, else another of its class is taken.

    If none is found the key stays taken, and confirming will drop the packet, as in Linux.
    """
    src, sport, dst, dport = parts(invert(conn.reply))
    proto = conn.proto
    if to is not None:
        src = to.ip
        if to.port and proto in PORT_PROTOCOLS:
            _finish_source(conn, make_key(proto, src, dst, to.port, dport))
            return
    wanted = make_key(proto, src, dst, sport, dport)
    if random_fully or taken(invert(wanted)):
        wanted = _free_source(proto, src, dst, sport, dport, taken, random) or wanted
    _finish_source(conn, wanted)


def _finish_source(conn: Conn, translated: bytes) -> None:
    _alter(conn, translated, SRC_NAT)
    conn.status |= _SRC_DONE


def _alter(conn: Conn, translated: bytes, bit: int) -> None:
    """Set the reply key so that packets leave as `translated`; nf_nat_setup_info marks only what really changes."""
    reply = invert(translated)
    if reply != conn.reply:
        conn.reply = reply
        conn.status |= bit
        conn.epoch += 1


def _free_source(proto: int, src: Ip, dst: Ip, sport: int, dport: int, taken: Taken, random: Random) -> bytes | None:
    """A translated key with another source port (echo identifier) whose reply key is free; tries at most 128 + 64 + 32 + 16 of them."""
    if proto == ICMP:
        first, last = 0, 65535
    elif proto in PORT_PROTOCOLS:
        first, last = next((first, last) for below, first, last in PORT_CLASSES if sport < below)
    else:
        return None  # nothing to tell connections apart by
    size = last - first + 1
    attempts = min(size, _MAX_ATTEMPTS)
    while True:
        offset = int(random() * 65536)
        for number in range(attempts):
            port = first + (offset + number) % size
            key = make_key(proto, src, dst, port, port if proto == ICMP else dport)
            if not taken(invert(key)):
                return key
        if attempts >= size or attempts < _MIN_ATTEMPTS:
            return None
        attempts //= 2


# ---- packets ---------------------------------------------------------------------------------------------------------------------


def _concerned(conn: Conn, hook: Hook, reply: bool) -> bool:
    """Does this hook translate anything in this direction? A reply's destination is what the original's source was."""
    bit = DST_NAT if hook in DST_HOOKS else SRC_NAT
    return conn.status & (bit ^ NAT_MASK if reply else bit) != 0


def translate(skb: Skb, conn: Conn, hook: Hook) -> bool:
    """Rewrite a packet for its connection at a hook; False if there was nothing to rewrite. Doing it twice changes nothing."""
    if not _concerned(conn, hook, skb.ct_reply):
        return False
    src, sport, dst, dport = parts(invert(conn.original if skb.ct_reply else conn.reply))
    if hook in DST_HOOKS:
        skb.set_destination(dst, dport)
    else:
        skb.set_source(src, sport)
    return True


def translate_error(skb: Skb, conn: Conn, hook: Hook) -> bool:
    """Rewrite an ICMP error at a hook: the packet quoted inside, whose direction is the opposite, and the outer address."""
    reply = skb.ct_reply
    if not conn.status & NAT_MASK or not _concerned(conn, hook, reply):
        return False
    if quoted_tuple(skb) is None:
        return False
    other = conn.original if reply else conn.reply  # the quoted packet as its sender's side knows it
    src, sport, dst, dport = parts(other)
    if hook in DST_HOOKS:
        _rewrite_quote(skb, 12, src, 0, sport)
        skb.set_destination(src, 0)
    else:
        _rewrite_quote(skb, 16, dst, 2, dport)
        skb.set_source(dst, 0)
    return True


def _rewrite_quote(skb: Skb, address_at: int, ip: Ip, port_at: int, port: int) -> None:
    """Put an address and a port (echo identifier) into the quoted packet; its checksums stay 0 like all inside."""
    buf, at = skb.buf, skb.l4 + 8
    l4 = at + ((buf[at] & 15) << 2)
    buf[at + address_at : at + address_at + 4] = ip
    if buf[at + 9] in PORT_PROTOCOLS:
        where = l4 + port_at
    elif buf[at + 9] == ICMP:
        where = l4 + 4
    else:
        return
    buf[where], buf[where + 1] = port >> 8, port & 255
