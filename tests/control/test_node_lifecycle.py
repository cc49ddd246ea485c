"""Nodes that fall silent, come back, or never were; and that nobody is judged unfairly."""

from __future__ import annotations

import pytest

from emu.bus.views import NodeRecord
from emu.control.nodes import UNREACHABLE, patience
from emu.control.pods import condition, is_ready
from tests.kit.plane import Plane, service


@pytest.fixture
def plane():
    plane = Plane()  # profile fast: grace 3 s, lease 1 s, toleration 5 s
    yield plane
    assert plane.errors == []


def ready(plane, name):
    node = plane.get("nodes", name, "")
    return condition(node, "Ready")["status"], {taint["effect"] for taint in node["spec"].get("taints", ())}


def known(plane):
    """Node 2, as node 1 has it."""
    return NodeRecord.read(plane.nodes["node-1"].follower.nodes.packed("node-2"))


def test_a_node_registers_as_its_neighbours_need_it(plane):
    node = plane.get("nodes", "node-2", "")
    assert node["spec"]["podCIDR"] == "10.244.2.0/24"
    assert {"type": "InternalIP", "address": "192.168.0.3"} in node["status"]["addresses"]
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "node-2"
    assert node["metadata"]["annotations"] == {"podwire.dev/endpoint": "mem://node-2", "podwire.dev/incarnation": "1"}
    assert known(plane).ready is True


def test_leases_of_a_quiet_cluster_write_nothing(plane):
    revision = plane.store.revision
    plane.advance(60, step=0.5)
    assert plane.store.revision == revision


def test_a_silent_node_is_unknown_tainted_and_its_endpoints_go_before_its_pods(plane):
    plane.deploy(replicas=3)
    plane.registry.create("services", service(), "default")
    plane.settle()
    plane.kill_node("node-2")
    plane.advance(2.5)
    assert ready(plane, "node-2") == ("True", set()), "within the grace"
    plane.advance(1.5)
    assert ready(plane, "node-2") == ("Unknown", {"NoSchedule", "NoExecute"})
    (lost,) = [pod for pod in plane.pods() if pod["spec"]["nodeName"] == "node-2"]
    assert not is_ready(lost) and "deletionTimestamp" not in lost["metadata"]
    assert [e["conditions"]["ready"] for e in plane.endpoints("web") if e["nodeName"] == "node-2"] == [False]
    assert known(plane).ready is False
    plane.advance(6)
    assert plane.get("pods", lost["metadata"]["name"])["metadata"]["deletionTimestamp"], "it cannot be known to be gone"
    alive = [pod for pod in plane.pods() if "deletionTimestamp" not in pod["metadata"]]
    assert len(alive) == 3 and all(pod["spec"]["nodeName"] != "node-2" and is_ready(pod) for pod in alive)


def test_a_node_that_comes_back_in_time_keeps_its_pods(plane):
    plane.deploy(replicas=3)
    plane.settle()
    names = {pod["metadata"]["name"] for pod in plane.pods()}
    node = plane.nodes["node-2"]
    node.dead = True  # paused: it stays connected
    plane.advance(4.5)
    assert ready(plane, "node-2")[0] == "Unknown"
    node.dead = False
    plane.advance(1)
    assert ready(plane, "node-2") == ("True", set())
    assert {pod["metadata"]["name"] for pod in plane.pods()} == names and all(is_ready(pod) for pod in plane.pods())


def test_a_node_that_comes_back_late_is_told_to_end_what_was_moved(plane):
    plane.deploy(replicas=3)
    plane.settle()
    plane.kill_node("node-2")
    plane.advance(12)
    assert len(plane.pods()) == 4
    plane.start_node("node-2", incarnation=2)
    plane.advance(1)
    assert ready(plane, "node-2") == ("True", set()) and len(plane.pods()) == 3
    assert plane.get("nodes", "node-2", "")["metadata"]["annotations"]["podwire.dev/incarnation"] == "2"


def test_a_restart_within_the_grace_goes_unnoticed_but_for_the_incarnation(plane):
    plane.deploy(replicas=3)
    plane.settle()
    plane.kill_node("node-2")
    plane.advance(1)
    plane.start_node("node-2", incarnation=2)
    plane.settle()
    assert known(plane).incarnation == 2
    assert len(plane.pods()) == 3 and all(is_ready(pod) for pod in plane.pods())


def test_nobody_is_judged_before_all_have_been_there_once():
    plane = Plane(start=False)
    plane.start_node("node-1"), plane.start_node("node-2")
    plane.settle()
    plane.kill_node("node-2")
    plane.advance(20, step=1)
    assert ready(plane, "node-2")[0] == "True"
    plane.start_node("node-3")
    plane.advance(4)
    assert ready(plane, "node-2")[0] == "Unknown"


def test_nobody_is_judged_for_a_silence_that_was_the_controller_s_own(plane):
    plane.clock.advance(10)  # the controller's process was paused; leases lie unread in its socket
    plane.plane.turn()
    assert [ready(plane, f"node-{n}")[0] for n in (1, 2, 3)] == ["True"] * 3
    plane.kill_node("node-2")
    plane.advance(4)
    assert ready(plane, "node-2")[0] == "Unknown", "but only once"


def test_a_restarted_controller_gives_every_node_a_whole_grace(plane):
    again = Plane(store=plane.store, clock=plane.clock, start=False)
    again.start_node("node-1"), again.start_node("node-2")
    again.advance(2.5)
    assert ready(again, "node-3")[0] == "True"
    again.advance(1)
    assert ready(again, "node-3")[0] == "Unknown" and ready(again, "node-1")[0] == "True"


@pytest.mark.parametrize(
    ("tolerations", "seconds"),
    [
        ([], 0.0),
        ([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}], 5.0),
        ([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"}], None),
        ([{"operator": "Exists"}], None),
        ([{"operator": "Exists"}, {"key": UNREACHABLE, "effect": "NoExecute", "operator": "Exists", "tolerationSeconds": 7}], 7.0),
        ([{"key": "other", "operator": "Exists", "effect": "NoExecute"}], 0.0),
        ([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoSchedule"}], 0.0),
    ],
)
def test_how_long_a_pod_bears_a_silent_node(tolerations, seconds):
    assert patience({"spec": {"tolerations": tolerations}}) == seconds


def test_pods_of_a_deleted_node_go_at_once_and_those_of_one_that_never_was_after_a_while(plane):
    plane.deploy(replicas=3)
    spec = {"nodeName": "nowhere", "containers": [{"name": "c", "image": "nginx"}]}
    plane.registry.create("pods", {"metadata": {"name": "lost"}, "spec": spec}, "default")
    plane.settle()
    plane.kill_node("node-2")
    plane.registry.delete("nodes", "", "node-2")
    plane.settle()
    assert {pod["spec"]["nodeName"] for pod in plane.pods(app="web")} == {"node-1", "node-3"}
    plane.advance(39, step=3)
    assert plane.get("pods", "lost")
    plane.advance(2)
    assert plane.get("pods", "lost") is None


def test_a_node_object_deleted_by_mistake_comes_back_with_the_next_lease(plane):
    plane.registry.delete("nodes", "", "node-2")
    plane.advance(2)
    assert ready(plane, "node-2") == ("True", set())
