"""Congestion control. Decides how many bytes may be in flight: CUBIC (RFC 9438), Linux's default, over slow start (RFC 5681).

It hears of acknowledged bytes, of loss and of time, and knows nothing of segments' fate: how the window shrinks while loss
is repaired is `recovery`'s. Left out of Linux's: HyStart.
"""

from __future__ import annotations

UNLIMITED = 1 << 40

_C = 0.4  # RFC 9438, 5.1: segments / s^3
_BETA = 0.7
_ALPHA = 3 * (1 - _BETA) / (1 + _BETA)  # growth that makes W_est as fast as Reno with beta 0.7 (4.3)


class Cubic:
    """`cwnd` and `ssthresh` are whole bytes, never below one and two segments of `mss` bytes."""

    __slots__ = ("_credit", "_epoch", "_k", "_origin", "_w_est", "_w_max", "cwnd", "initial", "mss", "ssthresh")

    def __init__(self, mss: int, segments: int) -> None:
        self.mss = mss
        self.initial = self.cwnd = segments * mss
        self.ssthresh = UNLIMITED
        self._w_max = self._origin = self._k = self._w_est = self._credit = 0.0
        self._epoch: float | None = None  # when this stretch of congestion avoidance began

    def on_ack(self, acked: int, now: float, rtt: float) -> None:
        """`acked` more bytes arrived while the window was what held the sender back."""
        if self.cwnd < self.ssthresh:
            grown = min(self.cwnd + acked, self.ssthresh)
            acked -= grown - self.cwnd
            self.cwnd = grown
        if acked > 0:
            self._avoid_congestion(acked, now, rtt)

    def _avoid_congestion(self, acked: int, now: float, rtt: float) -> None:
        cwnd, mss = self.cwnd, self.mss
        if self._epoch is None:
            self._epoch, self._w_est, self._origin = now, float(cwnd), max(self._w_max, float(cwnd))
            self._k = ((self._origin - cwnd) / mss / _C) ** (1 / 3)
        ahead = now - self._epoch + rtt - self._k
        target = min(self._origin + _C * ahead**3 * mss, 1.5 * cwnd)
        self._w_est += (_ALPHA if self._w_est < self._w_max else 1.0) * mss * acked / cwnd
        growth = (target - cwnd) * acked / cwnd if target > cwnd else mss * acked / (100.0 * cwnd)
        self._credit += max(growth, self._w_est - cwnd - self._credit)
        whole = int(self._credit)
        self.cwnd += whole
        self._credit -= whole

    def on_loss(self) -> None:
        """Loss was found: set `ssthresh` for its repair (RFC 9438, 4.6 and 4.7). The caller brings `cwnd` down to it."""
        cwnd = self.cwnd
        self._w_max = cwnd * (1 + _BETA) / 2 if cwnd < self._w_max else float(cwnd)
        self.ssthresh = max(int(cwnd * _BETA), 2 * self.mss)
        self._epoch = None
        self._credit = 0.0

    def restore(self, cwnd: int, ssthresh: int) -> None:
        """The reduction was needless: have at least what was there before."""
        self.cwnd = max(self.cwnd, cwnd)
        self.ssthresh = max(self.ssthresh, ssthresh)

    def on_timeout(self) -> None:
        """The retransmission timer fired: one segment may fly."""
        self.cwnd = self.mss
        self._epoch = None

    def on_idle(self, idle: float, rto: float) -> None:
        """Nothing was sent for `idle` > `rto` seconds: halve the window each RTO, down to the initial one (RFC 2861)."""
        if self.cwnd > self.initial:
            self.ssthresh = max(self.ssthresh, self.cwnd * 3 // 4)
            self.cwnd = max(self.cwnd >> min(int(idle / rto), 40), self.initial)
        self._epoch = None

    def on_mss(self, mss: int) -> None:
        """The path's MTU changed: keep the window's bytes, at least one segment."""
        self.mss = mss
        self.cwnd = max(self.cwnd, mss)
