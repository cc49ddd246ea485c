"""Bursts fold, no-ops vanish, and what did not change stays the same object."""

from __future__ import annotations

import random

import pytest

from emu.proxy.changes import ServiceChanges
from tests.kit.services import endpoint, value


@pytest.fixture
def changes():
    tracker = ServiceChanges("host-1")
    yield tracker
    tracker.check()


def test_a_burst_of_changes_is_one_change_to_the_last_value(changes):
    for i in range(1, 6):
        changes.update("ns1/svc1", value(endpoints=[f"10.0.0.{i}"]))
    ((key, change),) = changes.pending.items()
    assert key == "ns1/svc1"
    assert change.previous == ()
    assert [e.text for e in change.current[0].endpoints] == ["10.0.0.5:8080"]


def test_a_change_that_is_taken_back_disappears(changes):
    changes.update("ns1/svc1", value(endpoints=["10.0.0.1"]))
    changes.apply()
    assert changes.update("ns1/svc1", value(endpoints=["10.0.0.2"])) is True
    assert changes.update("ns1/svc1", value(endpoints=["10.0.0.1"])) is False


def test_a_service_that_came_and_went_between_two_syncs_never_was(changes):
    changes.update("ns1/svc1", value())
    assert changes.update("ns1/svc1", None) is False


NO_OPS = [
    ("a label", value(endpoints=["10.0.0.1"], labels={"team": "a"})),
    ("a selector", value(endpoints=["10.0.0.1"], selector={"app": "x"})),
    ("the order of endpoints in a slice", value(endpoints=["10.0.0.1"])),
]


@pytest.mark.parametrize("changed", [v for _, v in NO_OPS], ids=[name for name, _ in NO_OPS])
def test_a_change_that_no_rule_depends_on_is_none(changes, changed):
    changes.update("ns1/svc1", value(endpoints=["10.0.0.1"]))
    changes.apply()
    assert changes.update("ns1/svc1", changed) is False


def test_an_unchanged_port_stays_the_same_object(changes):
    two = value(endpoints=["10.0.0.1"], port_name="a")
    two["service"]["spec"]["ports"].append({"name": "b", "protocol": "TCP", "port": 81})
    changes.update("ns1/svc1", two)
    changes.apply()
    before = {name.port: port for name, port in changes.ports.items()}
    two["slices"][0]["endpoints"].append(endpoint("10.0.0.2"))
    changes.update("ns1/svc1", two)
    changes.apply()
    after = {name.port: port for name, port in changes.ports.items()}
    assert after["a"] is not before["a"]
    assert after["b"] is before["b"]


def test_a_snapshot_removes_what_it_does_not_name(changes):
    changes.update("ns1/svc1", value())
    changes.update("ns1/svc2", value("ns1/svc2", cluster_ip="172.30.0.42"))
    changes.apply()
    changes.update("ns1/svc3", value("ns1/svc3", cluster_ip="172.30.0.43"))
    assert changes.replace({"ns1/svc2": value("ns1/svc2", cluster_ip="172.30.0.42")}) is True
    assert list(changes.pending) == ["ns1/svc1"]
    changes.apply()
    assert [str(name) for name in changes.ports] == ["ns1/svc2"]


def test_only_a_change_of_udp_endpoints_asks_for_a_conntrack_clean_up(changes):
    changes.update("ns1/svc1", value(endpoints=["10.0.0.1"]))
    assert changes.apply().udp_endpoints is False
    changes.update("ns1/dns", value("ns1/dns", ["10.0.0.2"], protocol="UDP", port=53))
    assert changes.apply().udp_endpoints is True
    changes.update("ns1/svc1", value(endpoints=["10.0.0.3"]))
    assert changes.apply().udp_endpoints is False


def test_however_changes_are_folded_the_end_is_the_same(changes):
    chance = random.Random(7)
    last = {}
    for _ in range(300):
        key = f"ns1/svc{chance.randrange(5)}"
        last[key] = chance.choice([None, value(key, [f"10.0.0.{chance.randrange(4)}"], cluster_ip="172.30.0.1")])
        changes.update(key, last[key])
        if chance.random() < 0.2:
            changes.apply()
    changes.apply()
    fresh = ServiceChanges("host-1")
    fresh.replace({key: v for key, v in last.items() if v is not None})
    fresh.apply()
    assert changes.ports == fresh.ports
