"""Events: what controllers and kubelets want people to know. Bounded: the same again is a count, and the oldest go.

Spec: core/v1 Event; client-go's tools/record (aggregation by involved object, type, reason and message).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emu.errors import ApiError
from emu.registry.registry import Registry

LIMIT = 1000  # events kept in a cluster; a real one keeps an hour's
NORMAL, WARNING = "Normal", "Warning"

Object = dict[str, Any]


class Recorder:
    """Writes Events through the registry."""

    def __init__(self, registry: Registry, timestamp: Callable[[], str], limit: int = LIMIT) -> None:
        self._registry, self._timestamp, self._limit = registry, timestamp, limit
        self._known: dict[tuple[str, ...], tuple[str, str]] = {}  # what is told -> (namespace, name) of its event, oldest first
        self._serial = registry.store.revision
        for event in registry.store.list("events")[0]:
            about = event.get("involvedObject") or {}
            what = (about.get("uid", ""), about.get("name", ""), event.get("type", ""), event.get("reason", ""), event.get("message", ""))
            self._known[what] = (event["metadata"]["namespace"], event["metadata"]["name"])

    def record(self, about: Object, kind: str, reason: str, message: str, component: str) -> None:
        """Tell `message` of an object (whole, or a reference with kind, namespace, name, uid); `kind` is Normal or Warning."""
        meta = about.get("metadata") or about
        what = (meta.get("uid", ""), meta["name"], kind, reason, message)
        try:
            if what not in self._known or not self._again(what):
                self._first(about, meta, what, component)
        except ApiError as error:
            if error.code not in (403, 404, 409):  # its namespace is going, or somebody deleted the event: nobody will miss it
                raise

    def _again(self, what: tuple[str, ...]) -> bool:
        """Count an event that has been told before; False if somebody has deleted it."""
        namespace, name = self._known.pop(what)
        event = self._registry.store.get("events", namespace, name)
        if event is None:
            return False
        self._known[what] = (namespace, name)
        self._registry.update("events", {**event, "count": event.get("count", 1) + 1, "lastTimestamp": self._timestamp()}, namespace)
        return True

    def _first(self, about: Object, meta: Object, what: tuple[str, ...], component: str) -> None:
        uid, name, kind, reason, message = what
        namespace, now = meta.get("namespace") or "default", self._timestamp()
        self._serial += 1
        reference = {"kind": about["kind"], "name": name, "uid": uid, "apiVersion": about.get("apiVersion", "v1")}
        if meta.get("namespace"):
            reference["namespace"] = meta["namespace"]
        event: Object = {
            "metadata": {"namespace": namespace, "name": f"{name[:200]}.{self._serial:016x}"},
            "involvedObject": reference, "type": kind, "reason": reason, "message": message, "source": {"component": component},
            "firstTimestamp": now, "lastTimestamp": now, "count": 1, "reportingComponent": component, "reportingInstance": "",
        }  # fmt: skip
        self._registry.create("events", event, namespace)
        self._known[what] = (namespace, event["metadata"]["name"])
        while len(self._known) > self._limit:
            self._forget(next(iter(self._known)))

    def _forget(self, what: tuple[str, ...]) -> None:
        namespace, name = self._known.pop(what)
        if self._registry.store.get("events", namespace, name) is not None:
            self._registry.delete("events", namespace, name)
