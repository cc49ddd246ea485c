"""Which pod goes first: Kubernetes' order, one row a tie-breaker (ActivePodsWithRanks, controller_utils.go)."""

from __future__ import annotations

from collections import Counter

import pytest

from emu.control.pods import timestamp_of
from emu.control.replicaset import DELETION_COST, deletion_order

NOW = 1_700_000_000


def pod(uid, node="node-1", phase="Running", ready=100, cost=None, restarts=0, age=1000):
    conditions = [{"type": "Ready", "status": "True", "lastTransitionTime": timestamp_of(NOW - ready)}] if ready is not None else []
    return {
        "metadata": {
            "name": uid, "uid": uid, "creationTimestamp": timestamp_of(NOW - age),
            "annotations": {DELETION_COST: cost} if cost is not None else {},
        },
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "conditions": conditions, "containerStatuses": [{"restartCount": restarts}]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("why", "first", "second"),
    [
        ("unassigned before assigned", pod("b", node=None, ready=None), pod("a")),
        ("pending before unknown", pod("b", phase="Pending", ready=None), pod("a", phase="Unknown", ready=None)),
        ("unknown before running", pod("b", phase="Unknown", ready=None), pod("a", ready=None)),
        ("not ready before ready", pod("b", ready=None), pod("a")),
        ("cheaper before dearer", pod("b", cost="-5"), pod("a", cost="3")),
        ("no cost is 0", pod("b", cost="-1"), pod("a")),
        ("a cost that is no number is 0", pod("b", cost="-1"), pod("a", cost="-x")),
        ("doubled up before alone", pod("b", node="node-2"), pod("a")),
        ("ready for a shorter time before longer", pod("b", ready=10), pod("a", ready=1000)),
        ("more restarts before fewer", pod("b", restarts=3), pod("a")),
        ("newer before older", pod("b", age=10, ready=5), pod("a", age=100_000, ready=5)),
    ],
)
def test_the_order_of_deletion(why, first, second):
    neighbours = Counter({"node-1": 1, "node-2": 2})
    order = deletion_order([first, second], neighbours, NOW)
    assert min([second, first], key=order) is first, why


def test_times_of_the_same_magnitude_are_equal():
    """KEP-2185: else the newest pods, which are spread best, would always go first."""
    older, newer = pod("a", ready=1000), pod("b", ready=900)
    order = deletion_order([older, newer], Counter(), NOW)
    assert order(older)[:-1] == order(newer)[:-1]
