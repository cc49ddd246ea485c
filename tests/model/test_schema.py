"""The schema walk gives the verdicts of a general JSON Schema validator, and words them as the API server does."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from emu.model import schema

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {}, "creationTimestamp": "2026-01-02T03:04:05Z"},
    "spec": {
        "containers": [
            {
                "name": "c",
                "image": "x",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "500m"}},
                "readinessProbe": {"httpGet": {"port": "http"}},
            }
        ],
        "nodeName": "n",
        "hostNetwork": False,
    },
}


def _oracle() -> Draft202012Validator:
    resource: Resource[Any] = Resource.from_contents(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:k8s", "$defs": schema.definitions()}
    )
    registry: Registry[Any] = resource @ Registry()
    return Draft202012Validator({"$ref": "urn:k8s#/$defs/io.k8s.api.core.v1.Pod"}, registry=registry)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(_places(POD)[1:]), st.sampled_from([1, "x", True, 1.5, [], {}, {"zz": 1}, [1], "delete"]))
def test_verdicts_agree_with_jsonschema(place: tuple[Any, ...], value: Any) -> None:
    """One place of a good Pod is replaced by any value or removed; both validators must agree whether it is still a Pod."""
    mutant: Any = copy.deepcopy(POD)
    holder = mutant
    for step in place[:-1]:
        holder = holder[step]
    if value == "delete":
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    if {"apiVersion", "kind"} & set(place):
        return
    ours = [fault for fault in schema.faults(mutant) if "must be a time" not in fault.message and "quantities are" not in fault.message]

    assert bool(ours) is not _oracle().is_valid(mutant), ours


def test_a_good_pod_has_no_faults() -> None:
    assert schema.faults(POD) == []


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (
            {"ports": [{"port": 80, "nodeprt": 1}]},
            ("unknown", "spec.ports[0].nodeprt", 'unknown field "spec.ports[0].nodeprt" (did you mean "nodePort"?)'),
        ),
        ({"ports": [{"port": "80"}]}, ("type", "spec.ports[0].port", 'Invalid value: "80": must be an integer, not a string')),
        ({"ports": [{"name": "x"}]}, ("required", "spec.ports[0].port", "Required value")),
        ({"ports": [{"port": True}]}, ("type", "spec.ports[0].port", "Invalid value: true: must be an integer, not a boolean")),
        ({"ports": [{"port": 1 << 31}]}, ("type", "spec.ports[0].port", "Invalid value: 2147483648: does not fit int32")),
        ({"ports": {}}, ("type", "spec.ports", "Invalid value: {}: must be an array, not an object")),
        ({"selector": {"a": 1}}, ("type", "spec.selector[a]", "Invalid value: 1: must be a string, not an integer")),
        (
            {"ports": [{"port": 1, "targetPort": 1.5}]},
            ("type", "spec.ports[0].targetPort", "Invalid value: 1.5: must be a string or an integer, not a number"),
        ),
    ],
)
def test_faults_name_path_and_cause(spec: dict[str, Any], wanted: tuple[str, str, str]) -> None:
    assert schema.faults({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec}) == [wanted]


@pytest.mark.parametrize("quantity", ["1", "500m", "64Mi", "1e3", ".5", 2, 1.5])
def test_quantities(quantity: object) -> None:
    pod = json.loads(json.dumps(POD))
    pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] = quantity
    assert schema.faults(pod) == []
    pod["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "many"
    assert [fault.path for fault in schema.faults(pod)] == ["spec.containers[0].resources.limits[cpu]"]


def test_null_is_absent() -> None:
    pod = json.loads(json.dumps(POD))
    pod["status"] = pod["metadata"]["creationTimestamp"] = pod["spec"]["nodeName"] = None
    assert schema.faults(pod) == []
