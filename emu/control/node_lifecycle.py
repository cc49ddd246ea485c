"""Node leases: who is Ready, who has gone silent, and when the pods of a silent node are given up.

Leases are kept in memory, for they say only "now": a Node object is written when the answer changes. A lease older than the grace
makes the Node's Ready Unknown, taints it and makes its pods not Ready (so their endpoints go at once); each pod is deleted when its
toleration ends. Nobody is judged before all expected nodes have registered once, and when this process itself has been away for
longer than half the grace, all leases count as renewed: the silence may have been ours.
Spec: pkg/controller/nodelifecycle (monitorNodeHealth), pkg/controller/tainteviction, KEP-589 (node leases).
"""

from __future__ import annotations

from collections.abc import Iterable

from emu.control import nodes, pods
from emu.control.cluster import Cluster, Object
from emu.store.store import Change


class NodeLifecycle:
    """Keys are Nodes. `grace` is in seconds; `expected` names the nodes that must have been there once."""

    name = "node-lifecycle"

    def __init__(self, cluster: Cluster, *, grace: float, expected: Iterable[str], now: float) -> None:
        self._cluster, self._grace = cluster, grace
        self._missing = set(expected)
        self._started = self._beat = now
        self._leases: dict[str, float] = {}
        self._silent_since: dict[str, float] = {}

    def affected(self, change: Change) -> Iterable[str]:
        if change.resource == "nodes":
            yield change.object["metadata"]["name"]
        elif change.resource == "pods" and change.type == "ADDED" and change.object["spec"].get("nodeName") in self._silent_since:
            yield change.object["spec"]["nodeName"]

    # ---- leases ------------------------------------------------------------------------------------------------------------

    def renew(self, node: str, now: float) -> bool:
        """A lease has come; True if the node must be looked at for it (it was thought silent, or has never been seen)."""
        news = node not in self._leases or node in self._silent_since
        self._leases[node] = now
        return news

    def heartbeat(self, now: float) -> None:
        """Called several times a grace by the process that runs this; a late one renews all leases."""
        if now - self._beat > self._grace / 2:
            self._leases = dict.fromkeys(self._leases, now)
            self._started = now
        self._beat = now

    def lease_age(self, node: str, now: float) -> float:
        """Seconds since the node was last heard; since our own start if never."""
        return now - self._leases.get(node, self._started)

    # ---- judging -----------------------------------------------------------------------------------------------------------

    def reconcile(self, key: str, now: float) -> float | None:
        node = self._cluster.get("nodes", "", key)
        if node is None:
            self._leases.pop(key, None)
            self._silent_since.pop(key, None)
            return None
        self._missing.discard(key)
        self.heartbeat(now)
        deadline = self._leases.get(key, self._started) + self._grace  # one sum, so that what is asked for at it finds it reached
        if now < deadline:
            if key in self._leases:
                self._alive(node)
            return deadline
        if self._missing:
            return now + self._grace
        return self._silent(node, now)

    def _alive(self, node: Object) -> None:
        name = node["metadata"]["name"]
        self._silent_since.pop(name, None)
        if self._write(node, alive=True):
            self._cluster.events.record(node, "Normal", "NodeReady", f"Node {name} status is now: NodeReady", "node-controller")

    def _silent(self, node: Object, now: float) -> float | None:
        name = node["metadata"]["name"]
        since = self._silent_since.setdefault(name, now)
        if self._write(node, alive=False):
            self._cluster.events.record(node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady", "node-controller")
        wakes = []
        for pod in self._cluster.pods_on(name):
            self._mark(pod)
            patience = nodes.patience(pod)
            if patience is None or pod["metadata"].get("deletionTimestamp") or pods.phase(pod) in pods.TERMINAL:
                continue
            if now < since + patience:
                wakes.append(since + patience)
            else:
                self._evict(pod)
        return min(wakes, default=None)

    def _write(self, node: Object, *, alive: bool) -> bool:
        judged = nodes.judged(node, alive=alive, stamp=self._cluster.timestamp())
        if judged is node:
            return False
        self._cluster.registry.update("nodes", judged)  # a Node's status comes with it
        return True

    def _mark(self, pod: Object) -> None:
        """A pod on a silent node is not Ready, whatever it said last."""
        if pods.is_ready(pod):
            stamp = self._cluster.timestamp()
            self._cluster.set_status("pods", pod, pods.with_condition(pod["status"], "Ready", "False", "NodeNotReady", "", stamp))

    def _evict(self, pod: Object) -> None:
        meta = pod["metadata"]
        self._cluster.events.record(
            pod,
            "Normal",
            "TaintManagerEviction",
            f"Marking for deletion Pod {meta['namespace']}/{meta['name']}",
            "taint-eviction-controller",
        )
        self._cluster.registry.delete("pods", meta["namespace"], meta["name"], preconditions={"uid": meta["uid"]})
