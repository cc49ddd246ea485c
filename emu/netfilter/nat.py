"""Network address translation: how a connection's reply key is chosen once, and how packets are rewritten after it.

A connection's packets, translated, are the opposite of the key of the other direction; so the reply key alone holds all that
NAT decided. Rules are asked for its first packet only: destination at PREROUTING and OUTPUT, source at POSTROUTING and
INPUT. Where no rule speaks, the null binding keeps the addresses but still sees to it that the reply key is free, changing
the source port if need be. Replies are rewritten backwards at the opposite hooks. ICMP errors are rewritten inside and out.

Not here: the reuse of an earlier mapping of the same source (find_appropriate_src). Of a range of addresses the connection's own are
hashed to one, as in Linux, but by another hash.
Spec: net/netfilter/nf_nat_core.c (get_unique_tuple, nf_nat_l4proto_unique_tuple, nf_nat_packet) and nf_nat_proto.c
(nf_nat_icmp_reply_translation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from emu.netfilter.conn import DST_NAT, NAT_MASK, SRC_NAT, Conn, Status, invert, make_key, parts
from emu.netfilter.conntrack import quoted_tuple
from emu.netfilter.hooks import Hook
from emu.netfilter.skb import ECHOES, ICMP, PORT_PROTOCOLS, Skb
from emu.wire.addr import Ip, Network

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


@dataclass(frozen=True, slots=True)
class NatRange:
    """What a connection's source or destination may become (`struct nf_nat_range2`): addresses from `ip` to `last_ip` (b"": only `ip`;
    `ip` b"": the address stays), ports from `first` to `last` (0: the port stays if it can).
    """

    ip: Ip
    last_ip: Ip = b""
    first: int = 0
    last: int = 0
    random: bool = False
    persistent: bool = False
    shifted_from: int = 0

    def address_for(self, src: Ip, dst: Ip, own: Ip) -> Ip:
        """find_best_ips_proto: the same for the same client, and unless persistent for the same pair of ends."""
        if not self.ip:
            return own
        if not self.last_ip or self.last_ip == self.ip:
            return self.ip
        low = int.from_bytes(self.ip, "big")
        size = int.from_bytes(self.last_ip, "big") - low + 1
        return (low + crc32(src if self.persistent else src + dst) % size).to_bytes(len(self.ip), "big")


def conn_source(conn: Conn) -> Ip:
    return parts(invert(conn.reply))[0]


def conn_destination(conn: Conn) -> Ip:
    return parts(invert(conn.reply))[2]


def mapped(ip: Ip, network: Network) -> Ip:
    """NETMAP: the network's address with the host part of `ip`."""
    return (network.value | int.from_bytes(ip, "big") & ~network.mask & (1 << 8 * len(ip)) - 1).to_bytes(len(ip), "big")


def bind_destination(conn: Conn, to: NatRange | None, taken: Taken, random: Random) -> None:
    """Decide the destination (None: null binding). Without ports it keeps the port. A clash is left to the source binding."""
    src, sport, dst, dport = parts(invert(conn.reply))
    if to is not None:
        dst = to.address_for(src, dst, dst)
        if to.first and conn.proto in PORT_PROTOCOLS and not _stays(to, dport, lambda: taken(make_key(conn.proto, dst, src, dport, sport))):
            dport = _destination_port(to, dport, lambda port: taken(make_key(conn.proto, dst, src, port, sport)), random)
    _alter(conn, make_key(conn.proto, src, dst, sport, dport), DST_NAT)
    conn.status |= _DST_DONE


def _stays(to: NatRange, port: int, used: Callable[[], bool]) -> bool:
    """get_unique_tuple: a port that lies in the range is kept, unless it is to be random, is shifted, or is used."""
    return not to.random and not to.shifted_from and to.first <= port <= to.last and (to.first == to.last or not used())


def _destination_port(to: NatRange, port: int, used: Callable[[int], bool], random: Random) -> int:
    """The first free port of the range from where one begins: at random, by the shift, or at the front (nf_nat_l4proto_unique_tuple)."""
    size = to.last - to.first + 1
    offset = port - to.shifted_from if to.shifted_from else int(random() * 65536) if to.random else 0
    ports = (to.first + (offset + number) % size for number in range(min(size, _MAX_ATTEMPTS)))
    return next((chosen for chosen in ports if not used(chosen)), to.first + offset % size)


def bind_source(conn: Conn, to: NatRange | None, taken: Taken, random: Random) -> None:
    """Decide the source (None: null binding): the port is kept if the reply key is then free, else another of its class or of the
    range's ports is taken.

    If none is found the key stays taken, and confirming will drop the packet, as in Linux.
    """
    src, sport, dst, dport = parts(invert(conn.reply))
    proto = conn.proto
    span: tuple[int, int] | None = None
    if to is not None:
        src = to.address_for(src, dst, src)
        if to.first and proto in PORT_PROTOCOLS:
            if to.first == to.last:
                _finish_source(conn, make_key(proto, src, dst, to.first, dport))
                return
            span = to.first, to.last
    wanted = make_key(proto, src, dst, sport, dport)
    fits = span is None or span[0] <= sport <= span[1]
    if (to is not None and to.random) or not fits or taken(invert(wanted)):
        wanted = _free_source(proto, src, dst, sport, dport, taken, random, span) or wanted
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


def _free_source(
    proto: int, src: Ip, dst: Ip, sport: int, dport: int, taken: Taken, random: Random, span: tuple[int, int] | None = None
) -> bytes | None:
    """A translated key with another source port (echo identifier) whose reply key is free; tries at most 128 + 64 + 32 + 16 of them."""
    if proto in ECHOES:
        first, last = 0, 65535
    elif span is not None:
        first, last = span
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
            key = make_key(proto, src, dst, port, port if proto in ECHOES else dport)
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
