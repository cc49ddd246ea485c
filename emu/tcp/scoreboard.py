"""What was sent and is not acknowledged: Linux's retransmit queue. Decides what an ACK and its SACK blocks leave outstanding.

A `Sent` is a byte range, cut at whatever edge the peer reports, so a packet of many segments is repaired in parts. It keeps
the packet it first left in, and its payload is a slice of that: nothing is copied to be remembered. Bytes are counted under
at most one of `sacked` and `lost`, and under `retrans` while a retransmission is out: in flight is what RFC 6675 calls pipe.
"""

from __future__ import annotations

from bisect import bisect_right

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


class Scoreboard:
    """`sent` is sorted and gapless, and always the same list; all counts are bytes but `sacked_entries`.

    `newly` collects what the current ACK delivered, for `recovery` to learn from; `highest` is the highest SACKed position.
    """

    __slots__ = ("highest", "lost", "newly", "retrans", "sacked", "sacked_entries", "sent")

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.newly: list[Sent] = []
        self.sacked = self.lost = self.retrans = self.sacked_entries = self.highest = 0

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
            self.sacked_entries -= entry.mark & SACKED
            done += 1
        del sent[:done]
        return delivered

    def sack(self, left: int, right: int) -> int:
        """The peer holds `left` up to `right`: mark it, splitting ranges at the edges; bytes delivered by this alone."""
        sent, delivered = self.sent, 0
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
            self.sacked += size
            self.sacked_entries += 1
            delivered += size
        self.highest = max(self.highest, right)
        return delivered

    def split(self, index: int, at: int) -> None:
        """Cut the range at `index` in two; both parts keep the packet and the marks."""
        entry = self.sent[index]
        assert entry.seq < at < entry.end
        self.sent.insert(index + 1, Sent(at, entry.end, entry.packet, entry.base, entry.at, entry.mark))
        self.sacked_entries += entry.mark & SACKED
        entry.end = at
        entry.mark &= ~FIN

    def mark_lost(self, entry: Sent) -> None:
        """`entry`, or the retransmission of it that is out, did not arrive."""
        size = entry.end - entry.seq
        if entry.mark & RETRANS:
            entry.mark &= ~RETRANS
            self.retrans -= size
        if not entry.mark & (LOST | SACKED):
            entry.mark |= LOST
            self.lost += size

    def mark_retransmitted(self, entry: Sent, now: float) -> None:
        entry.at = now
        if not entry.mark & RETRANS:
            self.retrans += entry.end - entry.seq
        entry.mark |= RETRANS | EVER_RETRANS

    def renege(self) -> None:
        """The peer let go of what it had SACKed, as RFC 2018 allows (section 8)."""
        for entry in self.sent:
            entry.mark &= ~SACKED
        self.sacked = self.sacked_entries = 0

    def clear(self) -> None:
        self.sent.clear()
        self.newly.clear()
        self.sacked = self.lost = self.retrans = self.sacked_entries = 0
