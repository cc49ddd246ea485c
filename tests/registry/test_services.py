"""Services: validation, changes of type, and the two address pools, against the API's own table of rules and messages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.errors import ApiError
from emu.registry.registry import Registry
from tests.kit.apiserver import registry

PORT = {"port": 80}


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"ports": [dict(PORT)], **spec}}


def refused(act: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        act()
    return caught.value


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ({"ports": []}, "spec.ports", "Required value"),
        ({"ports": [PORT, {"port": 81, "name": "b"}]}, "spec.ports[0].name", "Required value"),
        ({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}, "spec.ports[1].name", 'Duplicate value: "a"'),
        ({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}, "spec.ports[1]", "Duplicate value"),
        ({"ports": [{"port": 80, "name": "A_"}]}, "spec.ports[0].name", "lowercase RFC 1123 label"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port", "must be between 1 and 65535, inclusive"),
        ({"ports": [{"port": 65536}]}, "spec.ports[0].port", "must be between 1 and 65535, inclusive"),
        ({"ports": [{"port": 80, "targetPort": 70000}]}, "spec.ports[0].targetPort", "must be between 1 and 65535"),
        ({"ports": [{"port": 80, "targetPort": "way-too-long-a-name"}]}, "spec.ports[0].targetPort", "must be no more than 15 characters"),
        (
            {"ports": [{"port": 80, "protocol": "ICMP"}]},
            "spec.ports[0].protocol",
            'Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"',
        ),
        ({"type": "Fancy"}, "spec.type", 'Unsupported value: "Fancy"'),
        ({"type": "NodePort", "clusterIP": "None"}, "spec.clusterIPs[0]", "may not be set to 'None' for LoadBalancer/NodePort services"),
        ({"ports": [{"port": 80, "nodePort": 30000}]}, "spec.ports[0].nodePort", "may not be used when `type` is 'ClusterIP'"),
        ({"type": "ExternalName"}, "spec.externalName", "Required value"),
        (
            {"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.9.9"},
            "spec.clusterIPs",
            "may not be set for ExternalName services",
        ),
        ({"sessionAffinityConfig": {"clientIP": {}}}, "spec.sessionAffinityConfig", "must not be set when session affinity is None"),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}},
            "timeoutSeconds",
            "less than 86400",
        ),
        ({"externalTrafficPolicy": "Local"}, "spec.externalTrafficPolicy", "may only be set for externally-accessible services"),
        ({"healthCheckNodePort": 31000}, "spec.healthCheckNodePort", "may only be set when `type` is 'LoadBalancer'"),
        ({"type": "LoadBalancer", "ports": [{"port": 10250}]}, "spec.ports[0].port", "may not expose port 10250 externally"),
        ({"ipFamilyPolicy": "RequireDualStack"}, "spec.ipFamilyPolicy", "this cluster is not configured for dual-stack services"),
        ({"ipFamilies": ["IPv6"]}, "spec.ipFamilies[0]", "not configured on this cluster"),
        ({"clusterIP": "10.96.1"}, "spec.clusterIPs[0]", "must be a valid IP address"),
        ({"clusterIP": "10.96.2.2", "clusterIPs": ["10.96.2.3"]}, "spec.clusterIPs[0]", "first value must match `clusterIP`"),
        ({"externalIPs": ["127.0.0.1"]}, "spec.externalIPs[0]", "may not be in the loopback range"),
        ({"type": "LoadBalancer", "loadBalancerSourceRanges": ["x"]}, "spec.loadBalancerSourceRanges[0]", "must be a valid CIDR value"),
        ({"clusterIP": "10.97.0.1"}, "spec.clusterIPs", "The range of valid IPs is 10.96.0.0/16"),
        ({"clusterIP": "10.96.0.1"}, "spec.clusterIPs", "failed to allocate IP 10.96.0.1: provided IP is already allocated"),
        (
            {"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]},
            "spec.ports[0].nodePort",
            "The range of valid ports is 30000-32767",
        ),
    ],
)
def test_a_wrong_service_is_refused_and_leaves_nothing(spec: dict[str, Any], field: str, message: str) -> None:
    cluster = registry()
    before = cluster.store.revision

    error = refused(lambda: cluster.create("services", service(**spec)))

    assert (error.code, error.reason) == (422, "Invalid")
    assert any(field in cause["field"] and message in cause["message"] for cause in error.causes), error.message
    assert cluster.store.revision == before


def test_names_begin_with_a_letter() -> None:
    assert "DNS-1035 label" in refused(lambda: registry().create("services", service("1st"))).message


def test_defaults_are_those_of_the_api_server() -> None:
    spec = registry().create("services", service()).object["spec"]

    assert spec.pop("clusterIP") == spec.pop("clusterIPs")[0]
    assert spec == {
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "ClusterIP", "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
    }  # fmt: skip


def test_headless_and_external_name_services_get_no_address() -> None:
    cluster = registry()

    assert cluster.create("services", service("h", clusterIP="None")).object["spec"]["clusterIPs"] == ["None"]
    assert "clusterIP" not in cluster.create("services", service("e", type="ExternalName", externalName="example.com.")).object["spec"]


def test_a_taken_node_port_is_refused_in_whatever_protocol() -> None:
    cluster = registry()
    cluster.create("services", service("a", type="NodePort", ports=[{"port": 80, "nodePort": 30080}]))

    wanted = service("b", type="NodePort", ports=[{"port": 53, "protocol": "UDP", "nodePort": 30080}])
    assert (
        "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
        in refused(lambda: cluster.create("services", wanted)).message
    )
    cluster.delete("services", "default", "a")
    assert cluster.create("services", wanted).object["spec"]["ports"][0]["nodePort"] == 30080


def test_tcp_and_udp_of_one_number_share_a_node_port() -> None:
    ports = [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}, {"name": "o", "port": 54}]
    made = registry().create("services", service(type="NodePort", ports=ports)).object["spec"]["ports"]

    assert made[0]["nodePort"] == made[1]["nodePort"] != made[2]["nodePort"]


def test_automatic_choice_leaves_the_static_bands_alone_until_the_rest_is_full() -> None:
    cluster = registry(service_cidr="10.0.0.0/27", node_port_range=(30000, 30031))
    made = [cluster.create("services", service(f"s{n}", type="NodePort")).object["spec"] for n in range(29)]

    ips = [int(spec["clusterIP"].rpartition(".")[2]) for spec in made]
    ports = [spec["ports"][0]["nodePort"] for spec in made]
    assert min(ips[:14]) > 16 >= max(ips[15:])  # /27: static .1 to .16, and the last address is the broadcast's
    assert min(ports[:16]) > 30015 >= max(ports[16:])
    assert len(set(ips)) == len(set(ports)) == 29
    error = refused(lambda: cluster.create("services", service("one-more")))
    assert (error.code, error.message) == (500, "Internal error occurred: failed to allocate a serviceIP: range is full")


@pytest.mark.parametrize(("cidr", "static"), [("10.0.0.0/16", 256), ("10.0.0.0/22", 64), ("10.0.0.0/24", 16), ("10.0.0.0/28", 0)])
def test_static_bands_have_the_sizes_of_kep_3070(cidr: str, static: int) -> None:
    assert registry(service_cidr=cidr).allocator._ips.static == static


def test_the_default_node_port_band_ends_at_30085() -> None:
    ports = registry().allocator._ports

    assert ports.first + ports.static - 1 == 30085


def test_what_an_update_leaves_out_stays() -> None:
    cluster = registry()
    old = cluster.create("services", service(type="NodePort")).object["spec"]

    new = cluster.update("services", service(type="NodePort", ports=[{"port": 80, "targetPort": 8080}]), "default").object["spec"]

    assert (new["clusterIP"], new["ports"][0]["nodePort"]) == (old["clusterIP"], old["ports"][0]["nodePort"])


def test_changes_of_type_keep_release_and_allocate() -> None:
    cluster = registry()
    made = cluster.create("services", service(type="NodePort")).object
    address, node_port = made["spec"]["clusterIP"], made["spec"]["ports"][0]["nodePort"]

    plain = cluster.update("services", {**made, "spec": {**made["spec"], "type": "ClusterIP"}}).object
    assert plain["spec"]["clusterIP"] == address
    assert "nodePort" not in plain["spec"]["ports"][0]
    external = cluster.update("services", {**plain, "spec": {**plain["spec"], "type": "ExternalName", "externalName": "x.y"}}).object
    assert "clusterIP" not in external["spec"]
    ports = [{"port": 1, "nodePort": node_port}]
    assert (
        cluster.create("services", service("next", clusterIP=address, type="NodePort", ports=ports)).object["spec"]["clusterIP"] == address
    )
    again = cluster.update("services", {**external, "spec": {"type": "ClusterIP", "ports": [PORT]}}).object
    assert again["spec"]["clusterIP"] not in {"", address}


def test_a_cluster_ip_may_not_change() -> None:
    cluster = registry()
    made = cluster.create("services", service(clusterIP="10.96.0.7")).object

    error = refused(
        lambda: cluster.update("services", {**made, "spec": {**made["spec"], "clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.8"]}})
    )
    assert 'spec.clusterIPs[0]: Invalid value: ["10.96.0.8"]: may not change once set' in error.message


def test_a_local_load_balancer_has_a_health_check_port() -> None:
    cluster = registry()
    made = cluster.create("services", service(type="LoadBalancer", externalTrafficPolicy="Local")).object

    port = made["spec"]["healthCheckNodePort"]
    assert port != made["spec"]["ports"][0]["nodePort"]
    error = refused(lambda: cluster.update("services", {**made, "spec": {**made["spec"], "healthCheckNodePort": port + 1}}))
    assert "spec.healthCheckNodePort: Invalid value" in error.message
    assert "field is immutable" in error.message


def test_the_service_kubernetes_has_the_first_address() -> None:
    made = registry().store.get("services", "default", "kubernetes")

    assert made is not None
    assert (made["spec"]["clusterIP"], made["spec"]["ports"][0]["port"]) == ("10.96.0.1", 443)


def test_a_reopened_cluster_remembers_what_is_taken() -> None:
    first = registry()
    first.create("services", service(clusterIP="10.96.0.7"))
    second = Registry(first.store, first.config, first.now)

    assert "already allocated" in refused(lambda: second.create("services", service("b", clusterIP="10.96.0.7"))).message


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["NodePort", "ClusterIP", "delete"]), st.booleans()), max_size=25))
def test_no_two_services_ever_share_an_address_or_a_port(steps: list[tuple[str, str, bool]]) -> None:
    """Random creations, changes and deletions, some undone by a failing transaction, in pools so small that they fill up."""
    cluster = registry(service_cidr="10.0.0.0/29", node_port_range=(30000, 30003))
    for name, what, undone in steps:
        try:
            with cluster.store.transaction():
                exists = cluster.store.get("services", "default", name) is not None
                if what == "delete":
                    cluster.delete("services", "default", name)
                elif exists:
                    cluster.update("services", service(name, type=what), "default")
                else:
                    cluster.create("services", service(name, type=what))
                if undone:
                    raise KeyError
        except KeyError:
            pass
        except ApiError as error:
            assert error.code in {404, 500}
        services = cluster.store.list("services")[0]
        ips = [obj["spec"]["clusterIP"] for obj in services]
        ports = [port["nodePort"] for obj in services for port in obj["spec"]["ports"] if "nodePort" in port]
        assert len(set(ips)) == len(ips)
        assert len(set(ports)) == len(ports)
