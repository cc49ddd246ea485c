"""What was sent and is not acknowledged: Linux's retransmit queue. Decides what an ACK and its SACK blocks leave outstanding.

A `Sent` is a byte range, cut at whatever edge the peer reports, so a packet of many segments is repaired in parts. It keeps
the packet it first left in, and its payload is a slice of that: nothing is copied to be remembered. Bytes are counted under
at most one of `sacked` and `lost`, and under `retrans` while a retransmission is out: in flight is what RFC 6675 calls pipe.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heappop, heappush

SACKED, LOST, RETRANS, EVER_RETRANS, FIN = 1, 2, 4, 8, 16
NEEDS_RETRANSMIT = SACKED | LOST | RETRANS  # and what is left of these is LOST alone


class Sent:
    """Bytes `seq` up to `end` (a FIN counts as the last), last sent at `at`; sequence number s is `packet[s - base]`."""

    __slots__ = ("at", "base", "end", "mark", "packet", "seq")

    def __init__(self, seq: int, end: int, packet: bytes, base: int, at: float, mark: int = 0) -> None:
        self.seq, self.end, self.packet, self.base, self.at, self.mark = seq, end, packet, base, at, mark

    def payload(self) -> memoryview:
        end = self.end - 1 if self.mark & FIN else self.end
        return memoryview(self.packet)[self.seq - self.base : end - self.base]


def _seq(entry: Sent) -> int:
    return entry.seq


def _at(entry: Sent) -> float:
    return entry.at


class Scoreboard:
    """`sent` is sorted and gapless, and always the same list; all counts are bytes but `sacked_entries`.

    `newly` collects what the current ACK delivered, for `recovery` to learn from. While anything is out of the ordinary, `order`
    has what may still arrive in order of its last sending, and `_lost` what waits to be sent again, lowest first: so the work of
    an ACK is what it changes, not what is outstanding (Linux's tsorted_sent_queue and retransmit_skb_hint).
    """

    __slots__ = ("_blocks", "_lost", "lost", "newly", "order", "retrans", "sacked", "sacked_entries", "sent")

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.newly: list[Sent] = []
        self.order: dict[Sent, None] | None = None
        self.sacked = self.lost = self.retrans = self.sacked_entries = 0
        self._lost: list[tuple[int, int, Sent]] = []  # a heap; entries that are lost no longer stay until they come up
        self._blocks: list[tuple[int, int]] = []  # what was SACKed with the last ACK

    def append(self, entry: Sent) -> None:
        """New data has been sent."""
        self.sent.append(entry)
        if self.order is not None:
            self.order[entry] = None

    def watch(self) -> dict[Sent, None]:
        """Keep `order` from now on; it is made from what is outstanding and not SACKed when it is first asked for."""
        if self.order is None:
            flying = [entry for entry in self.sent if not entry.mark & SACKED and entry.mark & NEEDS_RETRANSMIT != LOST]
            self.order = dict.fromkeys(sorted(flying, key=_at))
        return self.order

    def rest(self) -> None:
        """Nothing is SACKed or lost any more: forget what only serves repair."""
        self.order = None
        self._lost.clear()
        self._blocks.clear()

    def _count(self, mark: int, size: int) -> None:
        if mark & SACKED:
            self.sacked += size
        elif mark & LOST:
            self.lost += size
        if mark & RETRANS:
            self.retrans += size

    def acknowledge(self, una: int) -> int:
        """Forget what lies below `una`, noting in `newly` what was not SACKed before; bytes delivered by this alone."""
        sent, delivered, done = self.sent, 0, 0
        for entry in sent:
            if entry.seq >= una:
                break
            size = min(entry.end, una) - entry.seq
            self._count(entry.mark, -size)
            if not entry.mark & SACKED:
                delivered += size
                self.newly.append(entry)
            if entry.end > una:
                entry.seq = una
                break
            if self.order is not None:
                self.order.pop(entry, None)
            self.sacked_entries -= entry.mark & SACKED
            done += 1
        del sent[:done]
        return delivered

    def sack(self, blocks: list[tuple[int, int]]) -> int:
        """The peer holds these (left, right): mark what is new in them; bytes delivered by this alone."""
        delivered, before = 0, self._blocks
        for left, right in blocks:
            at = left
            for held_left, held_right in before:  # sorted: what the last ACK told of needs no second look
                if held_right <= at or held_left >= right:
                    continue
                if held_left > at:
                    delivered += self._sack(at, held_left)
                at = held_right
            if at < right:
                delivered += self._sack(at, right)
        self._blocks = sorted(blocks)
        return delivered

    def _sack(self, left: int, right: int) -> int:
        sent, delivered = self.sent, 0
        order = self.watch()
        index = max(bisect_right(sent, left, key=_seq) - 1, 0)
        while index < len(sent) and sent[index].seq < right:
            entry = sent[index]
            index += 1
            if entry.mark & SACKED or entry.end <= left:
                continue
            if entry.seq < left:
                self.split(index - 1, left)
                continue
            if entry.end > right:
                self.split(index - 1, right)
            size = entry.end - entry.seq
            self._count(entry.mark, -size)
            self.newly.append(entry)
            entry.mark = entry.mark & ~(LOST | RETRANS) | SACKED
            order.pop(entry, None)
            self.sacked += size
            self.sacked_entries += 1
            delivered += size
        return delivered

    def index(self, entry: Sent) -> int:
        """Where an outstanding `entry` stands in `sent`."""
        return bisect_right(self.sent, entry.seq, key=_seq) - 1

    def split(self, index: int, at: int) -> None:
        """Cut the range at `index` in two; both parts keep the packet and the marks."""
        entry = self.sent[index]
        assert entry.seq < at < entry.end
        other = Sent(at, entry.end, entry.packet, entry.base, entry.at, entry.mark)
        self.sent.insert(index + 1, other)
        self.sacked_entries += entry.mark & SACKED
        entry.end = at
        entry.mark &= ~FIN
        if other.mark & NEEDS_RETRANSMIT == LOST:
            self._queue(other)
        elif self.order is not None and entry in self.order:
            self._reorder(entry, other)

    def _reorder(self, entry: Sent, other: Sent) -> None:
        """Put `other` right behind `entry`, which it was cut from. Rare but for the last entry: a list may be made."""
        order = self.order
        assert order is not None
        if next(reversed(order)) is entry:
            order[other] = None
            return
        items = list(order)
        items.insert(items.index(entry) + 1, other)
        self.order = dict.fromkeys(items)

    def _queue(self, entry: Sent) -> None:
        heappush(self._lost, (entry.seq, id(entry), entry))

    def mark_lost(self, entry: Sent) -> None:
        """`entry`, or the retransmission of it that is out, did not arrive."""
        size = entry.end - entry.seq
        if entry.mark & RETRANS:
            entry.mark &= ~RETRANS
            self.retrans -= size
        if not entry.mark & (LOST | SACKED):
            entry.mark |= LOST
            self.lost += size
        if entry.mark & LOST:
            self.watch().pop(entry, None)
            self._queue(entry)

    def next_lost(self) -> Sent | None:
        """The lowest range that is lost and not sent again yet."""
        queue = self._lost
        while queue:
            entry = queue[0][2]
            if entry.mark & NEEDS_RETRANSMIT == LOST and self.sent and self.sent[0].seq <= entry.seq < entry.end:
                return entry
            heappop(queue)
        return None

    def mark_retransmitted(self, entry: Sent, now: float) -> None:
        entry.at = now
        if not entry.mark & RETRANS:
            self.retrans += entry.end - entry.seq
        entry.mark |= RETRANS | EVER_RETRANS
        order = self.watch()
        order.pop(entry, None)
        order[entry] = None

    def forget_retransmission(self, entry: Sent) -> None:
        """It was a probe, and counts as no more than what it repeats."""
        entry.mark &= ~RETRANS
        self.retrans -= entry.end - entry.seq

    def unmark_losses(self) -> None:
        """What was held lost is under way after all (Linux's tcp_undo_cwnd_reduction)."""
        for entry in self.sent:
            if entry.mark & LOST:
                entry.mark &= ~LOST
        self.lost = 0
        self._lost.clear()
        self.order = None
        self.watch()

    def renege(self) -> None:
        """The peer let go of what it had SACKed, as RFC 2018 allows (section 8)."""
        for entry in self.sent:
            entry.mark &= ~SACKED
        self.sacked = self.sacked_entries = 0
        self._blocks.clear()
        self.order = None

    def clear(self) -> None:
        self.sent.clear()
        self.newly.clear()
        self.rest()
        self.sacked = self.lost = self.retrans = self.sacked_entries = 0
