"""Makes values of the `services` stream as the controller broadcasts them: short to write, complete to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def endpoint(address: str, node: str = "", **fields: Any) -> dict[str, Any]:
    """An endpoint; `ready`, `serving`, `terminating` as keywords, `zones` and `nodes` are its hints."""
    conditions = {key: fields[key] for key in ("ready", "serving", "terminating") if key in fields}
    hints = {
        **({"forZones": [{"name": zone} for zone in fields["zones"]]} if fields.get("zones") else {}),
        **({"forNodes": [{"name": name} for name in fields["nodes"]]} if fields.get("nodes") else {}),
    }
    return {
        "addresses": [address],
        **({"nodeName": node} if node else {}),
        **({"conditions": conditions} if conditions else {}),
        **({"hints": hints} if hints else {}),
    }


def value(
    name: str = "ns1/svc1",
    endpoints: Sequence[str | dict[str, Any]] = (),
    *,
    cluster_ip: str = "172.30.0.41",
    port: int = 80,
    target: int = 8080,
    port_name: str = "",
    protocol: str = "TCP",
    node_port: int = 0,
    ingress: Sequence[str | dict[str, Any]] = (),
    labels: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A Service of one port and one EndpointSlice. Plain addresses are ready endpoints of no known node; the rest goes into the spec."""
    namespace, _, service = name.partition("/")
    ports = [{"name": port_name, "protocol": protocol, "port": port, **({"nodePort": node_port} if node_port else {})}]
    addresses = [{"ip": item} if isinstance(item, str) else item for item in ingress]
    family = "IPv6" if ":" in cluster_ip else "IPv4"
    return {
        "service": {
            "metadata": {"namespace": namespace, "name": service, "labels": labels or {}},
            "spec": {"clusterIP": cluster_ip, "ports": ports, **spec},
            "status": {"loadBalancer": {"ingress": addresses} if addresses else {}},
        },
        "slices": [
            {
                "metadata": {"namespace": namespace, "name": f"{service}-1", "labels": {"kubernetes.io/service-name": service}},
                "addressType": family,
                "ports": [{"name": port_name, "protocol": protocol, "port": target}],
                "endpoints": [endpoint(item) if isinstance(item, str) else item for item in endpoints],
            }
        ],
    }
