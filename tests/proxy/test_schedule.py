"""When a sync happens. Facts: kubernetes BoundedFrequencyRunner."""

from __future__ import annotations

from emu.proxy.schedule import SyncSchedule


def test_the_first_change_is_synced_at_once():
    schedule = SyncSchedule(1.0)
    assert schedule.poll_at() is None
    schedule.on_change(10.0)
    assert schedule.poll_at() == 10.0
    assert schedule.due(10.0)


def test_nothing_pending_means_no_sync():
    schedule = SyncSchedule(1.0)
    schedule.on_change(10.0)
    schedule.ran(10.0)
    assert not schedule.due(1e9)


def test_changes_within_the_interval_wait_for_its_end_and_share_one_sync():
    schedule = SyncSchedule(1.0)
    schedule.on_change(10.0)
    schedule.ran(10.0)
    for at in (10.2, 10.4, 10.9):
        schedule.on_change(at)
        assert schedule.poll_at() == 11.0
    assert not schedule.due(10.99)
    assert schedule.due(11.0)


def test_a_change_after_a_quiet_interval_is_synced_at_once():
    schedule = SyncSchedule(1.0)
    schedule.on_change(10.0)
    schedule.ran(10.0)
    schedule.on_change(12.5)
    assert schedule.poll_at() == 12.5


def test_a_burst_of_two_may_run_back_to_back_then_one_an_interval():
    schedule = SyncSchedule(1.0, burst=2)
    at, ran = 10.0, []
    for _ in range(4):
        schedule.on_change(at)
        at = schedule.poll_at()
        schedule.ran(at)
        ran.append(at)
    assert ran == [10.0, 10.0, 11.0, 12.0]


def test_without_a_minimum_every_change_is_synced_at_once():
    schedule = SyncSchedule(0.0)
    for at in (10.0, 10.001, 10.002):
        schedule.on_change(at)
        assert schedule.poll_at() == at
        schedule.ran(at)
