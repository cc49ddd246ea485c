"""What may be known of a connection: Linux's TCP_INFO, as `ss -ti` prints it, and the invariants that tests assert."""

from __future__ import annotations

from dataclasses import dataclass

from emu.tcp.config import TcpState
from emu.tcp.output import in_flight
from emu.tcp.scoreboard import LOST, RETRANS, SACKED
from emu.tcp.tcb import Tcb


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """A snapshot. Bytes and seconds; `rto` is with backoff left out; `ssthresh` is huge until the first loss."""

    state: TcpState
    mss: int
    cwnd: int
    ssthresh: int
    in_flight: int
    unsent: int
    unread: int
    srtt: float
    rto: float
    backoff: int
    retransmitted: int
    sacked: int
    lost: int
    rcv_window: int
    snd_window: int

    @classmethod
    def of(cls, t: Tcb) -> TcpInfo:
        board = t.board
        return cls(
            t.state, t.mss, t.cc.cwnd, t.cc.ssthresh, in_flight(t), t.unsent.size, t.received.size, t.rtt.srtt, t.rtt.rto, t.backoff,
            t.retransmitted, board.sacked, board.lost, t.rcv_adv - t.rcv_nxt, t.snd_wnd,
        )  # fmt: skip


def check(t: Tcb) -> None:
    """Assert what must hold between any two calls."""
    board, position = t.board, t.snd_una
    assert t.snd_una <= t.snd_nxt
    for entry in t.sent:
        assert entry.seq == position < entry.end, "the scoreboard has a gap"
        position = entry.end
    if t.state not in (TcpState.SYN_SENT, TcpState.SYN_RECV):
        assert position == t.snd_nxt, "the scoreboard ends early"
    for mark, counted in ((SACKED, board.sacked), (LOST, board.lost), (RETRANS, board.retrans)):
        assert counted == sum(entry.end - entry.seq for entry in t.sent if entry.mark & mark), f"mark {mark} is miscounted"
    assert board.sacked_entries == sum(1 for entry in t.sent if entry.mark & SACKED)
    assert t.received.size == sum(map(len, t.received.chunks))
    assert t.cc.cwnd >= t.cc.mss > 0
    assert in_flight(t) >= 0
    assert t.deadline <= min(t.rto_at, t.reo_at, t.delack_at, t.keep_at), "a timer would be missed"
    assert t.closed == (t.state is TcpState.CLOSED)
