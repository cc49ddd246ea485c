"""The cluster as the controller sees it, as JSON. Reads only; what is not emulated is added by the API, which owns that table."""

from __future__ import annotations

from collections import Counter
from typing import Any

from emu.bus.audience import Audience
from emu.bus.publisher import Publisher
from emu.bus.views import FAULTS, is_ready, node_value
from emu.control import pods
from emu.control.cluster import Cluster
from emu.control.runner import Runner
from emu.controller.collector import Collector, NodeReport
from emu.model.cluster import ClusterSpec

Json = dict[str, Any]


def status(
    spec: ClusterSpec, url: str, cluster: Cluster, runner: Runner, publisher: Publisher, audience: Audience, collector: Collector
) -> Json:
    """`settled`: the controllers are `idle` (all is published, too) and every Ready node has applied that, down to its rules."""
    idle = runner.idle() and not publisher.pending
    nodes = [_node(node, cluster, publisher, audience, collector) for node in cluster.store.list("nodes")[0]]
    known = {node["name"] for node in nodes}
    return {
        "name": spec.name,
        "profile": spec.profile,
        "url": url,
        "revision": cluster.store.revision,
        "settled": idle and all(node["behind"] == 0 and not node["pending"] for node in nodes if node["ready"]),
        "publishing": publisher.pending,
        "idle": idle,
        "expected": len(spec.nodes),
        "absent": [node.name for node in spec.nodes if node.name not in known],
        "nodes": nodes,
        "pods": _pods(cluster),
        "abandoned": sum(report.abandoned for report in collector.reports.values()),
        "standIns": sorted({name for report in collector.reports.values() for name in report.stand_ins}),
        "published": dict(publisher.sequences),
        "drops": dict(sum((Counter(report.drops) for report in collector.reports.values()), Counter())),
        "faults": len(cluster.store.list(FAULTS)[0]),
        "latency": _percentiles(sorted(audience.latencies)),
        "counters": {
            "reconciles": runner.reconciles,
            "reconcileErrors": runner.errors,
            "resyncs": audience.resyncs,
            **collector.counters,
        },
    }


def _node(node: Json, cluster: Cluster, publisher: Publisher, audience: Audience, collector: Collector) -> Json:
    value, name = node_value(node), node["metadata"]["name"]
    report = collector.reports.get(name, NodeReport())
    return {
        "name": name,
        "ready": is_ready(node),
        "ip": value["ip"],
        "podCIDR": value["pod_cidr"],
        "endpoint": value["endpoint"],
        "incarnation": value["incarnation"],
        "pid": report.pid,
        "pods": cluster.pod_count(name),
        "unschedulable": bool((node.get("spec") or {}).get("unschedulable")),
        "applied": audience.applied(name),
        "behind": audience.behind(name, publisher.sequences) if audience.applied(name) else 1,
        "abandoned": report.abandoned,
        "pending": report.pending,
        "drops": report.drops,
    }


def _pods(cluster: Cluster) -> Json:
    everything = cluster.store.list("pods")[0]
    phases = Counter("Terminating" if pod["metadata"].get("deletionTimestamp") else pods.phase(pod) for pod in everything)
    return {"total": len(everything), "ready": sum(pods.is_ready(pod) for pod in everything), "phases": dict(phases)}


def _percentiles(ordered: list[float]) -> Json:
    """Milliseconds from a change's publication to a node's having applied it."""
    if not ordered:
        return {}
    ranks = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    return {
        "samples": len(ordered),
        **{name: round(ordered[min(len(ordered) - 1, int(len(ordered) * rank))] * 1000, 2) for name, rank in ranks},
    }
