"""Many objects at once: all or none, every fault told, and kubectl's own annotation."""

from __future__ import annotations

from typing import Any

import pytest

from emu.api.handler import Api
from emu.api.request import Request, Response
from tests.kit.apiserver import registry

URL = "/apis/podwire.dev/v1alpha1/apply"
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}},
    },
}


@pytest.fixture
def api() -> Any:
    made = Api(registry())
    yield made
    made.store.check()


def apply(api: Api, *objects: Any, **more: Any) -> Response:
    reply = api.handle(Request.of("POST", URL, {"objects": list(objects), **more}))
    assert isinstance(reply, Response)
    return reply


def actions(response: Response) -> list[str]:
    assert response.status == 200, response.body
    return [f"{r['resource']}/{r['name']} {r['action']}" for r in response.body["results"]]


def test_created_then_unchanged_then_configured(api: Api) -> None:
    assert actions(apply(api, SERVICE, DEPLOYMENT)) == ["services/web created", "deployments.apps/web created"]
    assert actions(apply(api, SERVICE, DEPLOYMENT)) == ["services/web unchanged", "deployments.apps/web unchanged"]
    changed = {**SERVICE, "spec": {**SERVICE["spec"], "ports": [{"port": 80, "targetPort": 8080}]}}  # type: ignore[dict-item]
    assert actions(apply(api, changed, DEPLOYMENT)) == ["services/web configured", "deployments.apps/web unchanged"]


def test_what_others_set_stays_and_what_is_no_longer_said_goes(api: Api) -> None:
    labelled = {**SERVICE, "metadata": {"name": "web", "labels": {"a": "b"}}}
    apply(api, labelled, DEPLOYMENT)
    api.registry.scale("deployments", "default", "web", 5)
    apply(api, SERVICE, DEPLOYMENT)

    service, deployment = api.store.get("services", "default", "web"), api.store.get("deployments", "default", "web")
    assert service is not None and deployment is not None
    assert "labels" not in service["metadata"] or not service["metadata"]["labels"]
    assert deployment["spec"]["replicas"] == 5


def test_one_wrong_object_refuses_all_and_every_fault_is_told(api: Api) -> None:
    before = api.store.revision
    bad_port = {**SERVICE, "metadata": {"name": "bad"}, "spec": {"ports": [{"port": 0, "targetPort": 80}]}}
    unknown = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replica": 3}}  # type: ignore[dict-item]
    no_kind = {"apiVersion": "v1", "kind": "Servce", "metadata": {"name": "x"}}

    response = apply(api, SERVICE, bad_port, unknown, no_kind)

    assert api.store.revision == before
    causes = response.body["details"]["causes"]
    assert [(c["index"], c["object"], c["field"]) for c in causes] == [
        ("1", "Service bad", "spec.ports[0].port"), ("2", "Deployment web", "spec.replica"), ("3", "Servce x", ""),
    ]  # fmt: skip
    assert response.body["message"].startswith("nothing was applied (4 objects): Service bad: spec.ports[0].port: Invalid value: 0")
    assert "did you mean Service?" in response.body["message"]


def test_two_objects_that_clash_with_each_other_refuse_both(api: Api) -> None:
    spec = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}
    one, two = ({**SERVICE, "metadata": {"name": name}, "spec": spec} for name in ("one", "two"))

    response = apply(api, one, two)

    assert response.status == 422
    assert "Service two: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated" in response.body["message"]
    assert api.store.get("services", "default", "one") is None


def test_a_namespace_may_follow_its_content(api: Api) -> None:
    inside = {**SERVICE, "metadata": {"name": "web", "namespace": "shop"}}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}

    assert actions(apply(api, inside, DEPLOYMENT, namespace, namespace=("shop"))) == [
        "services/web created", "deployments.apps/web created", "namespaces/shop created",
    ]  # fmt: skip
    assert api.store.get("deployments", "shop", "web") is not None


def test_a_service_that_selects_nothing_is_accepted_with_a_warning(api: Api) -> None:
    alone = apply(api, SERVICE).body["results"][0]["warnings"]
    together = apply(api, SERVICE, DEPLOYMENT).body["results"][0]["warnings"]

    assert (alone, together) == (["selector app=web matches no Pod and no workload's template"], [])


@pytest.mark.parametrize(("objects", "field"), [([1], ""), ([{}], ""), ([{"apiVersion": "v1", "kind": "Pod"}], "metadata.name")])
def test_what_is_no_object_is_named_by_its_index(api: Api, objects: list[Any], field: str) -> None:
    response = apply(api, *objects)

    assert response.status >= 400
    assert (response.body["details"]["causes"][0]["index"], response.body["details"]["causes"][0]["field"]) == ("0", field)
