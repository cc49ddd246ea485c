"""How a connection ends: FIN each way, TIME_WAIT, reset, failure; Linux's tcp_close, tcp_fin and tcp_reset.

A connection whose socket was closed is an orphan: data that still comes is answered with a reset, and waiting ends by itself.
"""

from __future__ import annotations

from errno import ECONNABORTED, ECONNRESET, EPIPE
from math import inf

from emu.tcp.config import Event, TcpState
from emu.tcp.output import push, schedule_ack, send_ack, send_reset
from emu.tcp.tcb import Tcb, arm

CAN_SEND = frozenset((TcpState.ESTABLISHED, TcpState.CLOSE_WAIT))
NEEDS_RESET = CAN_SEND | {TcpState.SYN_RECV, TcpState.FIN_WAIT1, TcpState.FIN_WAIT2}  # Linux's tcp_need_reset

_AFTER_OUR_FIN = {TcpState.ESTABLISHED: TcpState.FIN_WAIT1, TcpState.CLOSE_WAIT: TcpState.LAST_ACK}


def finish(t: Tcb) -> None:
    """CLOSED: nothing will be sent or expected again. What was received may still be read."""
    t.state = TcpState.CLOSED
    t.closed, t.established, t.fast = True, False, False
    t.readable = t.writable = t.eof = True
    t.events |= Event.HANGUP | Event.READABLE | Event.WRITABLE
    t.rto_at = t.reo_at = t.delack_at = t.keep_at = inf
    forget_sending(t)


def forget_sending(t: Tcb) -> None:
    t.unsent.clear()
    t.board.clear()
    t.out_of_order.clear()
    t.snd_una = t.snd_nxt


def fail(t: Tcb, errno: int) -> None:
    """CLOSED for a reason, which the next call on the socket is told."""
    t.error = errno
    t.events |= Event.ERROR
    finish(t)


def on_reset(t: Tcb) -> None:
    """A valid RST came (Linux's `tcp_reset`); what a SYN is refused with is `handshake`'s."""
    if t.state in (TcpState.TIME_WAIT, TcpState.LAST_ACK, TcpState.CLOSING):
        finish(t)
    else:
        fail(t, EPIPE if t.state is TcpState.CLOSE_WAIT else ECONNRESET)


def shutdown_read(t: Tcb) -> None:
    """Nobody reads on: an end of file here, and nothing that the peer would see (it learns once it sends after our FIN)."""
    t.eof = t.readable = True
    t.events |= Event.READABLE


def shutdown_write(t: Tcb, now: float) -> None:
    """Queue our FIN behind what is unsent."""
    after = _AFTER_OUR_FIN.get(t.state)
    if after is None:
        return
    t.state, t.fast = after, False
    t.fin_queued = True
    push(t, now)


def close(t: Tcb, now: float) -> None:
    """The socket is gone. Unread data makes this a reset, so that the peer learns that it was lost (RFC 2525, 2.17)."""
    t.orphan, t.fast = True, False
    if t.state is TcpState.SYN_SENT:
        finish(t)
    elif t.state is TcpState.SYN_RECV or (t.received.size and t.state in NEEDS_RESET):
        send_reset(t, now)
        finish(t)
    else:
        shutdown_write(t, now)
        if t.state is TcpState.FIN_WAIT2:
            _start_last_wait(t, t.config.fin_timeout, now)


def abort(t: Tcb, now: float) -> None:
    """End it at once, telling the peer."""
    if t.state is TcpState.CLOSED:
        return
    if t.state in NEEDS_RESET:
        send_reset(t, now)
    t.orphan = True
    fail(t, ECONNABORTED)


def on_fin(t: Tcb, now: float, *, at_once: bool = False) -> None:
    """The peer's FIN is next in order (Linux's `tcp_fin`); `at_once` if its ACK must not wait."""
    t.rcv_nxt += 1
    t.eof = t.readable = t.done = True
    t.fast = False
    t.out_of_order.clear()  # what comes after the end is nothing
    t.urgent = None
    t.events |= Event.READABLE
    if t.state is TcpState.ESTABLISHED:
        t.state = TcpState.CLOSE_WAIT
        t.pingpong = True  # our own FIN is likely to follow soon
        if at_once:
            send_ack(t, now)
        else:
            schedule_ack(t, now)
    elif t.state is TcpState.FIN_WAIT1:
        t.state = TcpState.CLOSING
        send_ack(t, now)
    elif t.state is TcpState.FIN_WAIT2:
        send_ack(t, now)
        enter_time_wait(t, now)


def on_fin_acknowledged(t: Tcb, now: float) -> None:
    """Everything that we sent, FIN included, has arrived."""
    if t.state is TcpState.FIN_WAIT1:
        t.state = TcpState.FIN_WAIT2
        t.rto_at = inf
        if t.orphan:
            _start_last_wait(t, t.config.fin_timeout, now)
    elif t.state is TcpState.CLOSING:
        enter_time_wait(t, now)
    elif t.state is TcpState.LAST_ACK:
        finish(t)


def enter_time_wait(t: Tcb, now: float) -> None:
    """Both FINs are exchanged: outlive what may still be on its way. Only what was not read is kept."""
    t.state = TcpState.TIME_WAIT
    t.events |= Event.HANGUP
    t.rto_at = t.reo_at = t.delack_at = inf
    forget_sending(t)
    _start_last_wait(t, t.config.timewait, now)


def _start_last_wait(t: Tcb, seconds: float, now: float) -> None:
    t.keep_at = now + seconds
    arm(t, t.keep_at)
