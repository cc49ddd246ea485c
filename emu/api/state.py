"""Objects taken over as a state that was seen somewhere (a scenario's `manifests`): all of them, or none.

Unlike `apply`, which makes requests with all their rules, this puts objects in as they stand, status included; see `Registry.adopt`.
A Pod whose status names an address of its node's pod network is run there, under that address.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from emu.api.request import Request, Response
from emu.errors import ApiError
from emu.model.kinds import BY_GVK, unknown_kind
from emu.model.manifest import describe
from emu.model.objects import ADDRESS_ANNOTATION
from emu.registry.registry import Registry
from emu.store.store import Object, copied


def adopt(request: Request, registry: Registry) -> Response:
    """POST {"objects": [...], "namespace": "default"}: {"results": [{kind, namespace, name, warnings}]}, or one Status."""
    body = request.decoded()
    objects = body.get("objects") if isinstance(body, dict) else None
    if not isinstance(objects, list):
        raise ApiError(400, "BadRequest", '{"objects": [...]} is wanted')
    with registry.store.transaction():
        results = [_adopt_one(registry, given, str(body.get("namespace") or "default")) for given in objects]
    return Response({"results": results})


def _adopt_one(registry: Registry, given: Any, default: str) -> dict[str, Any]:
    kind = BY_GVK.get((given.get("apiVersion", ""), given.get("kind", ""))) if isinstance(given, dict) else None
    if kind is None:
        raise ApiError(404, "NotFound", unknown_kind(str(given.get("apiVersion")), str(given.get("kind"))))
    namespace = ((given.get("metadata") or {}).get("namespace") or default) if kind.namespaced else ""
    try:
        outcome = registry.adopt(kind.resource, _hosted(registry, given) if kind.resource == "pods" else given, namespace)
    except ApiError as error:
        raise ApiError(error.code, error.reason, f"{describe(given)}: {error.message}", causes=error.causes) from error
    return {"kind": kind.kind, "namespace": namespace, "name": outcome.object["metadata"]["name"], "warnings": outcome.warnings}


def _hosted(registry: Registry, pod: Object) -> Object:
    """The pod, told to keep the address that its status gives it, if its node can give it that."""
    ip = (pod.get("status") or {}).get("podIP")
    node = registry.store.get("nodes", "", (pod.get("spec") or {}).get("nodeName") or "")
    subnet = (node or {}).get("spec", {}).get("podCIDR")
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    if not ip or not subnet or ADDRESS_ANNOTATION in annotations or ipaddress.ip_address(ip) not in ipaddress.ip_network(subnet):
        return pod
    made: Object = copied(pod)
    made["metadata"]["annotations"] = {**annotations, ADDRESS_ANNOTATION: ip}
    return made
