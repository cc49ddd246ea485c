"""What a pod looks like to the API: the kubelet's part of a PodStatus.

Decides conditions, their reasons and transition times, and the QoS class; the facts are `runtime`'s. See core/v1 PodStatus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from emu.pod.container import rfc3339

if TYPE_CHECKING:
    from emu.pod.runtime import PodRuntime


def pod_status(
    runtime: PodRuntime, pod: Mapping[str, Any], transitions: dict[str, tuple[str, str]], start_time: str, host_ip: str, at: float
) -> dict[str, Any]:
    """A PodStatus at Unix time `at`; `transitions` remembers since when each condition has been what it is."""
    init, main = runtime.container_statuses()
    given = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or ()}
    unready = [status["name"] for status in main if not status["ready"]]
    completed = runtime.phase in {"Succeeded", "Failed"}
    gates = [g["conditionType"] for g in pod["spec"].get("readinessGates") or ()]
    unmet = [gate for gate in gates if given.get(gate, {}).get("status") != "True"]
    problem = _unready(unready, completed=completed)
    not_ready = problem or (
        {"reason": "ReadinessGatesNotReady", "message": f"the status of pod readiness gates is not True: {unmet}"} if unmet else {}
    )
    facts = [
        ("PodReadyToStartContainers", True, {}),
        ("Initialized", runtime.initialized, {} if runtime.initialized else {"reason": "ContainersNotInitialized"}),
        ("Ready", not not_ready, not_ready),
        ("ContainersReady", not problem, problem),
        ("PodScheduled", True, {}),
    ]
    status: dict[str, Any] = {
        "phase": runtime.phase,
        "conditions": [_condition(name, value, why, transitions, rfc3339(at)) for name, value, why in facts],
        "startTime": start_time,
        "qosClass": qos_class(pod),
        "containerStatuses": main,
    }
    if init:
        status["initContainerStatuses"] = init
        if not runtime.initialized:
            for one in main:
                one["state"] = {"waiting": {"reason": "PodInitializing"}}
    if runtime.info.ip:
        status |= {"podIP": runtime.info.ip, "podIPs": [{"ip": runtime.info.ip}]}
    if host_ip:
        status |= {"hostIP": host_ip, "hostIPs": [{"ip": host_ip}]}
    return status


def _unready(names: list[str], *, completed: bool) -> dict[str, str]:
    if completed:
        return {"reason": "PodCompleted"}
    if names:
        return {"reason": "ContainersNotReady", "message": f"containers with unready status: [{' '.join(names)}]"}
    return {}


def _condition(name: str, value: bool, why: dict[str, str], transitions: dict[str, tuple[str, str]], now: str) -> dict[str, Any]:
    status = "True" if value else "False"
    if name not in transitions or transitions[name][0] != status:
        transitions[name] = (status, now)
    return {"type": name, "status": status, "lastProbeTime": None, "lastTransitionTime": transitions[name][1], **why}


def qos_class(pod: Mapping[str, Any]) -> str:
    """Guaranteed, Burstable or BestEffort, from requests and limits of CPU and memory (qos.ComputePodQOS)."""
    spec = pod["spec"]
    containers = [*spec["containers"], *(spec.get("initContainers") or ())]
    resources = [container.get("resources") or {} for container in containers]
    if not any(part.get(key) for part in resources for key in ("requests", "limits")):
        return "BestEffort"
    for part in resources:
        limits = part.get("limits") or {}
        requests = {**limits, **(part.get("requests") or {})}
        if not all(name in limits and requests[name] == limits[name] for name in ("cpu", "memory")):
            return "Burstable"
    return "Guaranteed"
