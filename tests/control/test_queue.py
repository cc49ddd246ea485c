"""The work queue's promises."""

from __future__ import annotations

import pytest

from emu.control.events import Recorder
from emu.control.queue import WorkQueue
from emu.control.runner import Runner
from emu.errors import ApiError
from emu.registry.bootstrap import bootstrap
from emu.registry.registry import Registry, RegistryConfig
from emu.store.store import Store

INF = float("inf")


def test_a_burst_is_one_look_and_keys_come_in_order():
    queue = WorkQueue()
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert [queue.pop(0), queue.pop(0), queue.pop(0)] == ["a", "b", None]


def test_a_key_wakes_at_the_earliest_of_its_times_and_once():
    queue = WorkQueue()
    queue.add_at("a", 5), queue.add_at("a", 3), queue.add_at("a", 9)
    assert queue.next_at() == 3 and queue.idle and queue.pop(2.9) is None
    assert queue.pop(3) == "a" and queue.pop(100) is None and queue.next_at() == INF


def test_failures_back_off_and_a_success_forgets_them():
    queue, waits, now = WorkQueue(), [], 0.0
    for _ in range(16):
        queue.retry("a", now)
        waits.append(queue.next_at() - now)
        now = queue.next_at()
        assert not queue.idle and queue.pop(now) == "a"
    assert waits[:4] == pytest.approx([0.005, 0.01, 0.02, 0.04]) and waits[-1] == pytest.approx(30.0)
    queue.forget("a")
    assert queue.idle and queue.next_at() == INF


class Flaky:
    name = "flaky"

    def __init__(self, *errors):
        self.errors, self.asked = list(errors), []

    def affected(self, change):
        yield change.object["metadata"]["name"]

    def reconcile(self, key, now):
        self.asked.append((key, now))
        error = self.errors.pop(0)
        if error:
            raise error


def test_a_conflict_is_tried_again_quietly_and_a_fault_is_told_and_stops_nobody_else():
    store, told = Store(), []
    controller = Flaky(ApiError(409, "Conflict", "stale"), RuntimeError("bug"), None, None)
    runner = Runner(store, [controller], lambda *what: told.append(what))
    store.create("configmaps", {"metadata": {"namespace": "d", "name": "a"}})
    assert runner.run(0.0) == 1 and told == [] and not runner.idle()
    store.create("configmaps", {"metadata": {"namespace": "d", "name": "b"}})
    runner.run(0.0)
    runner.run(1.0), runner.run(2.0)
    assert [(name, key, str(error)) for name, key, error in told] == [("flaky", "b", "bug")]
    assert runner.idle() and [key for key, _ in controller.asked] == ["a", "b", "a", "b"]


def test_events_count_what_is_told_again_and_the_oldest_go():
    store = Store()
    registry = Registry(store, RegistryConfig(), lambda: "2026-01-02T15:04:05Z")
    bootstrap(registry)
    recorder = Recorder(registry, registry.now, limit=3)
    about = {"kind": "Pod", "namespace": "default", "name": "p", "uid": "u"}
    for n in (1, 1, 2, 3, 1, 4):
        recorder.record(about, "Normal", "Reason", f"message {n}", "test")
    events = {event["message"]: event["count"] for event in store.list("events")[0]}
    assert events == {"message 1": 3, "message 3": 1, "message 4": 1}, "message 2 was heard of longest ago"
    again = Recorder(registry, registry.now, limit=3)
    again.record(about, "Normal", "Reason", "message 3", "test")
    assert {event["count"] for event in store.list("events")[0]} == {3, 2, 1}
    recorder.record({**about, "namespace": "gone"}, "Normal", "Reason", "nobody will miss it", "test")
