"""A watch: the current objects or the changes since a revision, then every change as it is committed, as JSON lines.

Pure: `start` gives what is to be sent first, `feed` what a commit adds; the shell owns the connection and the store's subscription
(subscribe, then start, so nothing falls between). An object that begins to match the selectors is ADDED to this watcher, one that
ceases to is DELETED. Spec: "API concepts", efficient detection of changes, streaming lists (KEP-3157), bookmarks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from emu.api.fields import Predicate
from emu.errors import ApiError
from emu.model.kinds import Kind
from emu.store.store import Change, Object, Store

INITIAL_EVENTS_END = "k8s.io/initial-events-end"

Shape = Callable[[Object], object]  # an object as the client wants it: itself, or a Table of one row


@dataclass(slots=True)
class WatchStream:
    """One client's watch. `since` None means: begin with the current objects; `timeout` is in seconds, None for as long as he stays."""

    store: Store
    kind: Kind
    namespace: str | None
    chosen: Predicate | None
    shape: Shape
    since: int | None = None
    mark_initial_end: bool = False
    bookmarks: bool = False
    timeout: float | None = None
    over: bool = False  # nothing more will come: the client must list again
    seen: int = 0  # the last revision that this watch has taken in

    def start(self) -> bytes:
        """What is sent first."""
        if self.since is None:
            objects, self.seen = self.store.list(self.kind.resource, self.namespace)
            lines = [self._line("ADDED", self.shape(obj)) for obj in objects if self.chosen is None or self.chosen(obj)]
            if self.mark_initial_end:
                lines.append(self._bookmark({INITIAL_EVENTS_END: "true"}))
            return b"".join(lines)
        try:
            if self.since > self.store.revision:  # from another life of this cluster: it would miss what comes until then
                raise ApiError(504, "Timeout", f"Too large resource version: {self.since}, current: {self.store.revision}")
            missed = self.store.changes(self.since)
        except ApiError as error:
            self.over = True
            return self._line("ERROR", error.status())
        self.seen = self.since
        return self.feed(missed)

    def feed(self, changes: list[Change]) -> bytes:
        """What committed changes add; those already seen add nothing."""
        lines = []
        for change in changes:
            if change.revision <= self.seen:
                continue
            self.seen = change.revision
            event = self._event(change) if change.resource == self.kind.resource else None
            if event:
                lines.append(self._line(event, self.shape(change.object)))
        return b"".join(lines)

    def _event(self, change: Change) -> str | None:
        if self.namespace is not None and change.object["metadata"].get("namespace", "") != self.namespace:
            return None
        if self.chosen is None:
            return change.type
        now = change.type != "DELETED" and self.chosen(change.object)
        before = change.previous is not None and self.chosen(change.previous)
        return "MODIFIED" if now and before else "ADDED" if now else "DELETED" if before else None

    def bookmark(self) -> bytes:
        """How far this watch is, for clients that asked to be told; otherwise nothing."""
        return self._bookmark({}) if self.bookmarks else b""

    def _bookmark(self, annotations: dict[str, str]) -> bytes:
        metadata = {"resourceVersion": str(max(self.seen, self.store.revision)), "creationTimestamp": None}
        obj: Object = {"kind": self.kind.kind, "apiVersion": self.kind.api_version, "metadata": metadata}
        if annotations:
            obj["metadata"]["annotations"] = annotations
        return self._line("BOOKMARK", obj)

    @staticmethod
    def _line(event: str, obj: object) -> bytes:
        return json.dumps({"type": event, "object": obj}, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
