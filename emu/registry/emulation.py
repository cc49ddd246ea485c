"""What is accepted and kept but has no effect here: whole kinds, and fields of kinds that are otherwise emulated.

One table of paths (`[*]` is every item of a list or value of a map). A request that uses one gets one warning for it, and `status`
lists each once. A row is removed when its field begins to work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from emu.model.kinds import BY_RESOURCE, KINDS, Treatment
from emu.store.store import Object, Store

_CONTAINER = (
    "livenessProbe", "readinessProbe", "startupProbe", "volumeMounts", "volumeDevices", "lifecycle", "resizePolicy", "workingDir",
    "envFrom", "restartPolicy",
)  # fmt: skip
_POD_SPEC = (
    "volumes", "affinity", "topologySpreadConstraints", "dnsConfig", "hostPID", "hostIPC", "runtimeClassName", "overhead",
    "shareProcessNamespace", "ephemeralContainers", "resourceClaims", "schedulingGates",
    *(f"{group}[*].{field}" for group in ("containers", "initContainers") for field in _CONTAINER),
    "containers[*].env[*].valueFrom", "containers[*].ports[*].hostPort",
)  # fmt: skip
_HOST_PORT = "spec.containers[*].ports[*].hostPort"  # on the node's network every port is one, and defaulted to be
_TEMPLATE = tuple(f"spec.template.spec.{field}" for field in _POD_SPEC)

FIELDS: dict[str, tuple[str, ...]] = {
    "pods": tuple(f"spec.{field}" for field in _POD_SPEC),
    "deployments": _TEMPLATE,
    "replicasets": _TEMPLATE,
    "nodes": ("spec.configSource",),
    "services": ("spec.loadBalancerClass", "spec.loadBalancerIP"),
}
_KEPT_BUT_IDLE = {kind.resource: kind for kind in KINDS if kind.treatment is Treatment.STORED}


class Idle(NamedTuple):
    """A kind, or a field of one, that has no effect; `objects` of the cluster use it, `example` is one of them."""

    kind: str
    field: str  # "" for the whole kind
    objects: int
    example: str


def idle_fields(resource: str, obj: Object) -> Iterator[str]:
    """The paths in use in `obj` that have no effect."""
    for path in FIELDS.get(resource, ()):
        if _in_use(obj, path.split(".")) and not (path == _HOST_PORT and obj["spec"].get("hostNetwork")):
            yield path


def _in_use(node: Any, steps: list[str]) -> bool:
    if not steps:
        return node not in (None, False, "", [], {})
    if not isinstance(node, dict):
        return False
    name, many = steps[0].removesuffix("[*]"), steps[0].endswith("[*]")
    inner = node.get(name)
    return any(_in_use(item, steps[1:]) for item in inner or ()) if many else _in_use(inner, steps[1:])


def warnings(resource: str, obj: Object) -> list[str]:
    """What the sender of `obj` should be told, once each."""
    idle = _KEPT_BUT_IDLE.get(resource)
    if idle:
        return [f"kind {idle.kind} is stored but not emulated"]
    return [f"{path} is stored but not emulated" for path in idle_fields(resource, obj)]


def summary(store: Store) -> list[Idle]:
    """Everything in the store that has no effect, each kind and field once. Objects that a controller made are its owner's."""
    found: dict[tuple[str, str], list[str]] = {}
    for resource in store.resources():
        for obj in store.list(resource)[0]:
            if obj["metadata"].get("ownerReferences"):
                continue
            namespace, name = obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
            where = f"{namespace}/{name}" if namespace else name
            fields = ("",) if resource in _KEPT_BUT_IDLE else tuple(idle_fields(resource, obj))
            for field in fields:
                found.setdefault((BY_RESOURCE[resource].kind, field), []).append(where)
    return [Idle(kind, field, len(users), users[0]) for (kind, field), users in sorted(found.items())]
