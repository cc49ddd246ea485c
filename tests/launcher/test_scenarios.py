"""Scenarios: what is shipped passes, a wrong expectation fails with both sides shown, and what is no scenario is told where."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from emu.errors import ConfigError
from launcher.cli import main
from launcher.scenarios import document, runner

SHIPPED = [scenario for path in document.find(["configs/scenarios"]) for scenario in document.read(path)]
IN_PROCESS = runner.Options()

SLICE = {
    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
    "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
    "ports": [{"name": "", "port": 80}], "endpoints": [{"addresses": ["10.180.0.1"], "nodeName": "node-1"}],
}  # fmt: skip
SERVICE = {
    "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
    "spec": {"clusterIP": "172.30.0.41", "ports": [{"port": 80}]},
}  # fmt: skip


def scenario(tmp_path: Path, steps, *, name: str = "made", **spec) -> str:
    made = {"apiVersion": "podwire.dev/v1alpha1", "kind": "Scenario", "metadata": {"name": name}, "spec": {**spec, "steps": steps}}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(made))
    return str(path)


def verdict(tmp_path: Path, steps, **spec) -> runner.Result:
    (read,) = document.read(scenario(tmp_path, steps, **spec))
    return runner.run(read, IN_PROCESS)


@pytest.mark.parametrize("shipped", SHIPPED, ids=[each.name for each in SHIPPED])
def test_a_shipped_scenario_passes(shipped):
    result = runner.run(shipped, IN_PROCESS)
    assert result.passed, [result.problem, *(step.json() for step in result.steps if not step.passed)]
    assert shipped.description


def test_state_is_taken_as_it_stands(tmp_path):
    """A cluster IP and a node port out of range, an endpoint that is no pod, under the address of the node's own bridge."""
    service = {**SERVICE, "spec": {**SERVICE["spec"], "type": "NodePort", "ports": [{"port": 80, "nodePort": 3001}]}}
    steps = [
        {"flow": {"from": "10.180.0.9", "to": "172.30.0.41:80"}, "expect": {"outcome": "delivered", "backends": ["10.180.0.1:80"]}},
        {"flow": {"from": "203.0.113.7", "to": "192.168.0.2:3001"}, "expect": {"backends": ["10.180.0.1:80"], "masquerade": True}},
        {"flow": {"from": "203.0.113.7", "to": "192.168.0.99:3001"}, "expect": {"outcome": "unrouted"}},
    ]
    nodes = [{"name": "node-1", "addresses": ["192.168.0.2"], "podCIDR": "10.180.0.0/24"}]
    result = verdict(tmp_path, steps, manifests=[service, SLICE], cluster={"nodes": nodes, "podCIDR": "10.180.0.0/16"})
    assert result.passed, (result.problem, result.steps)


def test_a_wrong_expectation_is_told_with_what_is_there_instead(tmp_path):
    result = verdict(
        tmp_path, [{"flow": {"from": "node/node-1", "to": "svc/default/web:80"}, "expect": {"outcome": "dropped"}}],
        manifests=[SERVICE], cluster={"nodes": 1},
    )  # fmt: skip
    (step,) = result.steps
    assert (step.expected, step.actual, step.wrong) == ({"outcome": "dropped"}, {"outcome": "rejected"}, ("outcome",))
    assert not result.passed


def test_requests_are_judged_by_the_api(tmp_path):
    bad = {**SERVICE, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 3001}]}}
    steps = [
        {
            "apply": bad,
            "expect": {"status": 422, "reason": "Invalid", "field": "spec.ports[0].nodePort", "message": "not in the valid range"},
        },
        {"apply": {**SERVICE, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}},
        {"patch": {"objects": "service/web", "patch": {"spec": {"ports": [{"port": 80, "name": "http"}]}}}},
        {"label": {"objects": "service/web", "labels": {"a": "b"}}},
        {"rules": {"node": "node-1"}, "expect": {"contains": ["default/web:http has no endpoints"]}},
        {"delete": "service/web"},
        {"delete": "service/web", "expect": {"status": 404}},
    ]
    result = verdict(tmp_path, steps, cluster={"nodes": 1})
    assert result.passed, (result.problem, result.steps)


def test_programs_faults_and_time(tmp_path):
    steps = [
        {"wait": {"for": "deployment/default/web", "condition": "Available", "within": "30s"}},
        {"exec": {"pod": "deployment/web", "command": "curl -s http://10.96.0.10/hostname"}, "expect": {"stdout": {"matches": "^order-"}}},
        {"fault": {"proxy": "node-1", "state": "stopped"}},
        {"scale": "deployment/order-service", "replicas": 0},
        {"advance": "40s"},
        {"wait": {"for": "endpoints/default/order-service", "ready": 0}},
        {"flow": {"from": "node/node-2", "to": "svc/default/order-service:80"}, "expect": {"outcome": "rejected"}},
        {"name": "rules stay", "rules": {"node": "node-1"}, "expect": {"contains": ["order-service:http -> 10.244."]}},
        {"fault": {"proxy": "node-1", "state": "restarted"}},
        {"flow": {"from": "node/node-1", "to": "svc/default/order-service:80"}, "expect": {"outcome": "rejected"}},
        {"fault": {"controller": "killed"}},
        {"advance": "60s"},
        {"fault": {"controller": "restarted"}},
        {"repeat": {"times": 2, "steps": [{"flow": {"from": "node/node-1", "to": "svc/default/web"}, "expect": {"outcome": "delivered"}}]}},
        {"fault": {"node": "node-2", "state": "killed"}},
        {"advance": "60s"},
        {"wait": {"for": "node/node-2", "condition": "Ready=Unknown"}},
    ]
    result = verdict(tmp_path, steps, manifests=[str(Path("configs/shop").resolve())], cluster={"nodes": 3})
    assert result.passed, (result.problem, [step for step in result.steps if not step.passed])


@pytest.mark.parametrize(("steps", "where"), [
    ([{"flwo": {}}], "spec.steps[0].flwo: no key of it says what the step does; did you mean flow?"),
    ([{"flow": {"from": "a", "too": "b"}}], "spec.steps[0].flow.too: unknown key; did you mean to?"),
    ([{"flow": {"from": "a"}}], "spec.steps[0].flow: to must be given"),
    ([{"flow": {"from": "a", "to": "b"}, "expect": {"outcom": "x"}}], "spec.steps[0].expect.outcom: unknown key; did you mean outcome?"),
    ([{"flow": {"from": "a", "to": "b"}, "expect": {"outcome": "lost"}}], "spec.steps[0].expect.outcome: 'lost' is not one of"),
    ([{"advance": "soon"}], "spec.steps[0].advance: 'soon' is not a duration"),
    ([{"reach": {}}], "spec.steps[0].reach: reach steps are not emulated yet"),
    ([{"apply": "x.yaml", "advance": "1s"}], "spec.steps[0]: a step does one thing, not advance and apply"),
    ([{"repeat": {"times": 2, "steps": [{"x": 1}]}}], "spec.steps[0].repeat.steps[0].x: no key"),
])  # fmt: skip
def test_what_is_no_scenario_names_file_path_and_what_would_be_right(tmp_path, steps, where):
    path = scenario(tmp_path, steps)
    with pytest.raises(ConfigError) as caught:
        document.read(path)
    assert f"{path}: {where}" in str(caught.value)


@pytest.mark.parametrize(("cluster", "where"), [
    ({"proxy": {"mode": "itables"}}, "spec.cluster.proxy.mode: 'itables' is no proxy mode"),
    ({"nodes": 3, "nodePrefix": "x"}, "spec.cluster.nodePrefix: unknown key"),
    ({"outside": {"addresses": {"client": "203.0.113"}}}, "spec.cluster.outside.addresses.client: '203.0.113' is not an IPv4 address"),
])  # fmt: skip
def test_a_cluster_that_cannot_be_is_told(tmp_path, cluster, where):
    path = scenario(tmp_path, [], cluster=cluster)
    with pytest.raises(ConfigError) as caught:
        document.read(path)
    assert f"{path}: {where}" in str(caught.value)


def test_the_command_tells_verdicts_to_people_programs_and_ci(tmp_path, capsys):
    good = {"flow": {"from": "node/node-1", "to": "8.8.8.8:53"}, "expect": {"outcome": "unrouted"}}
    bad = {"name": "wrong", "flow": {"from": "node/node-1", "to": "8.8.8.8:53"}, "expect": {"outcome": "local"}}
    scenario(tmp_path, [good], name="a", cluster={"nodes": 1})
    scenario(tmp_path, [good, bad], name="b", cluster={"nodes": 1})
    report = tmp_path / "report.xml"
    assert main(["test", str(tmp_path), "--in-process", "--json", "--junit", str(report)]) == 1
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["scenario"], first["passed"], len(first["steps"])) == ("a", True, 1)
    assert second["steps"][1] | {"milliseconds": 0, "trace": 0} == {
        "index": 1, "kind": "flow", "name": "wrong", "passed": False, "expected": {"outcome": "local"}, "actual": {"outcome": "unrouted"},
        "detail": "", "milliseconds": 0, "trace": 0,
    }  # fmt: skip
    suites = ET.parse(report).getroot()
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [("a", "1", "0"), ("b", "2", "1")]
    assert main(["test", str(tmp_path), "--in-process", "--only", "a"]) == 0
    assert "1 of 1 passed" in capsys.readouterr().out
    (tmp_path / "c.yaml").write_text("apiVersion: podwire.dev/v1alpha1\nkind: Scenario\n")
    assert main(["test", str(tmp_path / "c.yaml"), "--in-process"]) == 2
    assert "name must be given" in capsys.readouterr().out
