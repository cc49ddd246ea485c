"""The official Python client against our API over real HTTP: what it sends we serve, and what we answer it can read."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from tests.kit.apiserver import ApiServer

TEMPLATE = client.V1PodTemplateSpec(
    metadata=client.V1ObjectMeta(labels={"app": "web"}), spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="x")])
)


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer.running() as running:
        yield running


@pytest.fixture
def api(server: ApiServer) -> Iterator[client.ApiClient]:
    with client.ApiClient(client.Configuration(host=server.url)) as made:
        yield made
        made.rest_client.pool_manager.clear()


def deployment(name: str) -> client.V1Deployment:
    spec = client.V1DeploymentSpec(selector=client.V1LabelSelector(match_labels={"app": "web"}), template=TEMPLATE)
    return client.V1Deployment(metadata=client.V1ObjectMeta(name=name), spec=spec)


def pod(name: str, node: str | None = None) -> client.V1Pod:
    spec = client.V1PodSpec(containers=[client.V1Container(name="c", image="x")], node_name=node)
    return client.V1Pod(metadata=client.V1ObjectMeta(name=name, labels={"app": name}), spec=spec)


def test_a_deployment_lives_a_whole_life(api: client.ApiClient) -> None:
    apps = client.AppsV1Api(api)
    made = apps.create_namespaced_deployment("default", deployment("life"))
    assert (made.spec.replicas, made.spec.strategy.rolling_update.max_surge) == (1, "25%")

    apps.patch_namespaced_deployment_scale("life", "default", {"spec": {"replicas": 3}})
    assert apps.read_namespaced_deployment_scale("life", "default").spec.replicas == 3
    patched = apps.patch_namespaced_deployment(
        "life", "default", {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "y"}]}}}}
    )
    assert patched.spec.template.spec.containers[0].image == "y"
    patched.spec.replicas = 2
    assert apps.replace_namespaced_deployment("life", "default", patched).metadata.generation == 4
    assert [d.metadata.name for d in apps.list_namespaced_deployment("default", label_selector="!x").items] == ["life"]
    apps.delete_namespaced_deployment("life", "default")
    with pytest.raises(ApiException) as caught:
        apps.read_namespaced_deployment("life", "default")
    assert caught.value.status == 404


def test_services_come_back_with_addresses_and_go_as_objects(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    spec = client.V1ServiceSpec(type="NodePort", selector={"app": "web"}, ports=[client.V1ServicePort(port=80)])
    made = core.create_namespaced_service("default", client.V1Service(metadata=client.V1ObjectMeta(name="web"), spec=spec))

    assert made.spec.cluster_ip.startswith("10.96.")
    assert 30000 <= made.spec.ports[0].node_port <= 32767
    assert core.delete_namespaced_service("web", "default").metadata.name == "web"


def test_a_refusal_carries_its_causes(api: client.ApiClient) -> None:
    wrong = deployment("wrong")
    wrong.spec.selector = client.V1LabelSelector(match_labels={"app": "other"})
    with pytest.raises(ApiException) as caught:
        client.AppsV1Api(api).create_namespaced_deployment("default", wrong)

    body = json.loads(caught.value.body)
    assert (caught.value.status, body["details"]["causes"][0]["field"]) == (422, "spec.template.metadata.labels")


def test_a_watch_sees_what_happens(api: client.ApiClient, server: ApiServer) -> None:
    core = client.CoreV1Api(api)
    since = core.list_namespaced_config_map("default").metadata.resource_version
    config = {"metadata": {"name": "seen"}}

    def act() -> None:
        server.run(lambda: server.registry.create("configmaps", config, "default"))
        server.run(lambda: server.registry.update("configmaps", {**config, "data": {"a": "b"}}, "default"))
        server.run(lambda: server.registry.delete("configmaps", "default", "seen"))

    threading.Timer(0.05, act).start()
    events: Any = watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version=since, timeout_seconds=1)
    assert [(e["type"], e["object"].metadata.name) for e in events] == [("ADDED", "seen"), ("MODIFIED", "seen"), ("DELETED", "seen")]


def test_bulk_deletion_and_paging(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    for number in range(5):
        core.create_namespaced_pod("default", pod(f"p{number}"))
    first = core.list_namespaced_pod("default", limit=3)
    rest = core.list_namespaced_pod("default", limit=3, _continue=first.metadata._continue)

    assert [p.metadata.name for p in (*first.items, *rest.items)] == [f"p{n}" for n in range(5)]
    core.delete_collection_namespaced_pod("default")
    assert core.list_namespaced_pod("default").items == []


def test_logs_and_exec_reach_the_node(api: client.ApiClient) -> None:
    core = client.CoreV1Api(api)
    core.create_namespaced_pod("default", pod("runs", node="node-1"))

    assert core.read_namespaced_pod_log("runs", "default") == "first line\nsecond line\n"
    for command, stdout, code in ((["echo", "a b"], "echo a b\n", 0), (["exit", "3"], "", 3)):
        session: Any = stream(core.connect_get_namespaced_pod_exec, "runs", "default", command=command, _preload_content=False)
        session.run_forever(timeout=5)
        assert (session.read_stdout(), session.returncode) == (stdout, code)
        session.sock.shutdown()  # the client leaves its socket open, even when closed
    core.delete_namespaced_pod("runs", "default", grace_period_seconds=0)


def ask(server: ApiServer, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/apis/podwire.dev/v1alpha1/{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as response:
        return json.load(response)


def test_the_podwire_group_answers_through_the_node_calls(server: ApiServer) -> None:
    server.run(lambda: server.registry.create("nodes", {"metadata": {"name": "node-1"}}))

    assert ask(server, "nodes/node-1/rules?format=nft") == {"node": "node-1", "method": "rules", "params": {"format": "nft"}}
    assert ask(server, "traces", {"from": "a"}) == {"outcome": "delivered", "asked": {"from": "a"}}
    assert ask(server, "nodes/node-1/fault", {"state": "killed"}) == {"ok": True}
    assert server.calls.faults == [("node-1", "killed")]
    assert ask(server, "status")["notEmulated"] == []
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(server, "nodes/node-9/routes")
    with caught.value as refusal:
        assert (refusal.code, json.load(refusal)["message"]) == (404, 'nodes "node-9" not found')
