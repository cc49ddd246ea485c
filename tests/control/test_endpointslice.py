"""From pods to EndpointSlices: the published table of conditions, named ports, the layout, and that slices do not churn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.control import slices
from emu.control.endpoints import desired
from tests.kit.plane import Plane, service

PORTS = (("http", "TCP", 8080, ""),)


def pod(ready=True, phase="Running", ip="10.244.1.2", deleted=False, port=8080, **meta):
    return {
        "metadata": {
            "namespace": "d",
            "name": "p",
            "uid": "u",
            "labels": {"app": "web"},
            **meta,
            **({"deletionTimestamp": "x"} if deleted else {}),
        },
        "spec": {"nodeName": "node-1", "containers": [{"ports": [{"name": "http", "containerPort": port}]}]},
        "status": {
            "phase": phase,
            **({"podIP": ip} if ip else {}),
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


@pytest.mark.parametrize(
    ("name", "of", "publish", "expected"),  # ready, serving, terminating; None: absent
    [
        ("Succeeded", pod(phase="Succeeded"), False, None),
        ("Failed", pod(phase="Failed"), True, None),
        ("no IP", pod(ip=None), False, None),
        ("Ready, not deleted", pod(), False, (True, True, False)),
        ("not Ready", pod(ready=False), False, (False, False, False)),
        ("deleted, still Ready", pod(deleted=True), False, (False, True, True)),
        ("deleted, not Ready", pod(ready=False, deleted=True), False, (False, False, True)),
        ("not Ready, published", pod(ready=False), True, (True, False, False)),
        ("deleted, published", pod(deleted=True), True, (True, True, True)),
        ("deleted and not Ready, published", pod(ready=False, deleted=True), True, (True, False, True)),
    ],
)
def test_the_published_table_of_endpoint_conditions(name, of, publish, expected):
    """KEP-1672 and the EndpointSlice documentation."""
    made = desired(service(publishNotReadyAddresses=publish), [of], lambda node: None, "IPv4")
    found = [tuple(e["conditions"][key] for key in ("ready", "serving", "terminating")) for group in made.values() for e in group]
    assert found == ([expected] if expected else []), name


@pytest.mark.parametrize(
    ("distribution", "of", "zone", "expected"),
    [
        ("PreferSameZone", pod(), "a", {"forZones": [{"name": "a"}]}),
        ("PreferClose", pod(), "a", {"forZones": [{"name": "a"}]}),
        ("PreferSameNode", pod(), "a", {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-1"}]}),
        ("PreferSameNode", pod(), None, {"forNodes": [{"name": "node-1"}]}),
        ("PreferSameZone", pod(), None, None),
        (None, pod(), "a", None),
        ("PreferSameNode", pod(ready=False), "a", None),
        ("PreferSameNode", pod(deleted=True), "a", None),
    ],
)
def test_hints_follow_the_traffic_distribution_of_ready_endpoints(distribution, of, zone, expected):
    """KEP-3015, and what Kubernetes' trafficdist.go does with zones and nodes that an endpoint lacks."""
    node = {"metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": zone} if zone else {}}}
    made = desired(service(trafficDistribution=distribution), [of], lambda _: node, "IPv4")
    assert [e.get("hints") for group in made.values() for e in group] == [expected]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http", {8080: ["10.244.1.2"], 9090: ["10.244.1.3"]}),  # a name is each pod's own number
        ("metrics", {}),  # left out of the port set, here of all of it
        (8443, {8443: ["10.244.1.2", "10.244.1.3"]}),
        (None, {80: ["10.244.1.2", "10.244.1.3"]}),  # absent: the port itself
    ],
)
def test_target_ports(target, expected):
    port = {"name": "x", "port": 80, **({"targetPort": target} if target is not None else {})}
    pods = [pod(), pod(ip="10.244.1.3", port=9090, uid="v")]
    made = desired(service(ports=[port]), pods, lambda node: None, "IPv4")
    assert {ports[0][2]: [e["addresses"][0] for e in group] for ports, group in made.items() if ports} == expected


def test_zone_node_and_target_are_filled_in_and_a_hostname_only_under_its_own_service():
    one = pod()
    one["spec"].update(hostname="h", subdomain="web")
    node = {"metadata": {"labels": {"topology.kubernetes.io/zone": "a"}}}
    (made,) = desired(service("web"), [one], lambda name: node, "IPv4").values()
    assert made[0]["nodeName"] == "node-1" and made[0]["zone"] == "a" and made[0]["hostname"] == "h"
    assert made[0]["targetRef"] == {"kind": "Pod", "namespace": "d", "name": "p", "uid": "u"}
    (other,) = desired(service("other", selector={"app": "web"}), [one], lambda name: node, "IPv4").values()
    assert "hostname" not in other[0]


# ---- layout ---------------------------------------------------------------------------------------------------------------------


def endpoint(n, ready=True):
    return {"addresses": [f"10.0.{n // 250}.{n % 250}"], "conditions": {"ready": ready}, "targetRef": {"uid": f"u{n}"}}


def laid_out(numbers, name):
    return {"metadata": {"name": name}, "ports": slices.port_objects(PORTS), "endpoints": [endpoint(n) for n in numbers]}


def test_250_endpoints_are_three_slices_and_one_more_is_one_write():
    plan = slices.plan([], {PORTS: [endpoint(n) for n in range(250)]})
    assert [len(endpoints) for _, endpoints in plan.create] == [100, 100, 50]
    existing = [laid_out(range(100), "a"), laid_out(range(100, 200), "b"), laid_out(range(200, 250), "c")]
    more = slices.plan(existing, {PORTS: [endpoint(n) for n in range(251)]})
    assert [(one["metadata"]["name"], len(now)) for one, now in more.update] == [("c", 51)] and not more.create and not more.delete


def test_nothing_changed_is_nothing_written_whatever_the_order():
    existing = [laid_out([1, 2, 3], "a")]
    assert slices.plan(existing, {PORTS: [endpoint(n) for n in (3, 1, 2)]}) == slices.Plan()
    plan = slices.plan(existing, {PORTS: [endpoint(n) for n in (1, 2, 3)]})
    assert plan == slices.Plan()


def test_new_endpoints_fill_the_slice_that_is_written_anyway():
    existing = [laid_out(range(90), "full"), laid_out(range(100, 110), "small")]
    wanted = [endpoint(n) for n in (*range(90), *range(101, 115))]  # 100 went, five came
    plan = slices.plan(existing, {PORTS: wanted})
    assert [(one["metadata"]["name"], len(now)) for one, now in plan.update] == [("small", 14)]


def test_no_endpoints_leave_one_empty_slice():
    assert slices.plan([], {}) == slices.Plan(create=[((), [])])
    plan = slices.plan([laid_out([1], "a"), laid_out([2], "b")], {})
    assert [(one["metadata"]["name"], now) for one, now in plan.update] == [("a", [])]
    assert [one["metadata"]["name"] for one in plan.delete] == ["b"]


@given(st.lists(st.sets(st.integers(0, 30)), max_size=8), st.integers(1, 7))
def test_slices_always_hold_exactly_what_is_wanted(wishes, most):
    """Each endpoint once, no slice too large, and what did not change is not written."""
    state, serial = {}, 0
    for wish in wishes:
        plan = slices.plan(list(state.values()), {PORTS: [endpoint(n) for n in sorted(wish)]}, most)
        for one in plan.delete:
            del state[one["metadata"]["name"]]
        for one, now in plan.update:
            assert now != one["endpoints"]
            state[one["metadata"]["name"]] = {**one, "endpoints": now}
        for ports, endpoints in plan.create:
            serial += 1
            state[f"s{serial}"] = {"metadata": {"name": f"s{serial}"}, "ports": slices.port_objects(ports), "endpoints": endpoints}
        held = [e["targetRef"]["uid"] for one in state.values() for e in one["endpoints"]]
        assert sorted(held) == sorted(f"u{n}" for n in wish)
        assert all(len(one["endpoints"]) <= most for one in state.values())
        again = slices.plan(list(state.values()), {PORTS: [endpoint(n) for n in sorted(wish)]}, most)
        assert not again.create and not again.update and not again.delete


# ---- the controller ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def plane():
    plane = Plane()
    yield plane
    assert plane.errors == []


def test_a_service_has_its_pods_and_slices_carry_the_published_labels(plane):
    plane.deploy(replicas=3)
    plane.registry.create("services", service(), "default")
    plane.settle()
    (one,) = plane.cluster.slices_of("default", "web")
    assert one["metadata"]["name"].startswith("web-") and one["addressType"] == "IPv4"
    assert one["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"] == "endpointslice-controller.k8s.io"
    assert one["metadata"]["ownerReferences"][0]["kind"] == "Service"
    assert one["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"]
    assert [(p["name"], p["port"], p["protocol"]) for p in one["ports"]] == [("http", 8080, "TCP")]
    assert len(one["endpoints"]) == 3 and {e["nodeName"] for e in one["endpoints"]} == {"node-1", "node-2", "node-3"}


def test_a_deleted_pod_s_endpoint_is_terminating_at_once_and_goes_with_the_pod(plane):
    plane.deploy(replicas=2)
    plane.registry.create("services", service(), "default")
    plane.settle()
    for node in plane.nodes.values():
        node.stops = False
    name = plane.pods()[0]["metadata"]["name"]
    plane.registry.delete("pods", "default", name)
    plane.plane.turn()  # nothing has been heard from any node yet
    (leaving,) = [e for e in plane.endpoints("web") if e["targetRef"]["name"] == name]
    assert leaving["conditions"] == {"ready": False, "serving": True, "terminating": True}
    plane.settle()
    assert len(plane.endpoints("web")) == 3
    for node in plane.nodes.values():
        node.stops = True
    plane.settle()
    assert len(plane.endpoints("web")) == 2


def test_slices_made_by_hand_are_left_alone(plane):
    made = service("manual")
    made["spec"]["selector"] = None
    plane.registry.create("services", {**made, "spec": {"ports": [{"port": 80}]}}, "default")
    by_hand = {
        "metadata": {"name": "manual-1", "labels": {"kubernetes.io/service-name": "manual"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.9.9.9"]}],
        "ports": [{"port": 80}],
    }
    plane.registry.create("endpointslices", by_hand, "default")
    plane.settle()
    assert [one["metadata"]["name"] for one in plane.cluster.slices_of("default", "manual")] == ["manual-1"]


def test_a_headless_service_s_slices_say_so(plane):
    plane.registry.create("services", service(clusterIP="None"), "default")
    plane.settle()
    (one,) = plane.cluster.slices_of("default", "web")
    assert one["metadata"]["labels"]["service.kubernetes.io/headless"] == "" and not one.get("endpoints")


def test_a_selector_change_and_a_label_change_move_endpoints(plane):
    plane.deploy("a", replicas=1), plane.deploy("b", replicas=1)
    plane.registry.create("services", service(selector={"app": "a"}), "default")
    plane.settle()
    plane.change("services", "web", selector={"app": "b"})
    plane.settle()
    assert [e["targetRef"]["name"][0] for e in plane.endpoints("web")] == ["b"]
    plane.change("services", "web", selector=None)
    plane.settle()
    assert plane.cluster.slices_of("default", "web") == []


def test_a_pod_s_other_changes_do_not_touch_slices(plane):
    plane.deploy(replicas=2)
    plane.registry.create("services", service(), "default")
    plane.settle()
    (one,) = plane.cluster.slices_of("default", "web")
    pod = plane.pods()[0]
    plane.registry.update("pods", {**pod, "metadata": {**pod["metadata"], "annotations": {"note": "x"}}}, "default")
    plane.settle()
    assert plane.cluster.slices_of("default", "web") == [one]
