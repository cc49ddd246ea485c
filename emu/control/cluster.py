"""What a controller sees and by what it acts: the store's objects, with the look-ups that controllers need, and the registry.

Keeps only indexes (which pods are of an owner, on a node, unscheduled; which slices are of a Service; which Services may select a
pod), kept up in the store's own callback, so they are never older than the last write. Objects are the store's own: to be read,
never changed. Must be subscribed before any controller.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

from emu.control import pods
from emu.control.events import Recorder
from emu.model.objects import SERVICE_NAME_LABEL
from emu.registry.registry import Registry
from emu.store.store import Change, Store

Object = dict[str, Any]
Key = tuple[str, str]  # namespace, name
# Kubernetes' rand.String: no vowels, no digits that look like letters, so that no name is a word.
SAFE_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


class Cluster:
    """The objects of a store and their relations."""

    def __init__(self, registry: Registry, *, seed: int = 0) -> None:
        self.registry = registry
        self.store: Store = registry.store
        self.timestamp = registry.now  # one source of the time of day for all who write objects
        self.events = Recorder(registry, self.timestamp)
        self._chance = random.Random(f"{seed} {self.store.revision} names")
        self._owned: dict[str, dict[tuple[str, str, str], None]] = {}  # owner uid -> (resource, namespace, name)
        self._on_node: dict[str, dict[Key, None]] = {}
        self._placed: dict[str, Counter[str]] = {}  # owner uid -> its active pods a node
        self._unscheduled: dict[Key, None] = {}
        self._slices: dict[Key, dict[str, None]] = {}  # (namespace, service) -> slice names
        self._selecting: dict[tuple[str, str, str], dict[str, None]] = {}  # (namespace, label, value) -> service names
        for resource in self.store.resources():
            for obj in self.store.list(resource)[0]:
                self._index(resource, obj, present=True)
        self.store.subscribe(self._on_changes)

    # ---- looking ---------------------------------------------------------------------------------------------------------

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        return self.store.get(resource, namespace, name)

    def owned(self, owner: Object, resource: str) -> list[Object]:
        """Objects of a resource whose controller is `owner`, by name."""
        keys = sorted(key for key in self._owned.get(owner["metadata"]["uid"], ()) if key[0] == resource)
        return [obj for key in keys if (obj := self.store.get(*key)) is not None and controller_of(obj) == owner["metadata"]["uid"]]

    def dependents(self, uid: str) -> list[tuple[str, str, str]]:
        """(resource, namespace, name) of everything that names `uid` as an owner."""
        return list(self._owned.get(uid, ()))

    def pods_on(self, node: str) -> list[Object]:
        return self._pods(self._on_node.get(node, ()))

    def pod_count(self, node: str) -> int:
        return len(self._on_node.get(node, ()))

    def placed(self, owner: str) -> Counter[str]:
        """How many active pods the owner with this uid has on each node."""
        return self._placed.get(owner) or Counter()

    def unscheduled(self) -> list[Key]:
        return list(self._unscheduled)

    def slices_of(self, namespace: str, service: str) -> list[Object]:
        names = sorted(self._slices.get((namespace, service), ()))
        return [obj for name in names if (obj := self.store.get("endpointslices", namespace, name)) is not None]

    def services_selecting(self, namespace: str, labels: dict[str, str]) -> set[str]:
        """Names of the Services that may select a pod with these labels (all that do, and a few more)."""
        found: set[str] = set()
        for label, value in labels.items():
            found.update(self._selecting.get((namespace, label, value), ()))
        return found

    def _pods(self, keys: Iterable[Key]) -> list[Object]:
        return [pod for key in sorted(keys) if (pod := self.store.get("pods", *key)) is not None]

    # ---- acting ------------------------------------------------------------------------------------------------------------

    def suffix(self, length: int = 5) -> str:
        """A random end for a name."""
        return "".join(self._chance.choices(SAFE_ALPHABET, k=length))

    def set_status(self, resource: str, obj: Object, status: Object) -> Object:
        """Write a status if it differs from the one that is there."""
        if (obj.get("status") or {}) == status:
            return obj
        return self.registry.update_status(resource, {**obj, "status": status}, obj["metadata"].get("namespace", ""))

    # ---- the indexes ----------------------------------------------------------------------------------------------------------

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.previous is not None:
                self._index(change.resource, change.previous, present=False)
            if change.type != "DELETED":
                self._index(change.resource, change.object, present=True)

    def _index(self, resource: str, obj: Object, *, present: bool) -> None:
        meta = obj["metadata"]
        namespace, name = meta.get("namespace", ""), meta["name"]
        for reference in meta.get("ownerReferences") or ():
            _put(self._owned, reference["uid"], (resource, namespace, name), present=present)
        if resource == "pods":
            self._index_pod(obj, (namespace, name), present=present)
        elif resource == "endpointslices":
            service = (meta.get("labels") or {}).get(SERVICE_NAME_LABEL)
            if service:
                _put(self._slices, (namespace, service), name, present=present)
        elif resource == "services" and obj["spec"].get("selector"):
            label, value = min(obj["spec"]["selector"].items())  # one requirement is enough to find candidates by
            _put(self._selecting, (namespace, label, value), name, present=present)

    def _index_pod(self, pod: Object, key: Key, *, present: bool) -> None:
        node, owner = pod["spec"].get("nodeName"), controller_of(pod)
        if not node:
            if present and not pod["metadata"].get("deletionTimestamp"):
                self._unscheduled[key] = None
            else:
                self._unscheduled.pop(key, None)
            return
        _put(self._on_node, node, key, present=present)
        if owner and pods.is_active(pod):
            counts = self._placed.setdefault(owner, Counter())
            counts[node] += 1 if present else -1
            if not counts[node]:
                del counts[node]
            if not counts:
                del self._placed[owner]


def _put(table: dict[Any, dict[Any, None]], key: Any, value: Any, *, present: bool) -> None:
    if present:
        table.setdefault(key, {})[value] = None
    elif key in table:
        table[key].pop(value, None)
        if not table[key]:
            del table[key]


def key_of(obj: Object) -> str:
    """`namespace/name`, or just the name."""
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def split(key: str) -> Key:
    """The inverse of `key_of`; the namespace is "" for cluster-scoped keys."""
    namespace, _, name = key.rpartition("/")
    return namespace, name


def controller_of(obj: Object) -> str:
    """The uid of the owner that controls an object, "" for none."""
    return next((ref["uid"] for ref in obj["metadata"].get("ownerReferences") or () if ref.get("controller")), "")


def owner_reference(owner: Object) -> Object:
    """What an object says of the owner that controls it."""
    meta = owner["metadata"]
    named = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {**named, "controller": True, "blockOwnerDeletion": True}
