"""Deletion: who goes at once, who terminates first, and what happens to dependents and to a namespace's content.

Background (the default) removes the owner; the garbage collector then removes dependents whose owners are all gone. Orphan strips the
owner from its dependents in the same transaction. Foreground keeps the owner, terminating, behind the finalizer
`foregroundDeletion` until the collector has removed its dependents. Spec: "Garbage collection", apimachinery DeleteOptions,
registry/generic/registry/store.go `deletionFinalizersForGarbageCollection`, kubernetes' namespace controller.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from emu.store.store import Object, Store, copied

BACKGROUND, FOREGROUND, ORPHAN = "Background", "Foreground", "Orphan"
FOREGROUND_FINALIZER = "foregroundDeletion"


def is_terminating(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def is_over(obj: Object) -> bool:
    """Whether a terminating object has nothing left to wait for. A pod waits for its node, a namespace for its content."""
    metadata = obj["metadata"]
    if not is_terminating(obj) or metadata.get("finalizers") or (obj.get("spec") or {}).get("finalizers"):
        return False
    return not metadata.get("deletionGracePeriodSeconds")


def delete(store: Store, resource: str, obj: Object, *, propagation: str, grace: int | None, now: str) -> Object:
    """Delete `obj` or begin to, inside the caller's transaction. `now` is RFC 3339."""
    if propagation == ORPHAN:
        _orphan_dependents(store, obj)
    finalizers = list(obj["metadata"].get("finalizers") or ())
    if propagation == FOREGROUND and FOREGROUND_FINALIZER not in finalizers and any(True for _ in dependents(store, obj)):
        finalizers.append(FOREGROUND_FINALIZER)
    seconds = _grace(resource, obj, grace)
    if resource == "namespaces":
        return _delete_namespace(store, obj, now)
    if not finalizers and not seconds:
        return remove(store, resource, obj)
    metadata = obj["metadata"]
    if is_terminating(obj) and seconds >= metadata.get("deletionGracePeriodSeconds", 0) and finalizers == metadata.get("finalizers", []):
        return obj  # a second deletion may only shorten the grace
    marked = copied(obj)
    marked["metadata"]["deletionTimestamp"] = _later(now, seconds)
    marked["metadata"]["deletionGracePeriodSeconds"] = seconds
    if finalizers:
        marked["metadata"]["finalizers"] = finalizers
    if "generation" in marked["metadata"] and not is_terminating(obj):
        marked["metadata"]["generation"] += 1
    return store.update(resource, marked)


def remove(store: Store, resource: str, obj: Object) -> Object:
    """Take `obj` out of the store, and its namespace with it if that only waited for it."""
    namespace = obj["metadata"].get("namespace", "")
    gone = store.delete(resource, namespace, obj["metadata"]["name"])
    finish_namespace(store, namespace)
    return gone


def _later(now: str, seconds: int) -> str:
    """A deletionTimestamp is when the grace ends, not when it began."""
    return (datetime.fromisoformat(now) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _grace(resource: str, obj: Object, grace: int | None) -> int:
    """Seconds that an object may take to go: only pods take any, and only those that a node runs."""
    spec, phase = obj.get("spec") or {}, (obj.get("status") or {}).get("phase")
    if resource != "pods" or not spec.get("nodeName") or phase in {"Succeeded", "Failed"}:
        return 0
    return max(0, int(spec.get("terminationGracePeriodSeconds", 30) if grace is None else grace))


def dependents(store: Store, owner: Object) -> list[tuple[str, Object]]:
    """(resource, object) of everything that names `owner` as an owner."""
    uid, namespace = owner["metadata"]["uid"], owner["metadata"].get("namespace")
    return [
        (resource, obj)
        for resource in store.resources()
        for obj in store.list(resource, namespace)[0]
        if any(reference["uid"] == uid for reference in obj["metadata"].get("ownerReferences") or ())
    ]


def _orphan_dependents(store: Store, owner: Object) -> None:
    uid = owner["metadata"]["uid"]
    for resource, obj in dependents(store, owner):
        kept = [reference for reference in obj["metadata"]["ownerReferences"] if reference["uid"] != uid]
        metadata = {key: value for key, value in obj["metadata"].items() if key != "ownerReferences"}
        store.update(resource, {**obj, "metadata": {**metadata, **({"ownerReferences": kept} if kept else {})}})


def _delete_namespace(store: Store, namespace: Object, now: str) -> Object:
    """Mark it Terminating, delete all it holds, and let the last object out turn off the light."""
    name = namespace["metadata"]["name"]
    if not is_terminating(namespace):
        marked = copied(namespace)
        marked["metadata"]["deletionTimestamp"] = now
        marked["status"] = {**(marked.get("status") or {}), "phase": "Terminating"}
        namespace = store.update("namespaces", marked)
    for resource in store.resources():
        for obj in store.list(resource, name)[0]:
            delete(store, resource, obj, propagation=BACKGROUND, grace=None, now=now)
    finish_namespace(store, name)
    return namespace


def finish_namespace(store: Store, name: str) -> None:
    """Remove a terminating namespace that has become empty."""
    namespace = store.get("namespaces", "", name) if name else None
    if namespace is None or not is_terminating(namespace) or namespace["metadata"].get("finalizers"):
        return
    if not any(store.list(resource, name)[0] for resource in store.resources()):
        store.delete("namespaces", "", name)
