"""Faults on links in the API: made, listed in order, ended by name, by link or all; refused with the path; kept in the store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from emu.api.handler import Api
from emu.api.request import Deferred, Request, Response
from tests.kit.apiserver import FakeCalls, registry

URL = "/apis/podwire.dev/v1alpha1/faults"


@pytest.fixture
def api() -> Any:
    made = Api(registry())
    for name, zone in (("node-1", "a"), ("node-2", "b"), ("node-3", "b")):
        made.registry.create("nodes", {"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
    yield made
    made.store.check()


def ask(api: Api, method: str, path: str = "", body: object = None) -> Response:
    reply = api.handle(Request.of(method, URL + path, body))
    if isinstance(reply, Deferred):
        return asyncio.run(reply.run(FakeCalls()))
    assert isinstance(reply, Response)
    return reply


def listed(api: Api) -> list[Any]:
    return [item["spec"] for item in ask(api, "GET").body["items"]]


def made(api: Api, **spec: Any) -> str:
    response = ask(api, "POST", "", spec)
    assert response.status == 201, response.body
    return str(response.body["metadata"]["name"])


def test_faults_are_kept_in_the_order_in_which_they_were_made(api: Api) -> None:
    specs: list[dict[str, Any]] = [
        {"link": "node-1->node-2", "delay": "20ms", "jitter": "5ms"},
        {"partition": [["node-1"], ["zone/b"]]},
        {"link": "*->*", "loss": "2%"},
    ]
    names = [made(api, **spec) for spec in specs]
    assert len(set(names)) == 3
    assert listed(api) == specs
    assert ask(api, "GET").body["items"][0]["status"] == {}


def test_a_fault_ends_by_its_name_and_the_name_is_not_used_again(api: Api) -> None:
    name = made(api, link="node-1->node-2", cut=True)
    assert [item["metadata"]["name"] for item in ask(api, "DELETE", f"/{name}").body["items"]] == [name]
    assert listed(api) == []
    assert ask(api, "DELETE", f"/{name}").status == 404
    assert made(api, link="node-1->node-2", cut=True) != name


def test_the_faults_of_a_link_end_together_and_all_at_once(api: Api) -> None:
    for link in ("node-1->node-2", "node-2->node-1", "node-1<->node-2", "node-1->node-3"):
        made(api, link=link, loss=1)
    assert len(ask(api, "DELETE", "?link=node-1->node-2").body["items"]) == 1
    assert len(ask(api, "DELETE", "?link=node-2<->node-1").body["items"]) == 2
    assert listed(api) == [{"link": "node-1->node-3", "loss": 1}]
    made(api, partition=[["node-1"], ["*"]])
    assert len(ask(api, "DELETE").body["items"]) == 2
    assert ask(api, "DELETE").body["items"] == []


def test_a_fault_takes_the_place_of_what_it_leaves_nothing_of(api: Api) -> None:
    made(api, link="node-1->node-2", loss=1)
    made(api, link="node-1->node-2", loss=2, delay="1ms")
    made(api, link="node-1->node-2", loss=3)
    assert listed(api) == [{"link": "node-1->node-2", "loss": 2, "delay": "1ms"}, {"link": "node-1->node-2", "loss": 3}]


@pytest.mark.parametrize(
    ("body", "message", "field"),
    [
        ({"link": "node-1->node-2", "los": 1}, "los: unknown key; did you mean loss?", "los"),
        ({"link": "node-1->node-9", "loss": 1}, "link: there is no node 'node-9'; did you mean node-", "link"),
        ({"partition": [["node-1"], ["zone/q"]]}, "partition[1][0]: no node has the zone 'q'; did you mean zone/", "partition[1][0]"),
        ([], "a fault is a mapping with link or partition, not []", ""),
    ],
)
def test_a_wrong_fault_is_refused_with_its_path(api: Api, body: Any, message: str, field: str) -> None:
    response = ask(api, "POST", "", body)
    assert response.status == 422
    assert response.body["message"].startswith(f"Fault is invalid: {message}")
    assert response.body["details"]["causes"][0]["field"] == field
    assert listed(api) == []


def test_other_methods_and_links_that_are_none_are_refused(api: Api) -> None:
    assert ask(api, "PUT").status == 405
    assert ask(api, "DELETE", "?link=node-1").status == 422
