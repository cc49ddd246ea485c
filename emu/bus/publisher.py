"""From store changes to numbered stream messages. Pure: no sockets, no time.

A publisher holds, packed, the value that every subscriber should have under each key. Changes of the store only mark keys; `flush`
works out the new values, drops those that did not change (most status writes), and numbers the rest, many to a message. So a
burst of changes to one object is sent once. A snapshot states the sequence it stands for (ZeroMQ guide, chapter 5, "Clone").

Sequences are per stream and count up from the publisher's epoch; a restarted controller takes a higher one (the revision it starts
at), so that its first update is a gap to whoever missed its welcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from emu.bus import views
from emu.bus.messages import DEL, LINKS, NODES, SERVICES, SET, Message, Update, node_stream, pack, unpack
from emu.store.store import Change

BATCH = 100  # changes a message: 10,000 updates to 100 nodes take 0.65 s so, 1.0 s one by one
Reader = Callable[[str, str, str], dict[str, Any] | None]  # Store.get


class Publisher:
    """What is published, and as which number. `get` reads the store as it is now; `epoch` is the number before the first.

    `now` is whose clock says when a change was heard of; `noted` the oldest such time in the last `flush`, by stream.
    """

    def __init__(self, get: Reader, epoch: int = 0, now: Callable[[], float] = lambda: 0.0) -> None:
        self._get, self._now = get, now
        self.noted: dict[str, float] = {}
        self.epoch = epoch
        self.revision = 0
        self.sequences: dict[str, int] = {NODES: epoch, SERVICES: epoch, LINKS: epoch}
        self._values: dict[str, dict[str, bytes]] = {NODES: {}, SERVICES: {}, LINKS: {}}
        self._dirty: dict[tuple[str, str], float] = {}  # (resource, key) to when it was first marked, in that order
        self._slices: dict[str, set[str]] = {}  # service key -> names of its slices
        self._pod_node: dict[str, str] = {}  # pod key -> the node whose stream has it

    @property
    def pending(self) -> bool:
        return bool(self._dirty)

    def on_changes(self, changes: Iterable[Change]) -> None:
        """Note what has changed. A subscriber of the store, also given all objects as ADDED at the start."""
        now = self._now()
        for change in changes:
            self.revision = max(self.revision, change.revision)
            match change.resource:
                case "nodes" | "services" | views.FAULTS:
                    self._dirty.setdefault((change.resource, views.key_of(change.object)), now)
                case "pods" if (change.object.get("spec") or {}).get("nodeName"):
                    self._dirty.setdefault(("pods", views.key_of(change.object)), now)
                case "endpointslices":
                    self._mark_slice(change, now)
                case _:
                    pass  # nodes are told of nothing else

    def _mark_slice(self, change: Change, now: float) -> None:
        for obj, belongs in ((change.previous, False), (change.object, change.type != "DELETED")):
            if obj is None or not views.slice_service(obj):
                continue
            meta = obj["metadata"]
            service = f"{meta['namespace']}/{views.slice_service(obj)}"
            names = self._slices.setdefault(service, set())
            if belongs:
                names.add(meta["name"])
            else:
                names.discard(meta["name"])
            self._dirty.setdefault(("services", service), now)

    def flush(self) -> list[Update]:
        """The updates that bring subscribers to the store's state, numbered; [] if nothing that they see has changed."""
        dirty, self._dirty, self.noted = self._dirty, {}, {}
        changes: dict[str, list[tuple[str, str, bytes]]] = {}
        for (resource, key), noted in dirty.items():
            for stream, value in self._current(resource, key):
                change = self._difference(stream, key, value)
                if change is not None:
                    changes.setdefault(stream, []).append(change)
                    self.noted[stream] = min(noted, self.noted.get(stream, noted))
        return [self._number(stream, part[i : i + BATCH]) for stream, part in changes.items() for i in range(0, len(part), BATCH)]

    def _current(self, resource: str, key: str) -> list[tuple[str, Any]]:
        """(stream, value now) of everything that a marked object shows in; None for absent."""
        namespace, _, name = key.rpartition("/")
        obj = self._get(resource, namespace, name)
        if resource == "nodes":
            value = views.node_value(obj) if obj else None
            return [(NODES, list(views.NodeRecord.of(value)) if value and views.is_reachable(value) else None)]
        if resource == views.FAULTS:
            return [(LINKS, views.fault_value(obj) if obj else None)]
        if resource == "services":
            return [(SERVICES, self._service(obj, key, namespace) if obj else None)]
        node = (obj.get("spec") or {}).get("nodeName", "") if obj else ""
        before = self._pod_node.pop(key, "")
        if node:
            self._pod_node[key] = node
        gone: list[tuple[str, dict[str, Any] | None]] = [(node_stream(before), None)] if before and before != node else []
        return gone + ([(node_stream(node), views.pod_value(obj))] if obj and node else [])

    def _service(self, service: dict[str, Any], key: str, namespace: str) -> dict[str, Any]:
        slices = [self._get("endpointslices", namespace, name) for name in sorted(self._slices.get(key, ()))]
        return views.service_value(service, [one for one in slices if one is not None])

    def _difference(self, stream: str, key: str, value: Any) -> tuple[str, str, bytes] | None:
        values = self._values.setdefault(stream, {})
        old = values.get(key)
        if value is None:
            return None if values.pop(key, None) is None else (DEL, key, b"")
        packed = pack(value)
        # Equal maps may be packed in another order, so bytes that differ need a second look.
        if old is not None and (old == packed or unpack(old) == value):
            return None
        values[key] = packed
        return SET, key, packed

    def _number(self, stream: str, changes: list[tuple[str, str, bytes]]) -> Update:
        self.sequences[stream] = self.sequences.get(stream, self.epoch) + 1
        return Update(stream, self.sequences[stream], self.revision, changes)

    def snapshot(self, stream: str) -> Message:
        """The whole of a stream, with the sequence at which it is so. Of an unknown stream: nothing, at the epoch."""
        items = [[key, value] for key, value in self._values.get(stream, {}).items()]
        sequence = self.sequences.setdefault(stream, self.epoch)
        return {"t": "snapshot", "stream": stream, "sequence": sequence, "revision": self.revision, "items": items}
