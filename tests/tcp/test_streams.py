"""Whatever the network does and whenever the programs read and write, the bytes arrive as they were written."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from emu.tcp import Connection, TcpConfig, TcpState
from tests.kit.wire_pair import Pair, Weather

SWITCHES = st.builds(
    TcpConfig,
    gso=st.booleans(),
    sack=st.booleans(),
    timestamps=st.booleans(),
    window_scaling=st.booleans(),
    nodelay=st.booleans(),
    sndbuf=st.sampled_from([3000, 100_000, 4 << 20]),
    rcvbuf=st.sampled_from([8000, 200_000, 6 << 20]),
)
WEATHER = st.builds(
    Weather,
    delay=st.sampled_from([0.0, 0.0001, 0.02]),
    jitter=st.sampled_from([0.0, 0.001, 0.05]),
    loss=st.sampled_from([0.0, 0.02, 0.2]),
    duplicate=st.sampled_from([0.0, 0.1]),
    reorder=st.sampled_from([0.0, 0.05, 0.5]),
    split=st.booleans(),
)
STEP = st.one_of(
    st.tuples(st.just("write"), st.booleans(), st.integers(0, 60_000)),
    st.tuples(st.just("read"), st.booleans(), st.integers(1, 60_000)),
    st.tuples(st.just("wait"), st.booleans(), st.sampled_from([1, 40, 1000, 30_000])),
    st.tuples(st.just("shutdown"), st.booleans(), st.just(0)),
)


class Side:
    """One program: what it has written and read so far, of data that its peer knows."""

    def __init__(self, end: Connection, seed: int) -> None:
        self.end, self.source = end, random.Random(seed)
        self.written, self.got = bytearray(), bytearray()
        self.shut = self.finished = False

    def write(self, size: int, now: float) -> None:
        if not self.shut:
            data = self.source.randbytes(size)
            self.written += data[: self.end.write(data, now)]

    def read(self, size: int, now: float) -> None:
        data = self.end.read(size, now)
        if data is not None:
            self.got += data
            self.finished = self.finished or data == b""

    def shutdown(self, now: float) -> None:
        if not self.shut:
            self.shut = True
            self.end.shutdown_write(now)


def play(pair: Pair, sides: tuple[Side, Side], steps: list[tuple[str, bool, int]]) -> None:
    for action, second, amount in steps:
        if action == "wait":
            pair.run(amount / 1000)
        elif action == "shutdown":
            sides[second].shutdown(pair.now)
        else:
            getattr(sides[second], action)(amount, pair.now)
        pair.flush()


def settle(pair: Pair, sides: tuple[Side, Side]) -> None:
    """Both programs read on to the end of the stream, and say that they are done."""
    for _ in range(400):
        for side in sides:
            side.shutdown(pair.now)
            while not side.finished and side.end.readable:
                side.read(100_000, pair.now)
        pair.flush()
        if all(side.finished for side in sides):
            return
        pair.run(3.0)
    raise AssertionError(f"the streams never end: {pair.client.state!r}, {pair.accepted.state!r}")


@given(SWITCHES, SWITCHES, WEATHER, st.lists(STEP, max_size=20), st.integers(0, 1 << 32))
def test_streams_are_byte_exact_under_any_weather(ours, theirs, weather, steps, seed):
    pair = Pair(Weather(delay=weather.delay), config=ours, server_config=theirs, seed=seed).establish()
    pair.weather = weather
    sides = (Side(pair.client, seed), Side(pair.accepted, seed + 1))
    play(pair, sides, steps)
    settle(pair, sides)
    assert sides[0].written == sides[1].got
    assert sides[1].written == sides[0].got
    assert not pair.client.error
    pair.weather = Weather()
    pair.run(300.0)
    assert {pair.client.state, pair.accepted.state} == {TcpState.CLOSED}


FATES = st.lists(st.sampled_from(["", "", "", "lose", "twice", "late"]), max_size=200)


@given(SWITCHES, FATES, st.lists(STEP, max_size=20), st.integers(0, 1 << 32))
def test_no_schedule_of_losses_copies_and_delays_stops_or_falsifies_a_stream(switches, fates, steps, seed):
    """The fate of each packet is chosen one by one, by an adversary who tires in the end; what is held is bounded throughout."""
    pair = Pair(Weather(delay=0.001), config=switches, seed=seed).establish()
    schedule, launch = iter(fates), pair._launch

    def adversary(to: str, packet: bytes) -> None:
        fate = next(schedule, "")
        pair.weather.delay = 0.5 if fate == "late" else 0.001
        for _ in range({"lose": 0, "twice": 2}.get(fate, 1)):
            launch(to, packet)
        for end in (pair.client, pair.accepted):
            held = end.received.size + end.out_of_order.size
            assert held <= max(end.rcv_limit, end.rcv_adv - end.rcv_nxt + end.received.size) + 65_535
            assert end.unsent.size + end.snd_nxt - end.snd_una <= end.sndbuf + 1
            assert len(end.sent) <= 2 + end.sndbuf // 48

    pair._launch = adversary
    sides = (Side(pair.client, seed), Side(pair.accepted, seed + 1))
    play(pair, sides, steps)
    settle(pair, sides)
    assert sides[0].written == sides[1].got
    assert sides[1].written == sides[0].got
    assert not pair.client.error


@given(SWITCHES, st.lists(STEP, max_size=20), st.integers(0, 1 << 32))
def test_a_fair_wire_needs_no_retransmission(switches, steps, seed):
    pair = Pair(Weather(delay=0.001), config=switches, seed=seed).establish()
    sides = (Side(pair.client, seed), Side(pair.accepted, seed + 1))
    play(pair, sides, steps)
    settle(pair, sides)
    assert sides[0].written == sides[1].got
    assert sides[1].written == sides[0].got
    assert pair.client.retransmitted == pair.accepted.retransmitted == 0


@given(SWITCHES, WEATHER, st.lists(STEP, max_size=20), st.integers(0, 1 << 32))
def test_the_fast_paths_send_what_the_slow_ones_would(switches, weather, steps, seed):
    """Two runs that differ only in that one may never predict a header: the same packets at the same times."""
    logs = []
    for never_fast in (False, True):
        pair = Pair(Weather(delay=weather.delay), config=switches, seed=seed).establish()
        pair.weather = weather
        if never_fast:
            pair.client.__class__ = pair.accepted.__class__ = NeverFast
        sides = (Side(pair.client, seed), Side(pair.accepted, seed + 1))
        play(pair, sides, steps)
        settle(pair, sides)
        logs.append(pair.sent)
    assert logs[0] == logs[1]


class NeverFast(Connection):
    """A connection whose `fast` is False whatever is done to it."""

    __slots__ = ()

    @property
    def fast(self) -> bool:  # type: ignore[override]
        return False

    @fast.setter
    def fast(self, value: bool) -> None:
        del value


@given(WEATHER, st.integers(0, 1 << 32))
def test_a_connection_is_made_through_loss_or_given_up_with_a_reason(weather, seed):
    pair = Pair(weather, seed=seed)
    pair.run(400.0)
    assert pair.client.established or pair.client.error
    assert pair.server is None or pair.server.established or pair.server.closed
