"""Loss: how it is found and how fast it is mended; Linux's tcp_recovery.c and the end of tcp_input.c.

With SACK, RACK decides what is lost (RFC 8985: whatever was sent well before something that has since arrived), also among
retransmissions, and a probe of the tail finds losses that nothing follows; without it, the third duplicate ACK and each partial
ACK do (NewReno, RFC 6582). During recovery the window follows Proportional Rate Reduction (RFC 6937). What proves to have been
needless is taken back: `undo` decides. Limited transmit (RFC 3042) needs no code: what was SACKed is not in flight.
"""

from __future__ import annotations

from math import inf

from emu.tcp import undo
from emu.tcp.config import Recovery
from emu.tcp.output import in_flight
from emu.tcp.scoreboard import EVER_RETRANS, RETRANS, SACKED
from emu.tcp.tcb import Tcb, arm

DUPTHRESH = 3
_ROUNDING = 1e-9  # seconds; differences of times near each other must not depend on their size


def on_ack(t: Tcb, advanced: int, delivered: int, now: float, *, duplicate: bool, dsack: bool) -> None:
    """An ACK moved `snd_una` by `advanced` bytes and told of `delivered` in all, or of a duplicate; `board.newly` has the ranges."""
    board = t.board
    lost_before = board.lost
    if t.sack_on:
        _advance_rack(t, now)
        undo.adapt_reordering(t, now)
    if t.tail_seq is not None:
        _answer_to_tail_probe(t, advanced, dup=duplicate or (dsack and not delivered))
    if t.recovery is Recovery.OPEN:
        undo.by_duplicates(t)
    elif not undo.on_ack(t, advanced, duplicate=duplicate or delivered > advanced) and t.snd_una >= t.high_seq:
        _leave(t)
    if not t.sack_on:
        _count_duplicates(t, advanced, duplicate=duplicate)
    elif board.sacked or board.retrans or t.recovery is not Recovery.OPEN:
        detect_loss(t, now)
    if board.lost and t.recovery is Recovery.OPEN:
        enter_recovery(t)
    if t.recovery is Recovery.RECOVERY:
        _reduce(t, delivered, advanced > 0 and board.lost <= lost_before)
    elif advanced and (t.cwnd_limited or t.recovery is Recovery.LOSS):
        t.cc.on_ack(delivered, now, t.rtt.srtt)
    if board.order is not None and not (board.sacked or board.lost or board.retrans):
        board.rest()


def _advance_rack(t: Tcb, now: float) -> None:
    """Learn from what was just delivered: the latest sending among it, its round trip, and whether order was kept."""
    at, end = t.rack_at, t.rack_end
    for entry in t.board.newly:
        retransmitted = entry.mark & EVER_RETRANS
        rtt = now - entry.at
        if retransmitted and rtt < t.rtt.min_rtt:
            continue  # the original arrived, late
        if not retransmitted and entry.end < end and entry.at <= at:
            t.reordering = True
        if (entry.at, entry.end) >= (t.rack_at, t.rack_end):
            t.rack_at, t.rack_end, t.rack_rtt = entry.at, entry.end, rtt


def _reordering_window(t: Tcb) -> float:
    """How much later than its successors a segment may arrive (RFC 8985, 6.2 step 4)."""
    if not t.reordering:
        board = t.board
        if t.recovery is not Recovery.OPEN or board.sacked_entries >= DUPTHRESH or board.sacked >= DUPTHRESH * t.mss:
            return 0.0
    return min(t.rtt.min_rtt / 4 * t.reo_steps, t.rtt.srtt) if t.rtt.srtt else 0.0


def detect_loss(t: Tcb, now: float) -> None:
    """Mark what was sent long enough before the latest delivered; if some of it may still come, set the reordering timer."""
    spare = t.rack_rtt + _reordering_window(t) - now - _ROUNDING
    latest, last, wait = t.rack_at, t.rack_end, 0.0
    lost = []
    for entry in t.board.watch():
        if entry.at >= latest:
            if entry.at > latest:
                break  # whatever follows was sent later still
            if entry.mark & EVER_RETRANS or entry.end >= last:
                continue  # of what left at one time, only first transmissions are known to be in order
        remaining = entry.at + spare
        if remaining <= 0.0:
            lost.append(entry)
        else:
            wait = max(wait, remaining)
    for entry in lost:
        t.board.mark_lost(entry)
    t.reo_at = now + wait + 2 * _ROUNDING if wait else inf
    if wait:
        arm(t, t.reo_at)


def _count_duplicates(t: Tcb, advanced: int, *, duplicate: bool) -> None:
    """NewReno: three duplicates lose the first segment, a partial ACK in recovery the next."""
    if duplicate:
        t.dupacks += 1
        if t.dupacks == DUPTHRESH and t.recovery is Recovery.OPEN and t.snd_una > t.high_seq:
            _lose_head(t)
    elif advanced:
        t.dupacks = 0
        if t.recovery is Recovery.RECOVERY:
            _lose_head(t)


def _lose_head(t: Tcb) -> None:
    """Lose the first segment, not the whole packet of many: the peer may hold all of it but one."""
    head = t.sent[0]
    if head.end - head.seq > t.mss + 1:
        t.board.split(0, head.seq + t.mss)
    if not head.mark & RETRANS:
        t.board.mark_lost(head)


def _answer_to_tail_probe(t: Tcb, advanced: int, *, dup: bool) -> None:
    """The probe of the tail was answered (`tcp_process_tlp_ack`): if it repaired a loss, the window shrinks for it."""
    assert t.tail_seq is not None
    if t.snd_una < t.tail_seq:
        return
    if not t.tail_repeated or (dup and not advanced):
        t.tail_seq = None  # it was new data, or came twice: nothing had been lost
    elif t.snd_una > t.tail_seq:
        t.tail_seq = None
        if t.recovery is Recovery.OPEN:
            t.cc.on_loss()
            t.cc.cwnd = min(t.cc.cwnd, t.cc.ssthresh)


def enter_recovery(t: Tcb) -> None:
    """Fast recovery begins: remember where it ends, and what the window was."""
    undo.remember(t)
    t.recovery, t.fast = Recovery.RECOVERY, False
    t.high_seq = t.snd_nxt
    t.tail_seq = None
    t.prior_cwnd = t.cc.cwnd
    t.prr_delivered = t.prr_out = 0
    t.cc.on_loss()


def _reduce(t: Tcb, delivered: int, good: bool) -> None:
    """PRR: send in proportion to what arrives until `ssthresh`, then one for one, and a segment more when all goes well."""
    t.prr_delivered += delivered
    flight, ssthresh = in_flight(t), t.cc.ssthresh
    if flight > ssthresh:
        count = -(-ssthresh * t.prr_delivered // t.prior_cwnd) - t.prr_out
    else:
        count = max(t.prr_delivered - t.prr_out, delivered) + (t.mss if good else 0)
        count = min(count, ssthresh - flight)
    t.cc.cwnd = max(flight + max(count, 0 if t.prr_out else t.mss), t.mss)


def _leave(t: Tcb) -> None:
    """All that was outstanding when loss was found is acknowledged."""
    if t.recovery is Recovery.RECOVERY:
        t.cc.cwnd = min(t.cc.ssthresh, max(t.cc.cwnd, in_flight(t)) + t.cc.initial)  # no burst of all that was held back
    t.recovery = Recovery.OPEN
    t.dupacks = 0


def enter_loss(t: Tcb, now: float) -> None:
    """The retransmission timer fired: hold all lost but what was sent within a round trip, and start again at one segment."""
    board, head = t.board, t.sent[0]
    fresh = t.recovery is Recovery.OPEN or t.snd_una >= t.high_seq
    if fresh:
        undo.remember(t)
        t.cc.on_loss()
    if head.mark & SACKED:
        board.renege()
        t.reordering = False
    for entry in t.sent:
        if entry is head or not t.rack_rtt or entry.at + t.rack_rtt <= now or entry.mark & RETRANS:
            board.mark_lost(entry)
    t.doubt = undo.Doubt.RAISED if t.sack_on and (fresh or t.retries) else undo.Doubt.NONE
    t.recovery, t.fast = Recovery.LOSS, False
    t.high_seq = t.snd_nxt
    t.dupacks = 0
    t.tail_seq = None
    t.reo_at = inf
    t.cc.on_timeout()
    t.cc.cwnd = in_flight(t) + t.mss


def on_smaller_mss(t: Tcb) -> None:
    """The path takes smaller packets than were sent: those are lost, and not through congestion (`tcp_simple_retransmit`)."""
    for entry in t.sent:
        if entry.end - entry.seq > t.mss:
            t.board.mark_lost(entry)
    if t.board.lost and t.recovery is Recovery.OPEN:
        t.recovery, t.fast = Recovery.LOSS, False
        t.high_seq = t.snd_nxt
        t.cc.ssthresh = t.cc.cwnd
