"""What the socket API needs from whoever runs the stack.

`node` implements it twice: leader/follower over a real carrier, and a baton on a manual clock. The pod API is written
against this Protocol alone, which is why the same program runs under both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from emu.stack.sockets import Waiter


class Kernel(Protocol):
    """The node's one lock and the ways to wait under it.

    Every call into the stack stands between `enter` and `leave`. `leave` drains the backlog, flushes devices (or sees that they
    are soon, when calls come thick and fast), releases the lock and then runs the handlers that became due. A thread that must
    wait registers a `Waiter` on its socket and calls `wait` with the lock held; the lock is held again on return.
    """

    def enter(self) -> float:
        """Take the lock; returns the time, which is also the stack's `now` until `leave`."""

    def leave(self) -> None:
        """Send what is queued, release the lock, run due handlers."""

    def wait(self, waiter: Waiter, deadline: float | None) -> bool:
        """Sleep until `waiter` is set (True) or `deadline` passes (False). The lock is released meanwhile."""

    def now(self) -> float:
        """The time, without the lock."""

    def spawn(self, name: str, run: Callable[[], None]) -> None:
        """Run `run` in a thread of its own (of the baton, in-process)."""
