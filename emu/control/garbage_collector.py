"""The garbage collector: what no living owner wants, goes. Also pods whose node is no more, and the last of a namespace.

Background deletion: an owner goes at once, its dependents after it. Foreground: an owner with the finalizer stays until every
dependent that blocks it has gone. Orphaning is done by the registry before the owner goes.
Spec: pkg/controller/garbagecollector, pkg/controller/podgc, pkg/controller/namespace.
"""

from __future__ import annotations

from collections.abc import Iterable

from emu.control.cluster import Cluster, Object, key_of, split
from emu.model.kinds import BY_GVK
from emu.registry.deletion import FOREGROUND, FOREGROUND_FINALIZER
from emu.store.store import Change

QUARANTINE = 40.0  # seconds that a pod may name a node that is not there (podgc's quarantineTime)


class GarbageCollector:
    """Keys are `resource ns/name` of objects with owners, or of owners in foreground deletion."""

    name = "garbage-collector"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def affected(self, change: Change) -> Iterable[str]:
        obj = change.object
        if change.type == "DELETED":
            for resource, namespace, name in self._cluster.dependents(obj["metadata"]["uid"]):
                yield f"{resource} {namespace}/{name}" if namespace else f"{resource} {name}"
            for reference in obj["metadata"].get("ownerReferences") or ():
                yield from self._owner_key(obj, reference)
        elif change.type == "ADDED" and obj["metadata"].get("ownerReferences"):
            yield f"{change.resource} {key_of(obj)}"
        if FOREGROUND_FINALIZER in (obj["metadata"].get("finalizers") or ()) and change.type != "DELETED":
            yield f"{change.resource} {key_of(obj)}"

    def _owner_key(self, obj: Object, reference: Object) -> Iterable[str]:
        """An owner that may wait for `obj` to go."""
        kind = BY_GVK.get((reference["apiVersion"], reference["kind"]))
        if kind is None:
            return
        namespace = obj["metadata"].get("namespace", "") if kind.namespaced else ""
        yield f"{kind.resource} {namespace}/{reference['name']}" if namespace else f"{kind.resource} {reference['name']}"

    def reconcile(self, key: str, now: float) -> float | None:
        resource, _, rest = key.partition(" ")
        namespace, name = split(rest)
        obj = self._cluster.get(resource, namespace, name)
        if obj is None:
            return None
        if FOREGROUND_FINALIZER in (obj["metadata"].get("finalizers") or ()) and obj["metadata"].get("deletionTimestamp"):
            self._foreground(resource, obj)
        elif not obj["metadata"].get("deletionTimestamp") and self._is_garbage(obj):
            self._cluster.registry.delete(resource, namespace, name, preconditions={"uid": obj["metadata"]["uid"]})
        return None

    def _is_garbage(self, obj: Object) -> bool:
        """Are there owners named, and does none of them live? An owner of a kind that is not published is taken to live."""
        references = obj["metadata"].get("ownerReferences") or ()
        return bool(references) and not any(self._lives(obj, reference) for reference in references)

    def _lives(self, obj: Object, reference: Object) -> bool:
        kind = BY_GVK.get((reference["apiVersion"], reference["kind"]))
        if kind is None:
            return True
        owner = self._cluster.get(kind.resource, obj["metadata"].get("namespace", "") if kind.namespaced else "", reference["name"])
        return owner is not None and owner["metadata"]["uid"] == reference["uid"]

    def _foreground(self, resource: str, owner: Object) -> None:
        waiting = False
        for key in self._cluster.dependents(owner["metadata"]["uid"]):
            dependent = self._cluster.get(*key)
            if dependent is None:
                continue
            waiting = True
            if not dependent["metadata"].get("deletionTimestamp"):
                self._cluster.registry.delete(*key, propagation=FOREGROUND)
        if not waiting:
            meta = owner["metadata"]
            kept = [one for one in meta["finalizers"] if one != FOREGROUND_FINALIZER]
            self._cluster.registry.update(resource, {**owner, "metadata": {**meta, "finalizers": kept}}, meta.get("namespace", ""))


class PodCollector:
    """Keys are Pods: removes those whose Node object is gone, and those that were told to go before any node had them."""

    name = "pod-garbage-collector"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lost: dict[str, float] = {}  # pod key -> since when its node has not been there

    def affected(self, change: Change) -> Iterable[str]:
        if change.resource == "pods" and change.type == "ADDED" and change.object["spec"].get("nodeName"):
            yield key_of(change.object)
        elif change.resource == "nodes" and change.type == "DELETED":
            for pod in self._cluster.pods_on(change.object["metadata"]["name"]):
                self._lost.setdefault(key_of(pod), float("-inf"))  # the node was there, so nobody need wait for it to come
                yield key_of(pod)

    def reconcile(self, key: str, now: float) -> float | None:
        pod = self._cluster.get("pods", *split(key))
        node = pod["spec"].get("nodeName") if pod is not None else None
        if pod is None or not node or self._cluster.get("nodes", "", node) is not None:
            self._lost.pop(key, None)
            return None
        since = self._lost.setdefault(key, now)
        if now < since + QUARANTINE:
            return since + QUARANTINE
        self._lost.pop(key, None)
        self._cluster.registry.delete("pods", *split(key), grace=0)
        return None


class NamespaceController:
    """Keys are Namespaces: empties a terminating one again, should anything have stayed in it."""

    name = "namespace"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def affected(self, change: Change) -> Iterable[str]:
        namespace = change.object["metadata"].get("namespace")
        if change.resource == "namespaces":
            yield change.object["metadata"]["name"]
        elif namespace and change.type == "DELETED":
            yield namespace

    def reconcile(self, key: str, now: float) -> float | None:
        namespace = self._cluster.get("namespaces", "", key)
        if namespace is not None and namespace["metadata"].get("deletionTimestamp"):
            self._cluster.registry.delete("namespaces", "", key)  # deletes the content, and the namespace if there is none
        return None
