"""So many node processes Ready with a pod answering on each; what a node takes of memory, and an idle cluster of CPU.

The cluster has 10 Services that share out the pods. Every pod is asked over HTTP from another one, as many at a time as there
are CPUs; time runs from typing `podwire up` to the last answer, without a pause. `ratio` is of that time to forking as many
processes of the zygote's kind that do nothing. Then random pairs of pods and Services ask each other (`pairs.py`), and the cluster
goes. Memory at rest is a second cluster's, so that nobody waits for anybody; idle time that of a third, of 200 nodes.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import click
import psutil

from benchmarks import pairs
from benchmarks.cluster import Cluster
from benchmarks.harness import CPUS, Result, environment, report, tell

SERVICES = 10
SETTLE = 2.0  # seconds after `podwire up` in which nodes take in the last changes of the Services
BATCH = 100  # pods asked by one command: an exec's command line stands in its URL
IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.53"


def run(nodes: int = 1000, idle_nodes: int = 200, idle_seconds: float = 10.0, count: int = 10_000) -> Result:
    """Bring a cluster up, ask every pod and `count` random pairs, take it down; two more for memory and for idle time."""
    tell(f"{nodes} nodes …")
    reference = _forks(nodes)
    times, asked = work(nodes, count)
    ready = times["up"] + times["asking"]
    tell("once more, for memory …")
    with _up(nodes) as cluster:
        at_rest = cluster.memory()
        idle = cluster.idle(idle_seconds) if idle_nodes == nodes else {}
    if not idle:
        tell(f"{idle_nodes} nodes, for idle time …")
        with _up(idle_nodes) as cluster:
            idle = cluster.idle(idle_seconds)
    rows: list[dict[str, Any]] = [
        {"what": "Ready, and a pod answering on each node", "value": round(ready, 2), "unit": "s"},
        {"what": "  of which podwire up", "value": round(times["up"], 2), "unit": "s"},
        {"what": "  of which asking every pod", "value": round(times["asking"], 2), "unit": "s"},
        {"what": f"{count:,} random pairs, all answered rightly", "value": round(times["pairs"], 2), "unit": "s"},
        {"what": "podwire down", "value": round(times["down"], 2), "unit": "s"},
        {"what": "private memory a node, Ready, mean", "value": at_rest["node_mean"], "unit": "MB"},
        {"what": "private memory a node, its pod asked, mean", "value": asked["node_mean"], "unit": "MB"},
        {"what": "private memory a node, largest", "value": asked["node_max"], "unit": "MB"},
        {"what": "private memory of the controller", "value": asked["controller"], "unit": "MB"},
        *({"what": f"idle, {idle_nodes} nodes, {role}", "value": share, "unit": "% of a core"} for role, share in idle.items()),
    ]
    return {
        "bench": "nodes",
        "title": f"{nodes} nodes, {SERVICES} Services, a pod on each node",
        "headline": f"Ready to {nodes} bare forks",
        "ratio": round(ready / reference, 1),
        "measured": {
            "seconds": round(ready, 2), "nodes": nodes, "uss_mb": at_rest, "uss_mb_asked": asked, "pairs": count,
            "idle_nodes": idle_nodes, "idle_percent": idle,
        },
        "reference": {"seconds": round(reference, 3)},
        "rows": rows,
        "environment": environment(),
    }  # fmt: skip


@contextmanager
def _up(nodes: int) -> Iterator[Cluster]:
    """A cluster that has come to rest."""
    with Cluster("nodes") as cluster:
        cluster.podwire("up", "--nodes", str(nodes), "-f", "-", stdin=manifests(nodes))
        time.sleep(SETTLE)
        yield cluster
        cluster.podwire("down")


def work(nodes: int, count: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each part of a cluster's life, and its memory when every pod has been asked. AssertionError for a wrong answer."""
    marks = [time.monotonic()]
    with Cluster("nodes") as cluster:
        cluster.podwire("up", "--nodes", str(nodes), "-f", "-", stdin=manifests(nodes))
        marks.append(time.monotonic())
        pods = cluster.objects("pods")
        hosts = {pod["spec"]["nodeName"] for pod in pods}
        assert len(hosts) == nodes, f"pods run on {len(hosts)} of {nodes} nodes"
        _ask_all(cluster, pods)
        marks.append(time.monotonic())
        memory = cluster.memory()
        services = [service for service in cluster.objects("services") if service["spec"].get("selector")]
        drawn = pairs.draw(pods, services, count)
        marks.append(time.monotonic())
        wrong = pairs.wrong(cluster.client, pods, drawn, at_once=len(CPUS))
        assert not wrong, f"{len(wrong)} wrong answers: {'; '.join(wrong[:3])}"
        processes = [pid for pids in cluster.processes().values() for pid in pids]
        marks.append(time.monotonic())
        cluster.podwire("down")
        marks.append(time.monotonic())
        left = [pid for pid in processes if psutil.pid_exists(pid)]
        assert not left, f"processes are left: {left}"
        assert not cluster.directory.exists(), f"{cluster.directory} is left"
    times = [after - before for before, after in pairwise(marks)]
    return dict(zip(("up", "asking", "memory", "pairs", "down"), times, strict=True)), memory


def _ask_all(cluster: Cluster, pods: list[dict[str, Any]]) -> None:
    """Ask every pod for its name, from as many pods at a time as there are CPUs; AssertionError if one does not say it."""
    batches = [pods[at : at + BATCH] for at in range(0, len(pods), BATCH)]
    with ThreadPoolExecutor(len(CPUS)) as askers:
        answers = "".join(askers.map(lambda batch: _ask(cluster, batch), batches))
    missing = [pod["metadata"]["name"] for pod in pods if pod["metadata"]["name"] not in answers]
    assert not missing, f"no answer from {missing[:3]}"


def _ask(cluster: Cluster, pods: list[dict[str, Any]]) -> str:
    """Let the first of these pods ask all of them for their names, itself included."""
    urls = [f"http://{pod['status']['podIP']}:8080/hostname" for pod in pods]
    return cluster.podwire("exec", pods[0]["metadata"]["name"], "--", "curl", "-s", "--fail", *urls)


def manifests(nodes: int) -> str:
    """A pod bound to each node, as a DaemonSet's are, and ten Services that share them out."""
    container = {"name": "echo", "image": IMAGE, "args": ["netexec", "--http-port=8080"], "ports": [{"containerPort": 8080}]}
    pods = [
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"echo-{index}", "labels": {"app": f"echo-{index % SERVICES}"}},
            "spec": {"nodeName": f"node-{index}", "containers": [container]},
        }
        for index in range(1, nodes + 1)
    ]  # fmt: skip
    services = [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": f"echo-{index}"},
            "spec": {"selector": {"app": f"echo-{index}"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }
        for index in range(SERVICES)
    ]  # fmt: skip
    return "\n---\n".join(json.dumps(item) for item in (*services, *pods))


def _forks(count: int) -> float:
    """Seconds to fork so many children of this process and see each of them run."""
    start = time.monotonic()
    ready, told = os.pipe()
    children = []
    for _ in range(count):
        pid = os.fork()
        if not pid:
            os.write(told, b"+")
            signal.pause()
            os._exit(0)
        children.append(pid)
    seen = 0
    while seen < count:
        seen += len(os.read(ready, count))
    took = time.monotonic() - start
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(ready)
    os.close(told)
    return took


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--nodes", default=1000, show_default=True, help="How many.")
@click.option("--idle-nodes", default=200, show_default=True, help="How many nodes the idle cluster has.")
@click.option("--idle", "idle_seconds", default=10.0, show_default=True, help="Seconds to watch the idle cluster.")
@click.option("--pairs", "count", default=10_000, show_default=True, help="Random pairs of pods and Services that ask each other.")
def main(*, as_json: bool, nodes: int, idle_nodes: int, idle_seconds: float, count: int) -> None:
    """Many nodes: time to Ready, random pairs, memory a node, idle CPU."""
    report(run(nodes, idle_nodes, idle_seconds, count), as_json=as_json)


if __name__ == "__main__":
    main()
