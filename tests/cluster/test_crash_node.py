"""Nodes, zygote and supervisor of a real cluster killed and paused: it heals, quietly, or leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from launcher import control, rundir
from tests.kit.live import NAME, RUN_DIR, cluster, curl, eventually, kill, manifests, netexec, pod, podwire, processes, service

pytestmark = pytest.mark.cluster

VIP = "10.96.7.10"
TIMINGS = "timings: {nodeMonitorGracePeriod: 2s, defaultUnreachableTolerationSeconds: 1s}\n"
DEPLOYMENT = {
    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
    "spec": {"replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": {
        "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [netexec()], "terminationGracePeriodSeconds": 1},
    }},
}  # fmt: skip
STAYS = [{"operator": "Exists"}]  # whatever becomes of its node: it is not replaced
WORLD = (DEPLOYMENT, service("web", VIP, "web"), pod("client", netexec(), node="node-1", tolerations=STAYS))


@pytest.fixture
def run(tmp_path):
    config = tmp_path / "cluster.yaml"
    config.write_text(f"nodes: 3\ndebugAssertions: true\n{TIMINGS}")
    with cluster("nodes", "--config", str(config), "-f", "-", stdin=manifests(*WORLD)):
        yield rundir.find("nodes")


def life(run, name):
    return next(node for node in control.ask(run, {"status": True})["nodes"] if node["name"] == name)


def web_pods(*, going=False):
    """The Deployment's pods by name; with `going` also those that wait for their node to confirm their end."""
    found = json.loads(podwire("get", "pods", "-l", "app=web", "-o", "json").stdout)["items"]
    return {item["metadata"]["name"]: item for item in found if going or not item["metadata"].get("deletionTimestamp")}


def ready(item):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in item["status"].get("conditions", ()))


def all_answer():
    """There are four ready pods, and the Service finds nobody else."""
    pods = web_pods()
    if len(pods) != 4 or not all(map(ready, pods.values())):
        return False
    answers = {curl("client", f"http://{VIP}/hostname", "-m", "1", status=None) for _ in range(5)}
    return "" not in answers and answers <= set(pods)


def told():
    return json.loads(podwire("status", "--json").stdout)


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.long)])
def test_a_node_paused_for_longer_than_its_pods_are_waited_for_comes_back_quietly(run, seconds):
    before = {name for name, item in web_pods().items() if item["spec"]["nodeName"] == "node-2"}
    podwire("fault", "node", "node-2", "pause")
    time.sleep(seconds)
    eventually(all_answer, 60)  # its pods were evicted and replaced
    assert before
    assert not before & set(web_pods())
    podwire("fault", "node", "node-2", "resume")
    process, began = psutil.Process(life(run, "node-2")["pid"]), time.monotonic()
    eventually(lambda: next(n for n in told()["nodes"] if n["name"] == "node-2")["ready"])
    assert time.monotonic() - began < 5
    eventually(lambda: told()["controller"]["settled"])
    eventually(lambda: not before & set(web_pods(going=True)))
    used, at = sum(process.cpu_times()[:2]), time.monotonic()
    reconciles = told()["controller"]["counters"]["reconciles"]
    time.sleep(3)
    assert sum(process.cpu_times()[:2]) - used < 0.2 * (time.monotonic() - at)  # no storm of overdue timers, leases or resyncs
    assert told()["controller"]["counters"]["reconciles"] - reconciles < 60
    assert all_answer()
    assert (life(run, "node-2")["deaths"], life(run, "node-2")["incarnation"]) == (0, 1)


def test_a_zygote_that_is_killed_costs_its_nodes_a_life_and_the_cluster_heals(run):
    os.kill(control.ask(run, {"status": True})["zygote"]["pid"], signal.SIGKILL)
    eventually(lambda: all(life(run, f"node-{n}")["incarnation"] == 2 for n in (1, 2, 3)))
    eventually(lambda: told()["controller"].get("settled") and all(node["ready"] for node in told()["nodes"]))
    eventually(all_answer, 60)
    assert podwire("exec", "client", "--", "true", status=0)


@pytest.mark.parametrize("killed", ["supervisor", "supervisor zygote", "guard"])
def test_whoever_above_the_nodes_is_killed_while_nodes_are_paused_nothing_is_left(killed):
    path = tempfile.mkdtemp(prefix="pw-", dir="/tmp")
    os.environ[RUN_DIR], os.environ[NAME] = path, "gone"
    try:
        podwire("up", "--nodes", "4", "-f", "-", stdin=manifests(*WORLD))
        for node in ("node-2", "node-3"):
            podwire("fault", "node", node, "pause")
        seen = control.ask(rundir.find("gone"), {"status": True})
        pids = {"supervisor": seen["pid"], "zygote": seen["zygote"]["pid"], "guard": seen["guard"]}
        for name in killed.split():
            kill(pids[name])
        time.sleep(2)
        assert processes(path) == []
        assert path not in Path("/proc/net/unix").read_text()
        assert list(Path(path).iterdir()) == []
    finally:
        del os.environ[RUN_DIR], os.environ[NAME]
        shutil.rmtree(path)
