"""A cluster in one process: the same parts, the same answers, the same run every time, and time that costs nothing."""

from __future__ import annotations

from typing import Any

import pytest

from emu.api.request import Request, Response
from emu.errors import ApiError
from emu.model.cluster import ClusterSpec
from emu.node.baton import BlockedProgram
from launcher import manifests
from launcher.inprocess import InProcess


def world(nodes: int = 3, **more: Any) -> InProcess:
    return InProcess(ClusterSpec.from_mapping({"name": "test", "nodes": nodes, "profile": "kubernetes", **more}, run_dir="/nowhere"))


@pytest.fixture
def shop():
    made = world()
    apply(made, [each.object for each in manifests.read(["configs/shop"])])
    yield made
    made.close()


def apply(made: InProcess, objects: list[dict[str, Any]]) -> None:
    answer = made.api.handle(Request.of("POST", "/apis/podwire.dev/v1alpha1/apply", {"objects": objects}))
    assert isinstance(answer, Response)
    assert answer.status == 200, answer.body
    made.settle()


def run(made: InProcess, pod: dict[str, Any], *command: str) -> tuple[int | None, str]:
    place = {"namespace": "default", "pod": pod["metadata"]["name"], "container": None, "command": list(command)}

    async def collect() -> tuple[int | None, str]:
        out, code = b"", None
        async for piece in made.plane.stream(pod["spec"]["nodeName"], "exec", place):
            out += piece.get("stdout", b"") + piece.get("stderr", b"")
            code = piece.get("exit", code)
        return code, out.decode()

    return made.complete(collect())


def pods(made: InProcess) -> list[dict[str, Any]]:
    return made.store.list("pods", "default")[0]


def ready(made: InProcess, node: str) -> str:
    found = made.store.get("nodes", "", node)
    assert found is not None
    return next(condition["status"] for condition in found["status"]["conditions"] if condition["type"] == "Ready")


def test_pods_of_a_deployment_run_and_answer_through_their_service(shop):
    names = {pod["metadata"]["name"] for pod in pods(shop)}
    code, answer = run(shop, pods(shop)[0], "curl", "-s", "http://10.96.0.10/hostname")
    assert code == 0
    assert answer in names


def test_a_program_that_waits_costs_only_its_own_time(shop):
    before = shop.clock.now()
    code, answer = run(shop, pods(shop)[0], "curl", "-s", "-m", "7", "http://10.244.9.9/")
    assert (code, answer) == (28, "")
    assert shop.clock.now() - before == pytest.approx(7)


def test_runs_are_the_same_to_the_packet():
    def story() -> list[tuple[Any, ...]]:
        made = world()
        apply(made, [each.object for each in manifests.read(["configs/shop"])])
        start = f"pod/default/{pods(made)[0]['metadata']['name']}"
        traces = [made.complete(made.plane.trace({"from": start, "to": "svc/order-service"})) for _ in range(5)]
        made.advance(30)
        told = [(trace["backend"], str(trace["request"]), str(trace["reply"])) for trace in traces]
        end = (made.clock.now(), made.store.revision, [pod["status"]["podIP"] for pod in pods(made)])
        made.close()
        return [*told, end]

    first = story()
    assert first == story()
    assert len({backend for backend, *_ in first[:-1]}) > 1


def test_a_killed_node_is_missed_after_its_grace_and_comes_back(shop):
    shop.fault("node-1", "killed")
    shop.advance(39)
    assert ready(shop, "node-1") == "True"
    shop.advance(11)
    assert ready(shop, "node-1") == "Unknown"
    shop.fault("node-1", "started")
    shop.settle()
    assert ready(shop, "node-1") == "True"
    assert shop.nodes["node-1"].incarnation == 2


def test_a_paused_node_does_nothing_until_it_is_resumed(shop):
    here = next(pod for pod in pods(shop) if pod["spec"]["nodeName"] == "node-2")
    asker = next(pod for pod in pods(shop) if pod["spec"]["nodeName"] == "node-3")
    url = f"http://{here['status']['podIP']}:8080/"
    shop.fault("node-2", "paused")
    assert run(shop, asker, "curl", "-s", "-m", "2", url)[0] == 28
    shop.fault("node-2", "resumed")
    assert run(shop, asker, "curl", "-s", "-m", "2", url)[0] == 0


@pytest.mark.parametrize(("before", "state"), [((), "resumed"), ((), "started"), (("killed",), "paused"), (("killed",), "killed")])
def test_a_fault_that_cannot_be_is_refused(shop, before, state):
    for earlier in before:
        shop.fault("node-1", earlier)
    if state == "resumed":  # of a running node it changes nothing
        shop.fault("node-1", state)
        return
    with pytest.raises(ApiError, match="node-1 is"):
        shop.fault("node-1", state)


def test_a_program_that_blocks_outside_the_pod_api_is_named(tmp_path, monkeypatch):
    (tmp_path / "stuck.py").write_text("import threading\n\ndef main(ctx):\n    threading.Event().wait(5)\n")
    monkeypatch.setattr("emu.node.baton.PATIENCE", 0.05)
    made = world(1, path=[str(tmp_path)])
    pod = {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "stuck", "namespace": "default", "annotations": {"podwire.dev/program": "stuck:main"}},
        "spec": {"containers": [{"name": "main", "image": "own/program"}]},
    }  # fmt: skip
    with pytest.raises(BlockedProgram, match="node-1/default/stuck/main has run for"):
        apply(made, [pod])
    made.close()
