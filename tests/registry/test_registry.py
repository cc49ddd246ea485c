"""What happens to any object: decoding, names, metadata, updates, status, deletion, namespaces."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from emu.errors import ApiError
from emu.registry import emulation
from emu.registry.registry import IGNORE, WARN, Registry
from tests.kit.apiserver import registry

CONTAINER = {"name": "c", "image": "x"}


def pod(name: str = "p", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [CONTAINER], **spec}}


def deployment(name: str = "web", **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [dict(CONTAINER)]}}
    return {"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **spec}}


TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [CONTAINER]}}


def policy(*peers: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": {"podSelector": {}, "ingress": [{"from": list(peers)}]}}


@pytest.fixture
def cluster() -> Any:
    made = registry()
    yield made
    made.store.check()


def refused(act: Any, code: int = 422) -> str:
    with pytest.raises(ApiError) as caught:
        act()
    assert caught.value.code == code, caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("resource", "obj", "code", "message"),
    [
        ("pods", pod(containers=[]), 422, 'Pod "p" is invalid: spec.containers: Required value'),
        ("pods", pod(containers=[CONTAINER, CONTAINER]), 422, 'spec.containers[1].name: Duplicate value: "c"'),
        ("pods", pod(containers=[{"name": "c"}]), 422, "spec.containers[0].image: Required value"),
        (
            "pods",
            pod(containers=[{**CONTAINER, "ports": [{"containerPort": 0}]}]),
            422,
            "spec.containers[0].ports[0].containerPort: Invalid value: 0",
        ),
        (
            "pods",
            pod(containers=[{**CONTAINER, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]),
            422,
            'volumeMounts[0].name: Not found: "v"',
        ),
        ("pods", pod(containers=[{**CONTAINER, "readinessProbe": {}}]), 422, "readinessProbe: Required value: must specify a handler type"),
        (
            "pods",
            pod(restartPolicy="Sometimes"),
            422,
            'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"',
        ),
        ("pods", pod("Bad_Name"), 422, 'metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of'),
        (
            "pods",
            {"metadata": {}, "spec": {"containers": [CONTAINER]}},
            422,
            "metadata.name: Required value: name or generateName is required",
        ),
        (
            "pods",
            pod(unknown=1),
            400,
            'Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.unknown"',
        ),
        ("pods", pod(containers="c"), 400, 'spec.containers: Invalid value: "c": must be an array, not a string'),
        ("pods", {**pod(), "metadata": {"name": "p", "namespace": "none"}}, 404, 'namespaces "none" not found'),
        (
            "pods",
            {**pod(), "metadata": {"name": "p", "labels": {"a b": "c"}}},
            422,
            'metadata.labels: Invalid value: "a b": name part must consist of',
        ),
        ("pods", {**pod(), "metadata": {"name": "p", "labels": {"a": "-"}}}, 422, "a valid label must be an empty string or"),
        ("pods", {**pod(), "apiVersion": "v2"}, 400, "does not match the expected v1, Kind=Pod"),
        ("deployments", deployment(selector={"matchLabels": {"a": "b"}}), 422, "`selector` does not match template `labels`"),
        ("deployments", deployment(selector={}), 422, "empty selector is invalid"),
        ("deployments", deployment(replicas=-1), 422, "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        ("deployments", deployment(strategy={"type": "Recreate", "rollingUpdate": {}}) | {}, 0, ""),
        (
            "deployments",
            deployment(strategy={"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
            422,
            "may not be 0 when `maxSurge` is 0",
        ),
        ("replicasets", {"metadata": {"name": "r"}, "spec": {}}, 422, "spec.selector: Required value"),
        (
            "statefulsets",
            deployment(serviceName="x", selector={"matchLabels": {"a": "b"}}),
            422,
            "`selector` does not match template `labels`",
        ),
        ("configmaps", {"metadata": {"name": "c"}, "data": {"a/b": "x"}}, 422, "a valid config key must consist of"),
        (
            "endpointslices",
            {"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": [{"addresses": ["x"]}]},
            422,
            "must be a valid IP address",
        ),
        ("nodes", {"metadata": {"name": "n"}, "spec": {"podCIDR": "10.0.0.0/aa"}}, 422, 'spec.podCIDR: Invalid value: "10.0.0.0/aa"'),
        ("nodes", {"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.0.0.0"]}}, 422, "spec.podCIDRs[0]: Invalid value"),
        ("servicecidrs", {"metadata": {"name": "s"}, "spec": {"cidrs": ["10.0.0.0/99"]}}, 422, "spec.cidrs[0]: Invalid value"),
        ("networkpolicies", policy({"ipBlock": {"cidr": "10.0.0.300/24"}}), 422, "spec.ingress[0].from[0].ipBlock.cidr: Invalid value"),
        (
            "networkpolicies",
            policy({"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.1.0.0/25"]}}),
            422,
            'spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "10.1.0.0/25": must be a strict subset of `cidr`',
        ),
        ("networkpolicies", policy({}), 422, "spec.ingress[0].from[0]: Required value: must specify a peer"),
        (
            "networkpolicies",
            policy({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}),
            422,
            "may not specify both ipBlock and another",
        ),
        ("networkpolicies", policy({"podSelector": {}}, {"ipBlock": {"cidr": "::/0", "except": ["2001:db8::/64"]}}), 0, ""),
        (
            "jobs",
            {"metadata": {"name": "j"}, "spec": {"selector": {"matchLabels": {"a": "c"}}, "template": TEMPLATE}},
            422,
            "`selector` does not match template `labels`",
        ),
        ("replicationcontrollers", {"metadata": {"name": "r"}, "spec": {"selector": {"a": "c"}, "template": TEMPLATE}}, 422, "not match"),
        ("replicationcontrollers", {"metadata": {"name": "r"}, "spec": {"selector": {"a": "b"}, "template": TEMPLATE}}, 0, ""),
        *(
            ("pods", {**pod(), "metadata": {"name": "p", "annotations": {key: value}}}, 422, f"metadata.annotations[{key}]: Invalid value")
            for key, value in (
                ("podwire.dev/address", "10.244.1.900"),
                ("podwire.dev/boot-seconds", "soon"),
                ("podwire.dev/program", "program.py"),
                ("podwire.dev/behaviour", "refuse,explode"),
            )
        ),
        ("tokenreviews", {"metadata": {"name": "t"}}, 405, "is a request, not an object"),
        ("gadgets", {}, 404, "could not find the requested resource"),
    ],
)
def test_refusals(cluster: Registry, resource: str, obj: dict[str, Any], code: int, message: str) -> None:
    if not code:
        cluster.create(resource, obj)
        return
    before = cluster.store.revision

    assert message in refused(lambda: cluster.create(resource, obj), code)
    assert cluster.store.revision == before


def test_several_faults_are_told_together(cluster: Registry) -> None:
    message = refused(lambda: cluster.create("pods", pod("P", containers=[])))

    assert message.startswith('Pod "P" is invalid: [metadata.name: ')
    assert "spec.containers: Required value]" in message


def test_weaker_field_validation_drops_unknown_fields(cluster: Registry) -> None:
    made = cluster.create("pods", pod("a", spare=1, containers=[{**CONTAINER, "imgae": "x"}]), field_validation=WARN)

    assert made.warnings == ['unknown field "spec.containers[0].imgae" (did you mean "image"?)', 'unknown field "spec.spare"']
    assert "spare" not in made.object["spec"]
    assert cluster.create("pods", pod("b", spare=1), field_validation=IGNORE).warnings == []


def test_a_new_pod_reads_as_kubectl_shows_it(cluster: Registry) -> None:
    made = cluster.create("pods", pod(containers=[{"name": "c", "image": "nginx:1.27", "ports": [{"containerPort": 80}]}])).object

    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert {k: made["metadata"][k] for k in ("namespace", "creationTimestamp", "generation")} == {
        "namespace": "default", "creationTimestamp": "2026-01-02T03:04:05Z", "generation": 1,
    }  # fmt: skip
    spec = made["spec"]
    assert (spec["restartPolicy"], spec["dnsPolicy"], spec["terminationGracePeriodSeconds"]) == ("Always", "ClusterFirst", 30)
    assert spec["containers"][0]["ports"] == [{"containerPort": 80, "protocol": "TCP"}]
    assert spec["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    assert [(t["key"], t["tolerationSeconds"]) for t in spec["tolerations"]] == [
        ("node.kubernetes.io/not-ready", 300), ("node.kubernetes.io/unreachable", 300),
    ]  # fmt: skip


def test_a_new_deployment_reads_as_kubectl_shows_it(cluster: Registry) -> None:
    spec = cluster.create("deployments", deployment()).object["spec"]

    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}}


def test_generated_names_differ_and_are_valid(cluster: Registry) -> None:
    made = {
        cluster.create("pods", {"metadata": {"generateName": "p-"}, "spec": {"containers": [CONTAINER]}}).object["metadata"]["name"]
        for _ in range(50)
    }

    assert len(made) == 50
    assert all(name.startswith("p-") and len(name) == 7 for name in made)


def test_the_request_is_not_changed_and_what_is_stored_is_not_shared(cluster: Registry) -> None:
    given = pod()
    before = copy.deepcopy(given)
    cluster.create("pods", given)
    given["spec"]["containers"].append("x")

    assert before == pod()
    cluster.store.check()


def test_a_spec_change_counts_a_generation_and_a_label_does_not(cluster: Registry) -> None:
    made = cluster.create("deployments", deployment()).object
    labelled = cluster.update("deployments", {**made, "metadata": {**made["metadata"], "labels": {"a": "b"}}}).object
    scaled = cluster.scale("deployments", "default", "web", 3)

    assert [o["metadata"]["generation"] for o in (made, labelled, scaled)] == [1, 1, 2]
    assert scaled["spec"]["replicas"] == 3


def test_status_has_its_own_way_in(cluster: Registry) -> None:
    made = cluster.create("deployments", {**deployment(), "status": {"replicas": 9}}).object
    assert made["status"] == {}

    with_status = cluster.update_status("deployments", {**made, "spec": {**made["spec"], "replicas": 7}, "status": {"replicas": 2}})
    assert (with_status["status"], with_status["spec"]["replicas"]) == ({"replicas": 2}, 1)
    updated = cluster.update("deployments", {**made, "metadata": {"name": "web"}, "status": {"replicas": 5}}).object
    assert updated["status"] == {"replicas": 2}
    assert "the object has been modified" in refused(lambda: cluster.update_status("deployments", made), 409)


@pytest.mark.parametrize(
    ("resource", "obj", "change", "message"),
    [
        (
            "pods",
            pod(),
            lambda o: o["spec"].update(hostname="h"),
            "pod updates may not change fields other than `spec.containers[*].image`",
        ),
        ("pods", pod(nodeName="a"), lambda o: o["spec"].update(nodeName="b"), "(changed: nodeName)"),
        ("deployments", deployment(), lambda o: o["spec"]["selector"].update(matchLabels={"app": "web", "x": "y"}), "field is immutable"),
        (
            "configmaps",
            {"metadata": {"name": "c"}, "immutable": True, "data": {"a": "b"}},
            lambda o: o.update(data={}),
            "field is immutable when `immutable` is set",
        ),
        (
            "endpointslices",
            {"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": []},
            lambda o: o.update(addressType="IPv6"),
            "field is immutable",
        ),
    ],
)
def test_what_may_not_change(cluster: Registry, resource: str, obj: dict[str, Any], change: Any, message: str) -> None:
    made = copy.deepcopy(cluster.create(resource, obj).object)
    if resource == "deployments":
        made["spec"]["template"]["metadata"]["labels"]["x"] = "y"
    change(made)

    assert message in refused(lambda: cluster.update(resource, made))


def test_a_pods_image_may_change_and_it_is_bound_once(cluster: Registry) -> None:
    made = copy.deepcopy(cluster.create("pods", pod()).object)
    made["spec"]["containers"][0]["image"] = "y"
    cluster.update("pods", made)
    bound = cluster.bind("default", "p", "node-1")

    assert (bound["spec"]["nodeName"], bound["spec"]["containers"][0]["image"]) == ("node-1", "y")
    assert "already assigned" in refused(lambda: cluster.bind("default", "p", "node-2"), 409)


def test_an_unbound_pod_goes_at_once_and_a_bound_one_terminates_first(cluster: Registry) -> None:
    cluster.create("pods", pod("free"))
    cluster.create("pods", pod("bound", nodeName="node-1"))
    cluster.delete("pods", "default", "free")
    going = cluster.delete("pods", "default", "bound")

    assert cluster.store.get("pods", "default", "free") is None
    assert (going["metadata"]["deletionTimestamp"], going["metadata"]["deletionGracePeriodSeconds"]) == ("2026-01-02T03:04:35Z", 30)
    revision = cluster.store.revision
    cluster.delete("pods", "default", "bound")
    assert cluster.store.revision == revision, "asking again changes nothing"
    cluster.delete("pods", "default", "bound", grace=0)
    assert cluster.store.get("pods", "default", "bound") is None


def test_preconditions_guard_a_deletion(cluster: Registry) -> None:
    cluster.create("pods", pod())

    assert "Precondition failed: UID" in refused(lambda: cluster.delete("pods", "default", "p", preconditions={"uid": "other"}), 409)


def test_finalizers_hold_a_deletion_until_the_last_is_gone(cluster: Registry) -> None:
    cluster.create("configmaps", {"metadata": {"name": "c", "finalizers": ["example.com/hold"]}})
    held = cluster.delete("configmaps", "default", "c")
    assert "deletionTimestamp" in held["metadata"]

    cluster.update("configmaps", {**held, "metadata": {**held["metadata"], "finalizers": []}})
    assert cluster.store.get("configmaps", "default", "c") is None


def test_propagation_orphan_and_foreground(cluster: Registry) -> None:
    owner = cluster.create("replicasets", deployment("rs")).object
    reference = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": owner["metadata"]["uid"]}
    cluster.create("pods", {**pod(), "metadata": {"name": "p", "ownerReferences": [reference]}})

    waiting = cluster.delete("replicasets", "default", "rs", propagation="Foreground")
    assert waiting["metadata"]["finalizers"] == ["foregroundDeletion"]
    cluster.delete("replicasets", "default", "rs", propagation="Orphan")
    orphan = cluster.store.get("pods", "default", "p")
    assert orphan is not None
    assert "ownerReferences" not in orphan["metadata"]


def test_a_namespace_goes_with_its_content_and_takes_nothing_new(cluster: Registry) -> None:
    cluster.create("namespaces", {"metadata": {"name": "shop"}})
    cluster.create("configmaps", {"metadata": {"name": "c"}}, "shop")
    cluster.create("pods", pod(nodeName="node-1"), "shop")
    cluster.delete("namespaces", "", "shop")

    assert cluster.store.list("configmaps", "shop")[0] == []
    message = refused(lambda: cluster.create("configmaps", {"metadata": {"name": "d"}}, "shop"), 403)
    assert "unable to create new content in namespace shop because it is being terminated" in message
    cluster.delete("pods", "shop", "p", grace=0)
    assert cluster.store.get("namespaces", "", "shop") is None


def test_the_first_namespaces_stay(cluster: Registry) -> None:
    assert [o["metadata"]["name"] for o in cluster.store.list("namespaces")[0]] == [
        "default",
        "kube-node-lease",
        "kube-public",
        "kube-system",
    ]
    assert "may not be deleted" in refused(lambda: cluster.delete("namespaces", "", "kube-system"), 403)


def test_secrets_write_only_field_becomes_data(cluster: Registry) -> None:
    made = cluster.create("secrets", {"metadata": {"name": "s"}, "stringData": {"a": "b"}}).object

    assert (made["data"], made["type"]) == ({"a": "Yg=="}, "Opaque")
    assert "stringData" not in made


def test_what_has_no_effect_is_told_once_and_listed_once(cluster: Registry) -> None:
    probe = {"httpGet": {"path": "/", "port": 80}}
    made = cluster.create(
        "pods", pod("a", containers=[{**CONTAINER, "livenessProbe": probe}, {"name": "d", "image": "x", "livenessProbe": probe}])
    )
    cluster.create("pods", pod("b", containers=[{**CONTAINER, "livenessProbe": probe}]))
    ingress = cluster.create(
        "ingresses", {"metadata": {"name": "i"}, "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}}
    )

    assert made.warnings == ["spec.containers[*].livenessProbe is stored but not emulated"]
    assert ingress.warnings == ["kind Ingress is stored but not emulated"]
    assert emulation.summary(cluster.store) == [
        ("Ingress", "", 1, "default/i"),
        ("Pod", "spec.containers[*].livenessProbe", 2, "default/a"),
    ]


def test_a_host_port_has_no_effect_unless_the_pod_is_on_the_node_s_network(cluster: Registry) -> None:
    port = {"ports": [{"containerPort": 80, "hostPort": 80}]}
    assert cluster.create("pods", pod("a", containers=[{**CONTAINER, **port}])).warnings
    assert cluster.create("pods", pod("b", containers=[{**CONTAINER, **port}], hostNetwork=True)).warnings == []


def test_two_registries_of_one_seed_make_the_same_cluster() -> None:
    first, second = registry(seed=7), registry(seed=7)
    for cluster in (first, second):
        cluster.create("pods", {"metadata": {"generateName": "p-"}, "spec": {"containers": [CONTAINER]}})

    assert first.store.list("pods") == second.store.list("pods")
