"""TUN devices over the lives of nodes and pods: asked for again of a node that has started anew, forgotten with their pods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emu.model.tun import ANNOTATION, annotation, specs_of
from emu.registry.registry import Registry
from emu.store.store import Change

Tell = Callable[[str, str, dict[str, Any]], None]
"""Calls a node's method with parameters; nobody waits for the answer, which the device's state tells."""


class TunKeeper:
    """Nodes remember in an annotation of their Node object (`model.tun.ANNOTATION`)."""

    def __init__(self, registry: Registry, tell: Tell) -> None:
        self._registry, self._tell = registry, tell
        registry.store.subscribe(self._on_changes)

    def on_new_life(self, node: str) -> None:
        """A node's process has none of the devices of the one before it, whose descriptors the kernel has closed."""
        found = self._registry.store.get("nodes", "", node)
        for spec in specs_of(found["metadata"].get("annotations")) if found is not None else ():
            self._tell(node, "tun-restore", spec.to_mapping())

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            if change.resource == "pods" and change.type == "DELETED":
                self._forget(change.object)

    def _forget(self, pod: dict[str, Any]) -> None:
        node = self._registry.store.get("nodes", "", (pod.get("spec") or {}).get("nodeName") or "")
        annotations = (node or {}).get("metadata", {}).get("annotations") or {}
        if node is None or ANNOTATION not in annotations:
            return
        meta = pod["metadata"]
        kept = [spec for spec in specs_of(annotations) if spec.pod != f"{meta['namespace']}/{meta['name']}"]
        told = {**annotations, ANNOTATION: annotation(kept)}
        self._registry.update("nodes", {**node, "metadata": {**node["metadata"], "annotations": told}})
