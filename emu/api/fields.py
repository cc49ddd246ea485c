"""Which objects a request's selectors choose: label selectors on anything, field selectors on the paths that Kubernetes indexes.

Spec: pkg/registry/*/strategy.go `ToSelectableFields`; an unsupported path is 400, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from emu.errors import ApiError
from emu.model import selector
from emu.store.store import Object

Predicate = Callable[[Object], bool]

_EVERYWHERE = ("metadata.name", "metadata.namespace")
SELECTABLE: dict[str, tuple[str, ...]] = {
    "pods": (
        "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork", "status.phase",
        "status.podIP", "status.nominatedNodeName",
    ),
    "events": (
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion",
        "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type",
    ),
    "nodes": ("spec.unschedulable",),
    "namespaces": ("status.phase",),
    "replicasets": ("status.replicas",),
    "services": ("spec.clusterIP", "spec.type"),
    "secrets": ("type",),
}  # fmt: skip


def predicate(resource: str, labels: str, fields: str) -> Predicate | None:
    """What `labelSelector` and `fieldSelector` choose; None if that is everything. ApiError 400 for one that is wrong."""
    try:
        chosen, requirements = selector.parse(labels), selector.parse_fields(fields)
    except ValueError as error:
        raise ApiError(400, "BadRequest", str(error)) from error
    allowed = (*_EVERYWHERE, *SELECTABLE.get(resource, ()))
    for requirement in requirements:
        if requirement.path not in allowed:
            raise ApiError(400, "BadRequest", f"field label not supported: {requirement.path} (supported: {', '.join(allowed)})")
    if not chosen.requirements and not requirements:
        return None

    def matches(obj: Object) -> bool:
        return chosen.matches(obj["metadata"].get("labels")) and all(
            (read(obj, requirement.path) == requirement.value) is requirement.equal for requirement in requirements
        )

    return matches


def read(obj: Mapping[str, Any], path: str) -> str:
    """A field as selectors compare it: text, "" where absent, booleans in lower case."""
    value: Any = obj
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
