"""A Deployment's arithmetic against what Kubernetes publishes: its documentation's examples and its unit tests' tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.control.rollout import Bounds, ReplicaSetState, new_size, old_sizes, proportional, scaled


@pytest.mark.parametrize(
    ("replicas", "max_surge", "max_unavailable", "most", "least"),
    [
        (10, "25%", "25%", 13, 8),  # website, "Max Unavailable": at least 75 %, at most 125 % rounded up
        (3, "25%", "25%", 4, 3),
        (1, "25%", "25%", 2, 1),
        (2, "1%", 0, 3, 2),
        (4, 0, "25%", 4, 3),
        (10, "30%", "30%", 13, 7),  # website, "Max Surge": 30 % of 10
        (10, 0, 0, 10, 9),  # both 0 would be a standstill
        (2, 0, "1%", 2, 1),
        (1, 0, "100%", 1, 0),
        (5, 0, 9, 5, 0),  # more than all is all
        (0, "25%", "25%", 0, 0),
    ],
)
def test_bounds_of_a_rollout(replicas, max_surge, max_unavailable, most, least):
    bounds = Bounds.resolve(replicas, max_surge, max_unavailable)
    assert (bounds.most, bounds.least) == (most, least)


# kubernetes pkg/controller/deployment/rolling_test.go, TestDeploymentController_reconcileNewReplicaSet
@pytest.mark.parametrize(
    ("replicas", "surge", "old", "new", "expected"),
    [(10, 0, 10, 0, 0), (10, 2, 10, 0, 2), (10, 2, 5, 0, 7), (10, 2, 10, 2, 2), (10, 2, 2, 11, 10)],
)
def test_upstream_s_table_for_the_new_replica_set(replicas, surge, old, new, expected):
    bounds = Bounds(replicas, surge, 0)
    state = ReplicaSetState("new", new, 0)
    assert new_size(bounds, [ReplicaSetState("old", old, old), state], state) == expected


# the same file, TestDeploymentController_reconcileOldReplicaSets
@pytest.mark.parametrize(
    ("replicas", "unavailable", "old", "new", "old_ready", "new_ready", "expected"),
    [
        (10, 0, 10, 0, 10, 0, {}),
        (10, 2, 10, 0, 10, 0, {"old": 8}),
        (10, 2, 10, 0, 8, 0, {"old": 8}),  # the unhealthy ones go, the available ones stay
        (10, 2, 10, 0, 9, 0, {"old": 8}),
        (10, 2, 8, 2, 8, 2, {"old": 6}),
        (10, 2, 8, 2, 8, 0, {}),
    ],
)
def test_upstream_s_table_for_old_replica_sets(replicas, unavailable, old, new, old_ready, new_ready, expected):
    bounds = Bounds(replicas, 0, unavailable)
    assert old_sizes(bounds, [ReplicaSetState("old", old, old_ready)], ReplicaSetState("new", new, new_ready)) == expected


# website, "Proportional scaling": 10 replicas, surge 3, unavailable 2, a rollout stuck at 8 old and 5 new, scaled to 15
def test_the_website_s_example_of_proportional_scaling():
    sets = [ReplicaSetState("old", 8, 8, 1, 13, 10), ReplicaSetState("new", 5, 0, 2, 13, 10)]
    assert proportional(Bounds(15, 3, 2), sets) == {"old": 11, "new": 7}


# kubernetes pkg/controller/deployment/sync_test.go, TestScale (names and numbers)
@pytest.mark.parametrize(
    ("name", "replicas", "before", "sizes", "expected"),
    [
        ("normal scaling event: 10 -> 12", 12, 10, [10], [12]),
        ("normal scaling event: 10 -> 5", 5, 10, [10], [5]),
        ("proportional scaling: 5 -> 10", 10, 5, [2, 3], [4, 6]),
        ("proportional scaling: 5 -> 3", 3, 5, [2, 3], [1, 2]),
        ("proportional scaling: 9 -> 4", 4, 9, [8, 1], [4, 0]),
        ("proportional scaling: 7 -> 10", 10, 7, [2, 3, 2], [3, 4, 3]),
        ("proportional scaling: 13 -> 8", 8, 13, [8, 2, 3], [5, 1, 2]),
        ("leftovers distribution: 3 -> 4", 4, 3, [1, 1, 1], [2, 1, 1]),
        ("leftovers distribution: 3 -> 2", 2, 3, [1, 1, 1], [1, 1, 0]),
        ("leftovers distribution: 5 -> 8 with unequal sizes", 8, 5, [4, 1], [6, 2]),
        ("zero -> 4", 4, 0, [0], [4]),
    ],
)
def test_upstream_s_table_of_scaling(name, replicas, before, sizes, expected):
    """The first set of a row is the new one, the rest are older and older."""
    bounds = Bounds(replicas, 0, 0)
    sets = [ReplicaSetState(f"s{i}", size, size, 100 - i, before, before) for i, size in enumerate(sizes)]
    changes = scaled(bounds, sets[1:], sets[0], rolling=True)
    assert [changes.get(one.name, one.replicas) for one in sets] == expected, name


def test_a_saturated_new_replica_set_leaves_nothing_to_the_old():
    olds = [ReplicaSetState("old", 2, 2, 1, 5, 5)]
    new = ReplicaSetState("new", 5, 5, 2, 5, 5)
    assert scaled(Bounds(5, 1, 0), olds, new, rolling=True) == {"old": 0}


SIZES = st.integers(0, 12)


@given(SIZES, st.integers(0, 5), st.integers(0, 5), st.lists(st.tuples(SIZES, SIZES), max_size=3), SIZES, SIZES)
def test_no_step_breaks_the_bounds_that_held_before(replicas, surge, unavailable, olds, new, ready):
    """Growing never exceeds the surge, shrinking never takes available pods below the least."""
    bounds = Bounds.resolve(replicas, surge, unavailable)
    old_states = [ReplicaSetState(f"o{i}", size, min(size, up), i) for i, (size, up) in enumerate(olds)]
    state = ReplicaSetState("new", new, min(new, ready), 99)
    total = sum(one.replicas for one in (*old_states, state))
    grown = new_size(bounds, [*old_states, state], state)
    if grown > new:
        assert total - new + grown <= bounds.replicas + bounds.surge
    sizes = old_sizes(bounds, old_states, state)
    available = state.available + sum(min(one.available, sizes.get(one.name, one.replicas)) for one in old_states)
    before = state.available + sum(one.available for one in old_states)
    assert available >= min(before, bounds.least)
    assert all(size < next(one.replicas for one in old_states if one.name == name) for name, size in sizes.items())


@given(SIZES, st.integers(0, 4), st.integers(0, 3), st.integers(1, 12))
def test_a_rollout_that_nothing_hinders_ends_with_the_new_set_alone(replicas, surge, unavailable, old):
    bounds = Bounds.resolve(replicas, surge, unavailable)
    old_state, new = ReplicaSetState("old", old, old, 1), ReplicaSetState("new", 0, 0, 2)
    for _ in range(100):
        size = new_size(bounds, [old_state, new], new)
        if size != new.replicas:
            new = ReplicaSetState("new", size, size, 2)  # its pods become Ready
            continue
        sizes = old_sizes(bounds, [old_state], new)
        if not sizes:
            break
        old_state = ReplicaSetState("old", sizes["old"], sizes["old"], 1)
    assert (old_state.replicas, new.replicas) == (0, replicas)
