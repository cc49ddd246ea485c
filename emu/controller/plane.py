"""The control plane over any bus: everything of the controller process but its sockets, its clock and its end.

`turn` does what there is to do now and says when to come again; whoever owns it (the process, or a test) calls it when `on_work`
says so. Also the API's `NodeCalls`, but for faults, which are the supervisor's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from emu.bus.audience import PATIENCE, Audience
from emu.bus.link import ControllerLink
from emu.bus.publisher import Publisher
from emu.bus.views import is_ready
from emu.control.cluster import Cluster
from emu.control.deployment import DeploymentController
from emu.control.endpointslice import EndpointSliceController
from emu.control.garbage_collector import GarbageCollector, NamespaceController, PodCollector
from emu.control.node_lifecycle import NodeLifecycle
from emu.control.replicaset import ReplicaSetController
from emu.control.runner import Failure, Runner
from emu.control.scheduler import Scheduler
from emu.controller.calls import Calls
from emu.controller.captures import Captures
from emu.controller.collector import Collector
from emu.controller.status import status
from emu.controller.traces import Traces
from emu.controller.tuns import TunKeeper
from emu.model.cluster import ClusterSpec
from emu.observe.programming import KEPT, Publication
from emu.registry.registry import Registry
from emu.store.store import Change

BUDGET = 64  # reconciles in one turn: a few milliseconds, so that requests and leases never wait long


class ControlPlane:
    """Wires store, controllers and bus. `now` is the clock of leases, queues and latencies (seconds, monotonic).

    `publish_period` is the least time between two broadcasts, 0 for at once: each one wakes every node, which costs it more than
    the contents do. It doubles, up to `storm_period`, while they follow each other (all nodes of a cluster register in the same
    seconds), and is forgotten after a quiet one.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        registry: Registry,
        link: ControllerLink,
        now: Callable[[], float],
        *,
        on_error: Failure,
        publish_period: float = 0.0,
        storm_period: float = 0.0,
    ) -> None:
        self.spec, self.registry, self.link, self.url = spec, registry, link, ""
        self._now = now
        store = self.store = registry.store
        self.cluster = Cluster(registry, seed=spec.seed)
        self.publisher = Publisher(store.get, epoch=store.revision, now=now)
        self.publisher.on_changes(
            Change(store.revision, "ADDED", resource, obj, None) for resource in store.resources() for obj in store.list(resource)[0]
        )
        self.publisher.flush()  # nobody listens yet: what is there now comes with the snapshots
        store.subscribe(self.publisher.on_changes)
        self.published: deque[Publication] = deque(maxlen=KEPT)
        grace = spec.timings.node_grace
        self.audience = Audience(max(PATIENCE, grace / 2))  # many nodes are slow together, and resyncs would make them slower
        self.lifecycle = NodeLifecycle(self.cluster, grace=grace, expected=[node.name for node in spec.nodes], now=now())
        self.runner = Runner(store, self._controllers(), on_error)
        self.collector = Collector(
            self.cluster, link, self.publisher, self.audience, self.lifecycle, poke=lambda node: self.runner.poke(self.lifecycle, node)
        )
        store.subscribe(self._forget_deleted_nodes)
        self.calls = Calls(link, self.lives)
        self.traces, self.captures = Traces(store, self.calls), Captures(store, self.calls)
        self.collector.on_answer, self.collector.on_hop = self.calls.on_answer, self.traces.on_hop
        self.tuns = TunKeeper(registry, self.calls.tell)
        self.collector.on_new_life = self._on_new_life
        self._beat = grace / 8
        self._publish_period = self._pause = publish_period
        self._storm_period = max(publish_period, storm_period)
        self._published_at = float("-inf")

    def _controllers(self) -> tuple[Any, ...]:
        cluster = self.cluster
        return (
            NamespaceController(cluster), DeploymentController(cluster), ReplicaSetController(cluster), Scheduler(cluster),
            EndpointSliceController(cluster), self.lifecycle, GarbageCollector(cluster), PodCollector(cluster),
        )  # fmt: skip

    # ---- turning -----------------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Take in what nodes have sent."""
        now = self._now()
        for node, message in self.link.receive():
            self.collector.on_message(node, message, now)

    def turn(self) -> float:
        """Reconcile what is due and publish what has changed; seconds until the next turn is due (0: there is more to do)."""
        now = self._now()
        self.lifecycle.heartbeat(now)
        self.runner.run(now, BUDGET)
        return max(0.0, min(self.runner.next_at() - now, self._beat, self._publish()))

    def _publish(self) -> float:
        """Broadcast what has changed, unless that was done just now; seconds until it is due, inf if there is nothing."""
        now = self._now()
        wait = self._published_at + self._pause - now
        if not self.publisher.pending or wait > 0:
            return wait if self.publisher.pending else float("inf")
        updates = self.publisher.flush()
        for update in updates:
            self.link.publish(update)
            self.audience.on_publish(update.stream, update.sequence, now)
            size = sum(len(value) for _, _, value in update.changes)
            noted = self.publisher.noted[update.stream]
            self.published.append(Publication(update.stream, update.sequence, update.revision, noted, self._now(), size))
        if updates:
            quiet = now >= self._published_at + 2 * self._pause
            self._pause = self._publish_period if quiet else min(2 * self._pause, self._storm_period)
            self._published_at = now
        return float("inf")

    @property
    def idle(self) -> bool:
        """Nothing to reconcile, and nothing to publish."""
        return self.runner.idle() and not self.publisher.pending

    def _forget_deleted_nodes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.resource == "nodes" and change.type == "DELETED":
                self.collector.on_node_deleted(change.object["metadata"]["name"])

    def _on_new_life(self, node: str) -> None:
        self.calls.on_new_life(node)
        self.tuns.on_new_life(node)

    # ---- NodeCalls -----------------------------------------------------------------------------------------------------------

    def lives(self, node: str) -> bool | None:
        """Is the node there to be asked? None: there is no such node."""
        found = self.store.get("nodes", "", node)
        return None if found is None else is_ready(found)

    async def call(self, node: str, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        return await self.calls.call(node, method, params, timeout)

    def stream(self, node: str, method: str, params: dict[str, Any]) -> Any:
        return self.calls.stream(node, method, params)

    async def trace(self, params: dict[str, Any]) -> dict[str, Any]:
        return await self.traces.trace(params)

    async def capture(self, params: dict[str, Any]) -> AsyncIterator[bytes]:
        return await self.captures.open(params)

    def publications(self) -> list[dict[str, Any]]:
        return [publication._asdict() for publication in self.published]

    def fault_counters(self) -> dict[str, dict[str, int]]:
        return self.collector.fault_counters()

    def status(self) -> dict[str, Any]:
        return status(self.spec, self.url, self.cluster, self.runner, self.publisher, self.audience, self.collector)
