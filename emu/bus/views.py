"""What of an object goes on the broadcast. Decides the values of each stream; knows nothing of numbering, or of who listens.

    nodes       node name   [addresses, pod network, its length, endpoint, incarnation, ready, zone, routes]: a `NodeRecord`
    services    ns/name     {"service": the Service, "slices": [EndpointSlice ...]}   both reduced to what kube-proxy reads
    links       fault name  {"order", "spec"}: one fault on links as it was asked for (emu.model.links), never pairs of nodes
    node/NAME   ns/name     the Pod, whole but for its bookkeeping

A value must not hold what changes without meaning (resourceVersion, managedFields, times of change): every difference is sent
to every node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from emu.model.objects import SERVICE_NAME_LABEL, ZONE_LABEL
from emu.model.tun import specs_of
from emu.wire.addr import Ip, Network, parse_ip

Object = Mapping[str, Any]

FAULTS = "faults"  # the store's resource of faults on links, which are not Kubernetes' objects

ENDPOINT_ANNOTATION = "podwire.dev/endpoint"  # on a Node: where its data socket is
UNDERLAY_ADDRESS = 4  # bytes: the underlay is IPv4
INCARNATION_ANNOTATION = "podwire.dev/incarnation"  # on a Node: which life of it this is

_BOOKKEEPING = frozenset({"resourceVersion", "managedFields", "generation", "selfLink"})
_SERVICE_ANNOTATIONS_DROPPED = frozenset({"kubectl.kubernetes.io/last-applied-configuration"})
_ENDPOINT_FIELDS = ("addresses", "conditions", "hostname", "nodeName", "zone", "hints", "targetRef")


def key_of(obj: Object) -> str:
    """`namespace/name`, or just the name of what has no namespace."""
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def is_ready(node: Object) -> bool:
    """Is the Node's condition Ready True?"""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def node_value(node: Object) -> dict[str, Any]:
    meta, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    annotations = meta.get("annotations") or {}
    ips = [a["address"] for a in status.get("addresses") or () if a.get("type") == "InternalIP"]
    incarnation = annotations.get(INCARNATION_ANNOTATION, "0")
    routes = sorted({str(spec.network) for spec in specs_of(annotations) if not spec.pod})
    return {
        "name": meta["name"],
        "ip": ips[0] if ips else "",
        "addresses": ips,
        "pod_cidr": spec.get("podCIDR") or "",
        "endpoint": annotations.get(ENDPOINT_ANNOTATION, ""),
        "incarnation": int(incarnation) if incarnation.isdigit() else 0,
        "ready": is_ready(node),
        "labels": dict(meta.get("labels") or {}),
        "routes": " ".join(routes),
    }


class NodeRecord(NamedTuple):
    """A node as its peers must know it. `ips` are its own, the tunnel's first; `network` and `length` are its pods'; `routes` are the
    networks behind its TUN devices, with spaces between them.

    A cluster of n nodes holds n² of them, hence binary and positional: 60 bytes each, and nobody takes one apart before he needs it.
    """

    ips: list[Ip]
    network: Ip
    length: int
    endpoint: str
    incarnation: int
    ready: bool
    zone: str
    routes: str = ""

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> NodeRecord:
        """From a `node_value`, or one like it; ValueError for addresses that are none."""
        network = Network.parse(value["pod_cidr"])
        ips = [parse_ip(ip) for ip in value.get("addresses") or (value["ip"],)]
        zone = (value.get("labels") or {}).get(ZONE_LABEL, "")
        return cls(
            ips,
            network.address,
            network.length,
            value["endpoint"],
            value["incarnation"],
            value.get("ready", True),
            zone,
            value.get("routes", ""),
        )

    @classmethod
    def read(cls, packed: bytes) -> NodeRecord | None:
        """A value of the stream; None where it is none."""
        try:
            record = cls(*msgpack.unpackb(packed))
            if [type(item) for item in record] != _RECORD or not record.ips or set(map(type, record.ips)) != {bytes}:
                return None
            for network in record.routes.split():
                Network.parse(network)
        except (ValueError, TypeError, msgpack.UnpackException):
            return None
        return record


_RECORD = [list, bytes, int, str, int, bool, str, str]


def is_reachable(value: Mapping[str, Any]) -> bool:
    """Can peers have a route to this value of `node_value`? Not to a Node object that nothing runs: it has no address, or any text."""
    try:
        addresses = [parse_ip(ip) for ip in (value["ip"], *value["addresses"])]
        return {*map(len, addresses), len(Network.parse(value["pod_cidr"]).address)} == {UNDERLAY_ADDRESS}
    except ValueError:
        return False


def pod_value(pod: Object) -> dict[str, Any]:
    return {**pod, "metadata": {key: value for key, value in pod["metadata"].items() if key not in _BOOKKEEPING}}


def service_value(service: Object, slices: list[Object]) -> dict[str, Any]:
    meta = service["metadata"]
    annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k not in _SERVICE_ANNOTATIONS_DROPPED}
    named = {"namespace": meta.get("namespace", ""), "name": meta["name"]}
    value: dict[str, Any] = {
        "metadata": {**named, "labels": meta.get("labels") or {}, "annotations": annotations},
        "spec": service.get("spec") or {},
    }
    balancer = (service.get("status") or {}).get("loadBalancer")
    if balancer:
        value["status"] = {"loadBalancer": balancer}
    return {"service": value, "slices": [slice_value(one) for one in slices]}


def fault_value(fault: Object) -> dict[str, Any]:
    """Faults are made and ended, never changed, so the revision of one says when it was made."""
    return {"order": int(fault["metadata"]["resourceVersion"]), "spec": fault["spec"]}


def slice_value(obj: Object) -> dict[str, Any]:
    meta = obj["metadata"]
    labels = {SERVICE_NAME_LABEL: slice_service(obj)}
    return {
        "metadata": {"namespace": meta.get("namespace", ""), "name": meta["name"], "labels": labels},
        "addressType": obj.get("addressType") or "IPv4",
        "ports": obj.get("ports") or [],
        "endpoints": [{field: e[field] for field in _ENDPOINT_FIELDS if e.get(field) is not None} for e in obj.get("endpoints") or ()],
    }


def slice_service(obj: Object) -> str:
    """The Service that an EndpointSlice belongs to, "" for none."""
    return str((obj["metadata"].get("labels") or {}).get(SERVICE_NAME_LABEL, ""))
