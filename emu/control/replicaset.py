"""ReplicaSets: as many pods as wanted, of this template. Decides which pod goes first when there are too many.

Pods are its own by ownerReference; a pod that matches and is nobody's is adopted, one that no longer matches is released (so that
it can be looked at while another takes its place). Spec: pkg/controller/replicaset, controller_utils.go (ActivePodsWithRanks),
controller_ref_manager.go; KEP-2255 (pod deletion cost), KEP-2185 (logarithmic age).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from emu.control import pods
from emu.control.cluster import Cluster, Object, controller_of, key_of, owner_reference, split
from emu.errors import ApiError
from emu.model.selector import Selector, from_label_selector
from emu.store.store import Change

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
BURST = 500  # pods made or deleted at one go (BurstReplicas)
_PHASES = {"Pending": 0, "Unknown": 1}  # anything else runs


class ReplicaSetController:
    """Keys are ReplicaSets."""

    name = "replicaset"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def affected(self, change: Change) -> Iterable[str]:
        if change.resource == "replicasets":
            yield key_of(change.object)
        elif change.resource == "pods":
            for obj in (change.object, change.previous):
                yield from _owners(obj) if obj is not None else ()
            if change.type != "DELETED" and not controller_of(change.object):
                yield from self._adopters(change.object)

    def _adopters(self, pod: Object) -> Iterable[str]:
        """ReplicaSets that would take an orphan in."""
        for one in self._cluster.store.list("replicasets", pod["metadata"]["namespace"])[0]:
            if from_label_selector(one["spec"]["selector"]).matches(pod["metadata"].get("labels")):
                yield key_of(one)

    def reconcile(self, key: str, now: float) -> float | None:
        namespace, name = split(key)
        replica_set = self._cluster.get("replicasets", namespace, name)
        if replica_set is None:
            return None
        mine = self._claim(replica_set)
        if not replica_set["metadata"].get("deletionTimestamp"):
            missing = replica_set["spec"]["replicas"] - len(mine)
            if missing > 0:
                for _ in range(min(missing, BURST)):
                    self._create_pod(replica_set)
            elif missing < 0:
                self._delete_pods(replica_set, mine, min(-missing, BURST))
        current = self._cluster.get("replicasets", namespace, name)
        if current is None:
            return None
        active = [pod for pod in self._cluster.owned(current, "pods") if pods.is_active(pod)]
        epoch = pods.seconds(self._cluster.timestamp())
        self._cluster.set_status("replicasets", current, status_of(current, active, epoch))
        return _next_available(current, active, epoch, now)

    def _claim(self, replica_set: Object) -> list[Object]:
        """The active pods that are this ReplicaSet's, after adopting and releasing."""
        selector = from_label_selector(replica_set["spec"]["selector"])
        mine = []
        for pod in self._cluster.owned(replica_set, "pods"):
            if not pods.is_active(pod):
                continue
            if selector.matches(pod["metadata"].get("labels")):
                mine.append(pod)
            else:
                self._own(pod, [ref for ref in pod["metadata"]["ownerReferences"] if ref["uid"] != replica_set["metadata"]["uid"]])
        if replica_set["metadata"].get("deletionTimestamp"):
            return mine
        for pod in self._orphans(replica_set["metadata"]["namespace"], selector):
            mine.append(self._own(pod, [*(pod["metadata"].get("ownerReferences") or ()), owner_reference(replica_set)]))
        return mine

    def _orphans(self, namespace: str, selector: Selector) -> list[Object]:
        return [
            pod
            for pod in self._cluster.store.list("pods", namespace)[0]
            if not controller_of(pod) and pods.is_active(pod) and selector.matches(pod["metadata"].get("labels"))
        ]

    def _own(self, pod: Object, references: list[Object]) -> Object:
        owned: Object = {**pod, "metadata": {**pod["metadata"], "ownerReferences": references}}
        return self._cluster.registry.update("pods", owned, pod["metadata"]["namespace"]).object

    def _create_pod(self, replica_set: Object) -> None:
        meta, template = replica_set["metadata"], replica_set["spec"]["template"]
        name = f"{meta['name'][:57]}-{self._cluster.suffix()}"
        described = {key: value for key, value in (template.get("metadata") or {}).items() if key in ("labels", "annotations") and value}
        pod = {
            "metadata": {
                **described, "name": name, "generateName": f"{meta['name']}-", "namespace": meta["namespace"],
                "ownerReferences": [owner_reference(replica_set)],
            },
            "spec": template["spec"],
        }  # fmt: skip
        try:
            self._cluster.registry.create("pods", pod, meta["namespace"])
        except ApiError as error:
            if error.reason != "AlreadyExists":  # then the next reconcile draws another name
                self._cluster.events.record(
                    replica_set, "Warning", "FailedCreate", f"Error creating: {error.message}", "replicaset-controller"
                )
            raise
        self._cluster.events.record(replica_set, "Normal", "SuccessfulCreate", f"Created pod: {name}", "replicaset-controller")

    def _delete_pods(self, replica_set: Object, mine: list[Object], count: int) -> None:
        epoch = pods.seconds(self._cluster.timestamp())
        for pod in sorted(mine, key=deletion_order(mine, self._neighbours(replica_set, mine), epoch))[:count]:
            meta = pod["metadata"]
            self._cluster.registry.delete("pods", meta["namespace"], meta["name"], preconditions={"uid": meta["uid"]})
            self._cluster.events.record(replica_set, "Normal", "SuccessfulDelete", f"Deleted pod: {meta['name']}", "replicaset-controller")

    def _neighbours(self, replica_set: Object, mine: list[Object]) -> Counter[str]:
        """Active pods a node, of this ReplicaSet and of its siblings under the same Deployment."""
        owner = controller_of(replica_set)
        siblings = [key for key in self._cluster.dependents(owner) if key[0] == "replicasets"] if owner else []
        related = {pod["metadata"]["uid"]: pod for pod in mine}
        for key in siblings:
            sibling = self._cluster.get(*key)
            for pod in self._cluster.owned(sibling, "pods") if sibling is not None else ():
                if pods.is_active(pod):
                    related[pod["metadata"]["uid"]] = pod
        return Counter(pod["spec"].get("nodeName", "") for pod in related.values())


def deletion_order(mine: Iterable[Object], neighbours: Counter[str], epoch: float) -> Any:
    """A sort key: what is deleted first sorts first. Each row of the tuple breaks the ties of those before."""

    def order(pod: Object) -> tuple[Any, ...]:
        node, since = pod["spec"].get("nodeName", ""), pods.ready_since(pod)
        return (
            bool(node),  # unassigned
            _PHASES.get(pods.phase(pod), 2),  # pending, unknown
            pods.is_ready(pod),  # not ready
            _cost(pod),  # cheaper
            -neighbours[node],  # more of them on its node
            _magnitude(epoch - since) if since is not None else 0,  # ready for a shorter time, by powers of two
            -_restarts(pod),  # restarted more often
            _magnitude(epoch - pods.seconds(pod["metadata"].get("creationTimestamp"))),  # newer
            pod["metadata"]["uid"],
        )

    return order


def _cost(pod: Object) -> int:
    text = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
    return int(text) if text.lstrip("-").isdigit() else 0


def _magnitude(age: float) -> int:
    return int(math.log2(age)) if age >= 1 else 0


def _restarts(pod: Object) -> int:
    return max((status.get("restartCount", 0) for status in (pod.get("status") or {}).get("containerStatuses") or ()), default=0)


def status_of(replica_set: Object, active: list[Object], epoch: float) -> Object:
    """The counts of a ReplicaSet's status (calculateStatus)."""
    spec = replica_set["spec"]
    labels = ((spec["template"].get("metadata") or {}).get("labels") or {}).items()
    available = [at for pod in active if (at := pods.available_at(pod, spec.get("minReadySeconds") or 0)) is not None]
    counts = {
        "fullyLabeledReplicas": sum(labels <= (pod["metadata"].get("labels") or {}).items() for pod in active),
        "readyReplicas": len(available),
        "availableReplicas": sum(at <= epoch for at in available),
    }
    status: Object = {"replicas": len(active), "observedGeneration": replica_set["metadata"].get("generation", 1)}
    status.update({field: count for field, count in counts.items() if count})
    return status


def _next_available(replica_set: Object, active: list[Object], epoch: float, now: float) -> float | None:
    """When the next Ready pod becomes available."""
    wait = replica_set["spec"].get("minReadySeconds") or 0
    future = [at for pod in active if (at := pods.available_at(pod, wait)) is not None and at > epoch]
    return now + min(future) - epoch if future else None


def _owners(pod: Object) -> list[str]:
    return [
        f"{pod['metadata']['namespace']}/{ref['name']}"
        for ref in pod["metadata"].get("ownerReferences") or ()
        if ref.get("controller") and ref["kind"] == "ReplicaSet"
    ]
