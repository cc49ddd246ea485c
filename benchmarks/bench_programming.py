"""An endpoint change, from the API's request to the swapped rules of the last of many nodes, with a thousand Services around it.

Two kinds of change take turns: somebody writes an EndpointSlice, and a pod's readiness changes, which the EndpointSlice controller
has to notice. Changes come one at a time, and before each of them a packet walks every node's rules: where none does, a node leaves
the next ones unwritten, and what is measured would be no more than hearing of the change. The reference, in turn with them: a bare
pyzmq XPUB sends as many bytes to as many processes, each of which says when it had them. `ratio` is of the two p99s.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import struct
import tempfile
import time
from bisect import bisect_left
from typing import Any, NoReturn, Self

import click
import zmq

from benchmarks.cluster import Cluster
from benchmarks.harness import Result, environment, report, tell
from emu.observe.programming import Publication, Swap
from launcher import execution, rundir, startup
from launcher.client import MERGE_PATCH, Client, path_of

IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.53"
PAUSE = 0.08  # seconds between two changes, on average: one is over before the next begins
SETTLE = 3.0  # seconds after `podwire up`
READ_EVERY = 100  # changes between two looks at the books, which keep the last 512 entries
STAGES = ("request, store and controller", "waits for the broadcast", "to the node's loop", "read", "rules built", "swapped")

Json = dict[str, Any]


def run(nodes: int = 100, services: int = 1000, endpoints: int = 10, changes: int = 300) -> Result:
    """Measure so many changes, half of each kind."""
    tell(f"{nodes} nodes, {services} Services …")
    with Cluster("programming") as cluster:
        cluster.podwire("up", "--nodes", str(nodes), "-f", "-", "--timeout", "300", stdin=manifests(nodes, services, endpoints))
        time.sleep(SETTLE)
        world = World(cluster, nodes, services, endpoints)
        with Subscribers(nodes) as subscribers:
            for number in range(changes):
                world.walk()
                time.sleep(PAUSE * random.uniform(0.5, 1.5))
                world.change(number)
                time.sleep(PAUSE * random.uniform(0.5, 1.5))
                subscribers.round(world.size)
                if number % READ_EVERY == READ_EVERY - 1:
                    world.read()
            world.read()
        world.check()
        cluster.podwire("down")
    whole, bare = world.latencies(), percentiles(subscribers.times)
    kinds = {kind: world.latencies(kind) for kind in ("slice", "pod")}
    return {
        "bench": "programming",
        "title": f"endpoint change to the rules of all {nodes} nodes, {services} Services of {endpoints} endpoints (ms)",
        "headline": "p99, of a change to all nodes' rules to a bare broadcast of the same bytes",
        "ratio": round(whole["p99"] / bare["p99"], 2),
        "measured": {**whole, "nodes": nodes, "services": services, "endpoints": endpoints, "changes": changes, "bytes": world.size},
        "reference": bare,
        "rows": [
            {"what": "endpoint change, on all nodes", **whole},
            {"what": "  an EndpointSlice is written", **kinds["slice"]},
            {"what": "  a pod's readiness changes", **kinds["pod"]},
            {"what": "  on a node", **percentiles(world.each_node)},
            *({"what": f"    {stage}", **percentiles(times)} for stage, times in world.stages.items()),
            {"what": "bare broadcast, at all processes", **bare},
        ],
        "environment": environment(),
    }


def percentiles(times: list[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds, of seconds."""
    ordered = sorted(times)
    return {f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)] * 1000, 2) for p in (50, 90, 99)}


# ---- the cluster -------------------------------------------------------------------------------------------------------


class World:
    """The cluster under change, and what its books say of each change. `size` is of the last update, in bytes."""

    def __init__(self, cluster: Cluster, nodes: int, services: int, endpoints: int) -> None:
        self._client = Client.of(rundir.of(cluster.name))
        self._nodes = [f"node-{index}" for index in range(1, nodes + 1)]
        self._urls = [f"http://{pod['status']['podIP']}:8080/hostname" for pod in cluster.objects("pods")]
        self._made = [slice_of(number, endpoints) for number in range(nodes, services)]
        self._pending: list[tuple[str, float, int]] = []  # kind, when it was asked for, its revision
        self._whole: dict[str, list[float]] = {"slice": [], "pod": []}
        self.each_node: list[float] = []
        self.stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self.size = 1000

    def walk(self) -> None:
        """Have a packet walk the rules of every node, for only after that are the next ones built at once. AssertionError if one is
        not answered."""
        status, _, err = execution.output(self._client, "default", "echo-0", ("curl", "-s", "--fail", *self._urls))
        assert not status, f"not every pod answers: curl's status {status}: {err.strip()[-200:]}"

    def change(self, number: int) -> None:
        """Ask for one change. Even ones take an endpoint's address out of a slice or put it back, odd ones a pod's readiness."""
        kind = ("slice", "pod")[number % 2]
        request = self._slice_change(number // 2) if kind == "slice" else self._pod_change(number // 2)
        asked = time.monotonic()
        changed = self._client.request(*request, content_type=MERGE_PATCH if kind == "pod" else "application/json")
        self._pending.append((kind, asked, int(changed["metadata"]["resourceVersion"])))

    def _slice_change(self, number: int) -> tuple[str, str, Json]:
        made = self._made[number * 7 % len(self._made)]
        ready = made["endpoints"][0]["conditions"]
        ready["ready"] = not ready["ready"]
        return "PUT", path_of(startup.resource("endpointslices"), "default", made["metadata"]["name"]), made

    def _pod_change(self, number: int) -> tuple[str, str, Json]:
        index, again = number % len(self._nodes), number // len(self._nodes)
        status = "False" if again % 2 == 0 else "True"
        body = {"status": {"conditions": [{"type": "Ready", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}
        return "PATCH", path_of(startup.resource("pods"), "default", f"echo-{index}", "status"), body

    def read(self) -> None:
        """Look up what became of the changes so far."""
        time.sleep(1.0)
        told = (Publication(**item) for item in self._client.podwire("GET", "publications")["items"])
        updates = [publication for publication in told if publication.stream == "services"]
        swaps = {node: [Swap(**item) for item in self._client.podwire("GET", f"nodes/{node}/swaps")["items"]] for node in self._nodes}
        for kind, asked, revision in self._pending:
            update = updates[bisect_left(updates, revision, key=lambda one: one.revision)]
            self.size = update.size
            done = [of_node[bisect_left(of_node, update.sequence, key=lambda one: one.sequence)] for of_node in swaps.values()]
            self._whole[kind].append(max(swap.swapped for swap in done) - asked)
            for swap in done:
                times = (asked, update.noted, update.published, swap.heard, swap.read, swap.built, swap.swapped)
                self.each_node.append(swap.swapped - asked)
                for stage, began, ended in zip(STAGES, times, times[1:], strict=False):
                    self.stages[stage].append(ended - began)
        self._pending.clear()

    def check(self) -> None:
        """AssertionError unless the first and the last node's rules have just the endpoints that are ready."""
        for node in (self._nodes[0], self._nodes[-1]):
            rules = self._client.podwire("GET", f"nodes/{node}/rules")["text"]
            for made in self._made:
                first = made["endpoints"][0]
                there = f"--to-destination {first['addresses'][0]}:8080\n" in rules
                assert there == first["conditions"]["ready"], f"{node} does not have {made['metadata']['name']} as it is"

    def latencies(self, kind: str | None = None) -> dict[str, float]:
        """Of all changes, or those of a kind: until the last node had it."""
        return percentiles([time for name, times in self._whole.items() if kind in (None, name) for time in times])


def manifests(nodes: int, services: int, endpoints: int) -> str:
    """A pod on each node behind a Service of its own; the other Services have no selector, and slices made by hand."""
    container = {"name": "echo", "image": IMAGE, "args": ["netexec", "--http-port=8080"], "ports": [{"containerPort": 8080}]}
    pods = [
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"echo-{number}", "labels": {"app": f"echo-{number}"}},
            "spec": {"nodeName": f"node-{number + 1}", "containers": [container]},
        }
        for number in range(nodes)
    ]  # fmt: skip
    made = [
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": f"echo-{number}"},
            "spec": {**({"selector": {"app": f"echo-{number}"}} if number < nodes else {}), "ports": [{"port": 80, "targetPort": 8080}]},
        }
        for number in range(services)
    ]  # fmt: skip
    slices = [slice_of(number, endpoints) for number in range(nodes, services)]
    return "\n---\n".join(json.dumps(item) for item in (*made, *slices, *pods))


def slice_of(number: int, endpoints: int) -> Json:
    """The slice of a Service without a selector; its addresses are of no pod."""
    addresses = [f"172.{16 + index}.{number >> 8}.{number & 255}" for index in range(endpoints)]
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": f"echo-{number}-made", "namespace": "default", "labels": {"kubernetes.io/service-name": f"echo-{number}"}},
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
    }  # fmt: skip


# ---- the reference -----------------------------------------------------------------------------------------------------


class Subscribers:
    """Processes that do nothing but hear a broadcast and say when they did. `times` are until the last one had it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.times: list[float] = []

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="pw-bench-", dir="/tmp")  # a socket's path must be short
        broadcast, answers = (f"ipc://{self._directory.name}/{name}" for name in ("pub", "pull"))
        self._children = [_fork(broadcast, answers) for _ in range(self._count)]
        self._context = zmq.Context()
        self._pub, self._pull = self._context.socket(zmq.XPUB), self._context.socket(zmq.PULL)
        self._pub.set(zmq.XPUB_VERBOSE, 1)  # every subscription is told of, not the first alone
        self._pub.set(zmq.RCVTIMEO, 10_000)
        self._pub.bind(broadcast)
        self._pull.set(zmq.RCVTIMEO, 10_000)
        self._pull.bind(answers)
        for _ in range(self._count):
            self._pub.recv()  # a subscription
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self._context.destroy(0)
        self._directory.cleanup()

    def round(self, size: int) -> None:
        began = time.monotonic()
        self._pub.send(bytes(size))
        last = max(_TIME.unpack(self._pull.recv())[0] for _ in range(self._count))
        self.times.append(last - began)


_TIME = struct.Struct("d")


def _fork(broadcast: str, answers: str) -> int:
    child = os.fork()
    if child:
        return child
    with contextlib.suppress(BaseException):
        _hear(broadcast, answers)
    os._exit(1)


def _hear(broadcast: str, answers: str) -> NoReturn:
    context = zmq.Context()
    sub, push = context.socket(zmq.SUB), context.socket(zmq.PUSH)
    sub.subscribe(b"")
    sub.connect(broadcast)
    push.connect(answers)
    while True:
        sub.recv()
        push.send(_TIME.pack(time.monotonic()))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--nodes", default=100, show_default=True, help="How many.")
@click.option("--services", default=1000, show_default=True, help="How many; one of them a node's pod.")
@click.option("--endpoints", default=10, show_default=True, help="Of each Service without a pod.")
@click.option("--changes", default=300, show_default=True, help="How many to measure.")
def main(*, as_json: bool, nodes: int, services: int, endpoints: int, changes: int) -> None:
    """How long an endpoint change takes to reach all nodes' rules."""
    report(run(nodes, services, endpoints, changes), as_json=as_json)


if __name__ == "__main__":
    main()
