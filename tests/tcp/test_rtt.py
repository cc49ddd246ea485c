"""RFC 6298 with Linux's floor of 200 ms under the variance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.tcp.rtt import RttEstimator


def estimator() -> RttEstimator:
    return RttEstimator(1.0, 0.2, 120.0)


def test_the_first_rto_is_a_second():
    assert estimator().rto == 1.0


def test_the_first_sample_sets_srtt_and_variance():
    """RFC 6298, 2.2: RTO = R + 4 * R / 2; Linux's floor stands below 100 ms."""
    rtt = estimator()
    rtt.sample(0.3, 0.0)
    assert (rtt.srtt, rtt.rto) == (0.3, pytest.approx(0.9))
    rtt = estimator()
    rtt.sample(0.001, 0.0)
    assert rtt.rto == pytest.approx(0.201)


def test_srtt_moves_by_an_eighth():
    """RFC 6298, 2.3."""
    rtt = estimator()
    rtt.sample(0.8, 0.0)
    rtt.sample(1.6, 1.0)
    assert rtt.srtt == pytest.approx(0.9)
    assert rtt.min_rtt == 0.8


def test_a_steady_path_settles_200_ms_over_its_round_trip():
    rtt, now = estimator(), 0.0
    for _ in range(200):
        now += 0.5
        rtt.sample(0.5, now)
    assert rtt.rto == pytest.approx(0.7, abs=0.001)


@given(st.lists(st.floats(0.0, 300.0), min_size=1, max_size=50))
def test_the_rto_is_never_below_200_ms_over_srtt_nor_above_two_minutes(samples):
    rtt, now = estimator(), 0.0
    for sample in samples:
        now += sample
        rtt.sample(sample, now)
        assert min(rtt.srtt + 0.2, 120.0) - 1e-9 <= rtt.rto <= 120.0
        assert 0.0 < rtt.srtt <= max(1e-6, *samples) * 1.0000001
