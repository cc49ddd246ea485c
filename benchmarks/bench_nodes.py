"""So many node processes Ready with a pod answering on each; what a node takes of memory, and an idle cluster of CPU.

The cluster has 10 Services that share out the pods. Every pod is asked over HTTP from the first one; time runs from typing
`podwire up` to the last answer. `ratio` is of that time to forking as many processes of the zygote's kind that do nothing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from typing import Any

import click

from benchmarks.cluster import Cluster
from benchmarks.harness import Result, environment, report, tell

SERVICES = 10
BATCH = 100  # pods asked by one command: an exec's command line stands in its URL
IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.53"


def run(nodes: int = 200, idle_seconds: float = 10.0) -> Result:
    """Bring the cluster up once, ask every pod, read memory, then watch it idle."""
    tell(f"{nodes} nodes …")
    reference = _forks(nodes)
    start = time.monotonic()
    with Cluster("nodes") as cluster:
        cluster.podwire("up", "--nodes", str(nodes), "-f", "-", stdin=manifests(nodes))
        up = time.monotonic()
        at_rest = cluster.memory()
        pods = cluster.pods()
        hosts = {pod["spec"]["nodeName"] for pod in pods}
        assert len(hosts) == nodes, f"pods run on {len(hosts)} of {nodes} nodes"
        asking = time.monotonic()
        answers = "".join(_ask(cluster, pods[0], pods[at : at + BATCH]) for at in range(0, nodes, BATCH))
        answered = time.monotonic()
        missing = [pod["metadata"]["name"] for pod in pods if pod["metadata"]["name"] not in answers]
        assert not missing, f"no answer from {missing[:3]}"
        memory = cluster.memory()
        tell(f"idle for {idle_seconds:g} s …")
        idle = cluster.idle(idle_seconds)
        leaving = time.monotonic()
        cluster.podwire("down")
        down = time.monotonic() - leaving
    ready = up - start + answered - asking  # our own look at the pods is not the cluster's time
    rows: list[dict[str, Any]] = [
        {"what": "Ready, and a pod answering on each node", "value": round(ready, 2), "unit": "s"},
        {"what": "  of which podwire up", "value": round(up - start, 2), "unit": "s"},
        {"what": "  of which asking every pod", "value": round(answered - asking, 2), "unit": "s"},
        {"what": "private memory a node, Ready, mean", "value": at_rest["node_mean"], "unit": "MiB"},
        {"what": "private memory a node, its pod asked, mean", "value": memory["node_mean"], "unit": "MiB"},
        {"what": "private memory a node, largest", "value": memory["node_max"], "unit": "MiB"},
        {"what": "private memory of the controller", "value": memory["controller"], "unit": "MiB"},
        *({"what": f"idle, {role}", "value": share, "unit": "% of a core"} for role, share in idle.items()),
        {"what": "podwire down", "value": round(down, 2), "unit": "s"},
    ]
    return {
        "bench": "nodes",
        "title": f"{nodes} nodes, {SERVICES} Services, a pod on each node",
        "headline": f"Ready to {nodes} bare forks",
        "ratio": round(ready / reference, 1),
        "measured": {"seconds": round(ready, 2), "nodes": nodes, "uss_mib": at_rest, "uss_mib_asked": memory, "idle_percent": idle},
        "reference": {"seconds": round(reference, 3)},
        "rows": rows,
        "environment": environment(),
    }


def _ask(cluster: Cluster, first: dict[str, Any], pods: list[dict[str, Any]]) -> str:
    """Let the first pod ask these for their names."""
    urls = [f"http://{pod['status']['podIP']}:8080/hostname" for pod in pods]
    return cluster.podwire("exec", first["metadata"]["name"], "--", "curl", "-s", "--fail", *urls)


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
@click.option("--nodes", default=200, show_default=True, help="How many.")
@click.option("--idle", "idle_seconds", default=10.0, show_default=True, help="Seconds to watch the idle cluster.")
def main(*, as_json: bool, nodes: int, idle_seconds: float) -> None:
    """Many nodes: time to Ready, memory a node, idle CPU."""
    report(run(nodes, idle_seconds), as_json=as_json)


if __name__ == "__main__":
    main()
