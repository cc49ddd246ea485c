"""The pytest plugin, in a project of a user's: scenario files are collected and told apart, and a test may have a cluster."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]

SCENARIO = """
apiVersion: podwire.dev/v1alpha1
kind: Scenario
metadata: {name: NAME}
spec:
  cluster: {nodes: 1}
  steps:
  - flow: {from: node/node-1, to: "8.8.8.8:53"}
    expect: {outcome: OUTCOME}
"""


@pytest.fixture
def project(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return pytester


def run(project, *args):
    return project.runpytest_subprocess("-p", "launcher.pytest_plugin", "-p", "no:cacheprovider", "-p", "no:xdist", *args)


def test_scenarios_are_tests(project):
    good, bad = SCENARIO.replace("NAME", "good").replace("OUTCOME", "unrouted"), SCENARIO.replace("NAME", "bad").replace("OUTCOME", "local")
    (project.path / "both.yaml").write_text(f"{good}---{bad}")
    (project.path / "other.yaml").write_text("kind: Pod\n")
    result = run(project)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*outcome*expected*local*", "*actual*unrouted*"])


def test_a_scenario_that_is_none_is_an_error_of_its_file(project):
    (project.path / "wrong.yaml").write_text(SCENARIO.replace("OUTCOME", "lost"))
    result = run(project)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*wrong.yaml: spec.steps*expect.outcome: 'lost' is not one of*"])


def test_a_test_may_have_a_cluster(project):
    project.makepyfile(
        textwrap.dedent(f"""
        def test_rollout(podwire):
            cluster = podwire(nodes=2, manifests=[{str(ROOT / "configs/shop")!r}], outside={{"client": "203.0.113.7"}})
            fact = cluster.flow("node/node-1", "svc/default/web")
            assert (fact.outcome, len(fact.backends), fact.masquerade) == ("delivered", 2, True)
            web = next(pod["metadata"]["name"] for pod in cluster.client.request("GET", "/api/v1/pods")["items"])
            assert cluster.exec(web, "curl", "-s", "http://10.96.0.10/hostname")[0] == 0
            before = cluster.world.cluster.clock.now()
            cluster.advance(3600)
            assert cluster.world.cluster.clock.now() == before + 3600
        """)
    )
    run(project).assert_outcomes(passed=1)
