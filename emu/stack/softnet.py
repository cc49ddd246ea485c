"""What all namespaces of one node share: the backlog, the timers, the time. Linux's per-CPU softnet_data.

Same-node delivery (lo, veth) appends to the backlog, and the lock's holder drains it in a loop (`netif_rx`), so that no
packet's path recurses into another's. Decides order only. Guarded by the node's one lock, like everything in this package.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from emu.trace import Hop

if TYPE_CHECKING:
    from emu.netfilter.conn import Conn
    from emu.stack.device import Device
    from emu.stack.shortcut_entry import Entry
    from emu.stack.sockets import Socket

Receive = Callable[[bytes, int, int], None]
"""Takes a packet's bytes, its gso_size (0: not a GSO packet) and its trace id (0: not traced)."""

INFINITY = float("inf")


class Timed(Protocol):
    """Something with a deadline of its own; `armed` is what the heap knows of it, which may be earlier."""

    armed: float

    def poll_at(self) -> float: ...
    def on_timer(self, now: float) -> None: ...


class Softnet:
    """One node's backlog, timers and pending handlers.

    `now` is the time of the current entry into the stack; `checks` makes every delivery assert its ownership (test build);
    `wake` is called when the earliest deadline moves forward, so that the shell can re-arm whoever sleeps to it.
    """

    def __init__(self, node: str, seed: int = 0, *, checks: bool = False) -> None:
        self.node = node
        self.now = 0.0
        self.checks = checks
        self.rng = random.Random(f"{seed}/{node}")
        self.backlog: deque[tuple[Receive, bytes, int, int]] = deque()
        self.due: deque[Socket] = deque()  # sockets whose event handler must run once the lock is free
        self.flush: Callable[[], None] | None = None  # set while the underlay has packets queued for the carrier
        self.queued_at = 0.0  # since when,
        self.queued_bytes = 0  # and how much
        self.shortcuts: dict[bytes, Entry] = {}  # from the underlay straight to sockets
        self.tapped = 0  # taps on devices of this node (`tap`)
        self.generation = 0  # moves whenever a namespace of this node is reconfigured
        self.device_added: list[Callable[[Device], None]] = []  # told of every new device of any namespace
        self.hops: list[Hop] = []
        self.traced: dict[int, list[Conn]] = {}  # the connections that a traced request has made, so that they can be forgotten
        self.hops_recorded: Callable[[], None] = lambda: None  # called at the first hop since they were taken
        self.wake: Callable[[float], None] = lambda deadline: None
        self._hop_seq = 0
        self._timers: list[tuple[float, int, Timed]] = []
        self._timer_seq = 0
        self.horizon = INFINITY  # the earliest deadline in the heap, cheap to read

    def run(self) -> None:
        """Drain the backlog, then hand what is queued for other nodes to the carrier: a lone packet never waits."""
        backlog = self.backlog
        while backlog:
            receive, data, gso_size, trace = backlog.popleft()
            receive(data, gso_size, trace)
        if self.flush is not None:
            self.flush()

    def arm(self, timed: Timed, deadline: float) -> None:
        """Make sure `timed.on_timer` is looked at no later than `deadline`. A later deadline than the armed one costs nothing:
        the heap's entry comes up early, finds `poll_at()` moved, and goes back."""
        if deadline >= timed.armed:
            return
        timed.armed = deadline
        self._timer_seq += 1
        heapq.heappush(self._timers, (deadline, self._timer_seq, timed))
        if deadline < self.horizon:
            self.horizon = deadline
            self.wake(deadline)

    def expire(self) -> None:
        """Run every timer that is due at `now`."""
        timers, now = self._timers, self.now
        while timers and timers[0][0] <= now:
            at, _, timed = heapq.heappop(timers)
            if timed.armed != at:
                continue  # armed again for an earlier time, which has come up already
            timed.armed = INFINITY
            deadline = timed.poll_at()
            if deadline <= now:
                timed.on_timer(now)
                deadline = timed.poll_at()
            if deadline < INFINITY:
                self.arm(timed, deadline)
        self.horizon = timers[0][0] if timers else INFINITY

    def next_hop_seq(self) -> int:
        self._hop_seq += 1
        return self._hop_seq
