"""One TCP connection, as the stack drives it. Decides what may take a fast path; everything else is in the files around it.

The machine is `Tcb`'s; here are the calls into it. Two of them matter for speed and are written out: `on_packet` predicts the
header of an established segment that is next in order (Van Jacobson, Linux's tcp_rcv_established) and `write` packs a
short segment whole. Both fall back to `input` and `output` at the first thing out of the ordinary (`tcb.update_fast`).
"""

from __future__ import annotations

import os
from errno import EPIPE
from math import inf

from emu.tcp import closing, handshake, recovery, timers, timewait
from emu.tcp.config import LINUX, Event, TcpConfig, TcpState
from emu.tcp.input import RECEIVING, grant_writing, receive, set_window
from emu.tcp.options import TIMESTAMP_WORD
from emu.tcp.output import push, schedule_ack, select_window, send_ack, start_timer
from emu.tcp.scoreboard import Sent
from emu.tcp.segment import ACK, PREDICTED, PSH, RST, STAMPED, SYN, VERSION_IHL_TOS, WITH_TIMESTAMP, parse
from emu.tcp.seq import HALF, MASK, widen
from emu.tcp.tcb import Tcb, arm, set_mss, set_receive_limit, timestamp, update_fast
from emu.wire.addr import SockAddr

_STAMPED_HEADER = WITH_TIMESTAMP - 20  # bytes of a TCP header that carries nothing but timestamps
_PREDICTED_WORD = 0x8010  # offset 8, ACK
_NOT_PUSH = 0xFFF7
_PSH_ACK = 0x8018
_READABLE = int(Event.READABLE)


class Connection(Tcb):
    """What the stack may read, all plain attributes:

    `out`: list of (IPv4 packet, gso_size), to be drained after every call; gso_size 0 means one segment. `deadline`: when to
    call `on_timer` (seconds, math.inf for never); it may be early, never late. `state`; `error`: errno once failed, else 0.
    `readable`: `read` will not return None. `writable`: `write` will take something, or raise. `established`: between handshake
    and CLOSED. `closed`: CLOSED, to be forgotten. `events`: what calls have made happen, for the caller to clear.
    `local`, `remote`, `mss`, `retransmitted` (segments). Of a failed connection, read what was received first, then
    the error. No two calls may overlap.
    """

    __slots__ = ()

    @classmethod
    def active(cls, local: SockAddr, remote: SockAddr, *, iss: int, mtu: int, now: float, config: TcpConfig = LINUX) -> Connection:
        """Start to connect: SYN_SENT, the SYN in `out`. `iss` is the initial sequence number (RFC 6528 is the caller's)."""
        connection = cls(local, remote, iss, mtu, config)
        handshake.open_active(connection, now)
        return connection

    @classmethod
    def passive(cls, buf: bytes | bytearray, l4: int, *, iss: int, mtu: int, now: float, config: TcpConfig = LINUX) -> Connection:
        """Answer the SYN at `buf[l4:]`: SYN_RECV, the SYN-ACK in `out`. ValueError if it is no SYN alone."""
        segment = parse(buf, l4)
        if segment is None or segment.flags & (SYN | ACK | RST) != SYN:
            raise ValueError("a passive connection opens with a SYN")
        local = SockAddr(bytes(buf[16:20]), buf[l4 + 2] << 8 | buf[l4 + 3])
        remote = SockAddr(bytes(buf[12:16]), buf[l4] << 8 | buf[l4 + 1])
        connection = cls(local, remote, iss, mtu, config)
        handshake.open_passive(connection, segment, now)
        return connection

    # -- from the network and the clock --

    def on_packet(self, buf: bytes | bytearray | memoryview, l4: int, now: float) -> None:
        """Take an IPv4 packet of this connection: the TCP header is at `buf[l4:]`, and the packet ends where `buf` does.

        What a memoryview shows is kept until it is read, not copied.
        """
        size = len(buf) - l4 - _STAMPED_HEADER
        if self.fast and size >= 0:
            seq, ack, word, window, option, tsval, tsecr = PREDICTED.unpack_from(buf, l4 + 4)
            rcv_nxt = self.rcv_nxt
            acked = (ack - self.snd_una) & MASK
            if (
                word & _NOT_PUSH == _PREDICTED_WORD
                and option == TIMESTAMP_WORD
                and seq == rcv_nxt & MASK
                and acked <= self.snd_nxt - self.snd_una
                and (tsval - self.ts_recent) & MASK < HALF
                and (size or acked)
                and rcv_nxt + size <= self.rcv_adv
                and window
            ):
                if self.last_ack_sent == rcv_nxt:
                    self.ts_recent, self.ts_recent_at = tsval, now
                window <<= self.snd_shift
                if window != self.snd_wnd:
                    set_window(self, rcv_nxt, window)
                if acked:
                    self._take_predicted_ack(acked, now)
                if size:
                    self.received.append(buf[l4 + _STAMPED_HEADER :])
                    self.rcv_nxt = rcv_nxt + size
                    self.readable = True
                    self.events |= _READABLE
                    self.last_data_at = now
                    self.last_tsecr = tsecr
                if self.unsent.size:
                    push(self, now)
                if size and self.last_ack_sent != self.rcv_nxt:
                    if not self.pingpong or size > self.rcv_mss:
                        schedule_ack(self, now, pushed=bool(word & PSH) or size < self.rcv_mss)
                    elif not self.ack_pending:
                        self.ack_pending = True
                        self.delack_at = at = now + self.config.delack
                        if at < self.deadline:  # noqa: PLR1730 - min() would cost a call
                            self.deadline = at
                    elif self.rcv_nxt - self.last_ack_sent > self.rcv_mss:
                        send_ack(self, now)
                return
        receive(self, bytes(buf) if isinstance(buf, memoryview) else buf, l4, now)

    def _take_predicted_ack(self, acked: int, now: float) -> None:
        """`acked` new bytes while nothing is lost or SACKed: no range needs more than to be forgotten."""
        self.snd_una = una = self.snd_una + acked
        sent = self.sent
        first = sent[0]
        self.rtt.sample(now - first.at, now)
        if una == self.snd_nxt:
            sent.clear()
            self.rto_at = inf
        else:
            done = 0
            while sent[done].end <= una:
                done += 1
            del sent[:done]
            sent[0].seq = max(sent[0].seq, una)
            self.rto_at = at = now + (self.rtt.pto if self.snd_nxt - una > self.mss and self.sack_on else self.rtt.rto)
            if at < self.deadline:  # noqa: PLR1730 - min() would cost a call
                self.deadline = at
        self.heard_at = now
        self.rack_rtt = now - first.at
        if self.cwnd_limited:
            self.cc.on_ack(acked, now, self.rtt.srtt)
        if not self.writable:
            grant_writing(self)

    def on_timer(self, now: float) -> None:
        """Do what is due and set `deadline` anew; calls that come early are harmless."""
        timers.fire(self, now)

    def on_icmp(self, errno: int, fatal: bool, now: float) -> None:
        """An ICMP error quotes a packet of ours: it ends a connection that is still opening, and else only explains a timeout."""
        opening = self.state is TcpState.SYN_SENT or self.state is TcpState.SYN_RECV
        if opening and fatal:
            closing.fail(self, errno)
        elif self.state is not TcpState.CLOSED:
            self.soft_error = errno

    def on_mtu(self, mtu: int, now: float) -> None:
        """The path takes packets of `mtu` bytes (RFC 1191): if that is less than it was, cut smaller and send again (ICMP
        fragmentation needed); if it is more, an older word has expired, and what is sent from now on may be longer."""
        if self.state is TcpState.CLOSED or mtu == self.mtu:
            return
        smaller = mtu < self.mtu
        self.mtu = max(mtu, 68)
        set_mss(self)
        if smaller:
            recovery.on_smaller_mss(self)
            push(self, now)

    def outstanding(self, seq: int) -> bool:
        """Whether the 32-bit `seq`, quoted by an ICMP error, was sent and not acknowledged (RFC 5927, 4); else it is to be ignored."""
        return self.snd_una <= widen(seq, self.snd_una) < self.snd_nxt

    # -- from the application --

    def write(self, data: bytes | bytearray | memoryview, now: float) -> int:
        """Queue what there is room for and send what may be; how many bytes were taken, 0 if the buffer is full or the
        handshake not complete. BrokenPipeError once this side is shut or the connection gone."""
        size = len(data)
        snd_nxt = self.snd_nxt
        end = snd_nxt + size
        if (
            self.fast
            and 0 < size <= self.mss
            and not self.unsent.size
            and end - self.snd_una <= self.cc.cwnd
            and end - self.snd_una <= self.snd_wnd
            and (self.nodelay or self.snd_sml <= self.snd_una)
            and end - self.snd_una <= self.sndbuf
        ):
            rcv_nxt = self.rcv_nxt
            if self.received.size:
                window = select_window(self)
            else:
                window = self.open_field
                self.rcv_adv = max(self.rcv_adv, rcv_nxt + self.rcv_limit)
            packet = (
                STAMPED.pack(
                    VERSION_IHL_TOS, WITH_TIMESTAMP + size, self.route, snd_nxt & MASK, rcv_nxt & MASK, _PSH_ACK, window, 0,
                    TIMESTAMP_WORD, int(now * 1000.0) + self.ts_offset & MASK, self.ts_recent,
                ) + data
            )  # fmt: skip
            self.last_ack_sent = rcv_nxt
            self.ack_pending = False
            self.delack_at = inf
            self.sent.append(Sent(snd_nxt, end, packet, snd_nxt - WITH_TIMESTAMP, now))
            self.snd_nxt = end
            if size < self.mss:
                self.snd_sml = end
            self.out.append((packet, 0))
            self.last_sent_at = now
            if now - self.last_data_at < self.config.delack:
                self.pingpong = True
            if self.rto_at == inf:
                self.rto_at = at = now + self.rtt.rto
                if at < self.deadline:  # noqa: PLR1730 - min() would cost a call
                    self.deadline = at
            else:
                start_timer(self, now, self.sent[0].at)
            return size
        return self._queue(data, size, now)

    def _queue(self, data: bytes | bytearray | memoryview, size: int, now: float) -> int:
        if self.state not in closing.CAN_SEND:
            if self.state is TcpState.SYN_SENT or self.state is TcpState.SYN_RECV:
                return 0
            raise BrokenPipeError(EPIPE, os.strerror(EPIPE))
        size = min(size, self.sndbuf - self.unsent.size - (self.snd_nxt - self.snd_una))
        if size <= 0:
            self.writable = not len(data)
            return 0
        self.pushed = self.snd_nxt + self.unsent.size  # whatever was written before ended with a push
        self.unsent.append(data, size)
        if size < len(data):
            self.writable = False
        push(self, now)
        return size

    def read(self, n: int, now: float) -> bytes | None:
        """Up to `n` bytes; None if nothing has come yet, b"" once nothing will (or `n` is 0)."""
        received = self.received
        size = received.size
        if not size:
            return b"" if self.eof or not n else None
        chunks = received.chunks
        if size <= n and len(chunks) == 1:
            data = bytes(chunks.popleft())
            received.size = 0
            self.readable = self.eof
        else:
            data = received.take(n)
            size = len(data)
            self.readable = received.size > 0 or self.eof
        self.copied += size
        if self.copied >= self.drs_mark:
            self._adjust_window(now)
        room = self.rcv_adv - self.rcv_nxt
        if room * 2 <= self.rcv_limit or (self.ack_pending and self.ack_on_read and not self.pingpong):
            self._tell_of_room(room, now)
        return data

    def _adjust_window(self, now: float) -> None:
        """Half a window was read: if that took no more than a round trip, the window is what limits the sender, so double it.

        Linux's dynamic right-sizing. The round trip is what the last timestamp echoed says, at least its clock's tick.
        """
        trip = self.rtt.srtt
        if self.ts_on and self.last_tsecr:
            echoed = (timestamp(self, now) - self.last_tsecr) & MASK
            trip = max(trip, echoed / 1000) if echoed < HALF else trip
        if now - self.drs_at <= max(trip, 0.001) and self.rcv_limit < self.config.rcvbuf:
            set_receive_limit(self, min(2 * self.rcv_limit, self.config.rcvbuf))
        self.copied, self.drs_mark, self.drs_at = 0, self.rcv_limit >> 1, now

    def _tell_of_room(self, room: int, now: float) -> None:
        """Reading made room: say so when the window at least doubles, or when an ACK waits for nothing (`tcp_cleanup_rbuf`)."""
        if self.state not in RECEIVING:
            return
        free = self.rcv_limit - self.received.size
        update = free >= 2 * room and free >= min(self.rcv_limit >> 1, self.rcv_mss)
        if update or (self.ack_pending and self.ack_on_read and not self.pingpong and not self.received.size):
            send_ack(self, now)

    def shutdown_write(self, now: float) -> None:
        """Send a FIN after what is queued; the other direction stays open."""
        closing.shutdown_write(self, now)

    def shutdown_read(self) -> None:
        """Reads find the end of file once what has come is read."""
        closing.shutdown_read(self)

    def close(self, now: float) -> None:
        """The socket is gone: finish in the background, with a reset if data was left unread."""
        closing.close(self, now)

    def abort(self, now: float) -> None:
        """Reset the connection; `error` becomes ECONNABORTED."""
        closing.abort(self, now)

    def set_nodelay(self, on: bool, now: float) -> None:
        """TCP_NODELAY; what was held back goes out."""
        self.nodelay = on
        if on and self.state in closing.CAN_SEND:
            push(self, now)

    def set_cork(self, on: bool, now: float) -> None:
        """TCP_CORK: hold back what fills no segment, for 200 ms at most where nothing is in flight."""
        self.corked = on
        if not on and self.state in closing.CAN_SEND:
            nodelay, self.nodelay = self.nodelay, True
            push(self, now)
            self.nodelay = nodelay
        update_fast(self)

    def set_keepalive(self, on: bool, now: float) -> None:
        """SO_KEEPALIVE; periods are the config's."""
        self.keepalive = on
        if self.state is TcpState.ESTABLISHED or self.state is TcpState.CLOSE_WAIT:
            self.keep_at = now + self.config.keepalive_time if on else inf
            arm(self, self.keep_at)

    def successor_iss(self, buf: bytes | bytearray, l4: int) -> int | None:
        """In TIME_WAIT: the ISS for the new connection that this SYN may open in our place, else None (RFC 6191, Linux)."""
        segment = parse(buf, l4)
        return None if segment is None else timewait.successor_iss(self, segment)
