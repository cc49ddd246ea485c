"""What a load balancer's health check is told of one Service on one node.

Decides which Services have a health-check node port here, how many endpoints count, and the words of the answer. Must not know how
the port is served (`emu.node.health`). Spec: kubernetes `pkg/proxy/healthcheck/service_health.go`, `LocalReadyEndpoints` in
`pkg/proxy/endpointschangetracker.go`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from emu.proxy.serviceport import read_service_ports

FIELD = b"healthCheckNodePort"  # a packed value without these bytes need not be read


class HealthCheck(NamedTuple):
    """One Service's health check: the node's TCP port, and the distinct addresses of ready endpoints on this node."""

    namespace: str
    name: str
    port: int
    local_endpoints: int

    @property
    def status(self) -> int:
        """200, or 503 for "send nothing here"."""
        return 200 if self.local_endpoints else 503

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        weight = ("X-Load-Balancing-Endpoint-Weight", str(self.local_endpoints))
        return (("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"), weight)

    @property
    def body(self) -> bytes:
        """JSON, in kube-proxy's own layout. A proxy that answers is a healthy one: where it is stopped, its ports are closed."""
        who = f'\t"service": {{\n\t\t"namespace": "{self.namespace}",\n\t\t"name": "{self.name}"\n\t}},\n'
        return f'{{\n{who}\t"localEndpoints": {self.local_endpoints},\n\t"serviceProxyHealthy": true\n}}'.encode()


def health_check(value: Mapping[str, Any], node: str) -> HealthCheck | None:
    """The health check of a value of the `services` stream (see `serviceport`) on `node`; None for a Service that has none."""
    ports = [port for port in read_service_ports(value, node) if port.health_check_node_port]
    if not ports:
        return None
    here = {endpoint.to.ip for port in ports for endpoint in port.endpoints if endpoint.ready and endpoint.node == node}
    name = ports[0].name
    return HealthCheck(name.namespace, name.name, ports[0].health_check_node_port, len(here))
