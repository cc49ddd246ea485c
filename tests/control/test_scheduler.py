"""Where pods go, and why one goes nowhere."""

from __future__ import annotations

from collections import Counter

import pytest

from emu.control.pods import condition
from emu.control.scheduler import tolerates, why_not
from tests.kit.plane import Plane


def nodes_of(plane, **labels):
    return Counter(pod["spec"].get("nodeName") for pod in plane.pods(**labels))


def one_pod(plane, name="p", **spec):
    made = {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "nginx"}], **spec}}
    plane.registry.create("pods", made, "default")
    plane.settle()
    return plane.get("pods", name)


def test_pods_of_one_owner_are_spread_before_nodes_are_evened_out():
    plane = Plane()
    for name in ("lonely-1", "lonely-2", "lonely-3"):
        one_pod(plane, name, nodeSelector={"kubernetes.io/hostname": "node-1"})
    plane.deploy("web", replicas=3)
    plane.settle()
    assert nodes_of(plane, app="web") == {"node-1": 1, "node-2": 1, "node-3": 1}, "not two on an empty node"
    plane.deploy("db", replicas=2)
    plane.settle()
    assert nodes_of(plane, app="db") == {"node-2": 1, "node-3": 1}, "then the emptier nodes"


def test_equal_nodes_are_taken_in_the_order_people_count():
    plane = Plane(nodes=11)
    plane.deploy(replicas=3)
    plane.settle()
    assert set(nodes_of(plane)) == {"node-1", "node-2", "node-3"}


@pytest.mark.parametrize(
    ("taint", "toleration", "fits"),
    [
        ({"key": "a", "value": "b", "effect": "NoSchedule"}, None, False),
        ({"key": "a", "value": "b", "effect": "PreferNoSchedule"}, None, True),
        ({"key": "a", "value": "b", "effect": "NoExecute"}, None, False),
        ({"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoSchedule"}, True),
        ({"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "a", "value": "c", "effect": "NoSchedule"}, False),
        ({"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "a", "operator": "Exists"}, True),
        ({"key": "a", "value": "b", "effect": "NoSchedule"}, {"operator": "Exists"}, True),
        ({"key": "a", "value": "b", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoExecute"}, False),
        ({"key": "a", "effect": "NoSchedule"}, {"key": "a"}, True),
        ({"key": "a", "effect": "NoSchedule"}, {}, False),
    ],
)
def test_taints_and_tolerations(taint, toleration, fits):
    """The rows of the documentation's "Taints and Tolerations"."""
    node = {"metadata": {"name": "n"}, "spec": {"taints": [taint]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    pod = {"spec": {"tolerations": [toleration] if toleration is not None else []}}
    assert (why_not(pod, node) == "") is fits
    if toleration is not None and taint["effect"] != "PreferNoSchedule":
        assert tolerates(toleration, taint) is fits


def test_a_pod_that_fits_nowhere_says_why_and_is_placed_when_it_does():
    plane = Plane()
    pod = one_pod(plane, nodeSelector={"disk": "ssd"})
    told = condition(pod, "PodScheduled")
    assert (told["status"], told["reason"]) == ("False", "Unschedulable")
    assert told["message"] == "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
    assert [event["reason"] for event in plane.store.list("events")[0]][-1] == "FailedScheduling"
    node = plane.get("nodes", "node-2", "")
    plane.registry.update("nodes", {**node, "metadata": {**node["metadata"], "labels": {**node["metadata"]["labels"], "disk": "ssd"}}})
    plane.settle()
    pod = plane.get("pods", "p")
    assert pod["spec"]["nodeName"] == "node-2" and condition(pod, "PodScheduled")["status"] == "True"


def test_a_cordoned_node_takes_no_new_pods():
    plane = Plane()
    node = plane.get("nodes", "node-1", "")
    plane.registry.update("nodes", {**node, "spec": {**node["spec"], "unschedulable": True}})
    plane.deploy(replicas=4)
    plane.settle()
    assert nodes_of(plane) == {"node-2": 2, "node-3": 2}


@pytest.mark.parametrize(("address", "node"), [("10.244.3.77", "node-3"), ("10.99.0.1", None)])
def test_a_pod_with_an_address_of_its_own_goes_where_that_is(address, node):
    plane = Plane()
    spec = {"containers": [{"name": "c", "image": "nginx"}]}
    plane.registry.create("pods", {"metadata": {"name": "p", "annotations": {"podwire.dev/address": address}}, "spec": spec}, "default")
    plane.settle()
    placed = plane.get("pods", "p")
    assert placed["spec"].get("nodeName") == node
    if node is None:
        assert "didn't have the Pod's address" in condition(placed, "PodScheduled")["message"]


def test_pods_wait_for_the_first_node_and_a_named_node_is_no_question():
    plane = Plane(start=False)
    plane.deploy(replicas=1)
    plane.settle()
    (pod,) = plane.pods()
    assert condition(pod, "PodScheduled")["message"] == "no nodes available to schedule pods"
    plane.start_node("node-3")
    plane.settle()
    assert nodes_of(plane) == {"node-3": 1}
    assert one_pod(plane, nodeName="node-3")["status"]["phase"] == "Running"


def test_another_scheduler_s_pods_are_left_alone():
    plane = Plane()
    assert "nodeName" not in one_pod(plane, schedulerName="mine")["spec"]
