"""Apply many objects at once: all of them, or none.

Each object is created, or merged three ways with the stored one (what the last apply said and this one no longer says goes; what
others set stays), in one transaction. Every object's faults are collected before anything is refused, so a user sees them all; a
cause names the object's index, name and field. The annotation is kubectl's own: either tool can go on where the other left off.
"""

from __future__ import annotations

import json
from typing import Any

from emu.api import patch
from emu.api.request import Request, Response
from emu.errors import ApiError
from emu.model import schema, selector
from emu.model.kinds import BY_GVK, Kind, unknown_kind
from emu.model.manifest import describe
from emu.registry.registry import Registry
from emu.store.store import Object, Store, copied

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def apply(request: Request, registry: Registry) -> Response:
    """POST {"objects": [...], "namespace": "default"}: {"results": [{kind, namespace, name, action, warnings}]}, or one Status."""
    body = request.decoded()
    objects = body if isinstance(body, list) else body.get("objects") if isinstance(body, dict) else None
    if not isinstance(objects, list):
        raise ApiError(400, "BadRequest", 'a list of objects, or {"objects": [...]}, is wanted')
    default = body.get("namespace", "default") if isinstance(body, dict) else "default"
    results: dict[int, dict[str, Any]] = {}
    causes: list[dict[str, str]] = []
    first: ApiError | None = None
    with registry.store.transaction():
        for index in _in_order(objects):
            try:
                results[index] = _apply_one(registry, objects[index], default)
            except ApiError as error:
                first = first or error
                causes += _causes(error, index, objects[index])
        if first is not None:
            raise _all_refused(first, causes, len(objects))
        _warn_of_idle_selectors(registry.store, results)
    return Response({"results": [results[index] for index in range(len(objects))]})


def _in_order(objects: list[Any]) -> list[int]:
    """Namespaces first, so that a file may hold a namespace and its content in any order."""
    return sorted(
        range(len(objects)), key=lambda index: not (isinstance(objects[index], dict) and objects[index].get("kind") == "Namespace")
    )


def _apply_one(registry: Registry, given: Any, default: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ApiError(400, "BadRequest", "not a Kubernetes object: a map with apiVersion, kind and metadata is wanted")
    kind = BY_GVK.get((given.get("apiVersion", ""), given.get("kind", "")))
    if kind is None:
        raise ApiError(404, "NotFound", unknown_kind(str(given.get("apiVersion")), str(given.get("kind"))))
    metadata = given.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise ApiError(422, "Invalid", "metadata.name: Required value", causes=({"field": "metadata.name", "message": "Required value"},))
    namespace = (metadata.get("namespace") or default) if kind.namespaced else ""
    current = registry.store.get(kind.resource, namespace, metadata["name"])
    if current is None:
        outcome = registry.create(kind.resource, _annotated(given), namespace)
        action = "created"
    else:
        outcome = registry.update(kind.resource, _merged(kind, current, given), namespace)
        unchanged = outcome.object["metadata"]["resourceVersion"] == current["metadata"]["resourceVersion"]
        action = "unchanged" if unchanged else "configured"
    named = {"kind": kind.kind, "resource": kind.group_resource, "namespace": namespace, "name": metadata["name"]}
    return {**named, "action": action, "warnings": outcome.warnings}


def _annotated(given: Object) -> Object:
    """The object with a note of what was applied, as kubectl writes it."""
    made: Object = copied(given)
    annotations = made["metadata"].setdefault("annotations", {})
    if not isinstance(annotations, dict):
        return made  # the schema will say so
    annotations.pop(LAST_APPLIED, None)
    bare: Object = copied(made)
    annotations[LAST_APPLIED] = json.dumps(bare, separators=(",", ":"), sort_keys=True) + "\n"
    return made


def _merged(kind: Kind, current: Object, given: Object) -> Object:
    annotations = current["metadata"].get("annotations") or {}
    try:
        last = json.loads(annotations.get(LAST_APPLIED, "{}"))
    except ValueError:
        last = {}
    modified = _annotated(given)
    modified["metadata"].pop("resourceVersion", None)
    made: Object = patch.three_way(schema.schema_of(kind.api_version, kind.kind) or {}, last, modified, current)
    return made


def _causes(error: ApiError, index: int, obj: Any) -> list[dict[str, str]]:
    where = {"index": str(index), "object": describe(obj) if isinstance(obj, dict) else f"object {index}"}
    inner = error.causes or ({"reason": error.reason, "message": error.message, "field": ""},)
    return [{**cause, **where} for cause in inner]


def _all_refused(first: ApiError, causes: list[dict[str, str]], count: int) -> ApiError:
    lines = [
        f"{c['object']}: {c['field'] + ': ' if c.get('field') and not c['message'].startswith('unknown field') else ''}{c['message']}"
        for c in causes
    ]
    message = f"nothing was applied ({count} object{'s' if count != 1 else ''}): " + "; ".join(lines)
    return ApiError(first.code, first.reason, message, causes=tuple(causes))


def _warn_of_idle_selectors(store: Store, results: dict[int, dict[str, Any]]) -> None:
    for result in results.values():
        if result["resource"] == "services":
            service = store.get("services", result["namespace"], result["name"])
            if service is not None and selects_nothing(store, service):
                wanted = ",".join(f"{key}={value}" for key, value in sorted(service["spec"]["selector"].items()))
                result["warnings"] = [*result["warnings"], f"selector {wanted} matches no Pod and no workload's template"]


def selects_nothing(store: Store, service: Object) -> bool:
    """Whether a Service has a selector that neither a Pod nor any workload's template satisfies."""
    wanted = selector.from_map(service["spec"].get("selector"))
    if not wanted.requirements:
        return False
    namespace = service["metadata"]["namespace"]
    if any(wanted.matches(pod["metadata"].get("labels")) for pod in store.list("pods", namespace)[0]):
        return False
    templates = (
        ((workload.get("spec") or {}).get("template") or {}).get("metadata") or {}
        for resource in ("deployments", "replicasets", "statefulsets", "daemonsets")
        for workload in store.list(resource, namespace)[0]
    )
    return not any(wanted.matches(template.get("labels")) for template in templates)
