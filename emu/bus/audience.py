"""Who has heard what: the controller's book of the sequences that each node's leases carry. Pure; time is handed in.

Finds the nodes that miss updates without seeing a gap (a late subscription with no later update, an update dropped at a high-water
mark as the last of its kind): one whose lease is below what had been published a while before is ordered to resync. Also knows
how long an update took to be applied (the network programming latency that every node shows).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

PATIENCE = 2.0  # seconds that an update may be under way before a lease without it counts as behind
LATENCIES = 4096


@dataclass(slots=True)
class _Listener:
    applied: dict[str, int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)  # what had been published at `at`
    at: float = float("-inf")


class Audience:
    """One entry a node; `streams(node)` are those it should follow."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._listeners: dict[str, _Listener] = {}
        self._sent: dict[str, deque[tuple[int, float]]] = {}  # stream -> (sequence, when) of what may still be under way
        self.latencies: deque[float] = deque(maxlen=LATENCIES)
        self.resyncs = 0

    def on_publish(self, stream: str, sequence: int, now: float) -> None:
        self._sent.setdefault(stream, deque(maxlen=256)).append((sequence, now))

    def on_lease(self, node: str, applied: Mapping[str, int], published: Mapping[str, int], now: float) -> list[str]:
        """Take in a lease; the streams that the node must resync. `published` are the publisher's sequences now."""
        listener = self._listeners.setdefault(node, _Listener())
        for stream, sequence in applied.items():
            before = listener.applied.get(stream, -1)
            if 0 <= before < sequence:
                self.latencies.extend(now - at for sent, at in self._sent.get(stream, ()) if before < sent <= sequence)
        listener.applied = dict(applied)
        if now - listener.at < self._patience:
            return []
        late = [stream for stream in applied if applied[stream] < listener.published.get(stream, -1)]
        listener.published, listener.at = dict(published), now
        self.resyncs += len(late)
        return late

    def behind(self, node: str, published: Mapping[str, int]) -> int:
        """How many messages the node has yet to apply, by its last lease; those of streams it does not follow are not counted."""
        listener = self._listeners.get(node)
        if listener is None:
            return 0
        return sum(
            max(0, published.get(stream, 0) - max(sequence, 0)) if sequence >= 0 else 1 for stream, sequence in listener.applied.items()
        )

    def applied(self, node: str) -> dict[str, int]:
        """Stream -> last sequence applied, from the node's last lease."""
        listener = self._listeners.get(node)
        return dict(listener.applied) if listener else {}

    def forget(self, node: str) -> None:
        """The node is gone, or has started a new life: what it had is nothing."""
        self._listeners.pop(node, None)
