"""How kube-proxy reads Services and EndpointSlices. Facts: kubernetes `serviceport.go`, `endpointslicecache.go` and their tests."""

from __future__ import annotations

import pytest

from emu.proxy.serviceport import read_service_ports
from emu.wire.addr import format_ip
from tests.kit.services import endpoint, value


def read(stream_value, family=4):
    (port,) = read_service_ports(stream_value, "host-1", family)
    return port


SKIPPED = [
    ("headless", value(cluster_ip="None")),
    ("ExternalName, even with a ClusterIP", value(type="ExternalName")),
    ("another proxy's, whatever the label says", value(labels={"service.kubernetes.io/service-proxy-name": ""})),
    ("of the other family", value(cluster_ip="fd00::1")),
]


@pytest.mark.parametrize("stream_value", [v for _, v in SKIPPED], ids=[name for name, _ in SKIPPED])
def test_a_service_is_skipped_when_it_is(stream_value):
    assert read_service_ports(stream_value, "host-1") == ()


def test_addresses_are_read_as_leniently_as_kubernetes_once_did():
    port = read(value(cluster_ip="172.30.0.041", loadBalancerSourceRanges=[" 203.0.113.0/25"]))
    assert format_ip(port.cluster_ip) == "172.30.0.41"
    assert [str(cidr) for cidr in port.source_ranges] == ["203.0.113.0/25"]


def test_a_load_balancer_ip_in_proxy_mode_and_a_host_name_have_no_rules():
    ingress = [{"ip": "1.2.3.4"}, {"ip": "1.2.3.5", "ipMode": "Proxy"}, {"ip": "1.2.3.6", "ipMode": "VIP"}, {"hostname": "lb.example"}]
    assert [format_ip(ip) for ip in read(value(type="LoadBalancer", ingress=ingress)).load_balancer_ips] == ["1.2.3.4", "1.2.3.6"]


def test_a_health_check_port_counts_only_for_a_load_balancer_with_local_policy():
    assert read(value(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=30000)).health_check_node_port == 30000
    assert read(value(type="LoadBalancer", healthCheckNodePort=30000)).health_check_node_port == 0
    assert read(value(type="NodePort", externalTrafficPolicy="Local", healthCheckNodePort=30000)).health_check_node_port == 0


def test_slice_ports_match_by_name_and_protocol_and_bring_their_own_number():
    stream_value = value(endpoints=["10.0.0.1"], port_name="http", target=8080)
    stream_value["slices"][0]["ports"] += [
        {"name": "other", "protocol": "TCP", "port": 1},
        {"name": "http", "protocol": "UDP", "port": 2},
        {"name": "http", "protocol": "TCP", "port": None},
    ]
    assert [e.text for e in read(stream_value).endpoints] == ["10.0.0.1:8080"]


def test_endpoints_are_in_the_order_of_their_text():
    assert [e.text for e in read(value(endpoints=["10.0.0.2", "10.0.0.10"])).endpoints] == ["10.0.0.10:8080", "10.0.0.2:8080"]


def test_an_address_in_two_slices_is_one_endpoint_and_the_local_entry_wins():
    stream_value = value(endpoints=[endpoint("10.0.0.1", "host-1"), endpoint("10.0.0.1", "host-2")])
    stream_value["slices"].append(stream_value["slices"][0])
    assert [(e.text, e.node) for e in read(stream_value).endpoints] == [("10.0.0.1:8080", "host-1")]


def test_a_dual_stack_service_has_one_address_a_family():
    dual = value(clusterIPs=["172.30.0.41", "fd00::1"])
    assert format_ip(read(dual, 4).cluster_ip) == "172.30.0.41"
    assert format_ip(read(dual, 6).cluster_ip) == "fd00::1"


def test_session_affinity_has_its_published_default():
    assert read(value(sessionAffinity="ClientIP")).affinity_seconds == 10800
    assert read(value()).affinity_seconds == 0
