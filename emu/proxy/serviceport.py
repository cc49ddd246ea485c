"""The service port: one port of one Service with its endpoints, as one node's kube-proxy reads them.

Decides which Services are programmed at all, which of their addresses count, and which slice entries are endpoints of
which port. Must not choose among the endpoints (`endpoints`) nor know any proxy mode. Input is a value of the `services`
stream: `{"service": Service, "slices": [EndpointSlice, ...]}`, Kubernetes' own JSON.
Spec: kubernetes `pkg/proxy/serviceport.go`, `endpointslicecache.go`; KEP-752 (slices), KEP-1860 (ipMode).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from emu.model.objects import Endpoint, EndpointSlice, Service
from emu.netfilter.skb import SCTP, TCP, UDP
from emu.proxy.names import ServicePortName
from emu.wire.addr import Ip, Network, SockAddr, parse_ip

PROTOCOL_NUMBERS = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"  # another proxy's Service: any value means hands off
UNHINTED: frozenset[str] = frozenset()  # one for all: an empty set of its own is 216 bytes, twice the rest of an endpoint


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """One address of one service port. `text` is `ip:port`, which is also its place in every order (a string sort)."""

    to: SockAddr
    text: str
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone_hints: frozenset[str] = UNHINTED
    node_hints: frozenset[str] = UNHINTED


@dataclass(frozen=True, slots=True)
class ServicePortInfo:
    """One port of one Service with all its endpoints, for one IP family. 0 and () stand for "has none"."""

    name: ServicePortName
    cluster_ip: Ip
    port: int
    node_port: int = 0
    external_ips: tuple[Ip, ...] = ()
    load_balancer_ips: tuple[Ip, ...] = ()
    source_ranges: tuple[Network, ...] = ()
    health_check_node_port: int = 0
    internal_local: bool = False
    external_local: bool = False
    affinity_seconds: int = 0
    endpoints: tuple[EndpointInfo, ...] = ()

    @property
    def protocol(self) -> int:
        return self.name.protocol

    @property
    def externally_accessible(self) -> bool:
        """Has it a node port, a load balancer's VIP or an external IP?"""
        return bool(self.node_port or self.load_balancer_ips or self.external_ips)


def read_service_ports(value: Mapping[str, Any], node: str, family: int = 4) -> tuple[ServicePortInfo, ...]:
    """The service ports of one stream value for IP `family` 4 or 6, in the Service's order; () if kube-proxy skips it.

    `node` only settles which of two entries for one address counts: the one on this node.
    """
    service = Service.from_object(value["service"])
    cluster_ips = _ips(service.cluster_ips, family)
    if not cluster_ips or service.headless or service.type == "ExternalName" or PROXY_NAME_LABEL in service.labels:
        return ()
    slices = [s for s in map(EndpointSlice.from_object, value.get("slices") or ()) if s.address_type == f"IPv{family}"]
    external_ips = _ips(service.external_ips, family)
    external_local = service.external_policy == "Local" and (service.type != "ClusterIP" or bool(external_ips))
    health_check = service.health_check_node_port if service.type == "LoadBalancer" and external_local else 0
    ports = []
    for port in service.ports:
        name = ServicePortName(service.namespace, service.name, port.name, PROTOCOL_NUMBERS[port.protocol])
        ports.append(ServicePortInfo(
            name=name,
            cluster_ip=cluster_ips[0],
            port=port.port,
            node_port=port.node_port,
            external_ips=external_ips,
            load_balancer_ips=_ips((i.ip for i in service.lb_ingress if i.mode != "Proxy"), family),
            source_ranges=_source_ranges(service.source_ranges, family),
            health_check_node_port=health_check,
            internal_local=service.internal_policy == "Local",
            external_local=external_local,
            affinity_seconds=service.session_affinity or 0,
            endpoints=_endpoints(slices, name, node),
        ))  # fmt: skip
    return tuple(ports)


def _canonical(text: str) -> Ip | None:
    """An address in Kubernetes' old, lenient spelling: `172.30.0.041` is 172.30.0.41. None for ""."""
    try:
        return parse_ip(text)  # nearly all are spelt well
    except ValueError:
        text = text.strip()
    if not text:
        return None
    if ":" not in text:
        text = ".".join(str(int(part)) if part.isascii() and part.isdigit() else part for part in text.split("."))
    return parse_ip(text)


def _is_family(ip: Ip, family: int) -> bool:
    return len(ip) == (4 if family == 4 else 16)


def _ips(texts: Iterable[str], family: int) -> tuple[Ip, ...]:
    """Those of `texts` that are of the family; kube-proxy only logs the others."""
    return tuple(ip for ip in map(_canonical, texts) if ip is not None and _is_family(ip, family))


def _source_ranges(texts: Iterable[str], family: int) -> tuple[Network, ...]:
    networks = (Network.parse(text.strip(), strict=False) for text in texts)
    return tuple(network for network in networks if _is_family(network.address, family))


def _endpoints(slices: Iterable[EndpointSlice], name: ServicePortName, node: str) -> tuple[EndpointInfo, ...]:
    """The endpoints of one service port: slice ports match by name and protocol, never by number."""
    found: dict[str, EndpointInfo] = {}
    for piece in slices:
        for port in piece.ports:
            if not port.port or (port.name, PROTOCOL_NUMBERS[port.protocol]) != (name.port, name.protocol):
                continue
            for entry in piece.endpoints:
                info = _endpoint(entry, port.port)
                if info is not None and (info.text not in found or info.node == node):
                    found[info.text] = info
    return tuple(found[text] for text in sorted(found))


def _endpoint(entry: Endpoint, port: int) -> EndpointInfo | None:
    """Only the first address counts (KEP-752: further ones are for a use that never came)."""
    ip = _canonical(entry.addresses[0]) if entry.addresses else None
    if ip is None:
        return None
    to = SockAddr(ip, port)
    return EndpointInfo(
        to=to,
        text=str(to),
        ready=entry.ready,
        serving=entry.serving,
        terminating=entry.terminating,
        node=intern(entry.node_name),  # one string for all endpoints on it
        zone_hints=frozenset(entry.zone_hints) if entry.zone_hints else UNHINTED,
        node_hints=frozenset(entry.node_hints) if entry.node_hints else UNHINTED,
    )
