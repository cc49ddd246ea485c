"""The kinds table against the published schemas and stock names."""

from __future__ import annotations

import pytest

from emu.model import schema
from emu.model.kinds import BY_GVK, BY_PATH, BY_RESOURCE, KINDS, Treatment, kind_named, unknown_kind

PUBLISHED_BUT_NO_RESOURCE = {("v1", "Status")}


def test_every_published_top_level_kind_is_known() -> None:
    published = schema.published_kinds() - PUBLISHED_BUT_NO_RESOURCE

    assert {(kind.api_version, kind.kind) for kind in KINDS} == published


def test_no_two_kinds_share_a_store_key_or_a_path() -> None:
    assert len(BY_RESOURCE) == len(BY_PATH) == len(BY_GVK) == len(KINDS)


@pytest.mark.parametrize(
    ("word", "resource"),
    [
        ("po", "pods"),
        ("Service", "services"),
        ("deploy", "deployments"),
        ("deployments.apps", "deployments"),
        ("ev", "events"),
        ("netpol", "networkpolicies"),
        ("endpointslice", "endpointslices"),
        ("ep", "endpoints"),
        ("sc", "storageclasses"),
        ("ingress", "ingresses"),
        ("csistoragecapacity", "csistoragecapacities"),
    ],
)
def test_people_may_use_any_of_a_kinds_names(word: str, resource: str) -> None:
    found = kind_named(word)

    assert found is not None
    assert found.resource == resource


def test_the_emulated_kinds_are_the_ten_that_the_cluster_acts_on() -> None:
    emulated = {kind.resource for kind in KINDS if kind.treatment is Treatment.EMULATED}

    assert emulated == set("namespaces nodes pods services endpointslices configmaps deployments replicasets leases events".split())


@pytest.mark.parametrize(
    ("api_version", "kind", "hint"),
    [("v1", "Deployment", "apps/v1"), ("v1", "Servcie", "did you mean Service"), ("example.com/v1", "Xyzzyq", "no matches")],
)
def test_an_unknown_kind_is_explained(api_version: str, kind: str, hint: str) -> None:
    assert hint in unknown_kind(api_version, kind)
