"""How a connection opens: three ways, or four when both ends call at once (RFC 9293, 3.5, 3.10.7.3).

Data on a SYN is not taken (no TCP Fast Open); the peer sends it again.
"""

from __future__ import annotations

from errno import ECONNREFUSED

from emu.tcp.closing import fail
from emu.tcp.config import TcpState
from emu.tcp.output import backed_off, refuse, send_ack, send_syn
from emu.tcp.segment import ACK, RST, SYN, Segment
from emu.tcp.seq import widen
from emu.tcp.tcb import Tcb, agree, arm, become_established, open_window, set_mss, update_fast

TIMEOUT_MIN = 0.008  # Linux's TCP_TIMEOUT_MIN, two ticks of 250 Hz


def open_active(t: Tcb, now: float) -> None:
    """Send the SYN."""
    t.state = TcpState.SYN_SENT
    open_window(t, stamped=False)
    _send_first(t, now)


def open_passive(t: Tcb, segment: Segment, now: float) -> None:
    """Answer a listener's SYN with a SYN-ACK."""
    t.state, t.embryo = TcpState.SYN_RECV, True
    open_window(t, stamped=t.ts_on and segment.options.tsval is not None)
    _learn_peer(t, segment, now)
    _send_first(t, now)


def _send_first(t: Tcb, now: float) -> None:
    send_syn(t, now)
    t.snd_nxt = t.iss + 1
    t.syn_at = now
    t.rto_at = now + backed_off(t)
    arm(t, t.rto_at)


def _learn_peer(t: Tcb, segment: Segment, now: float) -> None:
    t.irs = segment.seq
    t.rcv_nxt = t.last_ack_sent = t.irs + 1
    t.rcv_adv = t.rcv_nxt + t.syn_window
    t.snd_wl1 = t.irs
    t.ts_recent_at = now
    agree(t, segment.options)
    t.snd_wnd = t.max_window = segment.window  # a SYN's window is never scaled


def in_syn_sent(t: Tcb, segment: Segment, now: float) -> None:
    """Whatever comes while our SYN is unanswered."""
    flags = segment.flags
    if flags & ACK and widen(segment.ack, t.snd_nxt) != t.snd_nxt:
        if not t.retries:  # the peer is alive: do not wait for the timer to ask again
            t.rto_at = now + TIMEOUT_MIN
            arm(t, t.rto_at)
        if not flags & RST:
            refuse(t, segment)
        return
    if flags & RST:
        if flags & ACK:
            fail(t, ECONNREFUSED)
        return
    if not flags & SYN:
        return
    _learn_peer(t, segment, now)
    if flags & ACK:
        acknowledged(t, segment, now)
        send_ack(t, now)
    else:  # both called at once: our SYN goes again, now with its answer
        t.state = TcpState.SYN_RECV
        send_syn(t, now)


def acknowledged(t: Tcb, segment: Segment, now: float) -> None:
    """Our SYN was acknowledged: the connection is established."""
    t.snd_una = t.snd_nxt
    t.snd_wl1 = widen(segment.seq, t.rcv_nxt)
    if t.state is TcpState.SYN_RECV:
        t.snd_wnd = segment.window << t.snd_shift
        t.max_window = t.snd_wnd if t.embryo else max(t.max_window, t.snd_wnd)
    if not t.retries:
        t.rtt.sample(now - t.syn_at, now)
    t.snd_sml, t.high_seq = t.snd_una, t.snd_una - 1  # no recovery has been: even the first byte may be repaired fast
    t.last_sent_at = now
    set_mss(t)
    become_established(t, now)
    update_fast(t)
