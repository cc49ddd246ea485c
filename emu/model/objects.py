"""Services and EndpointSlices as kube-proxy reads them.

Objects are stored and carried as plain dicts, whole; these views hold just the fields that decide where a packet goes, with
Kubernetes' own meaning of an absent field already applied. They never fail on a stored object (validation is the registry's);
addresses stay text as in the API, and are parsed by whoever makes packets or rules from them.
Spec: core/v1 Service, discovery.k8s.io/v1 EndpointSlice; KEP-1669 (terminating endpoints), KEP-2433 and KEP-3015 (hints).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

ZONE_LABEL = "topology.kubernetes.io/zone"  # on a Node
SERVICE_NAME_LABEL = "kubernetes.io/service-name"  # on an EndpointSlice: the Service it belongs to
ADDRESS_ANNOTATION = "podwire.dev/address"  # on a Pod: the address that it must have
BOOT_ANNOTATION = "podwire.dev/boot-seconds"  # on a Pod: how long its containers take to begin
PROGRAM_ANNOTATION = "podwire.dev/program"  # on a Pod: what its first container runs instead of its image, MODULE:NAME
HEADLESS_LABEL = "service.kubernetes.io/headless"
CLUSTER_IP_NONE = "None"
DEFAULT_AFFINITY_SECONDS = 10800

Object = Mapping[str, Any]


class ServicePort(NamedTuple):
    """One port of a Service. `node_port` is 0 where there is none; `target_port` is a number or the name of a container port."""

    name: str
    protocol: str
    port: int
    node_port: int
    target_port: int | str


class LoadBalancerIngress(NamedTuple):
    """An address that a load balancer has given; `mode` is "VIP" (default: the node short-circuits it) or "Proxy" (KEP-1860)."""

    ip: str
    mode: str


class EndpointPort(NamedTuple):
    """A port of an EndpointSlice; `port` is None where any port is meant, which kube-proxy skips."""

    name: str
    protocol: str
    port: int | None


class ObjectReference(NamedTuple):
    """What an endpoint stands for, usually a Pod."""

    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Service:
    """A Service: `cluster_ips` is empty for headless and ExternalName ones; `session_affinity` is ClientIP's timeout in
    seconds, else None.
    """

    namespace: str
    name: str
    type: str
    cluster_ips: tuple[str, ...]
    external_ips: tuple[str, ...]
    ports: tuple[ServicePort, ...]
    lb_ingress: tuple[LoadBalancerIngress, ...]
    source_ranges: tuple[str, ...]
    internal_policy: str  # "Cluster" or "Local"
    external_policy: str
    session_affinity: int | None
    health_check_node_port: int
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    selector: Mapping[str, str]
    headless: bool
    external_name: str
    publish_not_ready: bool
    traffic_distribution: str

    @classmethod
    def from_object(cls, obj: Object) -> Service:
        meta, spec = obj["metadata"], obj.get("spec") or {}
        kind = spec.get("type") or "ClusterIP"
        ips = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
        ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        return cls(
            namespace=meta.get("namespace", ""),
            name=meta["name"],
            type=kind,
            cluster_ips=() if kind == "ExternalName" else tuple(ip for ip in ips if ip != CLUSTER_IP_NONE),
            external_ips=tuple(spec.get("externalIPs") or ()),
            ports=tuple(_service_port(port) for port in spec.get("ports") or ()),
            lb_ingress=tuple(LoadBalancerIngress(i["ip"], i.get("ipMode") or "VIP") for i in ingress if i.get("ip")),
            source_ranges=tuple(cidr.strip() for cidr in spec.get("loadBalancerSourceRanges") or ()),
            internal_policy=spec.get("internalTrafficPolicy") or "Cluster",
            external_policy=spec.get("externalTrafficPolicy") or "Cluster",
            session_affinity=_affinity(spec),
            health_check_node_port=spec.get("healthCheckNodePort") or 0,
            labels=meta.get("labels") or {},
            annotations=meta.get("annotations") or {},
            selector=spec.get("selector") or {},
            headless=CLUSTER_IP_NONE in ips,
            external_name=spec.get("externalName") or "",
            publish_not_ready=bool(spec.get("publishNotReadyAddresses")),
            traffic_distribution=spec.get("trafficDistribution") or "",
        )


def _service_port(port: Object) -> ServicePort:
    return ServicePort(
        port.get("name") or "",
        port.get("protocol") or "TCP",
        port["port"],
        port.get("nodePort") or 0,
        port.get("targetPort") or port["port"],
    )


def _affinity(spec: Object) -> int | None:
    if spec.get("sessionAffinity") != "ClientIP":
        return None
    config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return config.get("timeoutSeconds") or DEFAULT_AFFINITY_SECONDS


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, its conditions never nil: an absent `ready` or `serving` is true, an absent `terminating` false."""

    addresses: tuple[str, ...]
    ready: bool
    serving: bool
    terminating: bool
    node_name: str
    zone: str
    zone_hints: tuple[str, ...]
    node_hints: tuple[str, ...]
    hostname: str
    target_ref: ObjectReference | None

    @classmethod
    def from_object(cls, obj: Object) -> Endpoint:
        conditions, hints, ref = obj.get("conditions") or {}, obj.get("hints") or {}, obj.get("targetRef")
        return cls(
            addresses=tuple(obj.get("addresses") or ()),
            ready=_unless_nil(conditions.get("ready"), True),
            serving=_unless_nil(conditions.get("serving"), True),
            terminating=_unless_nil(conditions.get("terminating"), False),
            node_name=obj.get("nodeName") or "",
            zone=obj.get("zone") or "",
            zone_hints=tuple(zone["name"] for zone in hints.get("forZones") or ()) if hints else (),
            node_hints=tuple(node["name"] for node in hints.get("forNodes") or ()) if hints else (),
            hostname=obj.get("hostname") or "",
            target_ref=ObjectReference(*(ref.get(key) or "" for key in ("kind", "namespace", "name", "uid"))) if ref else None,
        )


def _unless_nil(value: bool | None, default: bool) -> bool:
    return default if value is None else value


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A slice of a Service's endpoints; `service` is the Service's name from the slice's label, "" for an orphan."""

    namespace: str
    name: str
    service: str
    address_type: str  # "IPv4", "IPv6" or "FQDN"
    ports: tuple[EndpointPort, ...]
    endpoints: tuple[Endpoint, ...]

    @classmethod
    def from_object(cls, obj: Object) -> EndpointSlice:
        meta = obj["metadata"]
        return cls(
            namespace=meta.get("namespace", ""),
            name=meta["name"],
            service=(meta.get("labels") or {}).get(SERVICE_NAME_LABEL, ""),
            address_type=obj.get("addressType") or "IPv4",
            ports=tuple(EndpointPort(p.get("name") or "", p.get("protocol") or "TCP", p.get("port")) for p in obj.get("ports") or ()),
            endpoints=tuple(Endpoint.from_object(endpoint) for endpoint in obj.get("endpoints") or ()),
        )
