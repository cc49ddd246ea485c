"""Leader/follower: how threads of a node take turns at the wire. Decides who receives, who sleeps and who runs handlers.

A container thread that waits for data becomes the reader of the node's carrier (the leader), processes whatever arrives
until its own data is there, and leaves; nobody hands packets from thread to thread. When no thread waits, the spare thread
reads. A vacated role is not announced: the spare looks every millisecond while the role changes hands, and sleeps untimed
after `QUIET_LOOKS` looks that found the same leader. Timers are the spare's, whether it leads or not.

Decides too when packets leave: at the end of the call that sent them, but in a rush, a program that sends and sends without ever
waiting, they are held for company, as network cards do it: a message costs ten times what a packet does. A wait ends a rush.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from emu.stack.sockets import Waiter
from emu.stack.softnet import INFINITY, Softnet

LOOK = 0.001  # seconds between the spare's looks while the role changes hands
QUIET_LOOKS = 20
RUSH = 16  # entries that send, one after the other and without a wait, after which packets travel together
HOLD, HOLD_BYTES = 250e-6, 8192  # how long, and how much of them; e1000e's interrupt moderation for bulk is 4,000 a second
HELD_AT_MOST = 0.001  # seconds until a timer lets go what a rush has left behind
FOREVER = 3600.0  # seconds; longer than any sleep that matters, and within what a semaphore takes
STACK_SIZE = 512 * 1024  # bytes of a container thread's C stack: Python frames live elsewhere


class Inbox(Protocol):
    """The receiving half of a carrier."""

    def recv(self) -> bytes: ...
    def recv_for(self, seconds: float) -> bytes: ...
    def wait_forever(self) -> None: ...
    def kick(self) -> None: ...


class Kicker:
    """What stands in `Waiter.parked` while the thread is the leader: waking it means kicking the carrier."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def release(self) -> None:
        self._inbox.kick()


class LeaderFollower:
    """The `pod.kernel.Kernel` of a real node.

    The one lock guards everything in `emu.stack` and `emu.netfilter` of this node: namespaces, sockets, conntrack, flow caches,
    the softnet; and here `leader`, `waiting`, `epoch`, `handling`. It is held for microseconds, never across a blocking call or
    a handler.
    """

    def __init__(self, softnet: Softnet, inbox: Inbox, receive: Callable[[bytes], None]) -> None:
        self.softnet, self._inbox, self._receive = softnet, inbox, receive
        self.lock = threading.Lock()
        self._kicker = Kicker(inbox)
        self._spare_waiter = Waiter()
        self._limit = _Limit(self._spare_waiter)
        self._held = _Held(softnet)
        self._rush = 0  # entries in a row that have sent something, since last anybody waited or anything came
        self._spare_sleep = threading.Lock()
        self._spare_sleep.acquire()
        self._spare_until = INFINITY  # when the spare will look by itself
        self.leader: Waiter | None = None
        self.waiting: list[Waiter] = []
        self.epoch = 0
        self.handling = False
        self.stopping = False
        self._pool: list[threading.Lock] = []
        softnet.wake = self._timer_moved
        self._spare = threading.Thread(target=self._run_spare, name="spare", daemon=True)

    def start(self) -> None:
        threading.stack_size(STACK_SIZE)
        self._spare.start()

    def stop(self) -> None:
        """End the spare thread; container threads must have been told already."""
        with self.lock:
            self.stopping = True
            self._wake_spare()
            if self.leader is not None:
                self._inbox.kick()
        self._spare.join(1.0)

    def now(self) -> float:
        return monotonic()

    def spawn(self, name: str, run: Callable[[], None]) -> None:
        threading.Thread(target=run, name=name, daemon=True).start()

    def enter(self) -> float:
        self.lock.acquire()
        self.softnet.now = now = monotonic()
        return now

    def leave(self) -> None:
        softnet = self.softnet
        try:
            if softnet.backlog or softnet.flush is not None:
                if self._rush < RUSH:
                    self._rush += 1
                    softnet.run()
                elif softnet.backlog or softnet.now - softnet.queued_at >= HOLD or softnet.queued_bytes >= HOLD_BYTES:
                    softnet.run()
                elif self._held.armed == INFINITY:
                    softnet.arm(self._held, softnet.now + HELD_AT_MOST)
            if softnet.due and not self.handling:
                self._handle()
        finally:
            self.lock.release()

    def _settle(self) -> None:
        """Let packets of the stack's own making go, and run the handlers that became due; the lock is held."""
        softnet = self.softnet
        if softnet.backlog or softnet.flush is not None:
            softnet.run()
        if softnet.due and not self.handling:
            self._handle()
            if softnet.flush is not None:
                softnet.run()

    def _handle(self) -> None:
        """Run due handlers, one at a time and never nested; the lock is held on entry and on return, but not meanwhile.

        What a handler raises is the caller's to die of; the node goes on.
        """
        softnet, lock = self.softnet, self.lock
        due = softnet.due
        self.handling = True
        try:
            while due:
                sock = due.popleft()
                sock.event_queued = False
                handler = sock.on_event
                if handler is None:
                    continue
                lock.release()
                try:
                    handler(sock)
                finally:
                    lock.acquire()
        finally:
            self.handling = False

    # ---- waiting ---------------------------------------------------------------------------------------------------------------

    def wait(self, waiter: Waiter, deadline: float | None) -> bool:
        softnet = self.softnet
        self._rush = 0
        self._settle()
        if deadline is not None and deadline <= softnet.now and not waiter.ready:
            return False
        while not waiter.ready:
            if self.leader is None:
                if self._lead(waiter, deadline):
                    waiter.ready = False
                    return False
            else:
                self._follow(waiter, deadline)
            if deadline is not None and softnet.now >= deadline:
                break
        ready, waiter.ready = waiter.ready, False
        return ready

    def _lead(self, waiter: Waiter, deadline: float | None) -> bool:
        """Read the wire until the waiter is set. The lock is held on entry and return. Was it the deadline that set it?"""
        lock, softnet, recv, receive = self.lock, self.softnet, self._inbox.recv, self._receive
        kicker, limit = self._kicker, self._limit
        self.leader = limit.waiter = waiter
        limit.fired = False
        if deadline is not None:
            limit.at = deadline
            softnet.arm(limit, deadline)
        self.epoch += 1
        while not waiter.ready:
            waiter.parked = kicker
            lock.release()
            message = recv()
            lock.acquire()
            waiter.parked = None
            softnet.now = monotonic()
            if message:
                self._rush = 0
                receive(message)
                self._settle()
        self.leader, limit.at = None, INFINITY
        self._hand_over()
        return limit.fired

    def _hand_over(self) -> None:
        """The role is vacant: a thread that sleeps takes it; the spare is told only if it does not look by itself.

        The heir may be awake already, because its data has come too or its time is up: then it hands on in its turn (`_follow`).
        """
        if self.waiting:
            heir = self.waiting[-1]
            parked, heir.parked = heir.parked, None
            if parked is not None:
                parked.release()
        elif self._spare_until > self.softnet.now + 2 * LOOK:
            self._wake_spare()

    def _follow(self, waiter: Waiter, deadline: float | None) -> None:
        """Sleep while another leads. The spare gives way to a container thread."""
        if self.leader is self._spare_waiter:
            self._spare_waiter.set()
        sleep = self._pool.pop() if self._pool else _locked()
        waiter.parked = sleep
        self.waiting.append(waiter)
        self.lock.release()
        woken = sleep.acquire(timeout=-1 if deadline is None else max(0.0, deadline - monotonic()))
        self.lock.acquire()
        self.waiting.remove(waiter)
        if woken or waiter.parked is sleep:
            self._pool.append(sleep)  # else it was released between the time-out and the lock, and is not clean
        waiter.parked = None
        self.softnet.now = now = monotonic()
        if self.leader is None and (waiter.ready or (deadline is not None and now >= deadline)):
            self._hand_over()  # this thread goes without having led

    # ---- the spare -------------------------------------------------------------------------------------------------------------

    def _timer_moved(self, deadline: float) -> None:
        """An earlier deadline than any before; the lock is held."""
        if deadline < self._spare_until:
            if self.leader is self._spare_waiter:
                self._spare_waiter.set()
            else:
                self._wake_spare()

    def _wake_spare(self) -> None:
        self._spare_until = 0.0
        if self._spare_sleep.locked():
            self._spare_sleep.release()

    def _run_spare(self) -> None:
        """What leaves the spare is a bug of ours, and it may hold the lock: the process dies of it, for its next life, rather
        than stand still."""
        try:
            self._take_turns()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _take_turns(self) -> None:
        softnet, lock = self.softnet, self.lock
        seen, quiet = -1, 0
        lock.acquire()
        while not self.stopping:
            softnet.now = monotonic()
            softnet.expire()
            softnet.run()
            if softnet.due and not self.handling:
                self._handle()
                continue
            if self.leader is None and not self.waiting and self.epoch == seen:
                self._lead_as_spare()
                if self.waiting:
                    self._hand_over()
                seen = -1
                continue
            quiet = quiet + 1 if self.leader is not None and self.epoch == seen else 0
            seen = self.epoch
            until = softnet.horizon
            if quiet <= QUIET_LOOKS:
                until = min(until, softnet.now + LOOK)
            self._spare_until = until
            lock.release()
            self._spare_sleep.acquire(timeout=min(FOREVER, max(0.0, until - monotonic())))
            lock.acquire()
        lock.release()

    def _lead_as_spare(self) -> None:
        """Read the wire while no container thread wants to, no longer than to the next timer."""
        lock, softnet, recv, receive = self.lock, self.softnet, self._inbox.recv_for, self._receive
        waiter, kicker = self._spare_waiter, self._kicker
        self.leader = waiter
        timeout = 0.0
        while not self.waiting and not self.stopping:
            now = softnet.now
            if softnet.horizon <= now:
                softnet.expire()
                self._settle()
            left = softnet.horizon - now
            if timeout > left + LOOK or timeout == 0.0:
                timeout = max(LOOK, left / 2 if left < 1.0 else left)  # halving: the socket's time-out changes rarely under traffic
            self._spare_until = now + timeout
            waiter.ready = False
            waiter.parked = kicker
            lock.release()
            message = recv(min(timeout, FOREVER))
            lock.acquire()
            waiter.parked = None
            softnet.now = monotonic()
            if message:
                self._rush = 0
                receive(message)
                self._settle()
            else:
                timeout = 0.0
        self.leader = None
        self._inbox.wait_forever()


class _Held:
    """What is held in a rush is not held for longer than `HELD_AT_MOST`, though nobody should call again."""

    def __init__(self, softnet: Softnet) -> None:
        self._softnet, self.armed = softnet, INFINITY

    def poll_at(self) -> float:
        softnet = self._softnet
        at = softnet.queued_at + HELD_AT_MOST
        return at if softnet.flush is not None or at > softnet.now else INFINITY  # in a rush it stays armed: arming wakes the spare

    def on_timer(self, now: float) -> None:
        self._softnet.run()


class _Limit:
    """The leader's time-out: it cannot leave `recv` by itself, so a timer sets its waiter. One for all leaders, armed lazily:
    a program that asks with a limit of a minute, ten thousand times, must not leave as many timers behind."""

    def __init__(self, waiter: Waiter) -> None:
        self.waiter, self.at, self.armed, self.fired = waiter, INFINITY, INFINITY, False

    def poll_at(self) -> float:
        return self.at

    def on_timer(self, now: float) -> None:
        self.at, self.fired = INFINITY, True
        self.waiter.set()


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock
