"""The transmission control block: everything one connection remembers (RFC 9293, 3.3.1). Decides nothing but its start.

The files around it are functions over this one object, as Linux's tcp_input.c, tcp_output.c and tcp_timer.c are over
`struct tcp_sock`; `Connection` is this object with the calls the stack makes. Names are Linux's or the RFC's.

Invariants, asserted by `info.check`: snd_una <= snd_nxt, and the scoreboard covers exactly that span; the right edge of the
receive window never moves left; `deadline` is never later than any timer; `fast` implies all that `update_fast` demands.
"""

from __future__ import annotations

from math import inf

from emu.tcp import options
from emu.tcp.config import Event, Recovery, TcpConfig, TcpState
from emu.tcp.congestion import Cubic
from emu.tcp.reassembly import Reassembly
from emu.tcp.receive_buffer import ReceiveBuffer
from emu.tcp.rtt import RttEstimator
from emu.tcp.scoreboard import Scoreboard
from emu.tcp.segment import IPV4_TCP, TIMESTAMP_SIZE, route
from emu.tcp.send_buffer import SendBuffer
from emu.tcp.seq import MASK
from emu.wire.addr import SockAddr

MAX_PACKET = 65485  # IPv4 total length that VXLAN's 50 bytes still fit over
DEFAULT_MSS = 536  # RFC 9293, 3.7.1
MIN_MSS = 48  # Linux's tcp_min_snd_mss
MAX_WINDOW = 65535


class Tcb:
    """State shared by the whole machine; what the stack may read is documented at `Connection`."""

    __slots__ = (
        "ack_on_read",
        "ack_pending",
        "advertised_mss",
        "backoff",
        "board",
        "burst",
        "cc",
        "closed",
        "config",
        "copied",
        "corked",
        "cwnd_limited",
        "deadline",
        "delack_at",
        "done",
        "doubt",
        "drs_at",
        "drs_mark",
        "dsack",
        "dsack_seen",
        "dsacks",
        "dupacks",
        "embryo",
        "eof",
        "error",
        "established",
        "events",
        "fast",
        "fin_queued",
        "fin_sent",
        "heard_at",
        "high_seq",
        "invalid_at",
        "irs",
        "iss",
        "keep_at",
        "keepalive",
        "last_ack_sent",
        "last_data_at",
        "last_sent_at",
        "last_tsecr",
        "local",
        "max_window",
        "mss",
        "mtu",
        "nodelay",
        "open_field",
        "orphan",
        "out",
        "out_of_order",
        "peer_fin",
        "peer_mss",
        "pingpong",
        "prior_cwnd",
        "probes_out",
        "probing",
        "prr_delivered",
        "prr_out",
        "pushed",
        "quick",
        "rack_at",
        "rack_end",
        "rack_rtt",
        "rcv_adv",
        "rcv_limit",
        "rcv_mss",
        "rcv_nxt",
        "rcv_shift",
        "readable",
        "received",
        "recovery",
        "remote",
        "reo_adapted_at",
        "reo_at",
        "reo_persist",
        "reo_steps",
        "reordering",
        "retrans_stamp",
        "retransmitted",
        "retries",
        "retry_since",
        "route",
        "rto_at",
        "rtt",
        "sack_on",
        "sent",
        "snd_nxt",
        "snd_shift",
        "snd_sml",
        "snd_una",
        "snd_wl1",
        "snd_wnd",
        "sndbuf",
        "soft_error",
        "state",
        "syn_at",
        "syn_window",
        "tail_repeated",
        "tail_seq",
        "ts_offset",
        "ts_on",
        "ts_recent",
        "ts_recent_at",
        "undo_cwnd",
        "undo_marker",
        "undo_retrans",
        "undo_ssthresh",
        "unsent",
        "urgent",
        "writable",
    )  # fmt: skip

    def __init__(self, local: SockAddr, remote: SockAddr, iss: int, mtu: int, config: TcpConfig) -> None:
        self.local, self.remote, self.config = local, remote, config
        self.route = route(local, remote)
        self.out: list[tuple[bytes, int]] = []
        self.events = 0
        self.state = TcpState.CLOSED
        self.error = self.soft_error = 0
        self.readable = self.writable = self.established = self.closed = self.orphan = False
        self.nodelay, self.keepalive, self.corked = config.nodelay, config.keepalive, False
        self._start_sending(iss, mtu)
        self._start_receiving()
        self._start_recovery()
        self._start_timers()

    def _start_sending(self, iss: int, mtu: int) -> None:
        config = self.config
        self.iss = self.snd_una = self.snd_nxt = self.snd_sml = self.pushed = iss & MASK
        self.mtu = mtu
        self.advertised_mss = mtu - IPV4_TCP
        self.peer_mss = DEFAULT_MSS
        self.mss = self.burst = min(DEFAULT_MSS, self.advertised_mss)  # payload of a segment, and of a packet
        self.snd_wnd = self.max_window = self.snd_wl1 = self.snd_shift = 0
        self.sndbuf = config.sndbuf
        self.unsent = SendBuffer()
        self.board = Scoreboard()
        self.sent = self.board.sent
        self.fin_queued = self.fin_sent = False
        self.cc = Cubic(self.mss, config.init_cwnd)
        self.cwnd_limited = False
        self.rtt = RttEstimator(config.rto_initial, config.rto_min, config.rto_max)
        self.ts_offset = (self.iss * 0x9E3779B1 ^ self.local.port << 16 ^ self.remote.port) & MASK  # RFC 7323, 7.1: not guessable
        self.last_sent_at = -inf
        self.retransmitted = 0

    def _start_receiving(self) -> None:
        config = self.config
        self.irs = self.rcv_nxt = self.rcv_adv = self.last_ack_sent = 0
        self.rcv_shift = config.wscale if config.window_scaling else 0
        self.rcv_limit = self.open_field = self.syn_window = 0
        self.embryo = False  # whether a listener's SYN began it (Linux's request socks)
        set_receive_limit(self, min(config.rcvbuf_initial >> 1, config.rcvbuf))
        self.rcv_mss = self.mss
        self.received = ReceiveBuffer()
        self.out_of_order = Reassembly()
        self.dsack: tuple[int, int] | None = None
        self.peer_fin: int | None = None  # the position of the peer's FIN, once heard of
        self.urgent: int | None = None  # the position of its urgent byte, while that is to come
        self.eof = False  # whether a read that finds nothing is told the end,
        self.done = False  # and whether that is because the peer has finished (Linux's SOCK_DONE)
        self.copied, self.drs_mark, self.drs_at = 0, self.rcv_limit >> 1, -inf
        self.ts_on, self.sack_on = config.timestamps, config.sack
        self.ts_recent = self.last_tsecr = 0
        self.ts_recent_at = -inf
        self.ack_pending = self.ack_on_read = self.pingpong = False
        self.quick = config.quickacks
        self.last_data_at = self.heard_at = -inf

    def _start_recovery(self) -> None:
        self.recovery = Recovery.OPEN
        self.fast = False
        self.high_seq = self.dupacks = 0
        self.prior_cwnd = self.prr_delivered = self.prr_out = 0
        self.rack_at, self.rack_end, self.rack_rtt = -inf, 0, 0.0
        self.reordering = self.dsack_seen = False
        self.reo_steps, self.reo_persist, self.reo_adapted_at = 1, 0, -inf
        self.dsacks = 0
        self.doubt = 0  # F-RTO's, see `undo.Doubt`
        self.undo_marker: int | None = None  # `snd_una` when the window was last reduced, until that cannot be taken back
        self.undo_retrans = self.undo_cwnd = self.undo_ssthresh = 0
        self.retrans_stamp: int | None = None  # the timestamp of the first retransmission since
        self.tail_seq: int | None = None  # `snd_nxt` when the tail was last probed, until that is answered,
        self.tail_repeated = False  # and whether with what had been sent before

    def _start_timers(self) -> None:
        self.deadline = self.rto_at = self.reo_at = self.delack_at = self.keep_at = inf
        self.syn_at = 0.0
        self.retries = self.backoff = self.probes_out = 0
        self.probing = False
        self.retry_since = 0.0
        self.invalid_at = -inf


def update_fast(t: Tcb) -> None:
    """Say whether the next segment may be predicted: established, all in order, nothing lost, nothing to be watched."""
    t.fast = (
        t.state is TcpState.ESTABLISHED
        and t.ts_on
        and t.recovery is Recovery.OPEN
        and t.board.order is None
        and not (t.board.sacked or t.board.lost or t.dupacks or t.retries or t.probing or t.probes_out)
        and not (t.out_of_order or t.fin_queued or t.orphan or t.corked)
        and t.tail_seq is None
        and t.peer_fin is None
        and t.urgent is None
    )


def timestamp(t: Tcb, now: float) -> int:
    """The timestamp clock: milliseconds from an offset of the connection's own (Linux's since 4.13)."""
    return int(now * 1000.0) + t.ts_offset & MASK


def arm(t: Tcb, at: float) -> None:
    """Some timer now stands at `at`. A timer that is put off leaves `deadline` early: its call then finds nothing due."""
    t.deadline = min(t.deadline, at)


def set_mss(t: Tcb) -> None:
    """Derive segment and packet payloads from the path's MTU, the peer's MSS and the options on every segment."""
    stamp = TIMESTAMP_SIZE if t.ts_on else 0
    t.mss = max(min(min(t.mtu, MAX_PACKET) - IPV4_TCP, t.peer_mss), MIN_MSS) - stamp  # lo's MTU is one byte more than a packet can have
    if t.max_window and t.mss > t.max_window >> 1:  # Linux's tcp_bound_to_half_wnd: else a small window never fits a segment
        t.mss = min(t.mss, max(t.max_window >> 1 if t.max_window > DEFAULT_MSS else t.max_window, 68 - IPV4_TCP - stamp))
    t.burst = max((MAX_PACKET - IPV4_TCP - stamp) // t.mss, 1) * t.mss if t.config.gso else t.mss
    t.rcv_mss = max(t.advertised_mss, MIN_MSS) - stamp
    t.cc.on_mss(t.mss)


def agree(t: Tcb, opts: options.Options) -> None:
    """Settle the options of both sides from the peer's SYN; an option that only one side sent is off for both."""
    t.peer_mss = max(opts.mss or DEFAULT_MSS, MIN_MSS)
    t.ts_on = t.ts_on and opts.tsval is not None
    t.sack_on = t.sack_on and opts.sack_permitted
    if opts.wscale is not None and t.config.window_scaling:
        t.snd_shift = opts.wscale
    else:
        t.snd_shift = t.rcv_shift = 0
    if t.ts_on:
        t.ts_recent = opts.tsval or 0
    t.cc = Cubic(t.mss, t.config.init_cwnd)
    set_mss(t)
    t.cc.cwnd = t.cc.initial = t.config.init_cwnd * t.mss
    set_receive_limit(t, t.syn_window)


def open_window(t: Tcb, *, stamped: bool) -> None:
    """The window that the SYN offers: whole segments, never scaled (Linux's `tcp_select_initial_window`)."""
    segment = t.advertised_mss - (TIMESTAMP_SIZE if stamped else 0)
    space = min(t.config.rcvbuf_initial >> 1, t.config.rcvbuf)
    t.syn_window = min(space // segment * segment or space, MAX_WINDOW)
    set_receive_limit(t, t.syn_window)


def set_receive_limit(t: Tcb, limit: int) -> None:
    """The receive window when nothing waits to be read; only ever grows once established."""
    t.open_field = min(-(-limit >> t.rcv_shift), MAX_WINDOW)
    t.rcv_limit = t.open_field << t.rcv_shift


def become_established(t: Tcb, now: float) -> None:
    t.state = TcpState.ESTABLISHED
    t.established = t.writable = True
    t.events |= Event.CONNECTED | Event.WRITABLE
    t.retries = t.backoff = 0
    t.rto_at = inf
    t.heard_at = now
    if t.keepalive:
        t.keep_at = now + t.config.keepalive_time
        arm(t, t.keep_at)
