"""Deployments: which ReplicaSets there should be, and how large. The numbers are `rollout`'s; this carries them out.

The ReplicaSet whose template equals the Deployment's is the new one, all others are old; its name is `<deployment>-<hash>` and
its pods carry the hash. One step a reconcile, as upstream: grow the new one, or else shrink the old ones; the ReplicaSets' status
brings the next step. Spec: pkg/controller/deployment/{deployment_controller,sync,rolling,recreate,progress}.go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from emu.control import rollout
from emu.control.cluster import SAFE_ALPHABET, Cluster, Object, key_of, owner_reference, split
from emu.control.pods import condition, phase, seconds, with_condition
from emu.control.rollout import Bounds, ReplicaSetState
from emu.store.store import Change

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAX = "deployment.kubernetes.io/max-replicas"
_NOT_INHERITED = frozenset({REVISION, DESIRED, MAX, "kubectl.kubernetes.io/last-applied-configuration"})


def template_hash(template: Object, collisions: int = 0) -> str:
    """The pod-template-hash: FNV-1a of the template in 32 bits, in the safe alphabet (the value differs from upstream's Go dump)."""
    text = json.dumps(template, sort_keys=True, separators=(",", ":")) + (str(collisions) if collisions else "")
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return "".join(SAFE_ALPHABET[ord(digit) % len(SAFE_ALPHABET)] for digit in str(value))


def same_template(left: Object, right: Object) -> bool:
    """Are two pod templates equal but for the hash label?"""
    return _without_hash(left) == _without_hash(right)


def _without_hash(template: Object) -> Object:
    metadata = {key: value for key, value in (template.get("metadata") or {}).items() if value is not None}
    metadata["labels"] = {key: value for key, value in (metadata.get("labels") or {}).items() if key != HASH_LABEL}
    return {**template, "metadata": metadata}


class DeploymentController:
    """Keys are Deployments."""

    name = "deployment"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def affected(self, change: Change) -> Iterable[str]:
        if change.resource == "deployments":
            yield key_of(change.object)
        elif change.resource == "replicasets":
            yield from _owner_keys(change.object)
        elif change.resource == "pods" and change.type == "DELETED":  # Recreate waits for the last old pod to go
            owner = _owner(change.object)
            replica_set = self._cluster.get("replicasets", change.object["metadata"]["namespace"], owner) if owner else None
            if replica_set is not None:
                yield from _owner_keys(replica_set)

    def reconcile(self, key: str, now: float) -> float | None:
        namespace, name = split(key)
        deployment = self._cluster.get("deployments", namespace, name)
        if deployment is None:
            return None
        sets = self._cluster.owned(deployment, "replicasets")
        new = next((one for one in sets if same_template(one["spec"]["template"], deployment["spec"]["template"])), None)
        olds = [one for one in sets if one is not new]
        if not deployment["metadata"].get("deletionTimestamp"):
            if deployment["spec"].get("paused") or self._is_scaling(deployment, sets):
                self._scale_only(deployment, olds, new)
            elif deployment["spec"]["strategy"]["type"] == "Recreate":
                self._recreate(deployment, olds, new)
            else:
                self._roll(deployment, olds, new)
        return self._write_status(namespace, name, now)

    # ---- strategies --------------------------------------------------------------------------------------------------------

    def _is_scaling(self, deployment: Object, sets: list[Object]) -> bool:
        """Has `replicas` changed since the active sets were last sized?"""
        wanted = str(deployment["spec"]["replicas"])
        return any(
            one["spec"]["replicas"] > 0 and _annotation(one, DESIRED) is not None and _annotation(one, DESIRED) != wanted for one in sets
        )

    def _scale_only(self, deployment: Object, olds: list[Object], new: Object | None) -> None:
        bounds = bounds_of(deployment)
        rolling = deployment["spec"]["strategy"]["type"] == "RollingUpdate"
        sizes = rollout.scaled(bounds, [state_of(one) for one in olds], state_of(new) if new else None, rolling=rolling)
        sets = [*olds, *([new] if new else [])]
        for one in sets:
            self._resize(deployment, one, sizes.get(one["metadata"]["name"], one["spec"]["replicas"]))

    def _roll(self, deployment: Object, olds: list[Object], new: Object | None) -> None:
        bounds, states = bounds_of(deployment), [state_of(one) for one in olds]
        if new is None:
            size = rollout.new_size(bounds, states, ReplicaSetState("", 0, 0))
            new = self._create(deployment, size, olds)
            if new is None:
                return
        state = state_of(new)
        size = rollout.new_size(bounds, [*states, state], state)
        if size != state.replicas:
            self._resize(deployment, new, size)
            return
        new = self._resize(deployment, new, size)  # brings the annotations up to date
        sizes = rollout.old_sizes(bounds, states, state)
        for old in olds:
            if old["metadata"]["name"] in sizes:
                self._resize(deployment, old, sizes[old["metadata"]["name"]])
        if not sizes:
            self._clean_up(deployment, olds)

    def _recreate(self, deployment: Object, olds: list[Object], new: Object | None) -> None:
        active = [old for old in olds if old["spec"]["replicas"] > 0]
        for old in active:
            self._resize(deployment, old, 0)
        if active or any(phase(pod) not in ("Succeeded", "Failed") for old in olds for pod in self._cluster.owned(old, "pods")):
            return
        wanted = deployment["spec"]["replicas"]
        if new is None:
            self._create(deployment, wanted, olds)
        else:
            self._resize(deployment, new, wanted)
        self._clean_up(deployment, olds)

    def _clean_up(self, deployment: Object, olds: list[Object]) -> None:
        """Remove old empty ReplicaSets beyond the history limit, oldest revision first."""
        limit = deployment["spec"].get("revisionHistoryLimit", 10)
        empty = [
            o
            for o in olds
            if o["spec"]["replicas"] == 0 and not (o.get("status") or {}).get("replicas") and not o["metadata"].get("deletionTimestamp")
        ]
        for old in sorted(empty, key=_revision)[: max(0, len(empty) - limit)]:
            self._cluster.registry.delete("replicasets", old["metadata"]["namespace"], old["metadata"]["name"])

    # ---- ReplicaSets ---------------------------------------------------------------------------------------------------------

    def _create(self, deployment: Object, size: int, olds: list[Object]) -> Object | None:
        """The new ReplicaSet; None if its name is taken by another template's (then the hash is salted, and the next try fits)."""
        meta, template = deployment["metadata"], deployment["spec"]["template"]
        collisions = (deployment.get("status") or {}).get("collisionCount", 0)
        digest = template_hash(template, collisions)
        name = f"{meta['name']}-{digest}"
        if self._cluster.get("replicasets", meta["namespace"], name) is not None:
            status = {**(deployment.get("status") or {}), "collisionCount": collisions + 1}
            self._cluster.set_status("deployments", deployment, status)
            return None
        labels = {**((template.get("metadata") or {}).get("labels") or {}), HASH_LABEL: digest}
        selector = deployment["spec"]["selector"]
        revision = str(max((_revision(old) for old in olds), default=0) + 1)
        replica_set = {
            "metadata": {
                "name": name, "namespace": meta["namespace"], "labels": labels, "ownerReferences": [owner_reference(deployment)],
                "annotations": {**_inherited(deployment), REVISION: revision, **_sizes(deployment)},
            },
            "spec": {
                "replicas": size,
                **({"minReadySeconds": deployment["spec"]["minReadySeconds"]} if deployment["spec"].get("minReadySeconds") else {}),
                "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), HASH_LABEL: digest}},
                "template": {**template, "metadata": {**(template.get("metadata") or {}), "labels": labels}},
            },
        }  # fmt: skip
        made, _ = self._cluster.registry.create("replicasets", replica_set, meta["namespace"])
        self._set_revision(deployment, revision)
        self._tell(deployment, made, 0, size)
        return made

    def _resize(self, deployment: Object, replica_set: Object, size: int) -> Object:
        """Give a ReplicaSet its size and note the Deployment's; nothing is written if both stand already."""
        before, annotations = replica_set["spec"]["replicas"], replica_set["metadata"].get("annotations") or {}
        wanted = {**annotations, **_sizes(deployment)}
        if before == size and annotations == wanted:
            return replica_set
        changed = {
            **replica_set,
            "metadata": {**replica_set["metadata"], "annotations": wanted},
            "spec": {**replica_set["spec"], "replicas": size},
        }
        made, _ = self._cluster.registry.update("replicasets", changed, replica_set["metadata"]["namespace"])
        if before != size:
            self._tell(deployment, made, before, size)
        return made

    def _set_revision(self, deployment: Object, revision: str) -> None:
        meta = deployment["metadata"]
        fresh = self._cluster.get("deployments", meta["namespace"], meta["name"])
        if fresh is None or _annotation(fresh, REVISION) == revision:
            return
        annotated = {**fresh["metadata"], "annotations": {**(fresh["metadata"].get("annotations") or {}), REVISION: revision}}
        self._cluster.registry.update("deployments", {**fresh, "metadata": annotated}, meta["namespace"])

    def _tell(self, deployment: Object, replica_set: Object, before: int, size: int) -> None:
        if before != size:
            direction = "up" if size > before else "down"
            message = f"Scaled {direction} replica set {replica_set['metadata']['name']} from {before} to {size}"
            self._cluster.events.record(deployment, "Normal", "ScalingReplicaSet", message, "deployment-controller")

    # ---- status ------------------------------------------------------------------------------------------------------------------

    def _write_status(self, namespace: str, name: str, now: float) -> float | None:
        deployment = self._cluster.get("deployments", namespace, name)
        if deployment is None:
            return None
        sets = self._cluster.owned(deployment, "replicasets")
        new = next((one for one in sets if same_template(one["spec"]["template"], deployment["spec"]["template"])), None)
        stamp = self._cluster.timestamp()
        status = status_of(deployment, sets, new, stamp)
        self._cluster.set_status("deployments", deployment, status)
        progressing = condition({"status": status}, "Progressing")
        deadline = deployment["spec"].get("progressDeadlineSeconds")
        if progressing is None or deadline is None or progressing["reason"] not in ("NewReplicaSetCreated", "ReplicaSetUpdated"):
            return None
        left: float = seconds(progressing["lastUpdateTime"]) + deadline - seconds(stamp)
        return now + max(left, 0) + 1  # a second more: timestamps are whole seconds


def status_of(deployment: Object, sets: list[Object], new: Object | None, stamp: str) -> Object:
    """The Deployment's status, from its ReplicaSets' (calculateStatus, progress.go)."""
    old, bounds = deployment.get("status") or {}, bounds_of(deployment)
    count = {field: sum(_count(one, field) for one in sets) for field in ("replicas", "readyReplicas", "availableReplicas")}
    updated = _count(new, "replicas") if new else 0
    numbers = {
        **count,
        "updatedReplicas": updated,
        "unavailableReplicas": max(0, sum(one["spec"]["replicas"] for one in sets) - count["availableReplicas"]),
    }
    status: Object = {"observedGeneration": deployment["metadata"].get("generation", 1)}
    status.update({field: value for field, value in numbers.items() if value})
    status.update({field: old[field] for field in ("conditions", "collisionCount") if old.get(field)})
    enough = count["availableReplicas"] >= bounds.least
    word = "has minimum availability" if enough else "does not have minimum availability"
    reason = "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable"
    status = _with(status, "Available", "True" if enough else "False", reason, f"Deployment {word}.", stamp)
    complete = updated == count["replicas"] == count["availableReplicas"] == bounds.replicas and new is not None
    moved = any(numbers[f] != old.get(f, 0) for f in ("updatedReplicas", "readyReplicas", "availableReplicas")) or (
        count["replicas"] != old.get("replicas", 0)
    )
    return _progress(deployment, status, new, stamp, complete=complete, moved=moved)


def _progress(deployment: Object, status: Object, new: Object | None, stamp: str, *, complete: bool, moved: bool) -> Object:
    before, deadline = condition({"status": status}, "Progressing"), deployment["spec"].get("progressDeadlineSeconds")
    if deadline is None or new is None:
        return status
    name = f'ReplicaSet "{new["metadata"]["name"]}"'
    if complete:
        if before is not None and before["reason"] == "NewReplicaSetAvailable":
            return status
        return _with(status, "Progressing", "True", "NewReplicaSetAvailable", f"{name} has successfully progressed.", stamp)
    if before is None:
        return _with(status, "Progressing", "True", "NewReplicaSetCreated", f'Created new replica set "{new["metadata"]["name"]}"', stamp)
    if moved or (before["reason"] == "NewReplicaSetAvailable" and _count(new, "replicas") != deployment["spec"]["replicas"]):
        return _with(status, "Progressing", "True", "ReplicaSetUpdated", f"{name} is progressing.", stamp)
    late = seconds(before["lastUpdateTime"]) + deadline < seconds(stamp)
    if late and before["reason"] not in ("NewReplicaSetAvailable", "ProgressDeadlineExceeded") and not deployment["spec"].get("paused"):
        return _with(status, "Progressing", "False", "ProgressDeadlineExceeded", f"{name} has timed out progressing.", stamp)
    return status


def _with(status: Object, kind: str, value: str, reason: str, message: str, stamp: str) -> Object:
    """A Deployment's conditions also say when they were last updated, which is not when they last changed."""
    before = condition({"status": status}, kind)
    if before is not None and (before["status"], before["reason"]) == (value, reason) and kind == "Available":
        return status
    return with_condition(status, kind, value, reason, message, stamp, lastUpdateTime=stamp)


# ---- reading objects --------------------------------------------------------------------------------------------------------------


def bounds_of(deployment: Object) -> Bounds:
    spec = deployment["spec"]
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    if (spec.get("strategy") or {}).get("type") == "Recreate":
        return Bounds(spec["replicas"], 0, 0)
    return Bounds.resolve(spec["replicas"], rolling.get("maxSurge", "25%"), rolling.get("maxUnavailable", "25%"))


def state_of(replica_set: Object) -> ReplicaSetState:
    meta = replica_set["metadata"]
    return ReplicaSetState(
        meta["name"], replica_set["spec"]["replicas"], _count(replica_set, "availableReplicas"), seconds(meta.get("creationTimestamp")),
        int(_annotation(replica_set, MAX) or 0), int(_annotation(replica_set, DESIRED) or 0),
    )  # fmt: skip


def _count(replica_set: Object, field: str) -> int:
    return int((replica_set.get("status") or {}).get(field) or 0)


def _annotation(obj: Object, key: str) -> str | None:
    value: str | None = (obj["metadata"].get("annotations") or {}).get(key)
    return value


def _revision(obj: Object) -> int:
    text = _annotation(obj, REVISION) or ""
    return int(text) if text.isdigit() else 0


def _inherited(deployment: Object) -> dict[str, Any]:
    return {key: value for key, value in (deployment["metadata"].get("annotations") or {}).items() if key not in _NOT_INHERITED}


def _sizes(deployment: Object) -> dict[str, str]:
    bounds = bounds_of(deployment)
    return {DESIRED: str(bounds.replicas), MAX: str(bounds.replicas + bounds.surge)}


def _owner(obj: Object) -> str:
    return next((ref["name"] for ref in obj["metadata"].get("ownerReferences") or () if ref.get("controller")), "")


def _owner_keys(obj: Object) -> list[str]:
    owner = _owner(obj)
    return [f"{obj['metadata']['namespace']}/{owner}"] if owner else []
