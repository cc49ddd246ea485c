"""The scheduler: which node a pod goes to. Decides by spreading alone; resources and affinity are not emulated.

Feasible nodes are Ready, not cordoned, match the nodeSelector, have no taint that the pod does not tolerate, and hold in their
podCIDR the address that the pod may ask for by annotation. Of those: the fewest pods of the same owner, then the fewest pods, then
the first name with numbers read as numbers. A pod that fits nowhere stays Pending, says why in its condition and an event, and is
looked at again whenever a node changes.
Spec: pkg/scheduler (NodeUnschedulable, NodeAffinity's nodeSelector, TaintToleration); tolerations in api/core/v1/toleration.go.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

from emu.control import pods
from emu.control.cluster import Cluster, Object, controller_of, key_of, split
from emu.model.objects import ADDRESS_ANNOTATION
from emu.model.selector import from_map
from emu.store.store import Change

SCHEDULER = "default-scheduler"
_PLAIN_POD: Object = {"spec": {}}


class Scheduler:
    """Keys are Pods."""

    name = "scheduler"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._plain: dict[str, bool] = {}  # node -> may any pod without a nodeSelector go there?

    def affected(self, change: Change) -> Iterable[str]:
        if change.resource == "pods" and change.type != "DELETED" and not change.object["spec"].get("nodeName"):
            yield key_of(change.object)
        elif change.resource == "nodes":
            name = change.object["metadata"]["name"]
            self._plain.pop(name, None)
            if change.type != "DELETED":
                self._plain[name] = not why_not(_PLAIN_POD, change.object)
            for namespace, name in self._cluster.unscheduled():
                yield f"{namespace}/{name}"

    def reconcile(self, key: str, now: float) -> float | None:
        namespace, name = split(key)
        pod = self._cluster.get("pods", namespace, name)
        if pod is None or pod["spec"].get("nodeName") or not pods.is_active(pod) or pod["spec"].get("schedulerName") != SCHEDULER:
            return None
        plain = self._plain if not pod["spec"].get("nodeSelector") and not _fixed_address(pod) else {}
        refusals = {node: why_not(pod, self._node(node)) for node in self._plain if not plain.get(node)}
        feasible = [node for node in self._plain if not refusals.get(node)]
        if not feasible:
            self._unschedulable(pod, len(refusals), Counter(refusals.values()))
            return None
        self._bind(pod, self._choose(pod, feasible))
        return None

    def _node(self, name: str) -> Object:
        found = self._cluster.get("nodes", "", name)
        assert found is not None, f"{name} is gone, and the scheduler was not told"
        return found

    def _choose(self, pod: Object, feasible: list[str]) -> str:
        siblings = self._cluster.placed(controller_of(pod))
        return min(feasible, key=lambda node: (siblings[node], self._cluster.pod_count(node), _natural(node)))

    def _bind(self, pod: Object, node: str) -> None:
        meta = pod["metadata"]
        with self._cluster.store.transaction():
            bound = self._cluster.registry.bind(meta["namespace"], meta["name"], node)
            status = pods.with_condition(bound.get("status") or {}, "PodScheduled", "True", "", "", self._cluster.timestamp())
            self._cluster.set_status("pods", bound, status)
        message = f"Successfully assigned {key_of(pod)} to {node}"
        self._cluster.events.record(pod, "Normal", "Scheduled", message, SCHEDULER)

    def _unschedulable(self, pod: Object, count: int, refusals: Counter[str]) -> None:
        reasons = ", ".join(f"{number} node(s) {why}" for why, number in sorted(refusals.items()))
        message = f"0/{count} nodes are available: {reasons}." if reasons else "no nodes available to schedule pods"
        known = pods.condition(pod, "PodScheduled")
        if known is not None and known.get("message") == message:
            return
        stamp = self._cluster.timestamp()
        status = pods.with_condition(pod.get("status") or {}, "PodScheduled", "False", "Unschedulable", message, stamp)
        self._cluster.set_status("pods", pod, status)
        self._cluster.events.record(pod, "Warning", "FailedScheduling", message, SCHEDULER)


def why_not(pod: Object, node: Object) -> str:
    """Why a node cannot take a pod, in the scheduler's words; "" if it can."""
    spec = node.get("spec") or {}
    if spec.get("unschedulable"):
        return "were unschedulable"
    if not from_map(pod["spec"].get("nodeSelector")).matches(node["metadata"].get("labels")):
        return "didn't match Pod's node affinity/selector"
    if (address := _fixed_address(pod)) and not _holds(spec.get("podCIDR") or "", address):
        return f"didn't have the Pod's address {address} in their podCIDR"
    for taint in spec.get("taints") or ():
        if taint["effect"] in ("NoSchedule", "NoExecute") and not tolerated(pod, taint):
            return f"had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    ready = pods.condition(node, "Ready")
    if ready is None or ready.get("status") != "True":
        return "were not ready"
    return ""


def _fixed_address(pod: Object) -> str:
    """The address that the pod must have, "" for any."""
    return str((pod.get("metadata", {}).get("annotations") or {}).get(ADDRESS_ANNOTATION, ""))


def _holds(cidr: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)
    except ValueError:
        return False


def tolerated(pod: Object, taint: Object) -> bool:
    return any(tolerates(toleration, taint) for toleration in pod["spec"].get("tolerations") or ())


def tolerates(toleration: Object, taint: Object) -> bool:
    """Toleration.ToleratesTaint: an empty effect or key matches all (an empty key only with Exists)."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    key, operator = toleration.get("key") or "", toleration.get("operator") or "Equal"
    if key and key != taint["key"]:
        return False
    if operator == "Exists":
        return True
    return bool(key) and (toleration.get("value") or "") == (taint.get("value") or "")


@cache
def _natural(name: str) -> list[tuple[int, int | str]]:
    """node-2 before node-10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]
