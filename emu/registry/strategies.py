"""One row a resource: how a new object of it begins, what makes it valid, what may change. The registry runs the rows.

Resources without a row are validated by their schema and metadata alone, and kept.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from emu.registry import networks, pods, workloads
from emu.registry.invalid import FieldError, duplicate, forbidden, invalid, required, unsupported
from emu.registry.names import CONFIG_KEY, DNS_1035_LABEL, DNS_LABEL, DNS_SUBDOMAIN, PATH_SEGMENT, NameRule, check_ip, check_port
from emu.store.store import Object

Check = Callable[[Object], Iterator[FieldError]]
CheckUpdate = Callable[[Object, Object], Iterator[FieldError]]


def _nothing(_: Object) -> None:
    """Leave the object as it came."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """How one resource is treated. `begin` and `begin_update` change the request's own copy."""

    names: NameRule = DNS_SUBDOMAIN
    begin: Callable[[Object], None] = _nothing
    check: Check = lambda obj: iter(())
    check_update: CheckUpdate | None = None  # None: an update is judged as a new object is
    keeps_status: bool = False  # status comes with create and PUT (Node: the kubelet registers itself whole)
    counts_generation: bool = False


def _pod(obj: Object) -> None:
    obj["status"] = {"phase": "Pending", "qosClass": pods.qos_class(obj.get("spec") or {})}


def _namespace(obj: Object) -> None:
    obj["status"] = {"phase": "Active"}


def _service(obj: Object) -> None:
    obj["status"] = {"loadBalancer": {}}


def _replicated(obj: Object) -> None:
    obj["status"] = {"replicas": 0}


def _empty_status(obj: Object) -> None:
    obj["status"] = {}


def _secret(obj: Object) -> None:
    """`stringData` is written once and becomes `data`."""
    plain = obj.pop("stringData", None)
    if plain:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        obj["data"] = {**(obj.get("data") or {}), **encoded}


def _check_config(obj: Object) -> Iterator[FieldError]:
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    for field, content in (("data", data), ("binaryData", binary)):
        for key in content:
            if (why := CONFIG_KEY.why_not(key)) is not None:
                yield invalid(f"{field}[{key}]", key, why)
    for key in data.keys() & binary.keys():
        yield invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
    if sum(len(value or "") for value in (*data.values(), *binary.values())) > 1 << 20:
        yield FieldError("FieldValueTooLong", "", "Too long: may not be more than 1048576 bytes")


def _check_config_update(new: Object, old: Object) -> Iterator[FieldError]:
    yield from _check_config(new)
    if old.get("immutable"):
        for field in ("immutable", "data", "binaryData", "stringData"):
            if new.get(field) != old.get(field):
                yield forbidden(field, "field is immutable when `immutable` is set")


_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")


def _check_slice(obj: Object) -> Iterator[FieldError]:
    kind = obj.get("addressType")
    if not kind:
        yield required("addressType")
    elif kind not in _ADDRESS_TYPES:
        yield unsupported("addressType", kind, _ADDRESS_TYPES)
    for index, endpoint in enumerate(obj.get("endpoints") or ()):
        path, addresses = f"endpoints[{index}].addresses", endpoint.get("addresses") or []
        if not addresses:
            yield required(path, "must contain at least 1 address")
        for number, address in enumerate(addresses):
            if kind != "FQDN":
                yield from check_ip(address, f"{path}[{number}]")
    if len(obj.get("endpoints") or ()) > 1000:
        yield FieldError("FieldValueTooMany", "endpoints", "Too many: must have at most 1000 items")
    names: set[str] = set()
    for index, port in enumerate(obj.get("ports") or ()):
        if (port.get("name") or "") in names:
            yield duplicate(f"ports[{index}].name", port.get("name") or "")
        names.add(port.get("name") or "")
        if port.get("protocol") not in pods.PROTOCOLS:
            yield unsupported(f"ports[{index}].protocol", port.get("protocol"), pods.PROTOCOLS)
        if port.get("port") is not None:
            yield from check_port(port["port"], f"ports[{index}].port")


def _check_slice_update(new: Object, old: Object) -> Iterator[FieldError]:
    yield from _check_slice(new)
    if new.get("addressType") != old.get("addressType"):
        yield invalid("addressType", new.get("addressType"), "field is immutable")


def _check_lease(obj: Object) -> Iterator[FieldError]:
    seconds = (obj.get("spec") or {}).get("leaseDurationSeconds")
    if seconds is not None and seconds <= 0:
        yield invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0")


def _check_event(obj: Object) -> Iterator[FieldError]:
    about = (obj.get("involvedObject") or {}).get("namespace") or "default"
    if about != obj["metadata"].get("namespace"):
        yield invalid("involvedObject.namespace", about, "does not match event.namespace")


def _workload(resource: str, begin: Callable[[Object], None]) -> Strategy:
    return Strategy(
        begin=begin,
        check=partial(workloads.check, resource),
        check_update=partial(workloads.check_update, resource),
        counts_generation=True,
    )


STRATEGIES: dict[str, Strategy] = {
    "pods": Strategy(begin=_pod, check=pods.check_pod, check_update=pods.check_update, counts_generation=True),
    "deployments": _workload("deployments", _empty_status),
    "replicasets": _workload("replicasets", _replicated),
    "statefulsets": _workload("statefulsets", _replicated),
    "daemonsets": _workload("daemonsets", _empty_status),
    "services": Strategy(names=DNS_1035_LABEL, begin=_service),  # the rest is in `services` and `allocation`
    "namespaces": Strategy(names=DNS_LABEL, begin=_namespace),
    "nodes": Strategy(check=networks.check_node, check_update=networks.check_node_update, keeps_status=True),
    "configmaps": Strategy(check=_check_config, check_update=_check_config_update),
    "secrets": Strategy(begin=_secret, check=_check_config, check_update=_check_config_update),
    "endpointslices": Strategy(check=_check_slice, check_update=_check_slice_update, counts_generation=True),
    "leases": Strategy(check=_check_lease),
    "events": Strategy(check=_check_event),
    "ingresses": Strategy(counts_generation=True),
    "networkpolicies": Strategy(check=networks.check_policy, counts_generation=True),
    "servicecidrs": Strategy(check=networks.check_service_cidr),
    "jobs": Strategy(check=workloads.check_labels_match, counts_generation=True),
    "replicationcontrollers": Strategy(check=workloads.check_labels_match, counts_generation=True),
    **{resource: Strategy(names=PATH_SEGMENT) for resource in ("roles", "rolebindings", "clusterroles", "clusterrolebindings")},
}
_STORED = Strategy()


def strategy_of(resource: str) -> Strategy:
    """The row of a resource, or the plain one."""
    return STRATEGIES.get(resource, _STORED)
