"""Second thoughts: which loss was none, and what is taken back then; Linux's tcp_undo_*, tcp_check_dsack and F-RTO.

Three witnesses say that a repair was needless: every retransmission came back as a D-SACK (RFC 3708), an ACK echoes a timestamp
from before the first retransmission (Eifel, RFC 3522), or after a timeout something arrives that was never sent again (F-RTO,
RFC 5682). Then the window is restored. D-SACKs also widen the time that RACK leaves to what may be out of order (RFC 8985, 6.2).
"""

from __future__ import annotations

from enum import IntEnum

from emu.tcp.config import Recovery
from emu.tcp.scoreboard import EVER_RETRANS
from emu.tcp.seq import older, widen
from emu.tcp.tcb import Tcb

MAX_STEPS = 255
PERSISTENCE = 16  # recoveries for which a widened reordering window stays (TCP_RACK_RECOVERY_THRESH)


class Doubt(IntEnum):
    """How F-RTO stands to the last timeout (RFC 5682, 3.1)."""

    NONE = 0  # it was believed
    RAISED = 1  # the first ACK after it will be looked at
    ASKED = 2  # new data was preferred to retransmissions: the next ACK decides


def remember(t: Tcb) -> None:
    """The window is about to be reduced: note what it was (`tcp_init_undo`)."""
    t.undo_marker = t.snd_una
    t.undo_retrans = -(-t.board.retrans // t.mss) or -1
    t.undo_cwnd, t.undo_ssthresh = t.cc.cwnd, max(t.cc.ssthresh, t.cc.cwnd * 3 // 4)
    t.retrans_stamp = None


def note_dsack(t: Tcb, sacks: tuple[tuple[int, int], ...], ack: int) -> bool:
    """Whether the first block tells of a duplicate (RFC 2883), which is then counted. `ack` is the segment's own."""
    left, right = (widen(edge, t.snd_una) for edge in sacks[0])
    inner = len(sacks) > 1 and left >= widen(sacks[1][0], t.snd_una) and right <= widen(sacks[1][1], t.snd_una)
    if not 0 < right - left <= t.max_window or not (left < ack or inner):
        return False
    count = -(-(right - left) // t.mss)
    t.dsacks += count
    if t.dsacks > t.retransmitted:
        return False  # the network made it, not we
    tail = t.tail_seq is not None and right == t.tail_seq
    if t.reordering and not tail:
        t.dsack_seen = True
    if t.undo_marker is not None and t.undo_retrans > 0 and right > t.undo_marker:
        t.undo_retrans = max(t.undo_retrans - count, 0)
    return True


def adapt_reordering(t: Tcb, now: float) -> None:
    """Once a round trip at most, wait a quarter of the shortest one longer (`tcp_rack_update_reo_wnd`)."""
    if t.dsack_seen:
        t.dsack_seen = False
        if t.rack_at >= t.reo_adapted_at:
            t.reo_steps = min(t.reo_steps + 1, MAX_STEPS)
            t.reo_adapted_at, t.reo_persist = now, PERSISTENCE
    elif not t.reo_persist:
        t.reo_steps = 1


def by_duplicates(t: Tcb) -> None:
    """All that was sent again is known to have come twice, though the recovery is over (`tcp_try_undo_dsack`)."""
    if t.undo_marker is not None and not t.undo_retrans:
        _take_back(t)


def on_ack(t: Tcb, advanced: int, *, duplicate: bool) -> bool:
    """Look at what an ACK says of the repair that is under way; True if the repair is over because it was needless."""
    if t.recovery is Recovery.LOSS:
        if t.doubt and _is_spurious(t, advanced, duplicate=duplicate):
            return True
        if advanced and _may_undo(t):
            _reopen(t)
            return True
    elif t.snd_una < t.high_seq:
        if advanced and t.undo_marker is not None and _is_late(t):
            t.reordering = True  # a hole was filled by what had been held lost
            if not t.board.retrans:
                _reopen(t)
                return True
        if t.undo_marker is not None and not t.undo_retrans:
            _take_back(t)
            if not t.board.lost:
                t.recovery = Recovery.OPEN
                return True
    if t.snd_una >= t.high_seq:
        if _may_undo(t):
            _take_back(t)
            t.recovery = Recovery.OPEN
            t.dupacks = 0
            return True
        t.reo_persist = max(t.reo_persist - 1, 0)
    return False


def _is_spurious(t: Tcb, advanced: int, *, duplicate: bool) -> bool:
    """F-RTO's steps (`tcp_process_loss`); True if the timeout was needless, and the window is restored."""
    if any(not entry.mark & EVER_RETRANS and entry.end <= t.high_seq for entry in t.board.newly):
        _reopen(t)
        return True
    if t.snd_nxt > t.high_seq:
        if duplicate:
            t.doubt = Doubt.NONE
    elif advanced and t.snd_una < t.high_seq:
        t.high_seq = t.snd_nxt
        able = t.unsent.size and t.snd_una + t.snd_wnd > t.snd_nxt
        t.doubt = Doubt.ASKED if able else Doubt.NONE
        return False
    if t.doubt is Doubt.ASKED:
        t.doubt = Doubt.NONE
    return False


def _is_late(t: Tcb) -> bool:
    """Does the ACK echo a time from before the first retransmission (`tcp_packet_delayed`)?"""
    if t.retrans_stamp is None:
        return True  # nothing was sent again at all
    return t.ts_on and bool(t.last_tsecr) and older(t.last_tsecr, t.retrans_stamp)


def _may_undo(t: Tcb) -> bool:
    return t.undo_marker is not None and (not t.undo_retrans or _is_late(t))


def _take_back(t: Tcb) -> None:
    t.cc.restore(t.undo_cwnd, t.undo_ssthresh)
    t.undo_marker = None


def _reopen(t: Tcb) -> None:
    """Nothing was lost."""
    t.board.unmark_losses()
    _take_back(t)
    t.recovery = Recovery.OPEN
    t.doubt = Doubt.NONE
    t.retries = t.dupacks = 0
