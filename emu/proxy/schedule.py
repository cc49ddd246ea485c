"""When to sync. Decides the moment; what a sync does is `syncer`'s.

Guarantees: a change is synced at once if the last sync is at least `min_interval` old, else as soon as it is; any number
of changes in between cost one sync; nothing pending means no sync. `burst` syncs may come back to back, then one a
`min_interval` (a token bucket; kube-proxy had 2 up to 1.33 and has 1 since).
Spec: kubernetes `pkg/proxy/runner` (BoundedFrequencyRunner).
"""

from __future__ import annotations


class SyncSchedule:
    """A bounded-frequency runner without a clock: `on_change`, then `due`, then `ran`. Times in seconds."""

    def __init__(self, min_interval: float, burst: int = 1) -> None:
        assert min_interval >= 0
        assert burst >= 1
        self._interval, self._burst = min_interval, burst
        self._tokens, self._counted_at = float(burst), float("-inf")
        self._due_at: float | None = None

    def on_change(self, now: float) -> None:
        """Something must be synced; the time of the earliest change stands."""
        if self._due_at is None:
            self._due_at = now + self._wait(now)

    def on_nothing(self) -> None:
        """What was pending has been taken back."""
        self._due_at = None

    def poll_at(self) -> float | None:
        """When the next sync is due; None if nothing is pending."""
        return self._due_at

    def due(self, now: float) -> bool:
        return self._due_at is not None and now >= self._due_at

    def ran(self, now: float) -> None:
        """A sync has just taken in everything that was pending."""
        self._tokens = max(self._level(now) - 1, 0.0)
        self._counted_at = now
        self._due_at = None

    def _level(self, now: float) -> float:
        if self._interval == 0 or self._counted_at == float("-inf"):
            return float(self._burst)
        return min(self._burst, self._tokens + (now - self._counted_at) / self._interval)

    def _wait(self, now: float) -> float:
        return max(0.0, (1 - self._level(now)) * self._interval)
