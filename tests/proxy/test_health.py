"""What a health-check node port answers: whose endpoints count, and kube-proxy's own words (service_health.go)."""

from __future__ import annotations

import json

import pytest

from emu.proxy.health import HealthCheck, health_check
from tests.kit import services


def value(endpoints, kind="LoadBalancer", policy="Local"):
    """A Service of two ports."""
    spec = {"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 32123}
    made = services.value("ns/web", endpoints, cluster_ip="10.96.0.9", port_name="http", **spec)
    for ports, number in ((made["service"]["spec"]["ports"], 81), (made["slices"][0]["ports"], 8081)):
        ports.append({"name": "more", "protocol": "TCP", "port": number})
    return made


def endpoint(last, node="here", **conditions):
    return services.endpoint(f"10.244.1.{last}", node, **conditions)


@pytest.mark.parametrize(
    ("endpoints", "count"),
    [
        ([], 0),
        ([endpoint(1)], 1),  # both ports: one address
        ([endpoint(1), endpoint(2)], 2),
        ([endpoint(1), endpoint(2, node="there")], 1),
        ([endpoint(1, ready=False)], 0),
        ([endpoint(1, ready=False, serving=True, terminating=True)], 0),  # may still get packets, but asks for no new ones
    ],
)
def test_ready_addresses_of_this_node_count(endpoints, count):
    assert health_check(value(endpoints), "here") == HealthCheck("ns", "web", 32123, count)


@pytest.mark.parametrize(("kind", "policy"), [("LoadBalancer", "Cluster"), ("NodePort", "Local"), ("ClusterIP", "Local")])
def test_only_a_load_balancer_under_policy_local_has_one(kind, policy):
    assert health_check(value([endpoint(1)], kind=kind, policy=policy), "here") is None


@pytest.mark.parametrize(("count", "status"), [(0, 503), (2, 200)])
def test_the_answer_is_kube_proxys(count, status):
    check = HealthCheck("ns", "web", 32123, count)
    assert check.status == status
    assert json.loads(check.body) == {"service": {"namespace": "ns", "name": "web"}, "localEndpoints": count, "serviceProxyHealthy": True}
    assert check.body.startswith(b'{\n\t"service": {\n\t\t"namespace": "ns",\n')  # Go prints it with tabs
    assert dict(check.headers)["X-Load-Balancing-Endpoint-Weight"] == str(count)
