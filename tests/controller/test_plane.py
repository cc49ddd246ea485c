"""The controller process's insides over the memory bus: reports, calls, streams, traces, status."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from emu.controller.collector import merged_status
from emu.errors import ApiError
from emu.observe.hops import pack
from emu.trace import REPLY, Hop, PacketSummary
from tests.kit.plane import Plane, service


@pytest.fixture
def plane():
    plane = Plane()
    yield plane
    assert plane.errors == []


def run(plane, coroutine):
    """Run a coroutine while the cluster goes on."""

    async def both():
        task = asyncio.ensure_future(coroutine)
        for _ in range(200):
            plane.settle()
            await asyncio.sleep(0)
            if task.done():
                break
        return await task

    return asyncio.run(both())


# ---- reports ---------------------------------------------------------------------------------------------------------------------


def test_what_nodes_and_controllers_could_not_store_is_done_once_there_is_room_again(monkeypatch):
    """A full disk: reports are asked for again by the node's next lease, reconciles are tried again; nothing is half done."""
    plane = Plane()
    plane.deploy(replicas=2)
    plane.settle()
    before = [pod["metadata"]["name"] for pod in plane.pods()]
    (going, *_), write = plane.pods(), plane.store._file.write

    def refuse(*_):
        raise ApiError(507, "InsufficientStorage", "the disk is full")

    monkeypatch.setattr(plane.store._file, "write", refuse)
    for node in plane.nodes.values():
        node.readies = False  # reported, and refused
    plane.nodes["node-1"].link.post(
        {"t": "event", "object": {"kind": "Node", "name": "node-1"}, "type": "Warning", "reason": "x", "message": "y"}
    )
    plane.settle()
    with pytest.raises(ApiError, match="the disk is full"):
        plane.registry.delete("pods", "default", going["metadata"]["name"])
    plane.kill_node("node-3")
    plane.advance(plane.spec.timings.node_grace + 1)
    assert [pod["metadata"]["name"] for pod in plane.pods()] == before
    assert all(pod["status"]["conditions"][-1]["status"] == "True" for pod in plane.pods())
    assert plane.errors
    plane.start_node("node-3", incarnation=2)
    plane.settle()
    plane.store.check()

    monkeypatch.setattr(plane.store._file, "write", write)
    for node in plane.nodes.values():
        node.readies = True
    plane.registry.delete("pods", "default", going["metadata"]["name"])
    plane.advance(20)
    assert len(plane.pods()) == 2
    assert going["metadata"]["name"] not in [pod["metadata"]["name"] for pod in plane.pods()]
    assert all(pod["status"]["conditions"][-1]["status"] == "True" for pod in plane.pods())
    assert plane.get("nodes", "node-3", "")["metadata"]["annotations"]["podwire.dev/incarnation"] == "2"
    plane.store.check()


def test_reports_on_what_is_not_the_node_s_own_are_dropped_and_counted(plane):
    plane.deploy(replicas=1)
    plane.settle()
    (pod,) = plane.pods()
    named = {"namespace": "default", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    reports = [
        {**named, "uid": "another life", "gone": True},
        {**named, "name": "nobody", "gone": True},
        {"namespace": "default"},
        "nonsense",
        {**named, "status": "nonsense"},
        {**named, "status": {"phase": "Running", "invented": 1}},
    ]
    plane.nodes["node-1"].link.post({"t": "pods", "statuses": reports})
    plane.nodes["node-2"].link.post({"t": "pods", "statuses": [{**named, "gone": True}]})
    plane.settle()
    assert plane.pods() == [pod]
    counters = plane.plane.collector.counters
    assert counters["reports on other pods"] == 3 and counters["malformed reports"] == 3
    assert any(name.startswith("refused: status of default/web") and "invented" in name for name in counters)


def test_a_status_report_keeps_what_is_the_control_plane_s_and_when_things_changed():
    old = {
        "phase": "Pending", "qosClass": "BestEffort",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "t1"},
            {"type": "Ready", "status": "False", "lastTransitionTime": "t1"},
            {"type": "Gone", "status": "True"},
        ],
    }  # fmt: skip
    reported = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}, {"type": "Initialized", "status": "True"}]}
    assert merged_status({"status": old}, reported, "t2") == {
        "phase": "Running", "qosClass": "BestEffort",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "t1"},
            {"type": "Ready", "status": "False", "lastTransitionTime": "t1"},
            {"type": "Initialized", "status": "True", "lastTransitionTime": "t2"},
        ],
    }  # fmt: skip
    back = merged_status({"status": old}, {"conditions": [{"type": "Ready", "status": "True"}]}, "t3")
    assert back["conditions"][1]["lastTransitionTime"] == "t3"


def test_a_hello_under_another_s_name_and_a_message_of_the_wrong_direction_are_counted(plane):
    link = plane.nodes["node-1"].link
    link.post({**plane.nodes["node-2"].follower._hello})
    link.post({"t": "resync", "stream": "nodes"})
    link.post({"t": "hops", "hops": [1, ["x"]]})
    link.post({"t": "event", "object": {}, "type": "Warning", "reason": "r", "message": "m"})
    plane.settle()
    assert dict(plane.plane.collector.counters) == {
        "snapshots": 12, "messages under another name": 1, "messages of the wrong direction": 1, "malformed hops": 2, "malformed events": 1,
    }  # fmt: skip


def test_a_kubelet_s_event_is_an_event(plane):
    about = {"kind": "Pod", "namespace": "default", "name": "p", "uid": "u"}
    plane.nodes["node-1"].link.post({"t": "event", "object": about, "type": "Warning", "reason": "BackOff", "message": "again"})
    plane.settle()
    (event,) = [event for event in plane.store.list("events")[0] if event["reason"] == "BackOff"]
    assert event["involvedObject"]["name"] == "p" and event["type"] == "Warning" and event["source"]["component"] == "kubelet"


# ---- calls -----------------------------------------------------------------------------------------------------------------------


def test_a_call_is_answered(plane):
    plane.nodes["node-2"].on_call = lambda call: {"text": call["params"]["format"]}
    assert run(plane, plane.plane.call("node-2", "rules", {"format": "iptables-save"}, 5.0)) == {"text": "iptables-save"}


def test_what_goes_wrong_with_a_call(plane):
    plane.nodes["node-1"].on_call = lambda call: {"error": {"code": 404, "reason": "NotFound", "message": "no such pod"}}
    for node, timeout, code in (("node-1", 5.0, 404), ("nobody", 5.0, 404), ("node-3", 0.02, 504)):
        with pytest.raises(ApiError) as failed:
            run(plane, plane.plane.call(node, "rules", {}, timeout))
        assert failed.value.code == code
    plane.settle()
    assert [call["t"] for call in plane.nodes["node-3"].calls] == ["call", "cancel"], "the node is told that nobody waits"
    plane.kill_node("node-2")
    with pytest.raises(ApiError, match="not connected"):
        run(plane, plane.plane.call("node-2", "rules", {}, 5.0))


def test_a_stream_carries_pieces_and_input_until_its_last(plane):
    node = plane.nodes["node-1"]

    async def exec_():
        stream = plane.plane.stream("node-1", "exec", {"command": ["cat"]})
        await stream.send({"stdin": b"hello"})
        plane.settle()
        call, given = node.calls
        assert (call["method"], given["t"], given["data"]) == ("exec", "input", {"stdin": b"hello"})
        for body, last in (({"stdout": b"hello"}, False), ({"exit": 0}, True)):
            node.link.post({"t": "answer", "id": call["id"], "body": body, "last": last})
        plane.settle()
        got = [piece async for piece in stream]
        await stream.close()
        return got

    assert run(plane, exec_()) == [{"stdout": b"hello"}, {"exit": 0}]
    assert not any(call["t"] == "cancel" for call in node.calls)


def test_a_stream_of_a_node_that_is_restarted_or_lost_fails(plane):
    async def follow(end):
        stream = plane.plane.stream("node-1", "logs", {"follow": True})
        end()
        with pytest.raises(ApiError) as failed:
            async for _ in stream:
                pass
        return failed.value

    def restart():
        plane.kill_node("node-1")
        plane.start_node("node-1", incarnation=2)

    assert run(plane, follow(restart)).code == 504


def test_an_answer_of_another_node_is_nobody_s(plane):
    async def ask():
        stream = plane.plane.stream("node-1", "rules", {})
        plane.nodes["node-2"].link.post({"t": "answer", "id": stream.number, "body": {"text": "forged"}, "last": True})
        plane.nodes["node-1"].link.post({"t": "answer", "id": stream.number, "body": {"text": "true"}, "last": True})
        plane.settle()
        return [piece async for piece in stream]

    assert run(plane, ask()) == [{"text": "true"}]


# ---- traces ----------------------------------------------------------------------------------------------------------------------


def hops_of(trace, far):
    client, server = ("10.244.1.2", 4000), (far, 8080)

    def hop(number, direction, node, netns, where, note=None, verdict=None):
        src, dst = (client, server) if not direction else (server, client)
        return Hop(
            trace | direction, node, netns, where, PacketSummary(src[0], dst[0], "tcp", src[1], dst[1]), 0.0, number, None, note, 3, verdict
        )

    return {
        "node-1": [
            hop(1, 0, "node-1", "pod/default/a", "eth0"), hop(2, 0, "node-1", "node", "wire", "to 192.168.0.3"),
            hop(3, REPLY, "node-1", "pod/default/a", "socket", verdict="delivered"),
        ],
        "node-2": [
            hop(1, 0, "node-2", "node", "eth0"), hop(2, 0, "node-2", "pod/default/b", "socket", verdict="delivered"),
            hop(3, REPLY, "node-2", "node", "wire", "to 192.168.0.2"),
        ],
    }  # fmt: skip


def two_pods(plane):
    for name, node in (("a", "node-1"), ("b", "node-2")):
        spec = {"nodeName": node, "containers": [{"name": "c", "image": "nginx"}]}
        plane.registry.create("pods", {"metadata": {"name": name}, "spec": spec}, "default")
    plane.settle()
    return plane.get("pods", "b")["status"]["podIP"]


def test_a_trace_is_gathered_from_all_nodes_and_nothing_of_it_stays(plane):
    far = two_pods(plane)

    def probe(call):
        if call["method"] != "trace":
            return None
        assert call["params"] == {"id": 2, "netns": "pod/default/a", "dst": far, "dport": 8080, "proto": "tcp", "deadline": 4.0}
        for node, hops in hops_of(2, far).items():
            plane.nodes[node].link.post({"t": "hops", "hops": [pack(one) for one in hops]})
        return {"result": "connected"}

    plane.nodes["node-1"].on_call = probe
    report = run(plane, plane.plane.trace({"from": "pod/a", "to": "pod/b", "port": 8080}))
    assert (report["outcome"], report["backend"], report["result"]) == ("delivered", f"{far}:8080", "connected")
    assert report["rules_evaluated"] == 12 and report["nodes_crossed"] == 2
    assert [(one["node"], one["where"]) for one in report["reply"]] == [("node-2", "wire"), ("node-1", "socket")]
    plane.settle()
    forgotten = [node for node, fake in plane.nodes.items() for call in fake.calls if call.get("method") == "forget"]
    assert forgotten == ["node-1", "node-2"]
    plane.nodes["node-2"].link.post({"t": "hops", "hops": [pack(hops_of(2, far)["node-2"][0])]})
    plane.settle()
    assert plane.plane.traces.late == 1


def test_a_hop_that_never_comes_is_lost_after_the_last_one_known(plane, monkeypatch):
    monkeypatch.setattr("emu.controller.traces.STRAGGLERS", 0.02)
    far = two_pods(plane)

    def probe(call):
        plane.nodes["node-1"].link.post({"t": "hops", "hops": [pack(one) for one in hops_of(call["params"]["id"], far)["node-1"][:2]]})
        return {"result": "silent"}

    plane.nodes["node-1"].on_call = probe
    report = run(plane, plane.plane.trace({"from": "pod/a", "to": f"{far}:8080", "timeout": 0.5}))
    assert report["outcome"] == "dropped"
    assert report["request"][-1]["note"] == "lost after node-1 node wire to 192.168.0.3" and report["reply"] == []


def test_a_packet_known_to_be_dropped_is_not_waited_for(plane, monkeypatch):
    monkeypatch.setattr("emu.controller.traces.QUIET", 0.02)
    far = two_pods(plane)

    def probe(call):
        if call["method"] == "trace":
            hop = dataclasses.replace(hops_of(call["params"]["id"], far)["node-1"][1], where="FORWARD", note=None, verdict="dropped")
            plane.nodes["node-1"].link.post({"t": "hops", "hops": [pack(hop)]})

    plane.nodes["node-1"].on_call = probe
    report = run(plane, plane.plane.trace({"from": "pod/a", "to": f"{far}:8080"}))
    assert (report["outcome"], report["result"], report["request"][-1]["where"]) == ("dropped", "silent", "FORWARD")
    plane.settle()
    assert [call.get("method", call["t"]) for call in plane.nodes["node-1"].calls] == ["trace", "cancel", "forget"]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"from": "pod/a"},
        {"from": 3, "to": "1.1.1.1"},
        {"from": "node/node-1", "to": "2001:db8::1"},
        {"from": "node/node-1", "to": "1.1.1.1", "timeout": 1e9},
    ],
)
def test_a_trace_that_cannot_be_started_says_why(plane, params):
    two_pods(plane)
    with pytest.raises(ApiError) as refused:
        run(plane, plane.plane.trace(params))
    assert refused.value.code == 400


# ---- status ----------------------------------------------------------------------------------------------------------------------


def test_status_tells_when_everything_has_settled(plane):
    plane.deploy(replicas=3)
    plane.registry.create("services", service(), "default")
    assert plane.plane.status()["settled"] is False
    plane.settle()
    told = plane.plane.status()
    assert told["settled"] and told["idle"] and told["absent"] == [] and told["expected"] == 3
    assert next((n["name"], n["ready"], n["pods"], n["behind"], n["ip"]) for n in told["nodes"]) == ("node-1", True, 1, 0, "192.168.0.2")
    assert told["pods"] == {"total": 3, "ready": 3, "phases": {"Running": 3}}
    assert told["nodes"][0]["applied"]["services"] == told["published"]["services"] and told["latency"]["samples"] > 0


def test_a_node_that_has_not_applied_an_update_is_not_settled_and_is_told_to_resync(plane):
    plane.bus.fault = lambda node, update: node == "node-2" and update.stream == "services"
    plane.registry.create("services", service(), "default")
    plane.settle()
    told = {node["name"]: node["behind"] for node in plane.plane.status()["nodes"]}
    assert told["node-1"] == 0 and told["node-2"] > 0 and not plane.plane.status()["settled"]
    plane.bus.fault = lambda node, update: False
    plane.advance(6)
    assert plane.plane.status()["settled"] and plane.nodes["node-2"].follower.services.get("default/web")
    assert plane.plane.audience.resyncs == 1


def test_stand_ins_and_counters_of_leases_are_shown(plane):
    node = plane.nodes["node-1"]
    node.link.post({**node.follower.lease(abandoned=2), "stand_ins": ["default/p/c"], "drops": {"queue-full": 3}})
    plane.settle()
    told = plane.plane.status()
    assert told["standIns"] == ["default/p/c"] and told["nodes"][0]["abandoned"] == 2 and told["drops"] == {"queue-full": 3}
