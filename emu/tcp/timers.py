"""What happens when nothing does; Linux's tcp_timer.c.

Four timers: retransmission (or zero-window probe, never both), whose first firing only probes the tail; reordering (RACK),
delayed ACK, and the long one, which is keep-alive while established and the last wait of FIN_WAIT2 and TIME_WAIT after.
"""

from __future__ import annotations

from errno import ETIMEDOUT
from math import inf

from emu.tcp import closing, recovery
from emu.tcp.config import Recovery, TcpState
from emu.tcp.output import backed_off, in_flight, probe_tail, push, retransmit, send_ack, send_probe, send_reset, send_syn
from emu.tcp.rtt import TIMEOUT_MIN
from emu.tcp.tcb import Tcb, arm, update_fast

ROUNDING = 1e-6  # seconds; times add up to a little less than they should


def fire(t: Tcb, now: float) -> None:
    """Do what is due by `now`, and set `deadline` to what is due next. Early calls are harmless."""
    if t.delack_at <= now:
        t.pingpong = False  # nothing was written in time, so do not wait again
        send_ack(t, now)
    if t.reo_at <= now:
        _on_reordering(t, now)
    if t.rto_at <= now:
        _on_retransmission(t, now)
    if t.keep_at <= now:
        _on_long(t, now)
    t.deadline = min(t.rto_at, t.reo_at, t.delack_at, t.keep_at)
    update_fast(t)


def _on_reordering(t: Tcb, now: float) -> None:
    """What was given time to arrive out of order has not."""
    t.reo_at = inf
    recovery.detect_loss(t, now)
    if t.board.lost and t.recovery is Recovery.OPEN:
        recovery.enter_recovery(t)
        t.cc.cwnd = in_flight(t) + t.mss
    push(t, now)


def _on_retransmission(t: Tcb, now: float) -> None:
    t.rto_at = inf
    if t.state is TcpState.SYN_SENT or t.state is TcpState.SYN_RECV:
        _repeat_syn(t, now)
    elif t.probing:
        _probe(t, now)
    elif t.sent and t.recovery is Recovery.OPEN and t.sack_on and t.tail_seq is None and not t.retries:
        probe_tail(t, now)
    elif t.sent:
        _time_out(t, now)


def _give_up(t: Tcb) -> None:
    """Nobody answers; an ICMP error that came meanwhile says why."""
    closing.fail(t, t.soft_error or ETIMEDOUT)


def _repeat_syn(t: Tcb, now: float) -> None:
    limit = t.config.syn_retries if t.state is TcpState.SYN_SENT else t.config.synack_retries
    if t.retries >= limit or (t.retries and _patience_is_over(t, t.syn_at, now)):
        _give_up(t)
        return
    _back_off(t)
    send_syn(t, now)
    t.rto_at = _next_attempt(t, t.syn_at, now)


def _patience_is_over(t: Tcb, since: float, now: float) -> bool:
    """Has the program's own patience, TCP_USER_TIMEOUT, run out?"""
    return 0 < t.config.user_timeout <= now - since + ROUNDING


def _next_attempt(t: Tcb, since: float, now: float) -> float:
    """When to try again: at the end of the program's patience at the latest (`tcp_clamp_rto_to_user_timeout`)."""
    at = now + backed_off(t)
    return min(at, max(since + t.config.user_timeout, now + TIMEOUT_MIN)) if t.config.user_timeout else at


def _back_off(t: Tcb) -> None:
    t.retries += 1
    t.backoff = min(t.backoff + 1, 30)


def _time_out(t: Tcb, now: float) -> None:
    """The retransmission timeout of data (RFC 6298, 5.4 to 5.6)."""
    if not t.retries:
        t.retry_since = t.sent[0].at
    retries = t.config.orphan_retries if t.orphan else t.config.retries2
    patience = t.config.user_timeout or t.config.patience(retries)
    if t.retries and now - t.retry_since >= patience - ROUNDING:
        _give_up(t)
        return
    recovery.enter_loss(t, now)
    _back_off(t)
    retransmit(t, t.sent[0], t.mss, now)
    t.rto_at = _next_attempt(t, t.retry_since, now)


def _probe(t: Tcb, now: float) -> None:
    """Ask whether the window is still shut, or use what there is of it (Linux's `tcp_write_wakeup`)."""
    if not t.probes_out:
        t.retry_since = now
    if t.probes_out >= (t.config.orphan_retries if t.orphan else t.config.retries2) or _patience_is_over(t, t.retry_since, now):
        _give_up(t)
        return
    t.probes_out += 1
    t.backoff = min(t.backoff + 1, 30)
    if t.snd_wnd > t.snd_nxt - t.snd_una:
        mss, t.mss, t.probing = t.mss, min(t.mss, t.snd_wnd), False
        nodelay, corked, t.nodelay, t.corked = t.nodelay, t.corked, True, False
        push(t, now)  # smaller than a segment, once
        t.mss, t.nodelay, t.corked = mss, nodelay, corked
        return
    send_probe(t, now)
    t.rto_at = now + backed_off(t)


def _on_long(t: Tcb, now: float) -> None:
    t.keep_at = inf
    if t.state is TcpState.TIME_WAIT or t.state is TcpState.FIN_WAIT2:
        closing.finish(t)
    elif t.keepalive:
        _keep_alive(t, now)


def _keep_alive(t: Tcb, now: float) -> None:
    config = t.config
    idle = now - max(t.heard_at, t.last_data_at)
    if t.sent or t.unsent.size:
        t.keep_at = now + config.keepalive_time  # retransmission finds out
    elif idle < config.keepalive_time:
        t.keep_at = now + config.keepalive_time - idle
    elif (idle >= config.user_timeout and t.probes_out) if config.user_timeout else t.probes_out >= config.keepalive_probes:
        send_reset(t, now)
        closing.fail(t, t.soft_error or ETIMEDOUT)
        return
    else:
        t.probes_out += 1
        send_probe(t, now)
        t.keep_at = now + config.keepalive_intvl
    arm(t, t.keep_at)
