"""Services: what is a valid one, what may change, and what an update that leaves a field out means.

Judges values only; addresses and ports are handed out by `allocation`. Spec: pkg/apis/core/validation ValidateService and
ValidateServiceUpdate, pkg/registry/core/service/strategy.go (`patchAllocatedValues`, `dropTypeDependentFields`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from emu.registry.invalid import FieldError, duplicate, forbidden, invalid, required, unsupported
from emu.registry.names import DNS_LABEL, DNS_SUBDOMAIN, PORT_NAME, check_cidr, check_ip, check_labels, check_port
from emu.registry.pods import PROTOCOLS
from emu.store.store import Object

HEADLESS = "None"
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_POLICIES = ("Cluster", "Local")
_KUBELET_PORT = 10250
_LONGEST_AFFINITY = 86400


def needs_cluster_ip(spec: Object) -> bool:
    return spec.get("type") != "ExternalName"


def needs_node_ports(spec: Object) -> bool:
    return spec.get("type") in {"NodePort", "LoadBalancer"}


def needs_health_check_port(spec: Object) -> bool:
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"


def normalise(new: Object, old: Object | None) -> None:
    """Make `clusterIP` and `clusterIPs` agree, carry over what an update left out, and drop what a change of type makes void."""
    spec, before = new["spec"], (old or {}).get("spec") or {}
    if old:
        _carry_over(spec, before)
        _drop_void(spec, before)
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]
    elif spec.get("clusterIPs") and not spec.get("clusterIP"):
        spec["clusterIP"] = spec["clusterIPs"][0]


def _carry_over(spec: Object, before: Object) -> None:
    if needs_cluster_ip(before) and needs_cluster_ip(spec) and before.get("clusterIP"):
        if not spec.get("clusterIP"):
            spec["clusterIP"] = before["clusterIP"]
        if not spec.get("clusterIPs") and spec["clusterIP"] == before["clusterIP"]:
            spec["clusterIPs"] = list(before.get("clusterIPs") or [before["clusterIP"]])
    if needs_node_ports(before) and needs_node_ports(spec):
        used = {port.get("nodePort") for port in spec.get("ports") or ()}
        earlier = {(p["port"], p.get("protocol", "TCP")): p.get("nodePort") for p in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            kept = earlier.get((port.get("port"), port.get("protocol", "TCP")))
            if not port.get("nodePort") and kept and kept not in used:
                port["nodePort"] = kept
    if needs_health_check_port(before) and needs_health_check_port(spec) and before.get("healthCheckNodePort"):
        spec.setdefault("healthCheckNodePort", before["healthCheckNodePort"])


def _drop_void(spec: Object, before: Object) -> None:
    """What only the old type had goes, unless the update itself set it to something else (which validation then judges)."""
    if spec.get("type") == before.get("type") and needs_health_check_port(spec) == needs_health_check_port(before):
        return
    if not needs_cluster_ip(spec):
        _drop_unchanged(spec, before, ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"))
    if not needs_node_ports(spec):
        ports = {port.get("nodePort") for port in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            if port.get("nodePort") in ports:
                port.pop("nodePort", None)
        if not spec.get("externalIPs"):
            _drop_unchanged(spec, before, ("externalTrafficPolicy",))
    if not needs_health_check_port(spec):
        _drop_unchanged(spec, before, ("healthCheckNodePort",))
    if spec.get("type") != "LoadBalancer":
        _drop_unchanged(spec, before, ("allocateLoadBalancerNodePorts", "loadBalancerClass"))


def _drop_unchanged(spec: Object, before: Object, fields: tuple[str, ...]) -> None:
    for field in fields:
        if field in spec and spec[field] == before.get(field):
            del spec[field]


def check(obj: Object, old: Object | None, *, family: str) -> Iterator[FieldError]:
    """Errors of a Service, defaults already applied; `family` is the only one this cluster has."""
    spec = obj["spec"]
    if spec["type"] not in TYPES:
        yield unsupported("spec.type", spec["type"], TYPES)
        return
    yield from _check_ports(spec)
    yield from check_labels(spec.get("selector"), "spec.selector")
    yield from _check_affinity(spec)
    yield from _check_external_name(spec) if spec["type"] == "ExternalName" else _check_cluster_ips(spec, family)
    yield from _check_external(spec)
    yield from _check_load_balancer(spec)
    if old:
        yield from _check_change(spec, old["spec"])


def _check_ports(spec: Object) -> Iterator[FieldError]:
    ports = spec.get("ports") or []
    if not ports and spec.get("clusterIP") != HEADLESS and spec["type"] != "ExternalName":
        yield required("spec.ports")
    names: set[str] = set()
    taken: set[tuple[Any, Any]] = set()
    node_ports: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        name = port.get("name")
        if not name and len(ports) > 1:
            yield required(f"{path}.name")
        elif name and (why := DNS_LABEL.why_not(name)):
            yield invalid(f"{path}.name", name, why)
        elif name in names:
            yield duplicate(f"{path}.name", name)
        names.add(name or "")
        yield from check_port(port.get("port"), f"{path}.port")
        if port.get("protocol") not in PROTOCOLS:
            yield unsupported(f"{path}.protocol", port.get("protocol"), PROTOCOLS)
        yield from _check_target(port.get("targetPort"), f"{path}.targetPort")
        yield from _check_node_port(spec, port, path, node_ports)
        key = (port.get("protocol"), port.get("port"))
        if key in taken:
            yield duplicate(path, {"port": port.get("port"), "protocol": port.get("protocol")})
        taken.add(key)
        if spec["type"] == "LoadBalancer" and port.get("port") == _KUBELET_PORT:
            yield invalid(f"{path}.port", port["port"], f"may not expose port {_KUBELET_PORT} externally since it is used by kubelet")


def _check_target(target: Any, path: str) -> Iterator[FieldError]:
    if isinstance(target, str):
        if (why := PORT_NAME.why_not(target)) is not None:
            yield invalid(path, target, why)
    elif target is not None:
        yield from check_port(target, path)


def _check_node_port(spec: Object, port: Object, path: str, seen: set[tuple[Any, Any]]) -> Iterator[FieldError]:
    number = port.get("nodePort")
    if not number:
        return
    if not needs_node_ports(spec):
        yield forbidden(f"{path}.nodePort", f"may not be used when `type` is '{spec['type']}'")
        return
    key = (port.get("protocol"), number)
    if key in seen:
        yield duplicate(f"{path}.nodePort", number)
    seen.add(key)


def _check_affinity(spec: Object) -> Iterator[FieldError]:
    affinity, config = spec.get("sessionAffinity"), spec.get("sessionAffinityConfig")
    if affinity not in {"ClientIP", "None"}:
        yield unsupported("spec.sessionAffinity", affinity, ("ClientIP", "None"))
    elif affinity == "None" and config:
        yield forbidden("spec.sessionAffinityConfig", "must not be set when session affinity is None")
    elif config:
        seconds = (config.get("clientIP") or {}).get("timeoutSeconds")
        if seconds is None or not 0 < seconds <= _LONGEST_AFFINITY:
            path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            yield invalid(path, seconds, f"must be greater than 0 and less than {_LONGEST_AFFINITY}")


def _check_external_name(spec: Object) -> Iterator[FieldError]:
    name = (spec.get("externalName") or "").removesuffix(".")
    if not name:
        yield required("spec.externalName")
    elif (why := DNS_SUBDOMAIN.why_not(name)) is not None:
        yield invalid("spec.externalName", spec["externalName"], why)
    for field in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if spec.get(field):
            yield forbidden(f"spec.{field}", "may not be set for ExternalName services")


def _check_cluster_ips(spec: Object, family: str) -> Iterator[FieldError]:
    ips = spec.get("clusterIPs") or []
    if ips and ips[0] != spec.get("clusterIP"):
        yield invalid("spec.clusterIPs[0]", ips, "first value must match `clusterIP`")
    if HEADLESS in ips:
        if spec["type"] in {"NodePort", "LoadBalancer"}:
            yield invalid("spec.clusterIPs[0]", HEADLESS, "may not be set to 'None' for LoadBalancer/NodePort services")
        if len(ips) > 1:
            yield invalid("spec.clusterIPs", ips, "'None' must be the first and only value")
        return
    for index, ip in enumerate(ips):
        yield from check_ip(ip, f"spec.clusterIPs[{index}]")
    dual = len(ips) > 1 or len(spec.get("ipFamilies") or ()) > 1 or spec.get("ipFamilyPolicy") == "RequireDualStack"
    if dual:
        yield invalid("spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), "this cluster is not configured for dual-stack services")
    for index, wanted in enumerate(spec.get("ipFamilies") or ()):
        if wanted != family and not dual:
            yield invalid(f"spec.ipFamilies[{index}]", wanted, "not configured on this cluster")


def _check_external(spec: Object) -> Iterator[FieldError]:
    reachable = needs_node_ports(spec) or bool(spec.get("externalIPs"))
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        if spec.get(field) not in (None, *_POLICIES):
            yield unsupported(f"spec.{field}", spec[field], _POLICIES)
    if spec.get("externalTrafficPolicy") and not reachable:
        yield invalid("spec.externalTrafficPolicy", spec["externalTrafficPolicy"], "may only be set for externally-accessible services")
    for index, ip in enumerate(spec.get("externalIPs") or ()):
        path = f"spec.externalIPs[{index}]"
        errors = list(check_ip(ip, path))
        yield from errors
        if not errors and (why := _why_not_external(ip)):
            yield invalid(path, ip, why)
    if spec.get("trafficDistribution") not in (None, "PreferClose", "PreferSameZone", "PreferSameNode"):
        yield unsupported("spec.trafficDistribution", spec["trafficDistribution"], ("PreferClose", "PreferSameNode", "PreferSameZone"))


def _why_not_external(text: str) -> str | None:
    ip = ipaddress.ip_address(text)
    for name, why in (
        ("is_unspecified", f"may not be unspecified ({ip})"),
        ("is_loopback", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        ("is_link_local", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        ("is_multicast", "may not be in the multicast range (224.0.0.0/4, ff00::/8)"),
    ):
        if getattr(ip, name):
            return why
    return None


def _check_load_balancer(spec: Object) -> Iterator[FieldError]:
    balanced = spec["type"] == "LoadBalancer"
    if spec.get("healthCheckNodePort") and not needs_health_check_port(spec):
        why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        yield invalid("spec.healthCheckNodePort", spec["healthCheckNodePort"], why)
    for field in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
        if spec.get(field) is not None and not balanced:
            yield forbidden(f"spec.{field}", "may only be used when `type` is 'LoadBalancer'")
    ranges = spec.get("loadBalancerSourceRanges") or ()
    if ranges and not balanced:
        yield forbidden("spec.LoadBalancerSourceRanges", "may only be used when `type` is 'LoadBalancer'")
    for index, cidr in enumerate(ranges):
        yield from check_cidr(cidr.strip(), f"spec.loadBalancerSourceRanges[{index}]")


def _check_change(spec: Object, before: Object) -> Iterator[FieldError]:
    had, has = before.get("clusterIPs") or [], spec.get("clusterIPs") or []
    if needs_cluster_ip(before) and needs_cluster_ip(spec) and had and had[:1] != has[:1]:
        yield invalid("spec.clusterIPs[0]", has, "may not change once set")
    if needs_health_check_port(spec) and needs_health_check_port(before):
        port = before.get("healthCheckNodePort")
        if port and spec.get("healthCheckNodePort") != port:
            yield invalid("spec.healthCheckNodePort", spec.get("healthCheckNodePort"), "field is immutable")
    classes = before.get("loadBalancerClass"), spec.get("loadBalancerClass")
    if before.get("type") == spec["type"] == "LoadBalancer" and classes[0] != classes[1]:
        yield invalid("spec.loadBalancerClass", classes[1], "may not change once set")
