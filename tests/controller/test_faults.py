"""Faults on links between API, store and nodes: objects like others, told to all, summed from leases, kept over a restart."""

from __future__ import annotations

import pytest

from emu.api.handler import Api
from emu.api.request import Request
from emu.bus.messages import encode_update
from emu.bus.publisher import Publisher
from emu.model.cluster import ClusterSpec
from emu.model.links import Place, between, read_fault
from emu.store.store import Change
from tests.kit.plane import Plane

URL = "/apis/podwire.dev/v1alpha1/faults"


@pytest.fixture
def plane():
    plane = Plane()
    yield plane
    assert plane.errors == []


def test_faults_on_links_are_objects_that_controllers_leave_alone_and_namespaces_do_not_hold(plane):
    api = Api(plane.registry)
    for _ in range(2):
        assert api.handle(Request.of("POST", URL, {"link": "*->*", "loss": 1, "cut": False})).status == 201
        plane.settle()
    plane.registry.create("namespaces", {"metadata": {"name": "gone"}})
    plane.registry.delete("namespaces", "", "gone")
    plane.settle()
    assert plane.get("namespaces", "gone", "") is None
    assert [value["spec"]["loss"] for _, value in plane.nodes["node-2"].follower.links.items()] == [1]
    assert api.handle(Request.of("DELETE", URL)).status == 200
    plane.settle()
    assert not plane.nodes["node-2"].follower.links.keys()
    assert plane.errors == []


def test_what_leases_tell_of_faults_is_summed_over_nodes(plane):
    for name, lost in (("node-1", 3), ("node-2", 4)):
        node = plane.nodes[name]
        node.link.post({**node.follower.lease(), "faults": {"fault-9": {"lost": lost}}, "drops": {"link-loss": lost}})
    plane.settle()
    assert plane.plane.fault_counters() == {"fault-9": {"lost": 7}}
    assert plane.plane.status()["drops"] == {"link-loss": 7}


def test_a_restarted_controller_tells_nodes_of_the_faults_that_there_were(plane):
    Api(plane.registry).handle(Request.of("POST", URL, {"partition": [["node-1"], ["*"]]}))
    plane.settle()
    again = Plane(store=plane.store, clock=plane.clock)
    assert [value["spec"] for _, value in again.nodes["node-3"].follower.links.items()] == [{"partition": [["node-1"], ["*"]]}]


def test_a_partition_of_a_thousand_nodes_is_one_small_message():
    """Selectors, never pairs; named one by one, a thousand nodes are still one message."""
    spec = {"name": "big", "nodes": 1000}
    published = []
    for groups in ([["zone/a"], ["*"]], [[f"node-{n}" for n in range(1, 501)], [f"node-{n}" for n in range(501, 1001)]]):
        fault = {"metadata": {"name": "fault-7", "resourceVersion": "7"}, "spec": {"partition": groups}}
        publisher = Publisher(lambda resource, namespace, name, fault=fault: fault)
        publisher.on_changes([Change(7, "ADDED", "faults", fault, None)])
        (update,) = publisher.flush()
        published.append(len(encode_update(update)))
    assert published[0] < 100
    assert published[1] < 10_000
    faults = [read_fault({"partition": groups}, "fault-7")]
    names = [node.name for node in ClusterSpec.from_mapping(spec).nodes]
    cut = [between(faults, Place("node-1"), Place(name)).conditions.cut for name in names[1:]]
    assert cut == [False] * 499 + [True] * 500
