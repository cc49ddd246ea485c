"""From a Service and its pods to the endpoints there should be. Pure; which slice holds which is `slices`' business.

    pod                               in a slice   ready   serving   terminating
    Succeeded, Failed, or no address  no
    Ready                             yes          yes     yes       no
    not Ready                         yes          no      no        no
    being deleted, still Ready        yes          no      yes       yes
    being deleted, not Ready          yes          no      no        yes
    with publishNotReadyAddresses     yes          yes     as Ready  as above

    trafficDistribution               hints of a ready endpoint
    PreferSameZone, PreferClose       its zone
    PreferSameNode                    its zone and its node
    absent                            none

Pods whose named target port has another number go to another set of slices, since a slice has one set of ports.
Spec: k8s.io/endpointslice (reconciler.go, utils.go podToEndpoint, getEndpointPorts, trafficdist.go); KEP-752, KEP-1669, KEP-1672, KEP-3015.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from emu.control import pods
from emu.model.objects import ZONE_LABEL
from emu.model.selector import from_map

Object = dict[str, Any]
Ports = tuple[tuple[str, str, int, str], ...]
"""(name, protocol, number, appProtocol) of each port of a slice, sorted."""


def selects(service: Object, pod: Object) -> bool:
    """Does the Service select the pod? An absent selector selects nothing."""
    selector = service["spec"].get("selector")
    return bool(selector) and from_map(selector).matches(pod["metadata"].get("labels"))


def families(service: Object) -> tuple[str, ...]:
    """The address types of a Service's slices: its ipFamilies, IPv4 where it has none."""
    return tuple(service["spec"].get("ipFamilies") or ("IPv4",))


def desired(service: Object, selected: Iterable[Object], node: Callable[[str], Object | None], family: str) -> dict[Ports, list[Object]]:
    """Port set -> endpoints, of the selected pods. `node` looks a Node up."""
    groups: dict[Ports, list[Object]] = {}
    for pod in selected:
        address = _address(pod, family)
        if address is None or pods.phase(pod) in pods.TERMINAL:
            continue
        groups.setdefault(ports_for(service, pod), []).append(endpoint(service, pod, address, node))
    return groups


def _address(pod: Object, family: str) -> str | None:
    status = pod.get("status") or {}
    ips = [entry["ip"] for entry in status.get("podIPs") or () if entry.get("ip")] or ([status["podIP"]] if status.get("podIP") else [])
    return next((ip for ip in ips if (":" in ip) == (family == "IPv6")), None)


def ports_for(service: Object, pod: Object) -> Ports:
    """The Service's ports as numbers of this pod; a port whose name the pod lacks is left out."""
    found = []
    for port in service["spec"].get("ports") or ():
        number = _target(port, pod)
        if number is not None:
            found.append((port.get("name") or "", port.get("protocol") or "TCP", number, port.get("appProtocol") or ""))
    return tuple(sorted(found))


def _target(port: Object, pod: Object) -> int | None:
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    for container in pod["spec"].get("containers") or ():
        for declared in container.get("ports") or ():
            if declared.get("name") == target and (declared.get("protocol") or "TCP") == (port.get("protocol") or "TCP"):
                return int(declared["containerPort"])
    return None


def endpoint(service: Object, pod: Object, address: str, node: Callable[[str], Object | None]) -> Object:
    """One pod as an endpoint of a slice."""
    meta, spec = pod["metadata"], pod["spec"]
    serving, terminating = pods.is_ready(pod), bool(meta.get("deletionTimestamp"))
    ready = bool(service["spec"].get("publishNotReadyAddresses")) or (serving and not terminating)
    made: Object = {
        "addresses": [address],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "targetRef": {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
    }
    if spec.get("nodeName"):
        made["nodeName"] = spec["nodeName"]
        holder = node(spec["nodeName"])
        zone = (holder["metadata"].get("labels") or {}).get(ZONE_LABEL) if holder else None
        if zone:
            made["zone"] = zone
    if ready and (hints := _hints(service["spec"].get("trafficDistribution"), made)):
        made["hints"] = hints
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        made["hostname"] = spec["hostname"]
    return made


def _hints(distribution: str | None, endpoint: Object) -> Object:
    """Whose traffic an endpoint should get: where it lies is all that counts, not how many others lie there."""
    hints: Object = {}
    if distribution and "zone" in endpoint:  # all that the API lets through prefer the zone, PreferClose being PreferSameZone's old name
        hints["forZones"] = [{"name": endpoint["zone"]}]
    if distribution == "PreferSameNode" and "nodeName" in endpoint:
        hints["forNodes"] = [{"name": endpoint["nodeName"]}]
    return hints


def weight(pod: Object) -> tuple[Any, ...]:
    """What of a pod its endpoint depends on: a change elsewhere is no reason to look at Services."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    return (
        meta.get("labels"), bool(meta.get("deletionTimestamp")), meta["uid"], spec.get("nodeName"),
        status.get("podIP"), status.get("podIPs"), pods.is_ready(pod), pods.phase(pod) in pods.TERMINAL,
    )  # fmt: skip
