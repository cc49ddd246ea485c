"""A segment off the fast path: what RFC 9293, 3.10.7.4 does with it, in that order; Linux's tcp_input.c.

Decides what is believed: PAWS (RFC 7323, 5), the window, resets and SYNs in doubt (RFC 5961), ACKs of nothing sent; then takes
the ACK, the data and the FIN. Urgent data is taken as data.
"""

from __future__ import annotations

from errno import ECONNRESET
from math import inf

from emu.tcp import closing, handshake, recovery, timewait, undo
from emu.tcp.config import Event, TcpState
from emu.tcp.output import backed_off, challenge_ack, push, refuse, schedule_ack, send_ack, send_syn, start_timer
from emu.tcp.scoreboard import EVER_RETRANS
from emu.tcp.segment import ACK, FIN, PSH, RST, SYN, URG, URGENT_AT, Segment, parse
from emu.tcp.seq import MASK, older, widen
from emu.tcp.tcb import Tcb, set_mss, timestamp, update_fast

PAWS_EXPIRY = 24 * 86400.0  # seconds; RFC 7323, 5.5: a timestamp older than that may have wrapped
RECEIVING = frozenset((TcpState.ESTABLISHED, TcpState.FIN_WAIT1, TcpState.FIN_WAIT2))
_AFTER_FIN = frozenset((TcpState.CLOSE_WAIT, TcpState.LAST_ACK, TcpState.CLOSING))


def receive(t: Tcb, buf: bytes | bytearray, l4: int, now: float) -> None:
    """Take one segment, in any state."""
    segment = parse(buf, l4)
    if segment is None or t.state is TcpState.CLOSED:
        return
    if t.state is TcpState.SYN_SENT:
        handshake.in_syn_sent(t, segment, now)
    elif t.state is TcpState.TIME_WAIT or (t.state is TcpState.FIN_WAIT2 and t.orphan):
        timewait.take(t, segment, now)
    else:
        _synchronized(t, buf, l4, segment, now)
        update_fast(t)


def _synchronized(t: Tcb, buf: bytes | bytearray, l4: int, segment: Segment, now: float) -> None:
    seq = widen(segment.seq, t.rcv_nxt)
    end = seq + segment.length
    if not _believable(t, segment, seq, end, now) or not _take_ack(t, segment, seq, end - seq, now):
        return
    if segment.flags & URG:
        _note_urgent(t, seq + (buf[l4 + URGENT_AT] << 8 | buf[l4 + URGENT_AT + 1]) - 1)
    if end > seq:
        _take_data(t, buf, segment, seq, end, now)
    if t.state is not TcpState.CLOSED and t.state is not TcpState.TIME_WAIT:
        push(t, now)


def _believable(t: Tcb, segment: Segment, seq: int, end: int, now: float) -> bool:
    """Linux's `tcp_validate_incoming`, for a listener's `tcp_check_req`; whatever is refused has been answered when this returns False."""
    flags = segment.flags
    if t.embryo and t.state is TcpState.SYN_RECV and flags & SYN and seq == t.irs and not flags & (ACK | RST | FIN):
        send_syn(t, now)  # our SYN-ACK was lost
        return False
    if _fails_paws(t, segment, seq, end, now) and not flags & RST:
        _answer_unacceptable(t, flags, seq, end, now)
        return False
    edge = max(t.rcv_adv, t.rcv_nxt)
    last_gasp = seq == t.rcv_nxt - 1 and t.state in _AFTER_FIN  # a RST from before the FIN (Linux's `tcp_reset_check`)
    if end < t.last_ack_sent or seq > edge or (end - (flags & FIN) > edge and t.received.size):
        if not flags & RST:
            _answer_unacceptable(t, flags, seq, end, now)
        elif last_gasp:
            closing.on_reset(t)
        return False
    if flags & RST:
        if seq == t.rcv_nxt or last_gasp or seq == max((right for _, right in t.out_of_order.blocks), default=-1):
            closing.on_reset(t)
        else:
            challenge_ack(t, now)
        return False
    if flags & SYN:
        return _take_syn(t, segment, seq, now)
    return bool(flags & ACK)


def _take_syn(t: Tcb, segment: Segment, seq: int, now: float) -> bool:
    """A SYN in the window: the answer to ours in a simultaneous open, else one to doubt (RFC 5961, 4) or to refuse."""
    if t.state is TcpState.SYN_RECV:
        if t.embryo and seq != t.irs:
            refuse(t, segment)
            closing.finish(t)
            return False
        if not t.embryo and segment.flags & ACK and segment.length == 1 and seq == t.irs and segment.ack == t.snd_nxt & MASK:
            return True
    challenge_ack(t, now)
    return False


def _fails_paws(t: Tcb, segment: Segment, seq: int, end: int, now: float) -> bool:
    """Whether the segment is from before what was seen last, and not merely a pure ACK that was overtaken."""
    stamp = segment.options.tsval
    if not t.ts_on or stamp is None or not older(stamp, t.ts_recent) or now - t.ts_recent_at > PAWS_EXPIRY:
        return False
    overtaken = seq == end == t.rcv_nxt and segment.flags & ACK and not segment.flags & SYN
    return not (overtaken and (t.ts_recent - stamp) & MASK <= backed_off(t) * 1000)


def _answer_unacceptable(t: Tcb, flags: int, seq: int, end: int, now: float) -> None:
    """Say where we are (RFC 9293, 3.10.7.4 first), telling of the duplicate (RFC 2883) if it is one; data is never limited."""
    if t.sack_on and seq < end <= t.rcv_nxt and not flags & SYN:
        t.dsack = (seq, end)
    challenge_ack(t, now, limited=seq == end or bool(flags & SYN))


def _take_ack(t: Tcb, segment: Segment, seq: int, size: int, now: float) -> bool:
    """Believe the acknowledgement or refuse the segment (RFC 9293, 3.10.7.4 fifth; RFC 5961, 5)."""
    ack = widen(segment.ack, t.snd_una)
    if t.state is TcpState.SYN_RECV:
        if ack != t.snd_nxt:
            refuse(t, segment)
            return False
        _note_timestamp(t, segment, seq, now)
        handshake.acknowledged(t, segment, now)
        return True
    if ack > t.snd_nxt or ack < t.snd_una - min(t.max_window, t.snd_una - t.iss - 1):
        challenge_ack(t, now)
        return False
    if ack >= t.snd_una:
        _note_timestamp(t, segment, seq, now)
    t.heard_at = now
    t.probes_out = 0
    window = segment.window << t.snd_shift
    advanced = max(ack - t.snd_una, 0)
    duplicate = not advanced and not size and ack == t.snd_una != t.snd_nxt and window == t.snd_wnd and not segment.flags & FIN
    if advanced or seq > t.snd_wl1 or (seq == t.snd_wl1 and (window > t.snd_wnd or not window)):
        set_window(t, seq, window)
    if t.sent or (t.sack_on and segment.options.sacks):
        _take_delivery(t, segment, ack, advanced, duplicate, now)
    if t.probing:
        _answer_to_probe(t, now)
    if advanced and t.fin_sent and t.snd_una == t.snd_nxt:
        closing.on_fin_acknowledged(t, now)
    return t.state is not TcpState.CLOSED


def _note_timestamp(t: Tcb, segment: Segment, seq: int, now: float) -> None:
    """Keep what the next ACK will echo (RFC 7323, 4.3)."""
    stamp = segment.options.tsval
    if t.ts_on and stamp is not None:
        t.last_tsecr = segment.options.tsecr
        if seq <= t.last_ack_sent and not older(stamp, t.ts_recent):
            t.ts_recent, t.ts_recent_at = stamp, now


def set_window(t: Tcb, seq: int, window: int) -> None:
    t.snd_wl1, t.snd_wnd = seq, window
    if window > t.max_window:
        t.max_window = window
        set_mss(t)


def _take_delivery(t: Tcb, segment: Segment, ack: int, advanced: int, duplicate: bool, now: float) -> None:
    """Bring scoreboard, RTT, timer and congestion control up to what the peer says it has."""
    board = t.board
    board.newly.clear()
    delivered = board.acknowledge(ack) if advanced else 0
    t.snd_una += advanced
    dsack = False
    if t.sack_on and segment.options.sacks:
        dsack = undo.note_dsack(t, segment.options.sacks, ack)
        blocks = []
        for left, right in segment.options.sacks:
            left, right = widen(left, t.snd_una), widen(right, t.snd_una)
            if left < right and t.snd_una < right <= t.snd_nxt:
                blocks.append((max(left, t.snd_una), right))
        if blocks:
            delivered += board.sack(blocks)
    if delivered:
        _sample_rtt(t, segment, advanced, now)
    if advanced:
        t.retries = 0
        _rearm(t, now)
        grant_writing(t)
    recovery.on_ack(t, advanced, delivered, now, duplicate=duplicate, dsack=dsack)


def _rearm(t: Tcb, now: float) -> None:
    """The timer runs for what is now the oldest outstanding (RFC 6298, 5.2, 5.3)."""
    if t.sent:
        start_timer(t, now, now)
    else:
        t.rto_at = inf


def _sample_rtt(t: Tcb, segment: Segment, advanced: int, now: float) -> None:
    """From segments sent once (Karn); of others only a timestamp tells which sending was answered (RFC 7323, 4)."""
    newly = t.board.newly
    if not any(entry.mark & EVER_RETRANS for entry in newly):
        t.rtt.sample(now - newly[0].at, now)
    elif advanced and t.ts_on and segment.options.tsval is not None and segment.options.tsecr:
        elapsed = (timestamp(t, now) - segment.options.tsecr) & MASK
        if elapsed >= 1 << 31:
            return
        t.rtt.sample(elapsed / 1000, now)
    else:
        return
    t.backoff = 0


def grant_writing(t: Tcb) -> None:
    """Wake a blocked writer once a third of the buffer is free (Linux's `sk_stream_is_writeable`)."""
    if not t.writable and (t.snd_nxt - t.snd_una + t.unsent.size) * 3 <= t.sndbuf * 2:
        t.writable = True
        t.events |= Event.WRITABLE


def _answer_to_probe(t: Tcb, now: float) -> None:
    """The peer answered a probe: if the window has opened, `push` goes on from here (Linux's `tcp_ack_probe`)."""
    if t.snd_wnd >= min(t.mss, t.unsent.size):
        t.probing = False
        t.backoff = 0
        _rearm(t, now)


def _take_data(t: Tcb, buf: bytes | bytearray, segment: Segment, seq: int, end: int, now: float) -> None:
    """Queue what is new, in order or not, and see to the FIN and the ACK."""
    if t.state not in RECEIVING:
        if seq < t.rcv_nxt:  # again, for our ACK was lost
            _note_duplicate(t, seq, min(end, t.rcv_nxt))
            send_ack(t, now)
        return
    fin = segment.flags & FIN
    if seq >= max(t.rcv_adv, t.rcv_nxt) and not (fin and end - 1 == t.rcv_nxt):  # a probe of the shut window
        send_ack(t, now)
        return
    if end - fin > t.rcv_nxt and t.state is not TcpState.ESTABLISHED and (t.orphan or t.eof):
        refuse(t, segment)  # nobody will ever read it
        closing.fail(t, ECONNRESET)
        return
    if fin:
        t.peer_fin = end - 1
    held = bool(t.out_of_order)
    start = max(seq, t.rcv_nxt)
    if seq < t.rcv_nxt:
        _note_duplicate(t, seq, min(end, t.rcv_nxt))
    if start < end:
        at = segment.start + start - seq - (segment.flags >> 1 & 1)
        data = buf[at : segment.end]
        if start != t.rcv_nxt:
            duplicate = t.out_of_order.insert(start, data + b"\0" if fin else data)  # a FIN takes a place too
            if duplicate is not None:
                _note_duplicate(t, *duplicate)
        elif data:
            _deliver(t, data, now)
    if t.peer_fin == t.rcv_nxt:
        closing.on_fin(t, now, at_once=held or seq > t.rcv_nxt)
    elif held or start >= end or seq > t.rcv_nxt:
        send_ack(t, now)
    if t.rcv_nxt != t.last_ack_sent and t.state in RECEIVING:
        push(t, now)
        if t.rcv_nxt != t.last_ack_sent:
            schedule_ack(t, now, pushed=bool(segment.flags & PSH) or end - seq < t.rcv_mss)


def _note_duplicate(t: Tcb, left: int, right: int) -> None:
    """Tell with the next ACK that this came twice (RFC 2883)."""
    if t.sack_on and t.dsack is None:
        t.dsack = (left, right)


def _deliver(t: Tcb, data: bytes | bytearray, now: float) -> None:
    """The next bytes in order, and whatever waited for them."""
    end = t.rcv_nxt + len(data)
    _append(t, data)
    if t.out_of_order:
        first, last = t.out_of_order.first
        if first < end:
            _note_duplicate(t, first, min(last, end))
        for chunk in t.out_of_order.take(t.rcv_nxt):
            _append(t, chunk[:-1] if t.rcv_nxt + len(chunk) - 1 == t.peer_fin else chunk)
    t.readable = True
    t.events |= Event.READABLE
    t.last_data_at = now


def _append(t: Tcb, data: bytes | bytearray) -> None:
    """Let the application have it: all but an urgent byte, which only MSG_OOB would read and at which a read ends."""
    if t.urgent is not None and t.rcv_nxt <= t.urgent < t.rcv_nxt + len(data):
        cut = t.urgent - t.rcv_nxt
        t.received.append(data[:cut])
        t.received.mark_end()
        t.received.append(data[cut + 1 :])
        t.urgent = None
    else:
        t.received.append(data)
    t.rcv_nxt += len(data)


def _note_urgent(t: Tcb, position: int) -> None:
    """The byte before the urgent pointer is urgent (RFC 9293 differs, as Linux does with tcp_stdurg off; RFC 6093)."""
    if position >= t.rcv_nxt and (t.urgent is None or position > t.urgent) and t.state in RECEIVING:
        t.urgent = position
