"""The manifests that come with the project: valid for Kubernetes 1.35 under strict rules, and as the demo describes them."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

SHOP = Path(__file__).parents[2] / "configs" / "shop"
OBJECTS = [obj for path in sorted(SHOP.glob("*.yaml")) for obj in yaml.safe_load_all(path.read_text())]


def of_kind(kind):
    return {obj["metadata"]["name"]: obj["spec"] for obj in OBJECTS if obj["kind"] == kind}


@pytest.mark.parametrize("obj", OBJECTS, ids=[f"{obj['kind']}-{obj['metadata']['name']}" for obj in OBJECTS])
def test_the_published_1_35_schema_accepts_it_strictly(obj):
    kubernetes_validate.validate(obj, "1.35", strict=True)


def test_there_are_three_deployments_of_two_replicas_that_select_their_own_pods():
    deployments = of_kind("Deployment")
    assert sorted(deployments) == ["catalog-service", "order-service", "web"]
    for spec in deployments.values():
        assert spec["replicas"] == 2
        assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_every_service_has_a_stable_address_and_selects_the_deployment_of_its_name():
    services, deployments = of_kind("Service"), of_kind("Deployment")
    assert {name: spec["clusterIP"] for name, spec in services.items()} == {
        "order-service": "10.96.0.10",
        "catalog-service": "10.96.0.20",
        "web": "10.96.0.30",
    }
    for name, spec in services.items():
        assert spec["selector"] == deployments[name]["selector"]["matchLabels"]
        (port,) = spec["ports"]
        assert (port["port"], port["targetPort"]) == (80, 8080)
    assert services["web"]["ports"][0]["nodePort"] == 30080
