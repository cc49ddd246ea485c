"""Node objects as the control plane writes them: a node's own words on one side, conditions and taints on the other. Values only.

Spec: kubelet's node status (pkg/kubelet/nodestatus), pkg/controller/nodelifecycle (conditions and taints of a silent node).
"""

from __future__ import annotations

from typing import Any

from emu.bus.views import ENDPOINT_ANNOTATION, INCARNATION_ANNOTATION
from emu.control import pods

Object = dict[str, Any]

UNREACHABLE = "node.kubernetes.io/unreachable"
_LOST = ("NodeStatusUnknown", "Kubelet stopped posting node status.")
_READY = ("KubeletReady", "kubelet is posting ready status")


def registered(hello: Object, old: Object | None, version: str) -> Object:
    """The Node that a node's hello describes; what others wrote on `old` (labels, taints, cordon) stays."""
    meta, spec = (old or {}).get("metadata") or {}, (old or {}).get("spec") or {}
    labels = {"kubernetes.io/hostname": hello["name"], "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", **hello["labels"]}
    told = {ENDPOINT_ANNOTATION: hello["endpoint"], INCARNATION_ANNOTATION: str(hello["incarnation"])}
    addresses = [{"type": "InternalIP", "address": ip} for ip in hello.get("addresses") or [hello["ip"]]]
    status: Object = {**((old or {}).get("status") or {})}
    status.update(
        addresses=[*addresses, {"type": "Hostname", "address": hello["name"]}],
        nodeInfo={
            "architecture": "amd64", "bootID": str(hello["incarnation"]), "containerRuntimeVersion": "podwire://0.1",
            "kernelVersion": "emulated", "kubeProxyVersion": "", "kubeletVersion": f"v{version}", "machineID": hello["name"],
            "operatingSystem": "linux", "osImage": "Podwire", "systemUUID": hello["name"],
        },
    )  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            **meta,
            "name": hello["name"],
            "labels": {**(meta.get("labels") or {}), **labels},
            "annotations": {**(meta.get("annotations") or {}), **told},
        },
        "spec": {**spec, "podCIDR": hello["pod_cidr"], "podCIDRs": [hello["pod_cidr"]]} if hello["pod_cidr"] else spec,
        "status": status,
    }


def judged(node: Object, *, alive: bool, stamp: str) -> Object:
    """The Node with its Ready condition and its taints as its lease has it; the same object if they already are."""
    ready = pods.condition(node, "Ready")
    if ready is not None and ready["status"] == ("True" if alive else "Unknown") and _taints(node, alive=alive, stamp=stamp) is None:
        return node
    reason, message = _READY if alive else _LOST
    status = pods.with_condition(node.get("status") or {}, "Ready", "True" if alive else "Unknown", reason, message, stamp)
    taints = _taints(node, alive=alive, stamp=stamp)
    spec = dict(node.get("spec") or {})
    if taints is not None:
        spec.pop("taints", None)
        spec.update({"taints": taints} if taints else {})
    return {**node, "spec": spec, "status": status}


def _taints(node: Object, *, alive: bool, stamp: str) -> list[Object] | None:
    """The taints as they should be, None if they are."""
    old = (node.get("spec") or {}).get("taints") or []
    others = [taint for taint in old if taint["key"] != UNREACHABLE]
    ours = [taint for taint in old if taint["key"] == UNREACHABLE]
    if alive:
        return others if ours else None
    if len(ours) == 2:
        return None
    return [
        *others,
        {"key": UNREACHABLE, "effect": "NoSchedule", "timeAdded": stamp},
        {"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": stamp},
    ]


def patience(pod: Object) -> float | None:
    """Seconds that a pod stays on an unreachable node; None for ever. The shortest of its matching tolerations counts."""
    found = [
        toleration.get("tolerationSeconds")
        for toleration in pod["spec"].get("tolerations") or ()
        if toleration.get("effect") in (None, "", "NoExecute") and (toleration.get("key") or UNREACHABLE) == UNREACHABLE
    ]
    if not found:
        return 0.0
    bounded = [float(seconds) for seconds in found if seconds is not None]
    return max(0.0, min(bounded)) if bounded else None
