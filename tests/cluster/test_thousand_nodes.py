"""A thousand node processes on one machine: they come up, answer rightly whoever asks whom, and leave nothing."""

from __future__ import annotations

import pytest

from benchmarks import bench_nodes
from tests.kit.live import processes

pytestmark = [pytest.mark.cluster, pytest.mark.long]

NODES, PAIRS = 1000, 10_000
DOWN_WITHIN = 15.0  # seconds, on a machine that has other things to do


def test_a_thousand_nodes_come_up_answer_rightly_and_leave_nothing(tmp_path_factory, monkeypatch):
    """`work` asserts that every node has its pod, every answer comes from who may give it, and process table and directory are clean."""
    path = tmp_path_factory.mktemp("k")
    monkeypatch.setenv("PODWIRE_RUN_DIR", str(path))
    times, _ = bench_nodes.work(NODES, PAIRS)
    assert times["down"] < DOWN_WITHIN
    assert list(path.iterdir()) == []
    assert processes(str(path)) == []
