"""The other kernel: every container thread of every node of one process, exactly one of which runs at a time, on a manual clock.

Whoever drives the process (its one other thread) hands the baton to a thread that can go on, in the order in which the threads
began, and has it back when that thread waits again or ends; time stands still meanwhile. So the same program gives the same run,
to the packet, and there is nothing to lock. Decides who runs next; what time it becomes then is the driver's.

A program that blocks outside the pod API (a real `time.sleep`, a real socket) would stop the world: after `PATIENCE` real seconds
that is an error which names it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from emu.errors import PodwireError
from emu.stack.sockets import Waiter
from emu.stack.softnet import INFINITY, Softnet

PATIENCE = 1.0  # real seconds a program may run without calling the pod API


class Clock(Protocol):
    """Anything that tells the time of this world."""

    def now(self) -> float: ...


class BlockedProgram(PodwireError):
    """A program blocks where the emulator cannot see it."""


class _Turn:
    """One container thread: what it waits for, and the lock that it sleeps on (held while it does not run)."""

    __slots__ = ("deadline", "go", "kernel", "name", "waiter")

    def __init__(self, name: str, kernel: BatonKernel) -> None:
        self.name, self.kernel = name, kernel
        self.go = threading.Lock()
        self.go.acquire()
        self.waiter: Waiter | None = None  # None: it has not begun
        self.deadline = INFINITY

    def ready(self, now: float) -> bool:
        return not self.kernel.paused and (self.waiter is None or self.waiter.ready or self.deadline <= now)


class Baton:
    """The threads of one process. `run` is the driver's alone; everything else is called by whoever has the baton."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._turns: list[_Turn] = []
        self._running: _Turn | None = None
        self._back = threading.Lock()
        self._back.acquire()

    def run(self) -> bool:
        """Let every thread that can go on do so, once; did any? BlockedProgram if one does not come back: then none goes on any more."""
        able = [turn for turn in self._turns if turn.ready(self.clock.now())] if self._running is None else []
        for turn in able:
            self._running = turn
            turn.go.release()
            if not self._back.acquire(timeout=PATIENCE):
                raise BlockedProgram(f"{turn.name} has run for {PATIENCE:g} s without a call of the pod API, which stops all others")
            self._running = None
        return bool(able)

    def next_at(self) -> float:
        """The earliest deadline of a thread that waits."""
        return min((turn.deadline for turn in self._turns if not turn.kernel.paused), default=INFINITY)

    @property
    def threads(self) -> int:
        """How many have not ended."""
        return len(self._turns)

    def spawn(self, name: str, kernel: BatonKernel, run: Callable[[], None]) -> None:
        turn = _Turn(name, kernel)
        self._turns.append(turn)

        def live() -> None:
            turn.go.acquire()
            try:
                run()
            finally:
                self._turns.remove(turn)
                self._back.release()

        threading.Thread(target=live, name=name, daemon=True).start()

    def wait(self, waiter: Waiter, deadline: float) -> None:
        """Give the baton back until the waiter is set or the deadline has come."""
        turn = self._running
        assert turn is not None, "only a container's thread may wait: whoever drives the world would wait for himself"
        turn.waiter, turn.deadline = waiter, deadline
        self._back.release()
        turn.go.acquire()
        turn.deadline = INFINITY


class BatonKernel:
    """The `pod.kernel.Kernel` of one node among those that share a baton. While `paused`, none of its threads is handed it."""

    def __init__(self, softnet: Softnet, baton: Baton) -> None:
        self.softnet, self._baton = softnet, baton
        self._handling = self.paused = False

    def now(self) -> float:
        return self._baton.clock.now()

    def enter(self) -> float:
        self.softnet.now = now = self._baton.clock.now()
        return now

    def leave(self) -> None:
        """Send what is queued, then run the handlers that became due, one at a time and never nested."""
        softnet = self.softnet
        softnet.run()
        if self._handling:
            return
        self._handling = True
        try:
            while softnet.due:
                sock = softnet.due.popleft()
                sock.event_queued = False
                if sock.on_event is not None:
                    sock.on_event(sock)
                softnet.run()
        finally:
            self._handling = False

    def wait(self, waiter: Waiter, deadline: float | None) -> bool:
        self.leave()
        until = INFINITY if deadline is None else deadline
        if not waiter.ready and until > self._baton.clock.now():
            self._baton.wait(waiter, until)
        self.enter()
        ready, waiter.ready = waiter.ready, False
        return ready

    def spawn(self, name: str, run: Callable[[], None]) -> None:
        self._baton.spawn(f"{self.softnet.node}/{name}", self, run)

    def expire(self) -> None:
        """Run the timers that are due."""
        self.enter()
        self.softnet.expire()
        self.leave()
