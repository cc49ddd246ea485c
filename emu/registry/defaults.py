"""Defaults: what `kubectl get -o yaml` shows although nobody wrote it.

Tables of path and value; `[*]` is every item of a list, and a path whose parent is absent sets nothing. Defaults that depend on
another field are functions at the end. Spec: pkg/apis/*/v1/defaults.go of Kubernetes 1.35.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from emu.store.store import Object, copied

Rows = tuple[tuple[str, Any], ...]

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_PROBE: Rows = (
    ("timeoutSeconds", 1),
    ("periodSeconds", 10),
    ("successThreshold", 1),
    ("failureThreshold", 3),
    ("httpGet.path", "/"),
    ("httpGet.scheme", "HTTP"),
)
_CONTAINER: Rows = (
    ("terminationMessagePath", "/dev/termination-log"),
    ("terminationMessagePolicy", "File"),
    ("resources", {}),
    ("ports[*].protocol", "TCP"),
    ("env[*].valueFrom.fieldRef.apiVersion", "v1"),
    *((f"{probe}.{path}", value) for probe in _PROBES for path, value in _PROBE),
)


def under(prefix: str, rows: Rows) -> Rows:
    """The same rows for a part of a larger object."""
    return tuple((f"{prefix}.{path}", value) for path, value in rows)


POD_SPEC: Rows = (
    ("restartPolicy", "Always"),
    ("dnsPolicy", "ClusterFirst"),
    ("terminationGracePeriodSeconds", 30),
    ("securityContext", {}),
    ("schedulerName", "default-scheduler"),
    *under("containers[*]", _CONTAINER),
    *under("initContainers[*]", _CONTAINER),
    ("volumes[*].configMap.defaultMode", 420),
    ("volumes[*].secret.defaultMode", 420),
    ("volumes[*].projected.defaultMode", 420),
    ("volumes[*].downwardAPI.defaultMode", 420),
)
# What the server adds to a Pod itself, beyond what a template has: pkg/apis/core/v1 SetDefaults_Pod and the admission chain.
_POD_ONLY: Rows = (
    ("spec.enableServiceLinks", True),
    ("spec.serviceAccountName", "default"),
    ("spec.preemptionPolicy", "PreemptLowerPriority"),
    ("spec.priority", 0),
)
_TEMPLATE = under("spec.template.spec", POD_SPEC)

ROWS: dict[str, Rows] = {
    "pods": (*under("spec", POD_SPEC), *_POD_ONLY),
    "deployments": (
        ("spec.replicas", 1),
        ("spec.revisionHistoryLimit", 10),
        ("spec.progressDeadlineSeconds", 600),
        ("spec.strategy", {}),
        ("spec.strategy.type", "RollingUpdate"),
        *_TEMPLATE,
    ),
    "replicasets": (("spec.replicas", 1), *_TEMPLATE),
    "statefulsets": (
        ("spec.replicas", 1),
        ("spec.revisionHistoryLimit", 10),
        ("spec.podManagementPolicy", "OrderedReady"),
        ("spec.updateStrategy", {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
        ("spec.persistentVolumeClaimRetentionPolicy", {"whenDeleted": "Retain", "whenScaled": "Retain"}),
        *_TEMPLATE,
    ),
    "daemonsets": (
        ("spec.revisionHistoryLimit", 10),
        ("spec.updateStrategy", {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}),
        *_TEMPLATE,
    ),
    "namespaces": (("spec", {}), ("spec.finalizers", ["kubernetes"])),
    "endpointslices": (("ports[*].protocol", "TCP"), ("ports[*].name", "")),
    "secrets": (("type", "Opaque"),),
    "nodes": (("spec", {}),),
}


def apply(resource: str, obj: Object) -> None:
    """Fill in what is absent in `obj`, which is the caller's own copy."""
    for path, value in ROWS.get(resource, ()):
        _fill(obj, path.split("."), value)
    conditional = _CONDITIONAL.get(resource)
    if conditional:
        conditional(obj)


def _fill(node: Any, steps: list[str], value: Any) -> None:
    name = steps[0]
    if len(steps) == 1:
        if isinstance(node, dict) and node.get(name) is None:
            node[name] = copied(value)
        return
    inner = node.get(name.removesuffix("[*]")) if isinstance(node, dict) else None
    for item in (inner or ()) if name.endswith("[*]") else (inner,):
        _fill(item, steps[1:], value)


def _pod_spec(spec: Object) -> None:
    for container in _containers(spec):
        if not container.get("imagePullPolicy") and container.get("image"):
            tag = container["image"].rpartition("/")[2].partition("@")[0].partition(":")[2]
            pinned = "@" in container["image"] or tag not in ("", "latest")
            container["imagePullPolicy"] = "IfNotPresent" if pinned else "Always"
        if spec.get("hostNetwork"):  # a port of the node's own: KEP-less, defaults.go setHostNetwork
            for port in container.get("ports") or ():
                port.setdefault("hostPort", port.get("containerPort"))


def _containers(spec: Object) -> Iterable[Object]:
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def _pod(obj: Object) -> None:
    _pod_spec(obj.get("spec") or {})


def _template(obj: Object) -> None:
    spec = obj.get("spec") or {}
    _pod_spec((spec.get("template") or {}).get("spec") or {})


def _deployment(obj: Object) -> None:
    _template(obj)
    strategy = (obj.get("spec") or {}).get("strategy") or {}
    if strategy.get("type") == "RollingUpdate":
        rolling = strategy["rollingUpdate"] = dict(strategy.get("rollingUpdate") or {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")


def _namespace(obj: Object) -> None:
    labels = obj["metadata"].get("labels") or {}
    obj["metadata"]["labels"] = {**labels, "kubernetes.io/metadata.name": obj["metadata"]["name"]}


def _service(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, "", 0) and not _headless_without_selector(spec):
            port["targetPort"] = port.get("port")
    if spec["sessionAffinity"] == "ClientIP":
        client_ip = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
        client_ip.setdefault("timeoutSeconds", 10800)
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in {"NodePort", "LoadBalancer"} or (spec["type"] == "ClusterIP" and spec.get("externalIPs")):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def _headless_without_selector(spec: Object) -> bool:
    return spec.get("clusterIP") == "None" and not spec.get("selector")


_CONDITIONAL = {
    "pods": _pod,
    "deployments": _deployment,
    "replicasets": _template,
    "statefulsets": _template,
    "daemonsets": _template,
    "namespaces": _namespace,
    "services": _service,
}
