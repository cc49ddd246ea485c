"""The API as a function: verbs, selectors, pages, dry runs, parts of objects, discovery."""

from __future__ import annotations

from typing import Any

import pytest

from emu.api.handler import Api
from emu.api.request import Exec, Logs, Request, Response
from tests.kit.apiserver import registry

PODS = "/api/v1/namespaces/default/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
TEMPLATE = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
DEPLOYMENT = {"metadata": {"name": "web"}, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": TEMPLATE}}


def pod(name: str, *, node: str = "", **labels: str) -> dict[str, Any]:
    spec = {"containers": [{"name": "c", "image": "x"}], **({"nodeName": node} if node else {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


class Client:
    """Asks an `Api` as a client would, and gives the answer's status and body."""

    def __init__(self) -> None:
        self.api = Api(registry())

    def reply(self, method: str, url: str, body: object = None, **headers: str) -> Any:
        return self.api.handle(Request.of(method, url, body, **headers))

    def __call__(self, method: str, url: str, body: object = None, **headers: str) -> tuple[int, Any]:
        reply = self.reply(method, url, body, **headers)
        assert isinstance(reply, Response)
        return reply.status, reply.body


@pytest.fixture
def ask() -> Any:
    client = Client()
    yield client
    client.api.store.check()


def test_an_object_is_created_read_replaced_and_deleted(ask: Client) -> None:
    assert ask("POST", PODS, pod("a"))[0] == 201
    status, made = ask("GET", f"{PODS}/a")
    assert (status, made["kind"], made["metadata"]["namespace"]) == (200, "Pod", "default")
    made = {**made, "metadata": {**made["metadata"], "labels": {"x": "y"}}}
    assert ask("PUT", f"{PODS}/a", made)[1]["metadata"]["labels"] == {"x": "y"}
    assert ask("PUT", f"{PODS}/a", made)[0] == 409
    assert ask("DELETE", f"{PODS}/a")[0] == 200
    status, body = ask("GET", f"{PODS}/a")
    assert (status, body["kind"], body["reason"], body["message"]) == (404, "Status", "NotFound", 'pods "a" not found')
    assert body["details"] == {"name": "a", "kind": "pods"}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", ["a", "b", "c"]),
        ("?labelSelector=app%3Dweb", ["a", "b"]),
        ("?labelSelector=app+in+(web,api),!old", ["a", "c"]),
        ("?fieldSelector=spec.nodeName%3Dnode-1", ["a"]),
        ("?fieldSelector=metadata.name!%3Da", ["b", "c"]),
        ("?fieldSelector=status.phase%3DPending&labelSelector=app%3Dapi", ["c"]),
    ],
)
def test_selectors_choose(ask: Client, query: str, names: list[str]) -> None:
    for made in (pod("a", node="node-1", app="web"), pod("b", app="web", old="y"), pod("c", app="api")):
        ask("POST", PODS, made)

    status, body = ask("GET", PODS + query)

    assert (status, body["kind"], [o["metadata"]["name"] for o in body["items"]]) == (200, "PodList", names)
    assert body["metadata"]["resourceVersion"] == str(ask.api.store.revision)


@pytest.mark.parametrize(
    ("method", "url", "body", "status", "reason"),
    [
        ("GET", f"{PODS}?fieldSelector=spec.x%3Dy", None, 400, "BadRequest"),
        ("GET", f"{PODS}?labelSelector=a+b", None, 400, "BadRequest"),
        ("GET", f"{PODS}?limit=x", None, 400, "BadRequest"),
        ("GET", f"{PODS}?continue=x", None, 400, "BadRequest"),
        ("GET", f"{PODS}?resourceVersion=99999", None, 504, "Timeout"),
        ("GET", "/api/v1/gadgets", None, 404, "NotFound"),
        ("GET", "/apis/nowhere/v1/pods", None, 404, "NotFound"),
        ("GET", "/api/v1/pods/a", None, 404, "NotFound"),
        ("GET", "/api/v1/namespaces/x/nodes", None, 404, "NotFound"),
        ("GET", f"{PODS}/a/nothing", None, 404, "NotFound"),
        ("POST", PODS, b"{", 400, "BadRequest"),
        ("POST", PODS, b"[]", 400, "BadRequest"),
        ("POST", PODS, b'{"kind": "Pod", "kind": "Pod"}', 400, "BadRequest"),
        ("POST", f"{PODS}?dryRun=Some", pod("a"), 422, "Invalid"),
        ("POST", f"{PODS}?fieldValidation=Some", pod("a"), 400, "BadRequest"),
        ("POST", f"{PODS}/a", pod("a"), 405, "MethodNotAllowed"),
        ("PUT", f"{PODS}/a", pod("b"), 400, "BadRequest"),
        ("PUT", "/api/v1", None, 405, "MethodNotAllowed"),
        ("DELETE", "/apis/apps", None, 405, "MethodNotAllowed"),
        ("POST", "/version", None, 405, "MethodNotAllowed"),
        ("GET", f"{PODS}?watch=1&sendInitialEvents=true", None, 422, "Invalid"),
        ("DELETE", f"{PODS}/a?propagationPolicy=Sideways", None, 422, "Invalid"),
    ],
)
def test_refusals_are_status_objects(ask: Client, method: str, url: str, body: object, status: int, reason: str) -> None:
    code, answer = ask(method, url, body)

    assert (code, answer["kind"], answer["status"], answer["reason"], answer["code"]) == (status, "Status", "Failure", reason, status)


def test_protobuf_is_refused_with_a_way_out(ask: Client) -> None:
    code, answer = ask("POST", PODS, b"k8s\0", content_type="application/vnd.kubernetes.protobuf")

    assert code == 415
    assert "--dry-run=client -o json | kubectl create -f -" in answer["message"]


def test_yaml_bodies_are_read(ask: Client) -> None:
    text = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n"

    assert ask("POST", "/api/v1/namespaces/default/configmaps", text, content_type="application/yaml")[0] == 201
    assert ask("POST", "/api/v1/namespaces/default/configmaps", b"a: [", content_type="application/yaml")[0] == 400


def test_pages_add_up_to_the_list(ask: Client) -> None:
    names = [f"p{n}" for n in range(7)]
    for name in names:
        ask("POST", PODS, pod(name))

    seen, token = [], ""
    for expected in (3, 3, 1):
        _, page = ask("GET", f"{PODS}?limit=3&continue={token}")
        assert len(page["items"]) == expected
        seen += [o["metadata"]["name"] for o in page["items"]]
        token = page["metadata"].get("continue", "")
    assert (seen, token) == (names, "")


def test_a_dry_run_answers_and_keeps_nothing(ask: Client) -> None:
    before = ask.api.store.revision
    service = {"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}}
    url = "/api/v1/namespaces/default/services"

    status, made = ask("POST", f"{url}?dryRun=All", service)

    assert (status, made["spec"]["ports"][0]["nodePort"]) == (201, 30001)
    assert ask.api.store.revision == before
    assert ask("POST", url, service)[0] == 201


def test_unknown_fields_warn_by_default_and_fail_when_strict(ask: Client) -> None:
    odd = pod("a")
    odd["spec"]["nodeNam"] = "x"

    status, body = ask("POST", f"{PODS}?fieldValidation=Strict", odd)
    assert (status, body["details"]["causes"][0]["field"]) == (400, "spec.nodeNam")
    reply = ask.reply("POST", PODS, odd)
    assert (reply.status, reply.headers()) == (
        201,
        [("Warning", '299 - "unknown field \\"spec.nodeNam\\" (did you mean \\"nodeName\\"?)"')],
    )


@pytest.mark.parametrize(
    ("media_type", "patch", "labels"),
    [
        ("application/merge-patch+json", {"metadata": {"labels": {"a": None, "b": "2"}}}, {"b": "2"}),
        ("application/strategic-merge-patch+json", {"metadata": {"labels": {"$patch": "replace", "c": "3"}}}, {"c": "3"}),
        ("application/json-patch+json", [{"op": "replace", "path": "/metadata/labels/a", "value": "9"}], {"a": "9"}),
    ],
)
def test_three_patch_types(ask: Client, media_type: str, patch: object, labels: dict[str, str]) -> None:
    ask("POST", PODS, pod("a", a="1"))

    assert ask("PATCH", f"{PODS}/a", patch, content_type=media_type)[1]["metadata"]["labels"] == labels


@pytest.mark.parametrize(
    ("media_type", "patch", "status"),
    [
        ("application/json-patch+json", [{"op": "test", "path": "/kind", "value": "x"}], 422),
        ("application/json-patch+json", [{"op": "remove", "path": "/nowhere"}], 422),
        ("application/apply-patch+yaml", {}, 415),
        ("application/merge-patch+json", [1], 400),
        ("application/merge-patch+json", {"metadata": {"name": "other"}}, 400),
    ],
)
def test_patches_that_do_not_fit(ask: Client, media_type: str, patch: object, status: int) -> None:
    ask("POST", PODS, pod("a"))

    assert ask("PATCH", f"{PODS}/a", patch, content_type=media_type)[0] == status


def test_scale_is_a_view_of_the_workload(ask: Client) -> None:
    ask("POST", DEPLOYMENTS, DEPLOYMENT)

    status, scale = ask("GET", f"{DEPLOYMENTS}/web/scale")
    assert (status, scale["kind"], scale["spec"], scale["status"]) == (
        200,
        "Scale",
        {"replicas": 1},
        {"replicas": 0, "selector": "app=web"},
    )
    merge = "application/merge-patch+json"
    assert ask("PATCH", f"{DEPLOYMENTS}/web/scale", {"spec": {"replicas": 4}}, content_type=merge)[1]["spec"] == {"replicas": 4}
    assert ask("PUT", f"{DEPLOYMENTS}/web/scale", scale)[0] == 409
    assert ask("PATCH", f"{DEPLOYMENTS}/web/scale", {"spec": {"replicas": "x"}}, content_type=merge)[0] == 400
    assert ask("GET", f"{DEPLOYMENTS}/web")[1]["spec"]["replicas"] == 4


def test_status_is_written_apart(ask: Client) -> None:
    ask("POST", DEPLOYMENTS, DEPLOYMENT)
    merge = "application/merge-patch+json"

    ask("PATCH", f"{DEPLOYMENTS}/web/status", {"status": {"replicas": 3}, "spec": {"replicas": 9}}, content_type=merge)

    made = ask("GET", f"{DEPLOYMENTS}/web")[1]
    assert (made["status"], made["spec"]["replicas"]) == ({"replicas": 3}, 1)


def test_a_binding_places_a_pod(ask: Client) -> None:
    ask("POST", PODS, pod("a"))

    assert ask("POST", f"{PODS}/a/binding", {"target": {"kind": "Node", "name": "node-2"}})[0] == 201
    assert ask("GET", f"{PODS}/a")[1]["spec"]["nodeName"] == "node-2"


def test_a_collection_is_deleted_by_selector(ask: Client) -> None:
    for name, app in (("a", "web"), ("b", "web"), ("c", "api")):
        ask("POST", PODS, pod(name, app=app))

    ask("DELETE", f"{PODS}?labelSelector=app%3Dweb")

    assert [o["metadata"]["name"] for o in ask("GET", PODS)[1]["items"]] == ["c"]


def test_deletes_answer_with_the_object_or_a_status_as_the_api_server_does(ask: Client) -> None:
    ask("POST", PODS, pod("a", node="node-1"))
    ask("POST", DEPLOYMENTS, DEPLOYMENT)

    assert ask("DELETE", f"{PODS}/a", {"gracePeriodSeconds": 5})[1]["metadata"]["deletionGracePeriodSeconds"] == 5
    gone = ask("DELETE", f"{DEPLOYMENTS}/web")[1]
    assert (gone["kind"], gone["status"], gone["details"]["kind"]) == ("Status", "Success", "deployments")


def test_logs_and_exec_name_the_node_and_the_container(ask: Client) -> None:
    ask("POST", PODS, pod("a", node="node-1"))

    logs, run = ask.reply("GET", f"{PODS}/a/log?tailLines=5"), ask.reply("GET", f"{PODS}/a/exec?command=ls&command=-l&container=c")

    assert isinstance(logs, Logs)
    assert (logs.node, logs.params["container"], logs.params["tail"], logs.params["follow"]) == ("node-1", "c", 5, False)
    assert isinstance(run, Exec)
    assert (run.node, run.params["command"]) == ("node-1", ["ls", "-l"])


@pytest.mark.parametrize(
    ("made", "url", "message"),
    [
        (pod("a"), "log", "pod a does not have a host assigned"),
        (pod("a", node="n"), "exec?command=ls&container=z", "container z is not valid for pod a"),
        (pod("a", node="n"), "exec", "you must specify at least one command"),
    ],
)
def test_logs_and_exec_of_what_is_not_there(ask: Client, made: dict[str, Any], url: str, message: str) -> None:
    ask("POST", PODS, made)
    status, body = ask("GET", f"{PODS}/a/{url}")

    assert status == 400
    assert message in body["message"]


def test_discovery_lists_every_resource_in_both_forms(ask: Client) -> None:
    aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    listed = {(r["name"], r["kind"]) for r in ask("GET", "/apis/apps/v1")[1]["resources"]}
    groups = ask("GET", "/apis", accept=aggregated)[1]["items"]
    apps = next(group for group in groups if group["metadata"]["name"] == "apps")["versions"][0]["resources"]

    assert {("deployments", "Deployment"), ("deployments/scale", "Scale"), ("deployments/status", "Deployment")} <= listed
    assert {r["resource"] for r in apps} == {name for name, _ in listed if "/" not in name}
    assert "podwire.dev" in {group["name"] for group in ask("GET", "/apis")[1]["groups"]}
    assert ask("GET", "/api")[1]["versions"] == ["v1"]
    assert ask("GET", "/version")[1]["gitVersion"] == "v1.35.2"
    assert ask("GET", "/readyz")[0] == 200
    assert ask("GET", "/apis/podwire.dev/v1alpha1")[1]["groupVersion"] == "podwire.dev/v1alpha1"
