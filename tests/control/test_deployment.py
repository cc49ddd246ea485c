"""Deployments over a whole control plane with nodes that run any pod at once."""

from __future__ import annotations

import pytest

from emu.control.deployment import HASH_LABEL, template_hash
from emu.control.pods import condition, is_ready
from emu.errors import ApiError
from tests.kit.plane import BROKEN, Plane, deployment, service


@pytest.fixture
def plane():
    plane = Plane()
    yield plane
    assert plane.errors == []
    plane.store.check()


def sizes(plane):
    return sorted(one["spec"]["replicas"] for one in plane.store.list("replicasets")[0])


def reimage(plane, image, name="web"):
    template = plane.get("deployments", name)["spec"]["template"]
    spec = {**template["spec"], "containers": [{**template["spec"]["containers"][0], "image": image}]}
    plane.change("deployments", name, template={**template, "spec": spec})


def test_a_deployment_becomes_a_replica_set_and_pods_spread_over_the_nodes(plane):
    plane.deploy(replicas=6)
    plane.settle()
    (replica_set,) = plane.store.list("replicasets")[0]
    digest = replica_set["metadata"]["labels"][HASH_LABEL]
    assert replica_set["metadata"]["name"] == f"web-{digest}"
    assert replica_set["spec"]["selector"]["matchLabels"] == {"app": "web", HASH_LABEL: digest}
    pods = plane.pods(app="web")
    assert sorted(pod["spec"]["nodeName"] for pod in pods) == ["node-1", "node-1", "node-2", "node-2", "node-3", "node-3"]
    assert all(pod["metadata"]["labels"][HASH_LABEL] == digest for pod in pods)
    status = plane.get("deployments", "web")["status"]
    assert {key: status[key] for key in ("replicas", "readyReplicas", "availableReplicas", "updatedReplicas")} == {
        "replicas": 6, "readyReplicas": 6, "availableReplicas": 6, "updatedReplicas": 6,
    }  # fmt: skip
    assert status["observedGeneration"] == plane.get("deployments", "web")["metadata"]["generation"]
    assert condition({"status": status}, "Available")["status"] == "True"
    assert condition({"status": status}, "Progressing")["reason"] == "NewReplicaSetAvailable"


def test_nothing_is_written_when_nothing_changes(plane):
    plane.deploy()
    plane.settle()
    revision = plane.store.revision
    plane.advance(30)
    assert plane.store.revision == revision


def test_scaling_touches_only_the_size(plane):
    plane.deploy(replicas=2)
    plane.settle()
    before = {pod["metadata"]["name"] for pod in plane.pods()}
    plane.registry.scale("deployments", "default", "web", 4)
    plane.settle()
    assert before < {pod["metadata"]["name"] for pod in plane.pods()}
    assert sizes(plane) == [4]
    plane.registry.scale("deployments", "default", "web", 1)
    plane.settle()
    assert len(plane.pods()) == 1 and sizes(plane) == [1]


def test_a_rolling_update_never_leaves_its_bounds(plane):
    plane.deploy(replicas=4)
    plane.settle()
    seen = []

    def watch(changes):
        ready = [pod for pod in plane.pods() if not pod["metadata"].get("deletionTimestamp") and is_ready(pod)]
        seen.append((sum(sizes(plane)), len(ready)))  # the surge is one of specs: pods that still stop do not count

    plane.store.subscribe(watch)
    reimage(plane, "nginx:2")
    plane.settle()
    assert max(total for total, _ in seen) == 5 and min(ready for _, ready in seen) >= 3
    assert sizes(plane) == [0, 4]
    assert {pod["spec"]["containers"][0]["image"] for pod in plane.pods()} == {"nginx:2"}
    assert condition(plane.get("deployments", "web"), "Progressing")["reason"] == "NewReplicaSetAvailable"


def test_a_rollout_whose_pods_never_become_ready_stops_and_is_told_late(plane):
    plane.deploy(replicas=4, progressDeadlineSeconds=20)
    plane.settle()
    reimage(plane, BROKEN)
    plane.settle()
    status = plane.get("deployments", "web")["status"]
    assert status["availableReplicas"] == 3 and status["updatedReplicas"] == 2
    assert condition({"status": status}, "Progressing")["reason"] == "ReplicaSetUpdated"
    plane.advance(25, step=5)
    assert condition(plane.get("deployments", "web"), "Progressing")["reason"] == "ProgressDeadlineExceeded"
    assert len([pod for pod in plane.pods() if condition(pod, "Ready")["status"] == "True"]) == 3


def test_recreate_waits_for_the_last_old_pod_to_be_gone(plane):
    plane.deploy(replicas=3, strategy={"type": "Recreate"})
    plane.settle()
    for node in plane.nodes.values():
        node.stops = False
    reimage(plane, "nginx:2")
    plane.settle()
    assert sizes(plane) == [0] and len(plane.pods()) == 3
    for node in plane.nodes.values():
        node.stops = True
    plane.settle()
    assert sizes(plane) == [0, 3]
    assert {pod["spec"]["containers"][0]["image"] for pod in plane.pods()} == {"nginx:2"}


def test_rolling_back_uses_the_old_replica_set_again(plane):
    plane.deploy(replicas=2)
    plane.settle()
    first = plane.store.list("replicasets")[0][0]["metadata"]["name"]
    reimage(plane, "nginx:2")
    plane.settle()
    reimage(plane, "nginx")
    plane.settle()
    assert plane.get("replicasets", first)["spec"]["replicas"] == 2 and len(plane.store.list("replicasets")[0]) == 2


def test_a_paused_deployment_scales_but_does_not_roll(plane):
    plane.deploy(replicas=2)
    plane.settle()
    plane.change("deployments", "web", paused=True)
    reimage(plane, "nginx:2")
    plane.registry.scale("deployments", "default", "web", 3)
    plane.settle()
    assert sizes(plane) == [3] and {pod["spec"]["containers"][0]["image"] for pod in plane.pods()} == {"nginx"}
    plane.change("deployments", "web", paused=False)
    plane.settle()
    assert sizes(plane) == [0, 3] and {pod["spec"]["containers"][0]["image"] for pod in plane.pods()} == {"nginx:2"}


def test_old_replica_sets_beyond_the_history_limit_go(plane):
    plane.deploy(replicas=1, revisionHistoryLimit=1)
    for version in range(4):
        reimage(plane, f"nginx:{version}") if version else None
        plane.settle()
    revisions = {
        one["metadata"]["annotations"]["deployment.kubernetes.io/revision"]: one["spec"]["replicas"]
        for one in plane.store.list("replicasets")[0]
    }
    assert revisions == {"3": 0, "4": 1}


def test_a_name_taken_by_another_template_is_salted(plane):
    made = deployment(replicas=1)
    taken = f"web-{template_hash(plane.registry.create('deployments', made, 'default').object['spec']['template'])}"
    other = deployment("other", replicas=0)["spec"]
    plane.registry.create(
        "replicasets",
        {"metadata": {"name": taken}, "spec": {"replicas": 0, "selector": other["selector"], "template": other["template"]}},
        "default",
    )
    plane.settle()
    assert plane.get("deployments", "web")["status"]["collisionCount"] == 1 and len(plane.pods(app="web")) == 1


def test_a_deleted_pod_is_replaced_and_a_relabelled_one_let_go(plane):
    plane.deploy(replicas=2)
    plane.settle()
    first, second = plane.pods()
    plane.registry.delete("pods", "default", first["metadata"]["name"])
    plane.settle()
    assert plane.get("pods", first["metadata"]["name"]) is None and len(plane.pods(app="web")) == 2
    kept = plane.get("pods", second["metadata"]["name"])
    plane.registry.update("pods", {**kept, "metadata": {**kept["metadata"], "labels": {"app": "debug"}}}, "default")
    plane.settle()
    assert len(plane.pods(app="web")) == 2
    assert not plane.get("pods", second["metadata"]["name"])["metadata"].get("ownerReferences")


def test_a_matching_orphan_is_adopted(plane):
    plane.deploy(replicas=1)
    plane.settle()
    (pod,) = plane.pods()
    orphan = {
        "metadata": {"name": "orphan", "labels": pod["metadata"]["labels"]},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    }
    plane.registry.create("pods", orphan, "default")
    plane.settle()
    assert len(plane.pods()) == 1, "one of the two had to go"


def test_deleting_a_deployment_takes_everything_along_unless_orphaned(plane):
    plane.deploy("a"), plane.deploy("b")
    plane.registry.create("services", service("a"), "default")
    plane.settle()
    plane.registry.delete("deployments", "default", "a")
    plane.registry.delete("deployments", "default", "b", propagation="Orphan")
    plane.registry.delete("services", "default", "a")
    plane.settle()
    assert plane.pods(app="a") == [] and len(plane.pods(app="b")) == 3
    assert len(plane.store.list("replicasets")[0]) == 1 and plane.store.list("endpointslices")[0] == []


def test_foreground_deletion_keeps_the_owner_until_the_last_pod_is_gone(plane):
    plane.deploy()
    plane.settle()
    for node in plane.nodes.values():
        node.stops = False
    plane.registry.delete("deployments", "default", "web", propagation="Foreground")
    plane.settle()
    assert plane.get("deployments", "web")["metadata"]["deletionTimestamp"]
    for node in plane.nodes.values():
        node.stops = True
    plane.settle()
    assert plane.get("deployments", "web") is None and plane.pods() == []


def test_a_deleted_namespace_empties_itself_and_goes(plane):
    plane.registry.create("namespaces", {"metadata": {"name": "shop"}})
    plane.deploy("web", namespace="shop")
    plane.registry.create("services", service("web", "shop"), "shop")
    plane.settle()
    assert len(plane.pods("shop")) == 3
    plane.registry.delete("namespaces", "", "shop")
    plane.settle()
    assert plane.store.get("namespaces", "", "shop") is None
    with pytest.raises(ApiError, match="not found"):
        plane.deploy("web", namespace="shop")


def test_min_ready_seconds_make_a_pod_available_later(plane):
    plane.deploy(replicas=2, minReadySeconds=10)
    plane.settle()
    assert plane.get("deployments", "web")["status"].get("availableReplicas") is None
    plane.advance(12)
    assert plane.get("deployments", "web")["status"]["availableReplicas"] == 2


def test_a_restarted_controller_finds_everything_as_it_was(plane):
    plane.deploy(replicas=4)
    plane.registry.create("services", service(), "default")
    plane.settle()
    before = {pod["metadata"]["uid"] for pod in plane.pods()}
    plane.registry.scale("deployments", "default", "web", 5)  # and it dies before it does anything about it
    again = Plane(store=plane.store, clock=plane.clock)
    again.settle()
    assert before < {pod["metadata"]["uid"] for pod in again.pods()} and len(again.pods()) == 5
    assert len(again.endpoints("web")) == 5
