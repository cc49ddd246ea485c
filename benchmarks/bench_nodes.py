"""`bench nodes`: so many node processes Ready with a pod answering on each; what a node takes of memory, and an idle cluster of CPU.

The cluster has 10 Services, over all pods in turn. Every pod is asked over HTTP from the first one; time runs from typing
`podwire up` to the last answer. `ratio` is of that time to forking as many processes of the zygote's kind that do nothing.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import click

from benchmarks.cluster import Cluster
from benchmarks.harness import Result, environment, report, tell

SERVICES = 10
IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.53"


def run(nodes: int = 200, idle_seconds: float = 10.0) -> Result:
    """Bring the cluster up once, ask every pod, read memory, then watch it idle."""
    tell(f"{nodes} nodes …")
    reference = _forks(nodes)
    start = time.monotonic()
    with Cluster("nodes") as cluster:
        cluster.podwire("up", "--nodes", str(nodes), "-f", "-", stdin=manifests(nodes))
        up = time.monotonic()
        pods = cluster.pods()
        hosts = {pod["spec"]["nodeName"] for pod in pods}
        assert len(hosts) == nodes, f"pods run on {len(hosts)} of {nodes} nodes"
        asking = time.monotonic()
        urls = [f"http://{pod['status']['podIP']}:8080/hostname" for pod in pods]
        answers = cluster.podwire("exec", pods[0]["metadata"]["name"], "--", "curl", "-s", "--fail", *urls)
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
        {"what": "private memory a node, mean", "value": memory["node_mean"], "unit": "MiB"},
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
        "measured": {"seconds": round(ready, 2), "nodes": nodes, "uss_mib": memory, "idle_percent": idle},
        "reference": {"seconds": round(reference, 3)},
        "rows": rows,
        "environment": environment(),
    }


def manifests(nodes: int) -> str:
    """Ten Deployments behind ten Services, with as many pods as there are nodes in all."""
    documents = []
    for index in range(SERVICES):
        replicas = nodes // SERVICES + (index < nodes % SERVICES)
        name = f"echo-{index}"
        documents.append(f"""\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      containers:
      - {{name: echo, image: "{IMAGE}", args: [netexec, --http-port=8080], ports: [{{containerPort: 8080}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
""")
    return "---\n".join(documents)


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
