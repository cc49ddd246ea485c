"""Round-trip time and retransmission timeout. Decides how long to wait for an ACK; RFC 6298 as Linux's `tcp_rtt_estimator`.

Linux's differences: the variance term is never below `rto_min` (so RTO >= srtt + 200 ms), it falls only once a round trip,
and a sample far below the mean widens it by an eighth of the usual gain. All times are seconds.
"""

from __future__ import annotations

import math

TIMEOUT_MIN = 0.002  # Linux's TCP_TIMEOUT_MIN_US: what a timer adds, lest it fire before what it waits for


class RttEstimator:
    """`srtt` is 0 until the first sample; `rto` is without backoff; `min_rtt` is the smallest sample ever."""

    __slots__ = ("_mdev", "_mdev_max", "_next", "_rto_max", "_rto_min", "_rttvar", "min_rtt", "rto", "srtt")

    def __init__(self, rto_initial: float, rto_min: float, rto_max: float) -> None:
        self.srtt = 0.0
        self.rto = rto_initial
        self.min_rtt = math.inf
        self._mdev = self._mdev_max = self._rttvar = 0.0  # all times four, as `rto` adds them
        self._next = 0.0
        self._rto_min, self._rto_max = rto_min, rto_max

    @property
    def pto(self) -> float:
        """How long to wait before the tail of more than one segment is probed (RFC 8985, 7.2), never longer than `rto`."""
        return min(2 * self.srtt + TIMEOUT_MIN, self.rto) if self.srtt else self.rto

    def sample(self, rtt: float, now: float) -> None:
        """Take one measurement, of a segment that was sent once. Written out: it runs for every ACK."""
        if rtt < self.min_rtt:
            rtt = max(rtt, 1e-6)
            self.min_rtt = rtt
        srtt = self.srtt
        if srtt:
            error = rtt - srtt
            self.srtt = srtt = srtt + error * 0.125
            if error < 0.0:
                excess = -error - self._mdev * 0.25
                if excess > 0.0:
                    excess *= 0.125
            else:
                excess = error - self._mdev * 0.25
            self._mdev = mdev = self._mdev + excess
            if mdev > self._mdev_max:
                self._mdev_max = mdev
                self._rttvar = max(self._rttvar, mdev)
            if now >= self._next:
                if self._mdev_max < self._rttvar:
                    self._rttvar -= (self._rttvar - self._mdev_max) * 0.25
                self._next = now + srtt
                self._mdev_max = self._rto_min
        else:
            self.srtt = srtt = rtt
            self._mdev = 2 * rtt
            self._rttvar = self._mdev_max = max(self._mdev, self._rto_min)
            self._next = now + rtt
        self.rto = min(srtt + self._rttvar, self._rto_max)
