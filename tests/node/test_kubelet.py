"""The kubelet on a real node: pods start, are reported, stop and go; what cannot be is said and tried again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from emu.errors import ApiError
from emu.pod.runtime import PodRuntime
from emu.stack.tcp_sockets import TcpSocket
from emu.wire.addr import ANY, SockAddr, parse_ip
from tests.kit.nodes import RealNode, chatting, deleted, pod, real_node
from tests.kit.services import value


@pytest.fixture
def node() -> Iterator[RealNode]:
    with real_node() as node:
        yield node


def listening(node: RealNode, name: str) -> set[int]:
    node.kernel.enter()
    try:
        return {address.port for address in node.namespace(name).sockets.listeners if address.ip == ANY}
    finally:
        node.kernel.leave()


def test_a_pod_is_ready_with_its_address_once_its_program_listens(node: RealNode) -> None:
    node.wants(pod("web"))
    node.until(lambda: "web" in node.reports)
    node.until(lambda: node.ready("web"))
    status = node.reports["web"]
    assert (status["phase"], status["podIP"], status["hostIP"]) == ("Running", "10.244.1.2", "192.168.0.2")
    (container,) = status["containerStatuses"]
    assert container["ready"]
    assert "running" in container["state"]
    assert listening(node, "web") == {7}


def test_nothing_is_reported_twice_unless_all_is_asked_for(node: RealNode) -> None:
    node.run(pod("web"))
    for _ in range(5):
        node.turn()
    heard = node.heard
    for _ in range(10):
        node.turn()
    assert node.heard == heard
    node.kubelet.report_all()
    node.turn()
    assert node.heard == heard + 1


def test_an_end_whose_report_was_lost_with_the_controller_is_told_again(node: RealNode) -> None:
    wanted = pod("web")
    node.run(wanted)
    node.wants(deleted(wanted))
    node.until(lambda: node.gone)
    node.gone.clear()
    node.kubelet.report_all()
    node.turn()
    assert [name for name, _ in node.gone] == ["web"]


@pytest.mark.parametrize("where", ["start", "poll", "status"])
def test_a_pod_that_cannot_be_run_fails_by_itself_and_takes_nobody_along(
    node: RealNode, monkeypatch: pytest.MonkeyPatch, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    node.run(pod("web"))
    act = getattr(PodRuntime, where)

    def fail(runtime: PodRuntime) -> Any:
        if runtime._pod["metadata"]["name"] == "bad":
            raise KeyError("annotation")
        return act(runtime)

    monkeypatch.setattr(PodRuntime, where, fail)
    bad = pod("bad")
    node.wants(bad, pod("after"))
    node.until(lambda: node.reports.get("bad", {}).get("phase") == "Failed" and node.ready("after"))
    assert node.reports["bad"]["message"] == "KeyError: 'annotation'"
    assert node.ready("web")
    (event,) = node.kubelet.events
    assert (event["type"], event["object"]["name"]) == ("Warning", "bad")
    assert "cannot be run: KeyError" in event["message"]
    assert node.kubelet.namespace("pod/default/bad") is None
    assert "KeyError" in capfd.readouterr().err
    node.wants(deleted(bad))
    node.until(lambda: [name for name, _ in node.gone] == ["bad"])


def test_a_bug_that_all_pods_share_ends_the_node(node: RealNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(runtime: PodRuntime) -> None:
        raise AssertionError("handed a packet that is not its own")

    node.run(pod("web"))
    monkeypatch.setattr(PodRuntime, "poll", wrong)
    node.kubelet.report_all()
    with pytest.raises(AssertionError, match="not its own"):
        node.turn()


def test_a_turn_without_news_does_nothing(node: RealNode) -> None:
    node.run(pod("web"))
    node.turn()
    assert node.kubelet.turn(node.kernel.now()) == []
    assert node.kubelet.poll_at() == float("inf")


def test_a_deleted_pod_stops_goes_and_takes_its_namespace_along(node: RealNode) -> None:
    node.run(pod("web"))
    devices = len(node.machine.node.devices)
    ns = node.namespace("web")
    node.wants(deleted(pod("web")))
    node.until(lambda: node.gone == [("web", "uid-of-web")])
    assert ns.closed
    assert len(node.machine.node.devices) == devices - 1
    assert node.kubelet.namespace("pod/default/web") is None
    node.wants(without=("web",))
    for _ in range(3):
        node.turn()
    assert node.gone == [("web", "uid-of-web")], "told once is enough"


def test_a_pod_that_is_told_to_stop_may_still_say_good_bye(node: RealNode) -> None:
    node.run(chatting("talker"))
    node.wants(deleted(chatting("talker"), grace=5))
    node.until(lambda: bool(node.gone))
    began = time.monotonic()
    node.run(chatting("talker", uid="second"))
    node.wants(without=("talker",))  # no grace: it has been removed already, by force
    node.until(lambda: len(node.gone) == 2)
    assert time.monotonic() - began < 2.0


def test_a_pod_unheard_of_that_is_being_deleted_is_gone_at_once(node: RealNode) -> None:
    """It ran in an earlier life of this node."""
    node.wants(deleted(pod("old")))
    node.turn()
    assert node.gone == [("old", "uid-of-old")]
    assert node.kubelet.namespaces() == []


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_is_not_started_again(node: RealNode, phase: str) -> None:
    node.wants({**pod("job"), "status": {"phase": phase}})
    for _ in range(3):
        node.turn()
    assert (node.reports, node.kubelet.namespaces()) == ({}, [])


def test_another_pod_of_the_same_name_waits_for_the_first_to_go(node: RealNode) -> None:
    node.run(pod("db-0", uid="first"))
    first = node.namespace("db-0")
    node.wants(pod("db-0", uid="second"))
    node.until(lambda: node.gone == [("db-0", "first")])
    node.until(lambda: node.ready("db-0"))
    assert first.closed
    assert node.namespace("db-0") is not first
    assert node.reports["db-0"]["podIP"] == "10.244.1.3"


def test_a_fixed_address_that_is_taken_is_waited_for_and_the_reason_told(node: RealNode) -> None:
    wish = {"podwire.dev/address": "10.244.1.50"}
    node.run(pod("first", annotations=wish))
    node.wants(pod("second", annotations=wish))
    node.until(lambda: "second" in node.reports)
    status = node.reports["second"]
    assert status["phase"] == "Pending"
    (container,) = status["containerStatuses"]
    waiting = container["state"]["waiting"]
    assert waiting["reason"] == "ContainerCreating"
    assert waiting["message"] == "failed to create pod sandbox: address 10.244.1.50 belongs to pod/default/first"
    node.wants(deleted(pod("first", annotations=wish), grace=0))
    node.until(lambda: node.ready("second"))
    assert node.reports["second"]["podIP"] == "10.244.1.50"


@pytest.mark.parametrize("wish", ["10.244.9.9", "10.244.1.1", "no address"])
def test_an_address_that_can_never_be_had_is_said_and_such_a_pod_can_still_be_deleted(node: RealNode, wish: str) -> None:
    given = pod("web", annotations={"podwire.dev/address": wish})
    node.wants(given)
    node.until(lambda: "web" in node.reports)
    assert node.reports["web"]["phase"] == "Pending"
    assert wish in str(node.reports["web"])
    node.wants(deleted(given))
    node.until(lambda: bool(node.gone))


def test_a_pod_of_the_host_s_network_shares_the_node_s_and_leaves_it_standing(node: RealNode) -> None:
    node.run(pod("agent", port=9100, hostNetwork=True))
    assert node.reports["agent"]["podIP"] == "192.168.0.2"
    assert node.namespace("agent") is node.machine.node
    assert listening(node, "agent") == {9100}
    node.wants(deleted(pod("agent", port=9100, hostNetwork=True)))
    node.until(lambda: bool(node.gone))
    assert not node.machine.node.closed
    assert node.machine.node.sockets.listeners == {}


def test_a_stand_in_opens_the_ports_that_services_aim_at(node: RealNode) -> None:
    node.run(pod("web", "nginx:1.27", port=None, labels={"app": "web"}))
    assert node.kubelet.stand_ins() == ["default/web/main"]
    assert listening(node, "web") == set()

    def serve(name: str, target: int, **selector: str) -> tuple[str, object]:
        made = value(f"default/{name}", selector=selector)
        made["service"]["spec"]["ports"][0]["targetPort"] = target
        return f"default/{name}", lambda: made

    node.kubelet.on_services([serve("one", 8080, app="web"), serve("two", 9090, app="other")])  # type: ignore[list-item]
    node.until(lambda: listening(node, "web") == {8080})
    node.kubelet.on_services([serve("two", 9090, app="web")])  # type: ignore[list-item]
    node.until(lambda: listening(node, "web") == {8080, 9090})
    node.run(pod("late", "nginx:1.27", port=None, labels={"app": "web"}))
    node.until(lambda: listening(node, "late") == {8080, 9090})


def test_pods_of_one_node_reach_each_other(node: RealNode) -> None:
    node.run(pod("one"), pod("two"))
    two = parse_ip(node.reports["two"]["podIP"])
    node.kernel.enter()
    sock = TcpSocket(node.namespace("one"))
    sock.connect(SockAddr(two, 7))
    node.kernel.leave()
    node.until(lambda: sock.connected)


# ---- what users ask for ------------------------------------------------------------------------------------------------------


def test_exec_gives_output_errors_and_the_exit_code(node: RealNode) -> None:
    node.run(pod("web"))
    assert node.call("exec", namespace="default", pod="web", command=["hostname", "-i"]) == [{"stdout": b"10.244.1.2\n"}, {"exit": 0}]
    assert node.call("exec", namespace="default", pod="web", command=["cat", "/nothing"])[-1] == {"exit": 1}
    missing = node.call("exec", namespace="default", pod="web", command=["vim"])
    assert missing == [{"stderr": b'exec: "vim": executable file not found in $PATH\n'}, {"exit": 127}]


def test_exec_takes_input_until_its_end(node: RealNode) -> None:
    node.run(pod("web"))
    node.posted.clear()
    node.calls.on_message(
        {"t": "call", "id": 5, "method": "exec", "params": {"namespace": "default", "pod": "web", "command": ["cat"], "stdin": True}}
    )
    node.calls.on_message({"t": "input", "id": 5, "data": {"stdin": b"hello "}})
    node.calls.on_message({"t": "input", "id": 5, "data": {"stdin": b"world", "stdin_eof": True}})
    node.until(lambda: bool(node.posted) and node.posted[-1]["last"])
    assert b"".join(message["body"].get("stdout", b"") for message in node.posted) == b"hello world"
    assert node.posted[-1]["body"] == {"exit": 0}
    node.calls.on_message({"t": "input", "id": 5, "data": {"stdin": b"too late"}})  # nobody there: ignored


def test_a_cancelled_exec_is_killed(node: RealNode) -> None:
    node.run(pod("web"))
    node.posted.clear()
    node.calls.on_message(
        {"t": "call", "id": 6, "method": "exec", "params": {"namespace": "default", "pod": "web", "command": ["sleep", "60"]}}
    )
    time.sleep(0.05)
    node.calls.on_message({"t": "cancel", "id": 6})
    node.until(lambda: bool(node.posted))
    assert node.posted[-1]["body"] == {"exit": 137}
    node.calls.on_message({"t": "cancel", "id": 6})


def test_logs_are_given_at_once_from_the_end_and_followed_to_it(node: RealNode) -> None:
    node.run(chatting("talker", "one", "two", "three"))
    node.until(lambda: b"three" in node.kubelet.logs({"namespace": "default", "pod": "talker"}))
    assert node.call("logs", namespace="default", pod="talker") == [{"stdout": b"one\ntwo\nthree\n"}]
    assert node.call("logs", namespace="default", pod="talker", tail=1) == [{"stdout": b"three\n"}]
    stamped = node.call("logs", namespace="default", pod="talker", tail=1, timestamps=True)[0]["stdout"]
    assert stamped.endswith(b" three\n")
    assert b"T" in stamped.split()[0]
    node.posted.clear()
    node.calls.on_message({"t": "call", "id": 9, "method": "logs", "params": {"namespace": "default", "pod": "talker", "follow": True}})
    node.wants(deleted(chatting("talker", "one", "two", "three"), grace=3))
    node.until(lambda: bool(node.posted) and node.posted[-1]["last"])
    assert b"".join(message["body"].get("stdout", b"") for message in node.posted) == b"one\ntwo\nthree\nbye\n"


def test_a_follower_that_has_heard_enough_hears_no_more(node: RealNode) -> None:
    node.run(chatting("talker", "one"))
    heard: list[object] = []
    session = node.kubelet.follow({"namespace": "default", "pod": "talker"}, lambda body, last: heard.append(body))
    node.until(lambda: bool(heard))
    session.cancel()
    node.wants(deleted(chatting("talker", "one")))
    node.until(lambda: bool(node.gone))
    assert heard == [{"stdout": b"one\n"}]


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("exec", {"pod": "nobody", "command": ["hostname"]}, "pod nobody has no running container on its node"),
        ("logs", {"pod": "nobody"}, "pod nobody has no running container on its node"),
        ("exec", {"pod": "web", "container": "side", "command": ["hostname"]}, "container side is not valid for pod web"),
        ("logs", {"pod": "web", "container": "side"}, "container side is not valid for pod web"),
        ("logs", {"pod": "web", "previous": True}, 'previous terminated container "main" in pod "web" not found'),
        ("logs", {"pod": "web", "follow": True, "container": "side"}, "container side is not valid for pod web"),
    ],
)
def test_what_cannot_be_is_refused_in_kubelet_s_words(node: RealNode, method: str, params: dict[str, object], message: str) -> None:
    node.run(pod("web"))
    assert node.error(method, namespace="default", **params) == {"code": 400, "reason": "BadRequest", "message": message}
    if not params.get("follow"):
        with pytest.raises(ApiError, match=re.escape(message)):
            getattr(node.kubelet, method)({"namespace": "default", **params}, *([lambda body, last: None] if method == "exec" else []))


def test_shut_down_is_prompt_and_tells_every_program() -> None:
    with real_node() as node:
        node.run(*(pod(f"web-{number}") for number in range(5)), chatting("talker"))
        began = time.monotonic()
        node.kubelet.shut_down()
        assert time.monotonic() - began < 1.0
        assert node.kubelet.abandoned == 0
