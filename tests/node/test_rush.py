"""What leaves together: a lone packet at once, packets of a rush in batches, and none stays for good."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from emu.node.kernel import HOLD_BYTES, RUSH, LeaderFollower
from emu.overlay.memory import MemoryNetwork
from emu.stack.sockets import Waiter
from emu.stack.softnet import Softnet


class Queue:
    """A device that queues, under a kernel of its own: how many packets left with each flush."""

    def __init__(self) -> None:
        self.softnet = Softnet("node-1")
        self.kernel = LeaderFollower(self.softnet, MemoryNetwork().carrier("me"), lambda _: None)
        self.kernel.start()
        self.left: list[int] = []
        self.queued = 0

    def send(self, size: int = 100) -> None:
        """A program's call that sends one packet."""
        self.kernel.enter()
        softnet = self.softnet
        if softnet.flush is None:
            softnet.flush = self._flush
            softnet.queued_at, softnet.queued_bytes = softnet.now, 0
        softnet.queued_bytes += size
        self.queued += 1
        self.kernel.leave()

    def _flush(self) -> None:
        self.left.append(self.queued)
        self.softnet.flush, self.queued = None, 0

    def rush(self) -> None:
        """As many calls as it takes; the next packet may be held."""
        for _ in range(RUSH):
            self.send()
        assert self.left == [1] * RUSH
        self.left.clear()


@pytest.fixture
def queue() -> Iterator[Queue]:
    queue = Queue()
    yield queue
    queue.kernel.stop()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves because its time is up: a busy machine is slow."""
    monkeypatch.setattr("emu.node.kernel.HOLD", 3600.0)
    monkeypatch.setattr("emu.node.kernel.HELD_AT_MOST", 3600.0)


def test_a_lone_packet_never_waits_and_neither_do_the_first_of_many(queue: Queue) -> None:
    queue.rush()


@pytest.mark.usefixtures("patient")
def test_in_a_rush_packets_travel_together(queue: Queue) -> None:
    queue.rush()
    for _ in range(HOLD_BYTES // 1000 + 1):
        queue.send(1000)
    assert queue.left == [HOLD_BYTES // 1000 + 1]


@pytest.mark.usefixtures("patient")
def test_who_waits_lets_go_what_was_held_and_ends_the_rush(queue: Queue) -> None:
    queue.rush()
    queue.send()
    assert queue.left == []
    now = queue.kernel.enter()
    assert not queue.kernel.wait(Waiter(), now)
    queue.kernel.leave()
    assert queue.left == [1]
    queue.send()
    assert queue.left == [1, 1]


def test_what_was_held_leaves_though_nobody_calls_again(queue: Queue) -> None:
    queue.rush()
    for _ in range(3):  # an armed timer that finds nothing, and one that finds something
        queue.send()
        end = time.monotonic() + 5
        while queue.queued:
            assert time.monotonic() < end, "it stays for good"
            time.sleep(0.001)
        time.sleep(0.003)
