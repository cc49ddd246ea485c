"""CUBIC against RFC 9438's own formulas."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.tcp.congestion import Cubic

MSS = 1000


def grown(cubic: Cubic, seconds: float, *, rtt: float = 0.1, start: float = 0.0) -> list[int]:
    """The window after each round trip in which all of it was acknowledged."""
    sizes, now = [], start
    while now < start + seconds:
        window = cubic.cwnd
        for _ in range(window // MSS):
            cubic.on_ack(MSS, now, rtt)
        now += rtt
        sizes.append(cubic.cwnd)
    return sizes


def test_slow_start_doubles_each_round_trip():
    assert grown(Cubic(MSS, 10), 0.35)[:3] == [20 * MSS, 40 * MSS, 80 * MSS]


def test_slow_start_ends_at_ssthresh():
    cubic = Cubic(MSS, 10)
    cubic.ssthresh = 25 * MSS
    assert grown(cubic, 0.15)[-1] < 27 * MSS


def test_loss_takes_three_tenths_and_fast_convergence_more():
    """4.6 and 4.7."""
    cubic = Cubic(MSS, 100)
    cubic.on_loss()
    assert cubic.ssthresh == 70 * MSS
    cubic.cwnd = 60 * MSS
    cubic.on_loss()
    assert cubic._w_max == pytest.approx(60 * MSS * 0.85)


def test_the_window_is_back_where_loss_was_after_k_seconds():
    """4.2: K = cbrt((W_max - cwnd) / C); the curve is flat there, and steep beyond."""
    cubic = Cubic(MSS, 1000)
    cubic.on_loss()
    cubic.cwnd = cubic.ssthresh
    k = (300 / 0.4) ** (1 / 3)
    sizes = grown(cubic, 2 * k)
    at_k = sizes[int(k / 0.1)]
    assert at_k == pytest.approx(1000 * MSS, rel=0.02)
    middle = len(sizes) // 2
    assert sizes[middle + 5] - sizes[middle - 5] < sizes[5] - sizes[0]
    assert sizes[-1] == pytest.approx(1300 * MSS, rel=0.05)


def test_short_round_trips_grow_at_least_as_renos_would():
    """4.3, with alpha 0.53: half a segment a round trip."""
    cubic = Cubic(MSS, 20)
    cubic.on_loss()
    cubic.cwnd = cubic.ssthresh
    before = cubic.cwnd
    grown(cubic, 0.1, rtt=0.001)
    assert cubic.cwnd - before > 0.8 * 100 * 0.53 * MSS


EVENT = st.tuples(st.sampled_from(["ack", "loss", "timeout", "idle"]), st.integers(1, 100_000), st.floats(0.0, 100.0))


@given(st.lists(EVENT, max_size=60))
def test_the_window_is_never_less_than_a_segment_nor_grows_faster_than_slow_start(events):
    cubic, now = Cubic(MSS, 10), 0.0
    for event, acked, gap in events:
        now += gap
        before = cubic.cwnd
        if event == "ack":
            cubic.on_ack(acked, now, 0.05)
            assert before <= cubic.cwnd <= before + acked + MSS
        elif event == "loss":
            cubic.on_loss()
            cubic.cwnd = cubic.ssthresh
        elif event == "timeout":
            cubic.on_loss()
            cubic.on_timeout()
        else:
            cubic.on_idle(gap + 1.0, 0.3)
        assert cubic.cwnd >= MSS
        assert cubic.ssthresh >= 2 * MSS
