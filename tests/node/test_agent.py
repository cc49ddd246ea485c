"""A node's control loop against a controller's end of the bus: hello, snapshots, leases, resyncs, and rules that follow Services."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from emu.bus.messages import LINKS, NODES, SERVICES
from emu.wire.addr import parse_ip
from tests.kit.controller_end import OWN, Controller
from tests.kit.nodes import deleted, pod
from tests.kit.services import value

NODE_2 = {"name": "node-2", "ip": "192.168.0.3", "pod_cidr": "10.244.2.0/24", "endpoint": "node-2", "incarnation": 5, "ready": True}


@pytest.fixture
def controller() -> Iterator[Controller]:
    made = Controller()
    yield made
    made.close()


def test_a_node_says_hello_first_then_asks_for_each_stream_and_tells_how_far_it_is(controller: Controller) -> None:
    controller.synced()
    assert [message["t"] for message in controller.heard[:5]] == ["hello", *["snapshot?"] * 4]
    asked = [message["stream"] for message in controller.said("snapshot?")]
    assert asked == [LINKS, NODES, SERVICES, OWN], "trouble on links is known before there is a peer to send to"
    assert controller.said("lease")[0]["abandoned"] == 0
    assert len(controller.said("hello")) == 1


def test_leases_come_each_period_and_changes_do_not_add_one_each(controller: Controller) -> None:
    controller.synced()
    before, began = len(controller.said("lease")), time.monotonic()
    for number in range(200):
        controller.publish(SERVICES, f"ns1/svc{number}", value(f"ns1/svc{number}", cluster_ip=f"10.96.1.{number}"))
        controller.turn()
        time.sleep(0.0005)
    controller.synced()
    period, early = 0.3, controller.agent._early_lease
    most = (time.monotonic() - began) / min(period, early) + 2
    assert 1 <= len(controller.said("lease")) - before <= min(most, 150)
    quiet = len(controller.said("lease"))
    end = time.monotonic() + 3.5 * period
    controller.until(lambda: time.monotonic() > end)
    assert 2 <= len(controller.said("lease")) - quiet <= 5


def test_rules_follow_services_and_back(controller: Controller) -> None:
    controller.synced()
    controller.until(lambda: "KUBE-SERVICES" in controller.rules())
    empty = controller.rules()
    controller.publish(SERVICES, "ns1/svc1", value(endpoints=["10.244.2.9"], cluster_ip="10.96.0.41"))
    controller.until(lambda: "10.244.2.9" in controller.rules())
    assert "10.96.0.41/32" in controller.rules()
    controller.publish(SERVICES, "ns1/svc1", value(endpoints=["10.244.2.10"], cluster_ip="10.96.0.41"))
    controller.until(lambda: "10.244.2.10" in controller.rules())
    assert "10.244.2.9" not in controller.rules()
    controller.publish(SERVICES, "ns1/svc1", None)
    controller.until(lambda: controller.rules() == empty)


def test_a_node_keeps_when_its_rules_followed_which_update(controller: Controller) -> None:
    controller.synced()
    began = time.monotonic()
    controller.publish(SERVICES, "ns1/svc1", value(endpoints=["10.244.2.9"], cluster_ip="10.96.0.41"))
    controller.until(lambda: "10.244.2.9" in controller.rules())
    controller.synced()
    controller.bus.send("node-1", {"t": "call", "id": 7, "method": "swaps", "params": {}})
    controller.until(lambda: controller.said("answer"))
    last = controller.said("answer")[0]["body"]["items"][-1]
    assert last["sequence"] == controller.sequences[SERVICES]
    assert began < last["heard"] <= last["read"] <= last["built"] <= last["swapped"] < time.monotonic()


def test_no_rules_before_all_services_are_known() -> None:
    """A proxy that starts must not swap half a rule set in (kube-proxy waits for its informers)."""
    controller = Controller()
    try:
        controller.answering = False
        controller.until(lambda: len(controller.said("snapshot?")) == 4)
        time.sleep(0.05)
        assert controller.agent.proxy.stats().syncs == 0
        controller.answering = True
        controller.bus.send("node-1", {"t": "resync", "stream": SERVICES})
        controller.until(lambda: controller.agent.proxy.stats().syncs > 0)
    finally:
        controller.close()


def test_peers_come_move_and_go(controller: Controller) -> None:
    node = controller.machine.node

    def routes() -> list[str]:
        return [str(route) for route in node.routes if route.device == "flannel.1"]

    controller.synced()
    controller.publish(NODES, "node-2", NODE_2)
    controller.until(lambda: routes() == ["10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink"])
    controller.machine.underlay.resolve(parse_ip("192.168.0.3"))
    assert list(controller.machine.underlay.incarnations.values()) == [5]
    controller.publish(NODES, "node-2", {**NODE_2, "incarnation": 6, "pod_cidr": "10.244.7.0/24"})
    controller.until(lambda: routes() == ["10.244.7.0/24 via 10.244.7.0 dev flannel.1 onlink"])
    assert list(controller.machine.underlay.incarnations.values()) == [6]
    controller.publish(NODES, "node-2", None)
    controller.until(lambda: not routes())
    assert controller.machine.underlay.incarnations == {}


def test_a_pod_is_run_reported_and_reported_gone(controller: Controller) -> None:
    controller.publish(OWN, "default/web", pod("web"))
    controller.until(lambda: controller.status("web").get("status", {}).get("phase") == "Running")
    controller.publish(OWN, "default/web", deleted(pod("web")))
    controller.until(lambda: controller.status("web").get("gone"))
    controller.publish(OWN, "default/web", None)
    controller.synced()


def test_a_lost_update_is_noticed_at_the_next_and_made_good(controller: Controller) -> None:
    controller.synced()
    controller.bus.fault = lambda node, update: True
    controller.publish(SERVICES, "ns1/lost", value("ns1/lost", endpoints=["10.244.2.9"], cluster_ip="10.96.0.42"))
    controller.bus.fault = lambda node, update: False
    asked = len(controller.said("snapshot?"))
    controller.publish(SERVICES, "ns1/seen", value("ns1/seen", endpoints=["10.244.2.10"], cluster_ip="10.96.0.43"))
    controller.until(lambda: "10.96.0.42" in controller.rules() and "10.96.0.43" in controller.rules())
    assert len(controller.said("snapshot?")) == asked + 1


def test_a_lost_last_update_is_made_good_by_the_controller_s_order(controller: Controller) -> None:
    controller.synced()
    controller.bus.fault = lambda node, update: True
    controller.publish(SERVICES, "ns1/lost", value("ns1/lost", endpoints=["10.244.2.9"], cluster_ip="10.96.0.42"))
    leases = len(controller.said("lease"))
    controller.until(lambda: len(controller.said("lease")) > leases)
    assert controller.applied()[SERVICES] < controller.sequences[SERVICES], "its lease tells that it is behind"
    controller.bus.send("node-1", {"t": "resync", "stream": SERVICES})
    controller.until(lambda: "10.96.0.42" in controller.rules())
    controller.synced()


def test_a_controller_that_forgot_everything_hears_it_all_again(controller: Controller) -> None:
    controller.publish(OWN, "default/web", pod("web"))
    controller.until(lambda: controller.status("web").get("status", {}).get("phase") == "Running")
    controller.heard.clear()
    controller.bus.send("node-1", {"t": "hello?"})
    controller.until(lambda: bool(controller.said("hello")) and controller.status("web"))
    assert controller.status("web")["status"]["phase"] == "Running"


def test_calls_are_answered_by_the_loop(controller: Controller) -> None:
    controller.synced()
    controller.bus.send("node-1", {"t": "call", "id": 4, "method": "routes", "params": {}})
    controller.until(lambda: bool(controller.said("answer")))
    (answer,) = controller.said("answer")
    assert (answer["id"], answer["last"]) == (4, True)
    assert "routes" in answer["body"]


def test_hops_of_a_trace_are_sent_without_waiting_for_the_lease(controller: Controller) -> None:
    controller.synced()
    controller.publish(OWN, "default/web", pod("web"))
    controller.until(lambda: controller.status("web").get("status", {}).get("phase") == "Running")
    params = {"netns": "pod/default/web", "dst": "10.244.1.2", "dport": 9, "proto": "tcp", "id": 77, "deadline": 1.0}
    began = time.monotonic()
    controller.bus.send("node-1", {"t": "call", "id": 5, "method": "trace", "params": params})
    controller.until(lambda: bool(controller.said("hops")) and bool(controller.said("answer")))
    assert time.monotonic() - began < 0.25
    assert controller.said("answer")[0]["body"] == {"result": "refused"}


def test_the_loop_sleeps_when_nothing_is_due(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    controller.synced()
    polls = [0]
    poll = controller.link.poll

    def counted(timeout: float | None) -> list[Any]:
        polls[0] += 1
        return poll(timeout)

    monkeypatch.setattr(controller.link, "poll", counted)
    end = time.monotonic() + 1.0
    controller.until(lambda: time.monotonic() > end)
    assert polls[0] <= 12  # a lease each 0.3 s, and conntrack's look
