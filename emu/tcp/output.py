"""What is sent and when: ACKs, new data, retransmissions; Linux's tcp_output.c.

Decides segment sizes, Nagle's algorithm as Minshall and Linux have it, silly window avoidance on both sides (RFC 9293,
3.8.6), how far congestion and receive windows let the sender go, and what window is advertised. Knows nothing of how loss is
found (`recovery`) nor of how long anything may take (`timers`).
"""

from __future__ import annotations

from math import inf

from emu.tcp import options
from emu.tcp.config import Recovery, TcpState
from emu.tcp.options import TIMESTAMP_WORD
from emu.tcp.scoreboard import FIN as FIN_MARK
from emu.tcp.scoreboard import Sent
from emu.tcp.segment import ACK, FIN, IPV4_TCP, PLAIN, PSH, RST, STAMPED, SYN, VERSION_IHL_TOS, WITH_TIMESTAMP, Segment, emit, refusal
from emu.tcp.seq import MASK
from emu.tcp.tcb import MAX_WINDOW, Tcb, arm, timestamp

_ASKED = 2  # `undo.Doubt.ASKED`, which knows this file


def select_window(t: Tcb) -> int:
    """The window field to send now; moves the advertised edge, never to the left (RFC 9293, 3.8.6.2.2)."""
    shift, rcv_nxt = t.rcv_shift, t.rcv_nxt
    free = t.rcv_limit - t.received.size
    if free == t.rcv_limit:
        field = t.open_field
    elif rcv_nxt + free <= t.rcv_adv or free < min(t.rcv_limit >> 4, t.rcv_mss):
        field = min(-(min(rcv_nxt - t.rcv_adv, 0) >> shift), MAX_WINDOW)  # rounded up: a promise is kept (a FIN may pass the edge)
    else:
        field = min(free >> shift, MAX_WINDOW)
    t.rcv_adv = max(t.rcv_adv, rcv_nxt + (field << shift))
    return field


def build(t: Tcb, seq: int, flags: int, payload: bytes | memoryview, now: float, opts: bytes = b"") -> bytes:
    """A packet of this connection that acknowledges what has come; `opts` follow the timestamps."""
    size = len(opts) + len(payload)
    window = select_window(t)
    if t.ts_on:
        word = (8 + (len(opts) >> 2)) << 12 | flags
        packet = STAMPED.pack(
            VERSION_IHL_TOS, WITH_TIMESTAMP + size, t.route, seq & MASK, t.rcv_nxt & MASK, word, window, 0,
            TIMESTAMP_WORD, timestamp(t, now), t.ts_recent,
        )  # fmt: skip
    else:
        word = (5 + (len(opts) >> 2)) << 12 | flags
        packet = PLAIN.pack(VERSION_IHL_TOS, IPV4_TCP + size, t.route, seq & MASK, t.rcv_nxt & MASK, word, window, 0)
    t.last_ack_sent = t.rcv_nxt
    t.ack_pending = False
    t.delack_at = inf
    return packet + opts + payload if opts else packet + payload


def sack_option(t: Tcb) -> bytes:
    """What arrived out of order, the duplicate first (RFC 2883); empty when there is nothing to tell."""
    if not t.sack_on or not (t.dsack or t.out_of_order):
        return b""
    blocks = [t.dsack, *t.out_of_order.blocks] if t.dsack else t.out_of_order.blocks
    t.dsack = None
    return options.emit_sacks([(left & MASK, right & MASK) for left, right in blocks[: 3 if t.ts_on else 4]])


def send_ack(t: Tcb, now: float) -> None:
    """Acknowledge at once, with no data."""
    if t.quick:
        t.quick -= 1
    t.out.append((build(t, t.snd_nxt, ACK, b"", now, sack_option(t)), 0))


def schedule_ack(t: Tcb, now: float, *, pushed: bool = False) -> None:
    """Data has come: acknowledge it now, or leave it to what will be written within 40 ms (`tcp_ack_snd_check`).

    `pushed` data looks like the end of what the peer wrote: once it is read, its ACK waits no longer (ICSK_ACK_PUSHED).
    """
    if t.out_of_order or t.dsack or (t.quick and not t.pingpong) or t.rcv_nxt - t.last_ack_sent > t.rcv_mss:
        send_ack(t, now)
    elif not t.ack_pending:
        t.ack_pending, t.ack_on_read = True, pushed
        t.delack_at = now + t.config.delack
        arm(t, t.delack_at)


def challenge_ack(t: Tcb, now: float, *, limited: bool = True) -> None:
    """Answer a doubtful segment with where we are (RFC 5961), not more often than `invalid_ratelimit` allows."""
    if not limited or now - t.invalid_at >= t.config.invalid_ratelimit:
        if limited:
            t.invalid_at = now
        send_ack(t, now)


def send_probe(t: Tcb, now: float) -> None:
    """An empty segment just below the window, which the peer must answer (keep-alive, zero window; RFC 9293, 3.8.4)."""
    t.out.append((build(t, t.snd_una - 1, ACK, b"", now), 0))


def send_reset(t: Tcb, now: float) -> None:
    """Tell the peer that the connection is gone (RFC 9293, 3.10.4, 3.10.5)."""
    t.out.append((build(t, t.snd_nxt, RST | ACK, b"", now), 0))


def refuse(t: Tcb, segment: Segment) -> None:
    """Answer one segment as if nobody owned it."""
    t.out.append((refusal(t.route, segment), 0))


def send_syn(t: Tcb, now: float) -> None:
    """SYN, or SYN-ACK when the peer's SYN is known. Never scaled, so its window field is at most 65535 bytes."""
    answering = t.state is TcpState.SYN_RECV
    scale = t.rcv_shift if t.config.window_scaling and (not answering or t.rcv_shift or t.snd_shift) else None
    stamp = (timestamp(t, now), t.ts_recent) if t.ts_on else None
    opts = options.emit_syn(t.advertised_mss, wscale=scale, sack=t.sack_on, timestamp=stamp)
    t.rcv_adv = max(t.rcv_adv, t.rcv_nxt + t.syn_window)
    t.last_ack_sent = t.rcv_nxt
    ack, flags = (t.rcv_nxt & MASK, SYN | ACK) if answering else (0, SYN)
    t.out.append((emit(t.route, t.iss, ack, flags, t.syn_window, opts), 0))


def in_flight(t: Tcb) -> int:
    """RFC 6675's pipe: bytes believed to be in the network."""
    board = t.board
    pipe = t.snd_nxt - t.snd_una - board.sacked - board.lost + board.retrans
    return max(pipe - t.dupacks * t.mss, 0) if t.dupacks else pipe  # without SACK, each duplicate ACK tells of one segment


def push(t: Tcb, now: float) -> None:
    """Send what lost data, new data and a waiting FIN the windows allow (`tcp_write_xmit`)."""
    if t.board.lost > t.board.retrans and t.doubt != _ASKED:
        _retransmit_lost(t, now)
    unsent = t.unsent
    if not unsent.size and (t.fin_sent or not t.fin_queued):
        return
    if t.snd_nxt == t.snd_una and now - t.last_sent_at > t.rtt.rto:
        t.cc.on_idle(now - t.last_sent_at, t.rtt.rto)
    limited = False
    while unsent.size:
        quota = t.cc.cwnd - in_flight(t)
        window = t.snd_una + t.snd_wnd - t.snd_nxt
        size = _next_size(t, min(quota, window))
        if not size:
            limited = quota < window
            break
        last = size == unsent.size
        flags = ACK
        if last or t.snd_nxt + size - t.pushed > t.max_window >> 1:  # Linux's forced_push
            flags = ACK | PSH
            t.pushed = t.snd_nxt + size
        _send_data(t, unsent.take(size), flags | FIN if last and t.fin_queued else flags, now)
    if t.fin_queued and not t.fin_sent and not unsent.size:
        _send_data(t, b"", ACK | FIN, now)
    flight = t.snd_nxt - t.snd_una
    t.cwnd_limited = limited or (t.cc.cwnd < t.cc.ssthresh and 2 * flight > t.cc.cwnd)
    if unsent.size and not flight and not t.probing:
        start_probing(t, now)


def _next_size(t: Tcb, allowed: int) -> int:
    """Payload bytes of the next packet, 0 if it must wait: whole segments, and a shorter one only as the last that is queued."""
    mss, waiting = t.mss, t.unsent.size
    size = min(waiting, t.burst)
    if size > allowed:
        return max(allowed, 0) // mss * mss
    tail = size % mss
    if tail and size == waiting and not t.fin_queued and (t.corked or (not t.nodelay and t.snd_sml > t.snd_una)):
        return size - tail  # Nagle, RFC 9293 3.7.4: one short segment in flight at a time; TCP_CORK: none
    return size


def _send_data(t: Tcb, payload: bytes | memoryview, flags: int, now: float) -> None:
    """One new packet, remembered until acknowledged."""
    size = len(payload)
    opts = sack_option(t) if (t.dsack or t.out_of_order) and size + 52 + 28 <= t.mtu else b""
    seq = t.snd_nxt
    packet = build(t, seq, flags, payload, now, opts)
    end = seq + size
    if size % t.mss:
        t.snd_sml = end
    mark = 0
    if flags & FIN:
        t.fin_sent = True
        end += 1
        mark = FIN_MARK
    t.board.append(Sent(seq, end, packet, seq - len(packet) + size, now, mark))
    t.snd_nxt = end
    t.prr_out += size
    t.out.append((packet, t.mss if size > t.mss else 0))
    note_sent(t, now)
    if t.probing or t.rto_at == inf or t.recovery is Recovery.OPEN:
        t.probing = False
        start_timer(t, now, t.sent[0].at)


def start_timer(t: Tcb, now: float, since: float) -> None:
    """The timer for the oldest outstanding runs: its retransmission timeout counts `since` then (RFC 6298, 5), and the tail is
    probed before if nothing else is amiss (`tcp_schedule_loss_probe`; `timers` knows which of the two it is that fires)."""
    at = since + backed_off(t)
    if t.recovery is Recovery.OPEN and t.sack_on and t.tail_seq is None and t.snd_nxt - t.snd_una > t.mss:
        at = min(at, now + t.rtt.pto)
    t.rto_at = at
    arm(t, at)


def note_sent(t: Tcb, now: float) -> None:
    """Data went out: if it answers what came within 40 ms, ACKs may wait for such answers (`tcp_event_data_sent`)."""
    t.last_sent_at = now
    if now - t.last_data_at < t.config.delack:
        t.pingpong = True


def _retransmit_lost(t: Tcb, now: float) -> None:
    """Send again what is marked lost, lowest first, as far as the congestion window goes."""
    while t.board.lost > t.board.retrans and (entry := t.board.next_lost()) is not None:
        if not retransmit(t, entry, t.cc.cwnd - in_flight(t), now):
            return


def probe_tail(t: Tcb, now: float) -> None:
    """Nothing was heard for two round trips: one more segment, new if there is one, brings forth the SACKs that tell of a loss."""
    waiting = min(t.unsent.size, t.mss)
    t.tail_repeated = not waiting or t.snd_una + t.snd_wnd - t.snd_nxt < waiting
    if not t.tail_repeated:
        payload = t.unsent.take(waiting)
        flags = ACK if t.unsent.size else ACK | PSH
        _send_data(t, payload, flags | FIN if t.fin_queued and not t.unsent.size else flags, now)
    else:
        entry = t.sent[-1]
        size = entry.end - entry.seq - bool(entry.mark & FIN_MARK)
        if size > t.mss:
            t.board.split(len(t.sent) - 1, entry.seq + (size - 1) // t.mss * t.mss)
        retransmit(t, t.sent[-1], t.mss, now)
        t.board.forget_retransmission(t.sent[-1])
    t.tail_seq, t.fast = t.snd_nxt, False
    t.rto_at = now + backed_off(t)
    arm(t, t.rto_at)


def retransmit(t: Tcb, entry: Sent, quota: int, now: float) -> bool:
    """Send a range again, cut to `quota` bytes of whole segments; False if not even one fits."""
    size = entry.end - entry.seq
    limit = min(t.burst, quota // t.mss * t.mss) if size > quota else t.burst
    if limit <= 0:
        return False
    if size > limit + bool(entry.mark & FIN_MARK):
        t.board.split(t.board.index(entry), entry.seq + limit)
    payload = entry.payload()
    flags = ACK | FIN if entry.mark & FIN_MARK else ACK
    if payload and len(payload) + entry.seq - entry.base == len(entry.packet):
        flags |= entry.packet[33] & PSH  # what ended a packet still does
    t.board.mark_retransmitted(entry, now)
    t.out.append((build(t, entry.seq, flags, payload, now), t.mss if len(payload) > t.mss else 0))
    segments = -(-len(payload) // t.mss) or 1
    t.retransmitted += segments
    t.undo_retrans = max(t.undo_retrans, 0) + segments
    if t.retrans_stamp is None:
        t.retrans_stamp = timestamp(t, now)
    t.prr_out += entry.end - entry.seq
    t.last_sent_at = now
    if t.rto_at == inf:
        t.rto_at = now + backed_off(t)
        arm(t, t.rto_at)
    return True


def start_probing(t: Tcb, now: float) -> None:
    """The window is shut and nothing is in flight: ask from time to time, or a lost window update would end everything."""
    t.probing, t.fast = True, False
    t.backoff = 0
    t.rto_at = now + t.rtt.rto
    arm(t, t.rto_at)


def backed_off(t: Tcb) -> float:
    """The retransmission timeout after `backoff` doublings (RFC 6298, 5.5)."""
    return min(t.rtt.rto * (1 << t.backoff), t.config.rto_max) if t.backoff else t.rtt.rto
