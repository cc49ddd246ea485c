"""One tracked connection: its two tuples, how it stands, and how a listing shows it. Decides nothing about other connections.

A key is one direction as bytes (`Skb.tuple_key`): protocol, source, destination, source port, destination port. For ICMP the
echo identifier stands for both ports; message types are not part of the key, so an echo request of the other side with the
same identifier counts as a reply (Linux tells them apart).
"""

from __future__ import annotations

from enum import Enum, IntFlag
from typing import Any

from emu.netfilter.skb import ICMP, PORT_PROTOCOLS, PROTOCOL_NAMES, SCTP, TCP, UDP
from emu.netfilter.tcp_states import Segment, TcpState
from emu.wire.addr import Ip, format_ip


class CtState(Enum):
    """What a packet is to its connection (`enum ip_conntrack_info`, as `--ctstate` spells it)."""

    NEW = "NEW"
    ESTABLISHED = "ESTABLISHED"
    RELATED = "RELATED"
    INVALID = "INVALID"
    UNTRACKED = "UNTRACKED"


class Status(IntFlag):
    """`enum ip_conntrack_status`, the bits that are used here."""

    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    SRC_NAT = 1 << 4
    DST_NAT = 1 << 5
    SRC_NAT_DONE = 1 << 7
    DST_NAT_DONE = 1 << 8
    DYING = 1 << 9


SEEN_REPLY, ASSURED, CONFIRMED, DYING = map(int, (Status.SEEN_REPLY, Status.ASSURED, Status.CONFIRMED, Status.DYING))
SRC_NAT, DST_NAT = int(Status.SRC_NAT), int(Status.DST_NAT)
NAT_MASK = SRC_NAT | DST_NAT


def make_key(proto: int, src: Ip, dst: Ip, sport: int, dport: int) -> bytes:
    return b"%c%b%b%b%b" % (proto, src, dst, sport.to_bytes(2, "big"), dport.to_bytes(2, "big"))


def invert(key: bytes) -> bytes:
    """The key of the opposite direction."""
    middle = 1 + (len(key) - 5 >> 1)
    return key[:1] + key[middle:-4] + key[1:middle] + key[-2:] + key[-4:-2]


def parts(key: bytes) -> tuple[Ip, int, Ip, int]:
    """Source address and port, destination address and port."""
    middle = 1 + (len(key) - 5 >> 1)
    return key[1:middle], key[-4] << 8 | key[-3], key[middle:-4], key[-2] << 8 | key[-1]


class Conn:
    """A connection (`struct nf_conn`). `original` and `reply` are the keys under which its packets arrive, before any NAT.

    `timeout` is the number of seconds that a packet adds in the present state, `expires` the clock's time of its end. `epoch`
    moves whenever something changes that a remembered packet's fate may rest on. `flows` are the (dict, key) pairs to
    remove when the connection ends.
    """

    __slots__ = (
        "bytes", "closing", "due", "epoch", "expires", "flows", "last", "mark", "original", "packets", "proto", "reply", "reply_bytes",
        "reply_packets", "state", "status", "stream_after", "timeout",
    )  # fmt: skip

    def __init__(self, original: bytes) -> None:
        self.original, self.reply = original, invert(original)
        self.proto = original[0]
        self.state = TcpState.NONE  # TCP only
        self.last: tuple[Segment, bool] | None = None  # TCP: the latest segment of the connection, and whether it was the reply's
        self.closing = False  # TCP: one side has sent FIN
        self.stream_after = 0.0  # UDP: from then on, an answered flow is a stream
        self.status = self.mark = self.epoch = 0
        self.timeout = self.expires = self.due = 0.0
        self.packets = self.bytes = self.reply_packets = self.reply_bytes = 0
        self.flows: list[tuple[dict[bytes, Any], bytes]] = []

    @property
    def confirmed(self) -> bool:
        return self.status & CONFIRMED != 0

    @property
    def steady(self) -> bool:
        """Will further packets, short of SYN, FIN and RST, change nothing but times and counters?"""
        if self.proto == UDP:  # unanswered, its packets stay NEW and meet the same rules; an answer moves `epoch`
            return self.status & (CONFIRMED | DYING) == CONFIRMED
        if self.status & (CONFIRMED | SEEN_REPLY | DYING) != CONFIRMED | SEEN_REPLY:
            return False
        if self.proto == TCP:
            return self.state is TcpState.CLOSE_WAIT or (self.state is TcpState.ESTABLISHED and self.status & ASSURED != 0)
        return True

    def account(self, size: int, reply: bool) -> None:
        """Count a packet of `size` bytes in its direction."""
        if reply:
            self.reply_packets += 1
            self.reply_bytes += size
        else:
            self.packets += 1
            self.bytes += size

    def touch(self, now: float, size: int, reply: bool, packets: int = 1) -> None:
        """Packets of `size` bytes in all have taken the fast path: they are counted, and the connection lives on."""
        self.expires = now + self.timeout
        if reply:  # `account`, without the call: this is each packet of each known flow
            self.reply_packets += packets
            self.reply_bytes += size
        else:
            self.packets += packets
            self.bytes += size

    def state_name(self) -> str:
        """The state column of a listing; empty for protocols that have none."""
        if self.proto == TCP:
            return self.state.name
        if self.proto == SCTP:
            return "ESTABLISHED" if self.status & SEEN_REPLY else "COOKIE_WAIT"
        return ""


def _tuple_text(key: bytes, icmp_type: int) -> str:
    src, sport, dst, dport = parts(key)
    text = f"src={format_ip(src)} dst={format_ip(dst)}"
    if key[0] == ICMP:
        return f"{text} type={icmp_type} code=0 id={sport}"
    return f"{text} sport={sport} dport={dport}" if key[0] in PORT_PROTOCOLS else text


def conn_line(conn: Conn, now: float) -> str:
    """The connection as `conntrack -L` prints it, remaining seconds included."""
    name = PROTOCOL_NAMES.get(conn.proto, "unknown")
    state = conn.state_name()
    words = [f"{name:<8} {conn.proto} {max(0, int(conn.expires - now))}"]
    if state:
        words.append(state)
    words.append(_tuple_text(conn.original, 8))
    if not conn.status & SEEN_REPLY:
        words.append("[UNREPLIED]")
    words.append(_tuple_text(conn.reply, 0))
    if conn.status & ASSURED:
        words.append("[ASSURED]")
    return " ".join((*words, f"mark={conn.mark} use=1"))
