"""Tables: what kubectl prints of each kind."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from emu.api import tables

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
META = {"name": "x", "creationTimestamp": "2026-01-02T03:00:00Z"}
RUNNING = {"ready": True, "restartCount": 2, "state": {"running": {}}}


# The rows of apimachinery's TestHumanDuration.
@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1s"),
        (70, "70s"),
        (190, "3m10s"),
        (70 * 60, "70m"),
        (47 * 60, "47m"),
        (5 * 3600, "5h"),
        (5 * 3600 + 600, "5h10m"),
        (50 * 3600, "2d2h"),
        (48 * 3600, "2d"),
        (9 * 86400, "9d"),
        (900 * 86400, "2y"),
        (-0.5, "0s"),
        (-9, "<invalid>"),
    ],
)
def test_ages_read_as_kubectl_prints_them(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("resource", "obj", "cells"),
    [
        (
            "pods",
            {"spec": {"containers": [{}, {}]}, "status": {"phase": "Running", "containerStatuses": [RUNNING, {"ready": False}]}},
            ["x", "1/2", "Running", "2", "4m5s"],
        ),
        (
            "pods",
            {"spec": {"containers": [{}]}, "status": {"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}},
            ["x", "0/1", "CrashLoopBackOff", "0", "4m5s"],
        ),
        *(
            (
                "pods",
                {"spec": {"containers": [{}]}, "status": {"phase": "Pending", "initContainerStatuses": init}},
                ["x", "0/1", word, "0", "4m5s"],
            )
            for word, init in (
                ("Init:1/2", [{"state": {"terminated": {"exitCode": 0}}}, {"state": {"waiting": {"reason": "PodInitializing"}}}]),
                ("Init:Error", [{"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
                ("Init:CrashLoopBackOff", [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
                ("Pending", [{"state": {"terminated": {"exitCode": 0}}}]),
            )
        ),
        (
            "pods",
            {"metadata": {**META, "deletionTimestamp": "z"}, "spec": {}, "status": {"phase": "Running"}},
            ["x", "0/0", "Terminating", "0", "4m5s"],
        ),
        (
            "services",
            {"spec": {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": 30000}]}},
            ["x", "LoadBalancer", "10.0.0.1", "<pending>", "80:30000/TCP", "4m5s"],
        ),
        ("services", {"spec": {"type": "ExternalName", "externalName": "a.b"}}, ["x", "ExternalName", "<none>", "a.b", "<none>", "4m5s"]),
        (
            "deployments",
            {"spec": {"replicas": 3}, "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}},
            ["x", "1/3", 2, 1, "4m5s"],
        ),
        ("replicasets", {"spec": {"replicas": 3}, "status": {"replicas": 2}}, ["x", 3, 2, 0, "4m5s"]),
        (
            "nodes",
            {"spec": {"unschedulable": True}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}},
            ["x", "Ready,SchedulingDisabled", "<none>", "4m5s", ""],
        ),
        ("nodes", {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, ["x", "NotReady", "<none>", "4m5s", ""]),
        ("namespaces", {"status": {"phase": "Active"}}, ["x", "Active", "4m5s"]),
        (
            "endpointslices",
            {"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": [f"10.0.0.{n}"]} for n in range(5)]},
            ["x", "IPv4", "80", "10.0.0.0,10.0.0.1,10.0.0.2 + 2 more...", "4m5s"],
        ),
        ("configmaps", {"data": {"a": "b"}}, ["x", "1", "4m5s"]),
        ("ingresses", {}, ["x", "4m5s"]),
    ],
)
def test_the_narrow_cells_of_a_row(resource: str, obj: dict[str, Any], cells: list[Any]) -> None:
    made = tables.table(resource, [{"metadata": META, **obj}], NOW, metadata={})
    narrow = [cell for cell, column in zip(made["rows"][0]["cells"], made["columnDefinitions"], strict=True) if not column["priority"]]

    assert narrow == cells
