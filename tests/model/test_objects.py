"""Views of Services and EndpointSlices: an absent field means what Kubernetes says it means."""

from __future__ import annotations

import pytest
from kubernetes.client import ApiClient, V1Service, V1ServicePort, V1ServiceSpec

from emu.model.objects import Endpoint, EndpointPort, EndpointSlice, LoadBalancerIngress, Service, ServicePort


@pytest.mark.parametrize(
    ("conditions", "ready", "serving", "terminating"),
    [
        (None, True, True, False),
        ({}, True, True, False),
        ({"ready": False}, False, True, False),
        ({"ready": False, "serving": True, "terminating": True}, False, True, True),
    ],
)
def test_nil_conditions_read_as_the_api_says(conditions: dict[str, bool] | None, ready: bool, serving: bool, terminating: bool) -> None:
    endpoint = Endpoint.from_object({"addresses": ["10.244.1.2"], "conditions": conditions})

    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == (ready, serving, terminating)


def test_a_service_made_by_the_official_client_reads_with_defaults() -> None:
    made = V1Service(
        metadata={"name": "web", "namespace": "shop"},
        spec=V1ServiceSpec(cluster_ips=["10.96.0.10"], cluster_ip="10.96.0.10", ports=[V1ServicePort(port=80)]),
    )

    service = Service.from_object(ApiClient().sanitize_for_serialization(made))

    assert service.ports == (ServicePort("", "TCP", 80, 0, 80),)
    assert (service.type, service.cluster_ips, service.internal_policy, service.session_affinity) == (
        "ClusterIP",
        ("10.96.0.10",),
        "Cluster",
        None,
    )


@pytest.mark.parametrize(
    ("spec", "cluster_ips", "headless"),
    [({"clusterIP": "None"}, (), True), ({"type": "ExternalName", "externalName": "example.com"}, (), False), ({}, (), False)],
)
def test_services_without_an_address_have_none(spec: dict[str, object], cluster_ips: tuple[str, ...], headless: bool) -> None:
    service = Service.from_object({"metadata": {"name": "s", "namespace": "n"}, "spec": spec})

    assert (service.cluster_ips, service.headless) == (cluster_ips, headless)


def test_a_load_balancer_address_is_a_vip_unless_it_says_otherwise() -> None:
    status = {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"ip": "1.2.3.5", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}}
    service = Service.from_object({"metadata": {"name": "s"}, "spec": {"sessionAffinity": "ClientIP"}, "status": status})

    assert service.lb_ingress == (LoadBalancerIngress("1.2.3.4", "VIP"), LoadBalancerIngress("1.2.3.5", "Proxy"))
    assert service.session_affinity == 10800


def test_a_slice_names_its_service_by_label() -> None:
    slice_ = EndpointSlice.from_object(
        {
            "metadata": {"name": "web-abc", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": "node-1", "hints": {"forZones": [{"name": "a"}]}}],
        }
    )

    assert (slice_.service, slice_.ports) == ("web", (EndpointPort("http", "TCP", 8080),))
    assert (slice_.endpoints[0].node_name, slice_.endpoints[0].zone_hints) == ("node-1", ("a",))
