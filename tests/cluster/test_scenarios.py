"""The same scenario in one process and on real processes: the same verdicts."""

from __future__ import annotations

import json

import pytest

from tests.kit.live import podwire

pytestmark = pytest.mark.cluster


def test_both_worlds_give_the_same_verdicts(tmp_path, monkeypatch):
    monkeypatch.setenv("PODWIRE_RUN_DIR", str(tmp_path))
    in_process, real = (
        [json.loads(line) for line in podwire("test", "configs/scenarios", "--json", *flags).stdout.splitlines()]
        for flags in (("--in-process", "--only", "external-traffic-policy-local"), ("--only", "external-traffic-policy-local"))
    )
    for verdicts in (in_process, real):
        for verdict in verdicts:
            for step in verdict["steps"]:
                del step["milliseconds"]
    assert in_process == real
    assert [verdict["passed"] for verdict in real] == [True]
    assert list(tmp_path.rglob("*.sock")) == []
