"""Strategic merge and three-way merge on the shapes that kubectl really sends."""

from __future__ import annotations

from typing import Any

import pytest

from emu.api import patch
from emu.errors import ApiError
from emu.model import schema

STRATEGIC = "application/strategic-merge-patch+json"


def service(*ports: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": list(ports)}}


A, B = {"port": 80, "name": "a"}, {"port": 81, "name": "b"}


@pytest.mark.parametrize(
    ("ports", "wanted"),
    [
        ([{"port": 81, "targetPort": 9}], [A, {**B, "targetPort": 9}]),
        ([{"port": 82}], [A, B, {"port": 82}]),
        ([{"$patch": "delete", "port": 80}], [B]),
        ([{"$patch": "replace"}, {"port": 9}], [{"port": 9}]),
    ],
)
def test_lists_with_a_merge_key_merge_by_it(ports: list[Any], wanted: list[Any]) -> None:
    assert patch.apply(STRATEGIC, service(A, B), {"spec": {"ports": ports}})["spec"]["ports"] == wanted


def test_the_order_is_the_one_that_was_set() -> None:
    sent = {"spec": {"$setElementOrder/ports": [{"port": 82}, {"port": 80}], "ports": [{"port": 82}, {"$patch": "delete", "port": 81}]}}

    assert [p["port"] for p in patch.apply(STRATEGIC, service(A, B), sent)["spec"]["ports"]] == [82, 80]


def test_nested_lists_and_maps_merge_too() -> None:
    container = {"name": "c", "image": "x", "env": [{"name": "A", "value": "1"}]}
    current = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": {"spec": {"containers": [container, {"name": "d"}]}}}}
    sent = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "y", "env": [{"name": "B", "value": "2"}]}]}}}}

    made = patch.apply(STRATEGIC, current, sent)["spec"]["template"]["spec"]["containers"]

    assert made == [{"name": "c", "image": "y", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}, {"name": "d"}]
    assert container["image"] == "x", "the current object is left alone"


def test_directives_on_maps_and_plain_lists() -> None:
    current = {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"a": "1"}, "finalizers": ["x", "y"]}}

    assert patch.apply(STRATEGIC, current, {"metadata": {"labels": {"$patch": "replace", "b": "2"}}})["metadata"]["labels"] == {"b": "2"}
    assert patch.apply(STRATEGIC, current, {"metadata": {"finalizers": ["z"]}})["metadata"]["finalizers"] == ["x", "y", "z"]
    gone = patch.apply(STRATEGIC, current, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}})
    assert gone["metadata"]["finalizers"] == ["y"]
    strategy = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}},
    }
    kept = patch.apply(STRATEGIC, strategy, {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}})
    assert kept["spec"]["strategy"] == {"type": "Recreate"}


def test_an_item_without_its_merge_key_is_refused() -> None:
    with pytest.raises(ApiError, match="does not contain declared merge key: port"):
        patch.apply(STRATEGIC, service(A), {"spec": {"ports": [{"name": "x"}]}})


# RFC 7386, appendix A, the rows whose target is an object or an array.
@pytest.mark.parametrize(
    ("target", "sent", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}), ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}), ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}), ({"a": ["b"]}, {"a": "c"}, {"a": "c"}), ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}), ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]), ({"a": "b"}, ["c"], ["c"]), ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}), ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)  # fmt: skip
def test_merge_patch_is_rfc_7386(target: Any, sent: Any, result: Any) -> None:
    assert patch.merge(target, sent) == result


def test_apply_removes_only_what_it_once_said() -> None:
    of = schema.schema_of("v1", "Service") or {}
    original = service(A, B)
    original["metadata"]["labels"] = {"mine": "1", "dropped": "1"}
    modified = service({"port": 80, "targetPort": 8080})
    modified["metadata"]["labels"] = {"mine": "2"}
    current = service({**A, "nodePort": 30000}, B, {"port": 99, "name": "theirs"})
    current["metadata"]["labels"] = {"mine": "1", "dropped": "1", "theirs": "1"}
    current["spec"]["clusterIP"] = "10.96.0.9"

    made = patch.three_way(of, original, modified, current)

    assert made["metadata"]["labels"] == {"mine": "2", "theirs": "1"}
    assert made["spec"] == {
        "clusterIP": "10.96.0.9",
        "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30000}, {"port": 99, "name": "theirs"}],
    }
