"""Tables: what `kubectl get` prints, column by column, for the kinds that have columns of their own.

A row of `COLUMNS` is a header, whether only `-o wide` shows it, and how to read the cell. Spec: pkg/printers/internalversion/printers.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NamedTuple

from emu.store.store import Object

NONE = "<none>"
UNKNOWN = "<unknown>"


class Column(NamedTuple):
    """A column; `read` takes the object and the time now."""

    name: str
    wide: bool
    read: Callable[[Object, datetime], Any]


def table(
    resource: str, objects: Iterable[Object], now: datetime, *, metadata: dict[str, Any], include: str = "Metadata"
) -> dict[str, Any]:
    """A meta.k8s.io/v1 Table; `include` is None, Metadata or Object: what of each object comes along."""
    columns = COLUMNS.get(resource, _PLAIN)
    definitions = [
        {"name": c.name, "type": "string", "format": "name" if c.name == "Name" else "", "description": "", "priority": int(c.wide)}
        for c in columns
    ]
    rows = [{"cells": [c.read(obj, now) for c in columns], **_included(obj, include)} for obj in objects]
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": definitions, "rows": rows}


def _included(obj: Object, include: str) -> dict[str, Any]:
    match include:
        case "None":
            return {}
        case "Object":
            return {"object": obj}
        case _:
            return {"object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}}


def duration(seconds: float) -> str:
    """`5s`, `3m20s`, `4h`, `2d3h`: apimachinery's HumanDuration."""
    s = int(seconds)
    if s < 0:
        return "0s" if s >= -1 else "<invalid>"
    minutes, hours, days = s // 60, s // 3600, s // 86400
    if s < 120:
        return f"{s}s"
    if minutes < 10:
        return f"{minutes}m{s % 60}s" if s % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d" if days < 730 else f"{days // 365}y"


def _since(text: str | None, now: datetime) -> str:
    return duration((now - datetime.fromisoformat(text)).total_seconds()) if text else UNKNOWN


def _field(*path: str, absent: Any = NONE) -> Callable[[Object, datetime], Any]:
    def read(obj: Object, _: datetime) -> Any:
        value: Any = obj
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        return absent if value in (None, "") else value

    return read


def _status(obj: Object) -> Object:
    return obj.get("status") or {}


def _labels(labels: dict[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def _selector(obj: Object, _: datetime) -> str:
    wanted = obj["spec"].get("selector") or {}
    return _labels(wanted.get("matchLabels") if "matchLabels" in wanted or "matchExpressions" in wanted else wanted)


def _containers(key: str) -> Callable[[Object, datetime], str]:
    return lambda obj, _: ",".join(
        container.get(key, "") for container in obj["spec"].get("template", {}).get("spec", {}).get("containers", ())
    )


# --- pods ---------------------------------------------------------------------------------------------------------------


def _pod_ready(obj: Object, _: datetime) -> str:
    states = _status(obj).get("containerStatuses") or ()
    return f"{sum(bool(state.get('ready')) for state in states)}/{len((obj.get('spec') or {}).get('containers') or ())}"


def _initializing(obj: Object) -> str:
    """`Init:` and how far, while init containers have their turn; "" after."""
    states = _status(obj).get("initContainerStatuses") or ()
    for index, state in enumerate(states):
        current = state.get("state") or {}
        waiting, terminated = current.get("waiting") or {}, current.get("terminated")
        if terminated is not None and not terminated.get("exitCode"):
            continue
        if terminated is not None:
            return f"Init:{terminated.get('reason') or _ending(terminated)}"
        if waiting.get("reason") not in (None, "", "PodInitializing", "ContainerCreating"):
            return f"Init:{waiting['reason']}"
        return f"Init:{index}/{len(states)}"
    return ""


def _ending(terminated: Object) -> str:
    return f"Signal:{terminated['signal']}" if terminated.get("signal") else f"ExitCode:{terminated.get('exitCode')}"


def pod_status(obj: Object) -> str:
    """The one word of `kubectl get pods`: the phase, or the reason that says more."""
    status = _status(obj)
    word = _initializing(obj)
    if word and "deletionTimestamp" not in obj["metadata"]:
        return word
    word = str(status.get("reason") or status.get("phase") or UNKNOWN)
    running = False
    for state in reversed(status.get("containerStatuses") or ()):
        current = state.get("state") or {}
        waiting, terminated = current.get("waiting") or {}, current.get("terminated") or {}
        if waiting.get("reason"):
            word = waiting["reason"]
        elif terminated:
            word = terminated.get("reason") or _ending(terminated)
        elif state.get("ready") and current.get("running"):
            running = True
    if word == "Completed" and running:
        ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())
        word = "Running" if ready else "NotReady"
    if "deletionTimestamp" in obj["metadata"]:
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return word


def _restarts(obj: Object, now: datetime) -> str:
    states = _status(obj).get("containerStatuses") or ()
    count = sum(state.get("restartCount", 0) for state in states)
    ends = [((state.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for state in states]
    last = max((end for end in ends if end), default=None)
    return f"{count} ({_since(last, now)} ago)" if count and last else str(count)


def _gates(obj: Object, _: datetime) -> str:
    gates = [gate["conditionType"] for gate in obj["spec"].get("readinessGates") or ()]
    true = {c["type"] for c in _status(obj).get("conditions") or () if c.get("status") == "True"}
    return f"{sum(gate in true for gate in gates)}/{len(gates)}" if gates else NONE


# --- services -----------------------------------------------------------------------------------------------------------


def _external(obj: Object, _: datetime) -> str:
    spec = obj["spec"]
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName"))
    given = [i.get("ip") or i.get("hostname") for i in (_status(obj).get("loadBalancer") or {}).get("ingress") or ()]
    listed = [*(given if spec.get("type") == "LoadBalancer" else ()), *(spec.get("externalIPs") or ())]
    return ",".join(listed) or ("<pending>" if spec.get("type") == "LoadBalancer" else NONE)


def _service_ports(obj: Object, _: datetime) -> str:
    ports = obj["spec"].get("ports") or ()
    return ",".join(f"{p['port']}{_colon(p.get('nodePort'))}/{p.get('protocol', 'TCP')}" for p in ports) or NONE


def _colon(node_port: int | None) -> str:
    return f":{node_port}" if node_port else ""


# --- nodes --------------------------------------------------------------------------------------------------------------


def _node_status(obj: Object, _: datetime) -> str:
    ready = next((c.get("status") for c in _status(obj).get("conditions") or () if c.get("type") == "Ready"), None)
    word = {"True": "Ready", None: "Unknown"}.get(ready, "NotReady")
    return word + (",SchedulingDisabled" if obj.get("spec", {}).get("unschedulable") else "")


_ROLE = "node-role.kubernetes.io/"


def _roles(obj: Object, _: datetime) -> str:
    return ",".join(sorted(label.removeprefix(_ROLE) for label in obj["metadata"].get("labels") or {} if label.startswith(_ROLE))) or NONE


def _node_address(kind: str) -> Callable[[Object, datetime], str]:
    return lambda obj, _: next((a["address"] for a in _status(obj).get("addresses") or () if a["type"] == kind), NONE)


# --- endpointslices, events -----------------------------------------------------------------------------------------------


def _few(items: list[str]) -> str:
    return (",".join(items[:3]) + (f" + {len(items) - 3} more..." if len(items) > 3 else "")) or "<unset>"


def _slice_endpoints(obj: Object, _: datetime) -> str:
    return _few([address for endpoint in obj.get("endpoints") or () for address in endpoint.get("addresses") or ()])


def _slice_ports(obj: Object, _: datetime) -> str:
    return _few([str(port.get("port", "*")) for port in obj.get("ports") or ()])


def _last_seen(obj: Object, now: datetime) -> str:
    return _since(obj.get("lastTimestamp") or obj.get("eventTime") or obj["metadata"].get("creationTimestamp"), now)


def _about(obj: Object, _: datetime) -> str:
    about = obj.get("involvedObject") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _count(*fields: str) -> Callable[[Object, datetime], str]:
    return lambda obj, _: str(sum(len(obj.get(field) or ()) for field in fields))


_NAME = Column("Name", wide=False, read=_field("metadata", "name"))
_AGE = Column("Age", wide=False, read=lambda obj, now: _since(obj["metadata"].get("creationTimestamp"), now))
_PLAIN = (_NAME, _AGE)
_WORKLOAD = (
    Column("Containers", wide=True, read=_containers("name")),
    Column("Images", wide=True, read=_containers("image")),
    Column("Selector", wide=True, read=_selector),
)


def _narrow(name: str, read: Callable[[Object, datetime], Any]) -> Column:
    return Column(name, wide=False, read=read)


def _wide(name: str, read: Callable[[Object, datetime], Any]) -> Column:
    return Column(name, wide=True, read=read)


COLUMNS: dict[str, tuple[Column, ...]] = {
    "pods": (
        _NAME,
        _narrow("Ready", _pod_ready),
        _narrow("Status", lambda obj, _: pod_status(obj)),
        _narrow("Restarts", _restarts),
        _AGE,
        _wide("IP", _field("status", "podIP")),
        _wide("Node", _field("spec", "nodeName")),
        _wide("Nominated Node", _field("status", "nominatedNodeName")),
        _wide("Readiness Gates", _gates),
    ),
    "services": (
        _NAME,
        _narrow("Type", _field("spec", "type")),
        _narrow("Cluster-IP", _field("spec", "clusterIP")),
        _narrow("External-IP", _external),
        _narrow("Port(s)", _service_ports),
        _AGE,
        _wide("Selector", _selector),
    ),
    "deployments": (
        _NAME,
        _narrow("Ready", lambda obj, _: f"{_status(obj).get('readyReplicas', 0)}/{obj['spec'].get('replicas', 1)}"),
        _narrow("Up-to-date", _field("status", "updatedReplicas", absent=0)),
        _narrow("Available", _field("status", "availableReplicas", absent=0)),
        _AGE,
        *_WORKLOAD,
    ),
    "replicasets": (
        _NAME,
        _narrow("Desired", _field("spec", "replicas", absent=0)),
        _narrow("Current", _field("status", "replicas", absent=0)),
        _narrow("Ready", _field("status", "readyReplicas", absent=0)),
        _AGE,
        *_WORKLOAD,
    ),
    "nodes": (
        _NAME,
        _narrow("Status", _node_status),
        _narrow("Roles", _roles),
        _AGE,
        _narrow("Version", _field("status", "nodeInfo", "kubeletVersion", absent="")),
        _wide("Internal-IP", _node_address("InternalIP")),
        _wide("External-IP", _node_address("ExternalIP")),
        _wide("OS-Image", _field("status", "nodeInfo", "osImage", absent=UNKNOWN)),
        _wide("Kernel-Version", _field("status", "nodeInfo", "kernelVersion", absent=UNKNOWN)),
        _wide("Container-Runtime", _field("status", "nodeInfo", "containerRuntimeVersion", absent=UNKNOWN)),
    ),
    "namespaces": (_NAME, _narrow("Status", _field("status", "phase", absent="")), _AGE),
    "endpointslices": (
        _NAME,
        _narrow("AddressType", _field("addressType")),
        _narrow("Ports", _slice_ports),
        _narrow("Endpoints", _slice_endpoints),
        _AGE,
    ),
    "configmaps": (_NAME, _narrow("Data", _count("data", "binaryData")), _AGE),
    "secrets": (_NAME, _narrow("Type", _field("type")), _narrow("Data", _count("data")), _AGE),
    "leases": (_NAME, _narrow("Holder", _field("spec", "holderIdentity")), _AGE),
    "events": (
        _narrow("Last Seen", _last_seen),
        _narrow("Type", _field("type", absent="")),
        _narrow("Reason", _field("reason", absent="")),
        _narrow("Object", _about),
        _wide("Source", _field("source", "component", absent="")),
        _narrow("Message", _field("message", absent="")),
        _wide("Count", _field("count", absent=1)),
        Column("Name", wide=True, read=_field("metadata", "name")),
    ),
}
