"""Timers are armed lazily and lose nothing: against a list that is searched at every step."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from emu.stack.softnet import INFINITY, Softnet


class Timed:
    """A deadline of its own, which its owner may move at any time; fires once and rests."""

    def __init__(self, softnet: Softnet, on_fire: Callable[[Timed], None] = lambda timed: None) -> None:
        self.softnet, self.on_fire = softnet, on_fire
        self.at = self.armed = INFINITY
        self.fired: list[float] = []

    def set(self, at: float) -> None:
        """What a socket does after each segment."""
        self.at = at
        if at < self.armed:
            self.softnet.arm(self, at)

    def poll_at(self) -> float:
        return self.at

    def on_timer(self, now: float) -> None:
        self.at = INFINITY
        self.fired.append(now)
        self.on_fire(self)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 3), st.integers(0, 40)),  # which timer, how far ahead
        st.tuples(st.just("cancel"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("pass"), st.just(0), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(STEPS)
def test_every_timer_fires_when_due_and_never_else(steps: list[tuple[str, int, int]]) -> None:
    softnet = Softnet("node")
    timers = [Timed(softnet) for _ in range(4)]
    due = [INFINITY] * 4
    expected: list[list[float]] = [[] for _ in range(4)]
    for verb, index, amount in steps:
        if verb == "set":
            due[index] = softnet.now + amount
            timers[index].set(due[index])
        elif verb == "cancel":
            due[index] = timers[index].at = INFINITY
        else:
            end = softnet.now + amount
            while softnet.horizon <= end:  # a shell sleeps to the horizon, however early that proves to be
                softnet.now = max(softnet.now, softnet.horizon)
                softnet.expire()
            softnet.now = end
            for number, at in enumerate(due):
                if at <= end:
                    expected[number].append(at)
                    due[number] = INFINITY
        assert softnet.horizon <= min(due), "somebody's deadline would be slept through"
    for timer, times in zip(timers, expected, strict=True):
        assert timer.fired == times


def test_a_later_deadline_costs_nothing_and_an_earlier_one_wakes() -> None:
    softnet, woken = Softnet("node"), []
    softnet.wake = woken.append
    timer = Timed(softnet)
    timer.set(5.0)
    for ahead in range(100):
        timer.set(6.0 + ahead)
    assert (woken, len(softnet._timers)) == ([5.0], 1)
    timer.set(2.0)
    assert woken == [5.0, 2.0]
    Timed(softnet).set(3.0)  # not the earliest: whoever sleeps to the horizon looks then anyway
    assert woken == [5.0, 2.0]


def test_an_entry_that_comes_up_early_goes_back_without_firing() -> None:
    softnet = Softnet("node")
    timer = Timed(softnet)
    timer.set(1.0)
    timer.set(9.0)
    softnet.now = 1.0
    softnet.expire()
    assert timer.fired == []
    assert softnet.horizon == 9.0


def test_timers_that_set_one_another_fire_in_the_same_look_if_due() -> None:
    softnet = Softnet("node")
    second = Timed(softnet)
    first = Timed(softnet, lambda timed: second.set(softnet.now))
    first.set(1.0)
    softnet.now = 2.0
    softnet.expire()
    assert (first.fired, second.fired) == ([2.0], [2.0])
    assert softnet.horizon == INFINITY


def test_what_packets_cause_waits_its_turn_in_the_backlog_and_the_flush_comes_last() -> None:
    softnet, order = Softnet("node"), []

    def receive(data: bytes, gso_size: int, trace: int) -> None:
        order.append(data)
        if data == b"a":
            softnet.backlog.append((receive, b"caused by a", 0, 0))

    softnet.flush = lambda: order.append(b"flush")
    softnet.backlog += [(receive, b"a", 0, 0), (receive, b"b", 0, 0)]
    softnet.run()
    assert order == [b"a", b"b", b"caused by a", b"flush"]
