"""Connection tracking: which connection a packet belongs to, in which direction, and how long it is remembered.

    ingress (PREROUTING, OUTPUT)           NAT            confirm (INPUT, POSTROUTING)
    known key  -> its connection     may set the reply    both keys enter the table, or,
    unknown    -> an unconfirmed one   key, once          on a clash, the packet is dropped
    ICMP error -> the connection that its quote names, RELATED

A connection is decided once: only its first packet meets the nat table, and what came of it lies in the difference between
the two keys. One dictionary holds both keys of every connection, each with its direction; they come and go together.
An unconfirmed connection is in no table and vanishes with its packet. Expiry is exact on look-up (an expired entry counts as
gone) and lazy in `expire`: the heap holds for each connection a time not later than its end, and is corrected when that
time comes, so that a packet moves a deadline by one store.

Must not know rules, devices or routes. Not here: TCP windows (see `tcp_states`), helpers and expectations, zones, and
reassembly: a fragment is INVALID (Linux reassembles before it tracks).
Spec: net/netfilter/nf_conntrack_core.c, nf_conntrack_proto_{tcp,udp,icmp,sctp,generic}.c, nf_conntrack_standalone.c;
defaults in Documentation/networking/nf_conntrack-sysctl.rst.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from emu.netfilter.conn import ASSURED, CONFIRMED, DYING, NAT_MASK, SEEN_REPLY, Conn, CtState, Status, conn_line, invert, make_key
from emu.netfilter.skb import ICMP, ICMP_ERRORS, ICMPV6, PORT_PROTOCOLS, SCTP, TCP, UDP, Skb
from emu.netfilter.tcp_states import IGNORE, INVALID, Segment, TcpState, next_state, segment_of

_ECHO_REQUESTS = {ICMP: 8, ICMPV6: 128}
_UDP_STREAM_AGE = 2.0  # nf_conntrack_udp_packet: an answered flow older than this is a stream
_MIN_PROBES = 8  # NF_CT_EVICTION_RANGE: how many entries early drop looks at

TCP_TIMEOUTS: Mapping[TcpState, float] = {
    TcpState.SYN_SENT: 120, TcpState.SYN_RECV: 60, TcpState.ESTABLISHED: 432000, TcpState.FIN_WAIT: 120, TcpState.CLOSE_WAIT: 60,
    TcpState.LAST_ACK: 30, TcpState.TIME_WAIT: 120, TcpState.CLOSE: 10, TcpState.SYN_SENT2: 120,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, Linux's defaults (nf_conntrack_*_timeout). kube-proxy sets tcp_established to 86400 and tcp close_wait to 3600."""

    tcp: Mapping[TcpState, float] = field(default_factory=lambda: TCP_TIMEOUTS)
    tcp_unacknowledged: float = 300  # picked up in mid-stream, the other side not seen yet
    udp: float = 30
    udp_stream: float = 120
    icmp: float = 30
    sctp: float = 10  # cookie_wait
    sctp_established: float = 210
    generic: float = 600


KUBE_PROXY_TIMEOUTS = Timeouts(tcp={**TCP_TIMEOUTS, TcpState.ESTABLISHED: 86400, TcpState.CLOSE_WAIT: 3600})
"""What kube-proxy sets on its node (conntrack.tcpEstablishedTimeout, tcpCloseWaitTimeout)."""


class Conntrack:
    """The connection table of one namespace. `max_entries` is nf_conntrack_max; `stats` counts as `conntrack -S` names it."""

    def __init__(self, timeouts: Timeouts | None = None, max_entries: int = 262144) -> None:
        self.timeouts = timeouts or Timeouts()
        self.max_entries = max_entries
        self.stats: Counter[str] = Counter()
        self._table: dict[bytes, tuple[Conn, bool]] = {}
        self._deadlines: list[tuple[float, int, Conn]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._table) >> 1

    def __iter__(self) -> Iterator[Conn]:
        return (conn for conn, is_reply in self._table.values() if not is_reply)

    def taken(self, key: bytes) -> bool:
        """Is a key used by a connection in the table (`nf_conntrack_tuple_taken`)?"""
        return key in self._table

    def lookup(self, key: bytes) -> tuple[Conn, bool] | None:
        """The connection with this key and whether it is the reply's, expired or not."""
        return self._table.get(key)

    # ---- a packet comes in ------------------------------------------------------------------------------------------------

    def ingress(self, skb: Skb, now: float) -> bool:
        """Say what a packet is: sets `ct`, `ct_reply`, `ct_state`. False if it must be dropped because the table is full.

        A packet that already has a connection (an error that the stack made about another packet) is left alone.
        """
        if skb.ct is not None or skb.ct_state is CtState.UNTRACKED:
            return True
        buf, l4 = skb.buf, skb.l4
        if (buf[6] & 0x3F or buf[7]) if buf[0] >> 4 == 4 else skb.fragment:
            return self._invalid(skb)
        if skb.proto == ICMP and buf[l4] in ICMP_ERRORS:
            return self._icmp_error(skb, now)
        known = self._find(skb.tuple_key, now, skb.iif == "lo")
        if known is None:
            return self._new(skb, now)
        conn, skb.ct_reply = known
        if skb.iif == "lo" and conn.confirmed:  # seen on its way out; Linux's skb would still carry its connection
            skb.ct, skb.ct_state = conn, self._state(conn, skb.ct_reply)
            return True
        self.stats["found"] += 1
        return self._packet(skb, conn, now)

    def _find(self, key: bytes, now: float, loopback: bool) -> tuple[Conn, bool] | None:
        """Look a key up; on loopback also as it looks after NAT, when it is the opposite of the other direction's key."""
        known = self._table.get(key)
        if known is None and loopback:
            other = self._table.get(invert(key))
            known = None if other is None else (other[0], not other[1])
        if known is not None and known[0].expires <= now:
            self.delete(known[0])
            return None
        return known

    def _new(self, skb: Skb, now: float) -> bool:
        """init_conntrack: a packet of no known connection begins one, unless its protocol says that it cannot."""
        proto = skb.proto
        if proto in _ECHO_REQUESTS and skb.buf[skb.l4] != _ECHO_REQUESTS[proto]:
            return self._invalid(skb)
        state = TcpState.NONE
        if proto == TCP:
            first = next_state(TcpState.NONE, False, segment_of(skb.buf[skb.l4 + 13]))
            if first < 0:
                return self._invalid(skb)
            state = TcpState(first)
        if len(self) >= self.max_entries and not self._early_drop(now):
            self.stats["drop"] += 1
            return False
        conn = Conn(skb.tuple_key)
        conn.state, conn.stream_after = state, now + _UDP_STREAM_AGE
        skb.ct, skb.ct_reply, skb.ct_state = conn, False, CtState.NEW
        self.stats["new"] += 1
        self._refresh(conn, self._timeout(conn, now), now)
        conn.account(len(skb.buf), False)
        return True

    def _packet(self, skb: Skb, conn: Conn, now: float) -> bool:
        """One more packet of a known connection."""
        reply = skb.ct_reply
        skb.ct = conn
        if conn.proto == TCP and not self._tcp(skb, conn, now):
            return True
        if reply and not conn.status & SEEN_REPLY:
            conn.status |= SEEN_REPLY
            conn.epoch += 1
            if conn.proto == UDP:  # look again when the flow turns into a stream, even if all its packets take the fast path
                self._schedule(conn, conn.stream_after)
        if conn.proto == UDP and conn.status & SEEN_REPLY and not conn.status & ASSURED and now >= conn.stream_after:
            conn.status |= ASSURED
            conn.epoch += 1
        self._refresh(conn, self._timeout(conn, now), now)
        conn.account(len(skb.buf), reply)
        skb.ct_state = self._state(conn, reply)
        return True

    @staticmethod
    def _state(conn: Conn, reply: bool) -> CtState:
        return CtState.ESTABLISHED if reply or conn.status & SEEN_REPLY else CtState.NEW

    def _tcp(self, skb: Skb, conn: Conn, now: float) -> bool:
        """Move a TCP connection on; False if that has settled what the packet is (nf_conntrack_tcp_packet)."""
        reply, segment = skb.ct_reply, segment_of(skb.buf[skb.l4 + 13])
        new = next_state(conn.state, reply, segment)
        last, conn.last = conn.last, (segment, reply) if new != INVALID else conn.last
        if new == TcpState.SYN_SENT and conn.state in (TcpState.TIME_WAIT, TcpState.CLOSE):
            if conn.closing or last == (Segment.RST, reply):  # opened anew by who has ended it: NF_REPEAT
                self.delete(conn)
                skb.ct, skb.ct_reply = None, False
                self._new(skb, now)
                return False
            new = IGNORE
        if new == IGNORE and segment is Segment.SYNACK and last == (Segment.SYN, not reply):
            new = TcpState.SYN_RECV  # an answer to a SYN that was ignored: the far end knows better than this table
            conn.closing = False
        if new == INVALID:
            self._invalid(skb)
            return False
        if new == IGNORE:
            return True
        if segment is Segment.RST and not conn.status & SEEN_REPLY:  # refused: nothing to remember, but this packet is still part of it
            conn.status |= SEEN_REPLY if reply else 0
            skb.ct_state = self._state(conn, reply)
            conn.account(len(skb.buf), reply)
            self.delete(conn)
            return False
        old, conn.state = conn.state, TcpState(new)
        if old is not conn.state:
            conn.epoch += 1
            conn.closing |= new == TcpState.FIN_WAIT
        answered = conn.status & (ASSURED | SEEN_REPLY) == SEEN_REPLY
        if answered and new == TcpState.ESTABLISHED and old in (TcpState.SYN_RECV, TcpState.ESTABLISHED):
            conn.status |= ASSURED
            conn.epoch += 1
        return True

    def _icmp_error(self, skb: Skb, now: float) -> bool:
        """nf_conntrack_inet_error: an error travels as an answer to the packet that it quotes."""
        quoted = quoted_tuple(skb)
        if quoted is None or quoted[1] != skb.dst:  # an error goes to who sent the quoted packet, or is none of ours
            return self._invalid(skb)
        known = self._find(invert(make_key(*quoted)), now, skb.iif == "lo")
        if known is None:
            return self._invalid(skb)
        (skb.ct, skb.ct_reply), skb.ct_state = known, CtState.RELATED
        return True

    def _invalid(self, skb: Skb) -> bool:
        """No connection can be made of it; nothing may be remembered about it either."""
        skb.ct, skb.ct_reply, skb.ct_state, skb.cacheable = None, False, CtState.INVALID, False
        self.stats["invalid"] += 1
        return True

    # ---- a packet leaves, or is delivered ------------------------------------------------------------------------------------

    def confirm(self, skb: Skb, now: float) -> bool:
        """Enter the connection of a first packet into the table. False if the packet must be dropped: another one has its key.

        If it is the same in both directions, the packet joins it (nf_ct_resolve_clash). Of a socket that writes to itself, with
        one key for both directions, nothing is remembered, and each packet is NEW (Linux would list it).
        """
        conn = skb.ct
        if conn is None or skb.ct_reply or conn.status & (CONFIRMED | DYING) or conn.original == conn.reply:
            return True
        mine = self._table.get(conn.original)
        if mine is not None or conn.reply in self._table:
            if mine is not None and not mine[1] and mine[0].reply == conn.reply:
                skb.ct = mine[0]
                self.stats["clash_resolve"] += 1
                return True
            self.stats["insert_failed"] += 1
            return False
        self._table[conn.original] = (conn, False)
        self._table[conn.reply] = (conn, True)
        conn.status |= CONFIRMED
        conn.epoch += 1
        self.stats["insert"] += 1
        self._refresh(conn, conn.timeout, now)
        return True

    # ---- time -----------------------------------------------------------------------------------------------------------------

    def _timeout(self, conn: Conn, now: float) -> float:
        table = self.timeouts
        answered = conn.status & SEEN_REPLY
        if conn.proto == TCP:
            seconds = table.tcp[conn.state]
            return seconds if answered or conn.state is not TcpState.ESTABLISHED else min(seconds, table.tcp_unacknowledged)
        if conn.proto == UDP:
            return table.udp_stream if answered and now >= conn.stream_after else table.udp
        if conn.proto in _ECHO_REQUESTS:
            return table.icmp
        if conn.proto == SCTP:
            return table.sctp_established if answered else table.sctp
        return table.generic

    def _refresh(self, conn: Conn, timeout: float, now: float) -> None:
        conn.timeout, conn.expires = timeout, now + timeout
        if conn.status & CONFIRMED and (conn.due == 0.0 or conn.expires < conn.due):
            self._schedule(conn, conn.expires)

    def _schedule(self, conn: Conn, due: float) -> None:
        """Look at the connection again at `due`, unless it is to be looked at earlier anyway."""
        if conn.due and conn.due <= due:
            return
        conn.due = due
        self._sequence += 1
        heapq.heappush(self._deadlines, (due, self._sequence, conn))

    @property
    def next_look(self) -> float:
        """A time before which `expire` has nothing to do, infinity without connections. Cheap, and readable from any thread."""
        try:
            return self._deadlines[0][0]
        except IndexError:
            return float("inf")

    def poll_at(self) -> float | None:
        """When `expire` has something to look at next; None while there are no connections."""
        deadlines = self._deadlines
        while deadlines and (deadlines[0][2].due != deadlines[0][0] or deadlines[0][2].status & DYING):
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else None

    def expire(self, now: float) -> int:
        """Forget the connections whose time is up; returns how many."""
        gone = 0
        while (due := self.poll_at()) is not None and due <= now:
            conn = heapq.heappop(self._deadlines)[2]
            conn.due = 0.0
            if conn.expires <= now:
                self.delete(conn)
                gone += 1
                continue
            if conn.proto == UDP and conn.status & (ASSURED | SEEN_REPLY) == SEEN_REPLY:
                conn.epoch += 1  # its next packet takes the slow path, and finds a stream
            self._schedule(conn, _look_again(conn, now))
        return gone

    # ---- removal ----------------------------------------------------------------------------------------------------------------

    def delete(self, conn: Conn) -> None:
        """Take a connection out of the table, and what was remembered of its flows with it."""
        if conn.status & DYING:
            return
        if conn.status & CONFIRMED:
            del self._table[conn.original], self._table[conn.reply]
            self.stats["delete"] += 1
        conn.status |= DYING
        conn.epoch += 1
        for flows, key in conn.flows:
            flows.pop(key, None)
        conn.flows.clear()

    def delete_matching(self, predicate: Callable[[Conn], bool]) -> int:
        """`conntrack -D`: remove what the predicate is true of; returns how many."""
        doomed = [conn for conn in self if predicate(conn)]
        for conn in doomed:
            self.delete(conn)
        return len(doomed)

    def _early_drop(self, now: float) -> bool:
        """Make room by dropping one connection that is not assured, among the oldest."""
        for number, conn in enumerate(self):
            if conn.expires <= now or not conn.status & ASSURED:
                self.delete(conn)
                self.stats["early_drop"] += 1
                return True
            if number >= _MIN_PROBES:
                break
        return False

    # ---- windows ------------------------------------------------------------------------------------------------------------------

    def listing(self, now: float) -> str:
        """All connections that have not expired, as `conntrack -L` prints them, oldest first."""
        return "".join(conn_line(conn, now) + "\n" for conn in self if conn.expires > now)

    def check(self) -> None:
        """Assert what must always hold."""
        for key, (conn, is_reply) in self._table.items():
            assert key == (conn.reply if is_reply else conn.original), "a connection is under a key that is not its own"
            other = self._table.get(conn.original if is_reply else conn.reply)
            assert other is not None, "one key without the other"
            assert other[0] is conn, "the other key belongs to another connection"
            assert other[1] is not is_reply, "both keys in one direction"
            assert conn.status & CONFIRMED, "an unconfirmed connection is in the table"
            assert not conn.status & DYING, "a dead connection is in the table"
            assert 0.0 < conn.due <= conn.expires, "nothing will notice the connection's end"
            assert conn.status & NAT_MASK or conn.reply == invert(conn.original), "translated, but not by NAT"
        assert len(self) <= self.max_entries, "more connections than nf_conntrack_max"


def _look_again(conn: Conn, now: float) -> float:
    """An answered UDP flow when it turns into a stream, anything else at its end."""
    return conn.stream_after if conn.proto == UDP and conn.status & SEEN_REPLY and conn.stream_after > now else conn.expires


def quoted_tuple(skb: Skb) -> tuple[int, bytes, bytes, int, int] | None:
    """Protocol, addresses and ports of the packet that an ICMP error quotes (header and 8 bytes at least, RFC 792), or None."""
    buf, at = skb.buf, skb.l4 + 8
    if len(buf) < at + 28 or buf[at] >> 4 != 4:
        return None
    l4 = at + ((buf[at] & 15) << 2)
    if l4 < at + 20 or len(buf) < l4 + 8 or buf[at + 6] & 0x1F or buf[at + 7]:
        return None
    proto = buf[at + 9]
    sport = dport = 0
    if proto in PORT_PROTOCOLS:
        sport, dport = buf[l4] << 8 | buf[l4 + 1], buf[l4 + 2] << 8 | buf[l4 + 3]
    elif proto == ICMP:
        if buf[l4] in ICMP_ERRORS:
            return None
        sport = dport = buf[l4 + 4] << 8 | buf[l4 + 5]
    return proto, bytes(buf[at + 12 : at + 16]), bytes(buf[at + 16 : at + 20]), sport, dport


__all__ = ["KUBE_PROXY_TIMEOUTS", "Conn", "Conntrack", "CtState", "Status", "Timeouts", "quoted_tuple"]
