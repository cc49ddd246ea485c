"""What nodes say, and what comes of it: a table of message types. Runs in the event loop; sends only snapshots and orders to resync.

A lease costs two dictionary writes, since most messages of a big cluster are leases; objects are written only for news. Reports on
pods that are not those of that node, or not that pod any more (another uid), are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emu.bus.audience import Audience
from emu.bus.link import ControllerLink
from emu.bus.messages import Message
from emu.bus.publisher import Publisher
from emu.control import nodes
from emu.control.cluster import Cluster, Object
from emu.control.node_lifecycle import NodeLifecycle
from emu.errors import ApiError
from emu.model.kinds import KUBERNETES_VERSION
from emu.observe.hops import unpack
from emu.trace import Hop

KEPT_CONDITIONS = frozenset(("PodScheduled",))  # of a Pod: the control plane's own, which no kubelet reports
KEPT_STATUS = ("qosClass",)


@dataclass(slots=True)
class NodeReport:
    """What a node last said of itself, beyond its Node object."""

    pid: int = 0
    incarnation: int = 0
    abandoned: int = 0
    pending: bool = False  # its proxy has heard what its rules do not say yet
    stand_ins: list[str] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)  # packets that ended there, by reason
    faults: dict[str, dict[str, int]] = field(default_factory=dict)  # fault on links -> what it has done to how many segments


class Collector:
    """Takes in the messages of all nodes."""

    def __init__(
        self,
        cluster: Cluster,
        link: ControllerLink,
        publisher: Publisher,
        audience: Audience,
        lifecycle: NodeLifecycle,
        *,
        poke: Callable[[str], None],
    ) -> None:
        self._cluster, self._link, self._publisher, self._audience, self._lifecycle = cluster, link, publisher, audience, lifecycle
        self._poke = poke
        self.reports: dict[str, NodeReport] = {}
        self.counters: Counter[str] = Counter()
        self._owing: set[str] = set()  # nodes something of whose reports could not be stored
        self.on_answer: Callable[[str, Message], None] = lambda node, message: None
        self.on_hop: Callable[[Hop], None] = lambda hop: None
        self.on_new_life: Callable[[str], None] = lambda node: None
        self._handlers: Mapping[str, Callable[[str, Message, float], None]] = {
            "hello": self._hello, "snapshot?": self._snapshot, "lease": self._lease, "pods": self._pods,
            "hops": self._hops, "answer": self._answer, "event": self._event,
        }  # fmt: skip

    def on_message(self, node: str, message: Message, now: float) -> None:
        """One message of one node."""
        handler = self._handlers.get(message["t"])
        if handler is None:
            self.counters["messages of the wrong direction"] += 1
            return
        handler(node, message, now)

    # ---- the node itself -------------------------------------------------------------------------------------------------

    def _hello(self, node: str, hello: Message, now: float) -> None:
        if hello["name"] != node:
            self.counters["messages under another name"] += 1
            return
        report = self.reports.get(node)
        if report is None or (report.incarnation, report.pid) != (hello["incarnation"], hello["pid"]):
            self.reports[node] = NodeReport(hello["pid"], hello["incarnation"])
            self._audience.forget(node)
            self.on_new_life(node)
        self._lifecycle.renew(node, now)
        old = self._cluster.get("nodes", "", node)
        made = nodes.judged(nodes.registered(hello, old, KUBERNETES_VERSION), alive=True, stamp=self._cluster.timestamp())
        try:
            if old is None:
                self._cluster.registry.create("nodes", made)
            else:
                self._cluster.registry.update("nodes", made)
        except ApiError as error:
            self._refused(f"node {node}", error, node)
        self._poke(node)

    def _lease(self, node: str, lease: Message, now: float) -> None:
        news = self._lifecycle.renew(node, now)
        applied = {stream: sequence for stream, sequence in lease["applied"].items() if isinstance(sequence, int)}
        for stream in self._audience.on_lease(node, applied, self._publisher.sequences, now):
            self._link.send(node, {"t": "resync", "stream": stream})
        report = self.reports.get(node)
        if report is None:  # a node of before this controller's life, or of a Node object that somebody deleted
            self._link.send(node, {"t": "hello?"})
            return
        report.abandoned, report.pending = lease["abandoned"], bool(lease.get("pending"))
        if isinstance(lease.get("stand_ins"), list):
            report.stand_ins = lease["stand_ins"]
        if isinstance(lease.get("drops"), dict):
            report.drops = lease["drops"]
        if isinstance(lease.get("faults"), dict):
            report.faults = lease["faults"]
        if news or node in self._owing:
            self._owing.discard(node)
            self._link.send(node, {"t": "hello?"})  # it was thought dead: its pods were marked, and it must say how they are
            self._poke(node)

    def fault_counters(self) -> dict[str, dict[str, int]]:
        """What each fault on links has done to how many segments, on all nodes."""
        total: dict[str, Counter[str]] = {}
        for report in self.reports.values():
            for fault, counts in report.faults.items():
                total.setdefault(fault, Counter()).update(counts)
        return {fault: dict(counts) for fault, counts in total.items()}

    def on_node_deleted(self, node: str) -> None:
        """Somebody deleted the Node object: its next lease registers it again."""
        self.reports.pop(node, None)

    def _snapshot(self, node: str, message: Message, now: float) -> None:
        self.counters["snapshots"] += 1
        self._link.send(node, self._publisher.snapshot(message["stream"]))

    # ---- its pods --------------------------------------------------------------------------------------------------------

    def _pods(self, node: str, message: Message, now: float) -> None:
        """A batch of reports is one transaction; one that is refused does not take the others along, unless the disk will have none."""
        try:
            with self._cluster.store.transaction():
                for report in message["statuses"]:
                    try:
                        self._pod(node, report)
                    except ApiError as error:
                        self._refused(f"status of {report.get('namespace')}/{report.get('name')}", error, node)
        except ApiError as error:
            self._refused("reports on pods", error, node)

    def _pod(self, node: str, report: Any) -> None:
        if not isinstance(report, dict) or not all(isinstance(report.get(key), str) for key in ("namespace", "name", "uid")):
            self.counters["malformed reports"] += 1
            return
        pod = self._cluster.get("pods", report["namespace"], report["name"])
        if pod is None or pod["metadata"]["uid"] != report["uid"] or pod["spec"].get("nodeName") != node:
            self.counters["reports on other pods"] += 1
        elif report.get("gone"):
            self._cluster.registry.delete("pods", report["namespace"], report["name"], grace=0)
        elif isinstance(report.get("status"), dict):
            self._cluster.set_status("pods", pod, merged_status(pod, report["status"], self._cluster.timestamp()))
        else:
            self.counters["malformed reports"] += 1

    def _refused(self, what: str, error: ApiError, node: str = "") -> None:
        if node and error.code >= 500:  # not for what was said, but because it could not be kept: it must be said again
            self._owing.add(node)
        self.counters[f"refused: {what}: {error.message}"[:200]] += 1

    # ---- the rest --------------------------------------------------------------------------------------------------------

    def _hops(self, node: str, message: Message, now: float) -> None:
        for packed in message["hops"]:
            hop = unpack(packed)
            if hop is None or hop.node != node:
                self.counters["malformed hops"] += 1
            else:
                self.on_hop(hop)

    def _answer(self, node: str, message: Message, now: float) -> None:
        self.on_answer(node, message)

    def _event(self, node: str, message: Message, now: float) -> None:
        about = message["object"]
        if not all(isinstance(about.get(key), str) for key in ("kind", "name")):
            self.counters["malformed events"] += 1
            return
        kind = "Warning" if message["type"] == "Warning" else "Normal"
        try:
            self._cluster.events.record(about, kind, message["reason"], message["message"], "kubelet")
        except ApiError as error:
            self._refused("event", error)


def merged_status(pod: Object, reported: Object, stamp: str) -> Object:
    """A Pod's status as its node reports it, with what is the control plane's own, and times of change kept where nothing changed."""
    old = pod.get("status") or {}
    before = {condition["type"]: condition for condition in old.get("conditions") or ()}
    conditions = [before[kind] for kind in before if kind in KEPT_CONDITIONS]
    for condition in reported.get("conditions") or ():
        known = before.get(condition.get("type"))
        if condition.get("type") in KEPT_CONDITIONS and known is not None:
            continue
        changed = known is None or known.get("status") != condition.get("status")
        at = condition.get("lastTransitionTime", stamp) if changed or known is None else known.get("lastTransitionTime", stamp)
        conditions.append({**condition, "lastTransitionTime": at})
    kept = {field: old[field] for field in KEPT_STATUS if field in old}
    return {**kept, **reported, "conditions": conditions}
