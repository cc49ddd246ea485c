"""One real node in this process: its machine, leader/follower threads and kubelet, on the memory carrier and the real clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from emu.model.cluster import ClusterSpec
from emu.node.calls import Calls
from emu.node.kernel import LeaderFollower
from emu.node.kubelet import Kubelet
from emu.node.main import make_machine
from emu.overlay.memory import MemoryNetwork
from emu.pod.program import Context
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.syncer import Proxy
from emu.stack.namespace import NetNamespace
from emu.wire.addr import Network

PATIENCE = 5.0  # real seconds

Json = dict[str, Any]


def chatter(ctx: Context) -> int:
    """A program for logs: says its arguments one by one, then waits for its end, which it confirms."""
    for word in ctx.argv:
        ctx.stdout.write(f"{word}\n")
    while not ctx.terminating:
        ctx.sleep(0.02)
    ctx.stdout.write("bye\n")
    return 0


def pod(name: str, image: str = "podwire/echo", uid: str = "", *, port: int | None = 7, args: tuple[str, ...] = (), **more: Any) -> Json:
    """A Pod object as its node hears of it. `more`: annotations, labels, and fields of the spec."""
    container: Json = {"name": "main", "image": image, "args": list(args)}
    if port is not None:
        container["ports"] = [{"containerPort": port}]
    return {
        "metadata": {
            "namespace": "default", "name": name, "uid": uid or f"uid-of-{name}",
            "annotations": more.pop("annotations", {}), "labels": more.pop("labels", {}),
        },
        "spec": {"nodeName": "node-1", "containers": [container], "terminationGracePeriodSeconds": 1, **more},
    }  # fmt: skip


def chatting(name: str, *args: str, **more: Any) -> Json:
    return pod(name, "user/chatter", port=None, args=args, annotations={"podwire.dev/program": "tests.kit.nodes:chatter"}, **more)


def deleted(given: Json, grace: float | None = None) -> Json:
    """The same pod with a deletion under way."""
    meta = {**given["metadata"], "deletionTimestamp": "2025-01-01T00:00:00Z"}
    if grace is not None:
        meta["deletionGracePeriodSeconds"] = grace
    return {**given, "metadata": meta}


class RealNode:
    """node-1 of a cluster of two; `reports` is the last status heard of each pod, `gone` (name, uid) of those that ended."""

    def __init__(self) -> None:
        self.spec = ClusterSpec.from_mapping({"name": "test", "nodes": 2}, run_dir="/nowhere")
        self.me = self.spec.node("node-1")
        carrier = MemoryNetwork().carrier("node-1")
        self.machine = make_machine(self.spec, self.me, carrier, 1)  # type: ignore[arg-type]
        self.machine.softnet.checks = True
        self.kernel = LeaderFollower(self.machine.softnet, carrier, self.machine.underlay.receive_message)
        self.wakes = 0
        self.kubelet = Kubelet(self.spec, self.me, self.machine, self.kernel, self._wake)
        self.view = NodeView("node-1", (self.machine.me.ip,), "", (Network.parse(self.me.pod_cidr),))
        self.proxy = Proxy(ProxyConfig.parse({"mode": "iptables"}, cluster_cidr=self.spec.pod_cidr), self.view)
        self.posted: list[Json] = []
        self.calls = Calls(self.kubelet, self.machine, self.kernel, self.posted.append, lambda stop: None)
        self.reports: dict[str, Json] = {}
        self.gone: list[tuple[str, str]] = []
        self.heard = 0
        self.kernel.start()

    def _wake(self) -> None:
        self.wakes += 1

    def wants(self, *pods: Json, without: tuple[str, ...] = ()) -> None:
        """Tell the kubelet of changed pods, and of those that are no longer its."""
        self.kubelet.on_pods(
            [(f"default/{given['metadata']['name']}", given) for given in pods] + [(f"default/{n}", None) for n in without]
        )

    def turn(self) -> None:
        for report in self.kubelet.turn(self.kernel.now()):
            self.heard += 1
            if report.get("gone"):
                self.gone.append((report["name"], report["uid"]))
                self.reports.pop(report["name"], None)
            else:
                self.reports[report["name"]] = report["status"]

    def until(self, true: Callable[[], Any], seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, (self.reports, self.gone, self.posted)
            self.turn()
            time.sleep(0.002)

    def ready(self, name: str) -> bool:
        conditions = self.reports.get(name, {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def run(self, *pods: Json) -> None:
        """Start pods and wait until they are Ready."""
        self.wants(*pods)
        self.until(lambda: all(self.ready(given["metadata"]["name"]) for given in pods))

    def namespace(self, name: str) -> NetNamespace:
        found = self.kubelet.namespace(f"pod/default/{name}")
        assert found is not None
        return found

    def call(self, method: str, number: int = 1, **params: Any) -> list[Json]:
        """The bodies of all answers to a call, up to the last."""
        self.posted.clear()
        self.calls.on_message({"t": "call", "id": number, "method": method, "params": params})
        self.until(lambda: any(message["last"] for message in self.posted))
        assert all(message["t"] == "answer" and message["id"] == number for message in self.posted)
        assert [message["last"] for message in self.posted] == [False] * (len(self.posted) - 1) + [True]
        return [message["body"] for message in self.posted]

    def error(self, method: str, **params: Any) -> Json:
        (body,) = self.call(method, **params)
        found: Json = body["error"]
        return found


@contextmanager
def real_node() -> Iterator[RealNode]:
    node = RealNode()
    try:
        yield node
    finally:
        node.kubelet.shut_down()
        node.kernel.stop()
