"""A work queue. Decides which key comes next; pure, time is handed in.

Promises: a key waits at most once, however often it is added (a burst of changes is one reconcile); keys come in the order added;
a key that failed comes back after 5 ms, doubled each time up to 30 s, until it is forgotten; `add_at` wakes a key later, and the
earliest time wins. Spec: client-go util/workqueue (ItemExponentialFailureRateLimiter's 5 ms; its cap of 1000 s is for real clusters).
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

FIRST_RETRY, LAST_RETRY = 0.005, 30.0

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """Keys to look at."""

    def __init__(self) -> None:
        self._ready: dict[K, None] = {}
        self._later: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0
        self._failures: dict[K, int] = {}

    def add(self, key: K) -> None:
        self._ready[key] = None

    def add_at(self, key: K, at: float) -> None:
        """Add the key when it is `at`, unless it is to be woken earlier anyway."""
        if at < self._later.get(key, float("inf")):
            self._later[key] = at
            self._count += 1
            heapq.heappush(self._heap, (at, self._count, key))

    def retry(self, key: K, now: float) -> None:
        """The key failed."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_at(key, now + min(FIRST_RETRY * 2 ** min(failures, 20), LAST_RETRY))

    def forget(self, key: K) -> None:
        """The key succeeded."""
        self._failures.pop(key, None)

    def pop(self, now: float) -> K | None:
        """The next key to look at, None if there is none yet."""
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            if self._later.get(key) == at:
                del self._later[key]
                self._ready[key] = None
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        return key

    def next_at(self) -> float:
        """When to `pop` again: -inf if something is ready, inf if nothing waits."""
        if self._ready:
            return float("-inf")
        while self._heap and self._later.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else float("inf")

    @property
    def idle(self) -> bool:
        """Is nothing to be done now and nothing failing? Keys that only wait for their time do not count."""
        return not self._ready and not self._failures

    def __len__(self) -> int:
        return len(self._ready)
