"""Who has nothing left to do but wait: TIME_WAIT, and FIN_WAIT2 once no socket owns it; Linux's tcp_minisocks.c.

Decides what still gets an answer, what ends the wait, and which SYN may begin the connection anew (RFC 6191).
"""

from __future__ import annotations

from emu.tcp import closing
from emu.tcp.config import TcpState
from emu.tcp.output import challenge_ack, refuse, send_ack
from emu.tcp.segment import ACK, FIN, RST, SYN, Segment
from emu.tcp.seq import MASK, older, widen
from emu.tcp.tcb import Tcb

_ISS_STEP = 65537  # Linux's 65535 + 2: beyond any window of the old connection


def take(t: Tcb, segment: Segment, now: float) -> None:
    """One segment for a connection that waits (`tcp_timewait_state_process`)."""
    seq = widen(segment.seq, t.rcv_nxt)
    end = seq + segment.length
    if t.state is TcpState.FIN_WAIT2:
        _in_fin_wait2(t, segment, seq, end, now)
        return
    stale = _fails_paws(t, segment)
    if not stale and seq == t.rcv_nxt and (seq == end or segment.flags & RST):
        if segment.flags & RST:  # RFC 1337 is off in Linux
            closing.finish(t)
        else:
            t.keep_at = now + t.config.timewait
            _note_timestamp(t, segment, now)
        return
    if not segment.flags & RST:
        if stale or segment.flags & ACK:
            t.keep_at = now + t.config.timewait
        _say_where_we_are(t, segment, seq, end, now)


def _in_fin_wait2(t: Tcb, segment: Segment, seq: int, end: int, now: float) -> None:
    flags, rcv_nxt = segment.flags, t.rcv_nxt
    inside = seq == rcv_nxt or (end > rcv_nxt and seq < t.rcv_adv) or seq == end == t.rcv_adv
    if not inside or _fails_paws(t, segment):
        _say_where_we_are(t, segment, seq, end, now)
    elif flags & RST:
        closing.finish(t)
    elif flags & SYN and seq >= rcv_nxt:
        refuse(t, segment)
        closing.finish(t)
    elif not flags & ACK or end <= rcv_nxt or end == seq:
        return
    elif not flags & FIN or end != rcv_nxt + 1:  # nobody will ever read it
        refuse(t, segment)
        closing.finish(t)
    else:
        _note_timestamp(t, segment, now)
        closing.on_fin(t, now)


def successor_iss(t: Tcb, segment: Segment) -> int | None:
    """The ISS for the connection that this SYN may open in the place of the one that waits; None if it may not."""
    if t.state is not TcpState.TIME_WAIT or segment.flags & (SYN | ACK | RST) != SYN or _fails_paws(t, segment):
        return None
    stamp = segment.options.tsval
    if older(t.rcv_nxt & MASK, segment.seq) or (stamp is not None and older(t.ts_recent, stamp)):
        return (t.snd_nxt + _ISS_STEP) & MASK
    return None


def _fails_paws(t: Tcb, segment: Segment) -> bool:
    stamp = segment.options.tsval
    return t.ts_on and stamp is not None and older(stamp, t.ts_recent)


def _note_timestamp(t: Tcb, segment: Segment, now: float) -> None:
    if t.ts_on and segment.options.tsval is not None:
        t.ts_recent, t.ts_recent_at = segment.options.tsval, now


def _say_where_we_are(t: Tcb, segment: Segment, seq: int, end: int, now: float) -> None:
    if seq != end and not segment.flags & SYN:  # data is no part of an endless exchange of ACKs
        send_ack(t, now)
    else:
        challenge_ack(t, now)
