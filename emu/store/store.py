"""Objects, revisions, transactions, watches.

Keeps objects whole, as the JSON they came as, in one file (`file`), and every current object in memory. Every change of any
kind takes the next number of one revision counter, which is the object's `metadata.resourceVersion`. Knows nothing of what an
object means: defaults, validation and allocation are the registry's, inside one of these transactions.

    with store.transaction():        nestable; an exception undoes all that its block did, an inner one only the inner's
        store.create(...)            visible at once to this thread's reads
    # outermost end: written to the file (ApiError if the disk refuses), then handed to the subscribers, in order, once each

A watch is a snapshot plus the changes above its revision: subscribe, `list` (which states revision r), then take what is above r.
The history is a bounded window in memory; asking for what has left it, or for changes from before this process opened the file,
is 410 Expired, and the asker lists again (Kubernetes, "API concepts", watch). One thread at a time; callers must not change
objects they are given (`check` finds out who did).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from emu.errors import ApiError
from emu.model.kinds import BY_RESOURCE
from emu.store.file import StoreFile

Object = dict[str, Any]
Objects = list[Object]

HISTORY = 20_000  # changes kept for watches; a rollout of 1,000 pods makes about 10,000


class Change(NamedTuple):
    """One committed change. `object` is the new state, for DELETED the last one with the deletion's revision."""

    revision: int
    type: str  # ADDED, MODIFIED or DELETED
    resource: str
    object: Object
    previous: Object | None


Changes = list[Change]  # inside Store, `list` is the method
Subscriber = Callable[[Changes], None]


class Store:
    """All objects of a cluster. `path` is a file, or ":memory:" for a cluster that need not outlive its process."""

    def __init__(self, path: str = ":memory:", *, history: int = HISTORY) -> None:
        self._file = StoreFile(path)
        self._objects: dict[str, dict[tuple[str, str], Object]] = {}
        self.revision = self._load()
        self._history: deque[Change] = deque(maxlen=history)
        self._floor = self.revision  # changes at or below it are not in the history
        self._pending: list[Change] = []
        self._depth = 0
        self._subscribers: list[Subscriber] = []
        self._undelivered: deque[list[Change]] = deque()
        self._delivering = False

    def _load(self) -> int:
        highest = 0
        try:
            for resource, namespace, name, text in self._file.rows():
                obj = json.loads(text)
                highest = max(highest, int(obj["metadata"]["resourceVersion"]))
                self._objects.setdefault(resource, {})[namespace, name] = obj
        except (ValueError, KeyError, TypeError) as error:
            raise self._file.unreadable(f"{resource} {namespace}/{name} is no object ({error!r})") from error
        if highest > self._file.revision:
            raise self._file.unreadable(f"it says that it is at revision {self._file.revision}, but has an object of {highest}")
        return self._file.revision

    def reopened(self) -> Store:
        """A store in memory as a new process would find it: every object, no subscriber, no history. This one is closed."""
        again = Store()
        again._file.write((), self._file.rows(), self.revision)
        again._file.revision = self.revision
        again.revision = again._floor = again._load()
        self.close()
        return again

    def close(self) -> None:
        """Close the file; all that was committed is in it."""
        self._file.close()

    def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """The object, or None; `namespace` is "" for cluster-scoped kinds."""
        return self._objects.get(resource, {}).get((namespace, name))

    def list(self, resource: str, namespace: str | None = None) -> tuple[Objects, int]:
        """The objects of one kind by namespace and name (of one namespace, unless None), and the revision at which that is so."""
        found = self._objects.get(resource, {})
        return [found[key] for key in sorted(found) if namespace is None or key[0] == namespace], self.revision

    def resources(self) -> tuple[str, ...]:
        """The resources that have objects."""
        return tuple(sorted(resource for resource, objects in self._objects.items() if objects))

    def create(self, resource: str, obj: Object) -> Object:
        """Add an object under its metadata's namespace and name; ApiError 409 AlreadyExists. Returns it as stored."""
        namespace, name = _key(obj)
        if self.get(resource, namespace, name) is not None:
            raise ApiError(409, "AlreadyExists", f'{_named(resource)} "{name}" already exists', details=_details(resource, name))
        return self._put("ADDED", resource, obj, None)

    def update(self, resource: str, obj: Object) -> Object:
        """Replace an object: 404 if there is none, 409 Conflict if `obj` carries a resourceVersion that is not the current one.

        An update that changes nothing takes no revision, as in Kubernetes; so reconciling twice is silent.
        """
        namespace, name = _key(obj)
        current = self._current(resource, namespace, name)
        version = obj["metadata"].get("resourceVersion")
        if version and version != current["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", _CONFLICT.format(_named(resource), name), details=_details(resource, name))
        if {**obj, "metadata": {**obj["metadata"], "resourceVersion": current["metadata"]["resourceVersion"]}} == current:
            return current
        return self._put("MODIFIED", resource, obj, current)

    def delete(self, resource: str, namespace: str, name: str) -> Object:
        """Remove an object; 404 if there is none. Returns its last state, with the deletion's revision."""
        return self._put("DELETED", resource, self._current(resource, namespace, name), self._current(resource, namespace, name))

    def _current(self, resource: str, namespace: str, name: str) -> Object:
        current = self.get(resource, namespace, name)
        if current is None:
            raise ApiError(404, "NotFound", f'{_named(resource)} "{name}" not found', details=_details(resource, name))
        return current

    def _put(self, change: str, resource: str, obj: Object, previous: Object | None) -> Object:
        with self.transaction():
            self.revision += 1
            stored: Object = copied(obj)
            stored["metadata"]["resourceVersion"] = str(self.revision)
            self._pending.append(Change(self.revision, change, resource, stored, previous))
            self._apply(resource, _key(stored), None if change == "DELETED" else stored)
        return stored

    def _apply(self, resource: str, key: tuple[str, str], obj: Object | None) -> None:
        objects = self._objects.setdefault(resource, {})
        if obj is None:
            objects.pop(key, None)
        else:
            objects[key] = obj

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing: whatever raises inside undoes what the block did, and goes on up."""
        mark = len(self._pending)
        self._depth += 1
        try:
            yield
            if self._depth == 1:
                self._write()
        except BaseException:
            self._undo(mark)
            raise
        finally:
            self._depth -= 1
        if self._depth == 0:
            self._deliver()

    def _undo(self, mark: int) -> None:
        """Take back the pending changes above `mark`, newest first; nobody else has seen their revisions."""
        while len(self._pending) > mark:
            change = self._pending.pop()
            self._apply(change.resource, _key(change.object), change.previous)
            self.revision = change.revision - 1

    def _write(self) -> None:
        """The last state of each object touched, in one transaction of the file."""
        if not self._pending:
            return
        last = {(change.resource, *_key(change.object)): change for change in self._pending}
        gone = [key for key, change in last.items() if change.type == "DELETED"]
        kept = [(*key, json.dumps(change.object, separators=(",", ":"))) for key, change in last.items() if change.type != "DELETED"]
        self._file.write(gone, kept, self.revision)

    def _deliver(self) -> None:
        """Hand the committed changes on. A subscriber may itself write: its changes wait their turn, so all see one order."""
        if self._pending:
            changes, self._pending = self._pending, []
            overflow = len(self._history) + len(changes) - (self._history.maxlen or 0)
            if overflow > 0:
                recent = [*self._history, *changes]
                self._floor = recent[overflow - 1].revision
            self._history.extend(changes)
            self._undelivered.append(changes)
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._undelivered:
                changes = self._undelivered.popleft()
                for subscriber in tuple(self._subscribers):
                    subscriber(changes)
        finally:
            self._delivering = False

    def changes(self, since: int) -> Changes:
        """All committed changes above revision `since`; ApiError 410 Expired if the history no longer reaches that far."""
        if since < self._floor:
            raise ApiError(410, "Expired", f"too old resource version: {since} ({self._floor})")
        newer: Changes = []
        for change in reversed(self._history):
            if change.revision <= since:
                break
            newer.append(change)
        return newer[::-1]

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with each transaction's changes after it is committed, in the committing thread; returns how to stop."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    def check(self) -> None:
        """Assert the invariants: memory equals the file, so nobody has changed an object he was given, and revisions only grow."""
        assert not self._depth, "check between transactions"
        assert not self._pending
        filed = {(r, ns, n): json.loads(text) for r, ns, n, text in self._file.rows()}
        held = {(resource, *key): obj for resource, objects in self._objects.items() for key, obj in objects.items()}
        assert filed == held, "an object in memory differs from the one in the file"
        revisions = [change.revision for change in self._history]
        assert revisions == sorted(set(revisions))
        assert all(self._floor < r <= self.revision for r in revisions)


_CONFLICT = (
    'Operation cannot be fulfilled on {} "{}": the object has been modified; '
    "please apply your changes to the latest version and try again"
)  # fmt: skip


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _named(resource: str) -> str:
    kind = BY_RESOURCE.get(resource)
    return kind.group_resource if kind else resource


def _details(resource: str, name: str) -> dict[str, object]:
    kind = BY_RESOURCE.get(resource)
    return {"name": name, **({"group": kind.group} if kind and kind.group else {}), "kind": kind.plural if kind else resource}


def copied(value: Any) -> Any:
    """A deep copy of JSON data; several times faster than `copy.deepcopy`, which must expect cycles and classes."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    return value
