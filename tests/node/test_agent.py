"""A node's control loop against a controller's end of the bus: hello, snapshots, leases, resyncs, and rules that follow Services."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from emu.bus.follower import Follower
from emu.bus.memory import MemoryBus
from emu.bus.messages import LINKS, NODES, SERVICES, SET, Update, node_stream, pack
from emu.bus.views import NodeRecord
from emu.model.cluster import ClusterSpec
from emu.netfilter.text import save_text
from emu.node.agent import Agent
from emu.node.kernel import LeaderFollower
from emu.node.main import make_machine
from emu.overlay.memory import MemoryNetwork
from emu.wire.addr import parse_ip
from tests.kit.nodes import PATIENCE, deleted, pod
from tests.kit.services import value

OWN = node_stream("node-1")
NODE_2 = {"name": "node-2", "ip": "192.168.0.3", "pod_cidr": "10.244.2.0/24", "endpoint": "node-2", "incarnation": 5, "ready": True}


class Controller:
    """The other end: answers snapshots from `tables`, and keeps all that the node says."""

    def __init__(self, lease_period: float = 0.3) -> None:
        timings = {"nodeMonitorGracePeriod": "2s", "nodeLeaseRenewPeriod": f"{int(lease_period * 1000)}ms"}
        self.spec = ClusterSpec.from_mapping({"name": "test", "nodes": 2, "timings": timings}, run_dir="/nowhere")
        self.bus = MemoryBus()
        self.tables: dict[str, dict[str, Any]] = {LINKS: {}, NODES: {}, SERVICES: {}, OWN: {}}
        self.sequences = dict.fromkeys(self.tables, 0)
        self.heard: list[dict[str, Any]] = []
        self.answering = True
        me = self.spec.node("node-1")
        carrier = MemoryNetwork().carrier("node-1")
        self.machine = make_machine(self.spec, me, carrier, 1)  # type: ignore[arg-type]
        self.kernel = LeaderFollower(self.machine.softnet, carrier, self.machine.underlay.receive_message)
        hello = {
            "t": "hello", "name": "node-1", "ip": me.ip, "pod_cidr": me.pod_cidr, "endpoint": "node-1", "incarnation": 1,
            "labels": {}, "pid": 1,
        }  # fmt: skip
        follower = Follower(hello)
        self.link = self.bus.connect("node-1", follower.streams)
        self.agent = Agent(self.spec, me, self.machine, self.kernel, self.link, follower)
        self.kernel.start()
        self.loop = threading.Thread(target=self.agent.run, args=(-1,), daemon=True)
        self.loop.start()

    def close(self) -> None:
        began = time.monotonic()
        self.agent.stop()
        self.loop.join(PATIENCE)
        assert not self.loop.is_alive()
        assert time.monotonic() - began < 1.5
        self.kernel.stop()

    def turn(self) -> None:
        for _, message in self.bus.receive():
            self.heard.append(message)
            if message["t"] == "snapshot?" and self.answering:
                stream = message["stream"]
                items = [[key, pack(item)] for key, item in self.tables[stream].items()]
                self.bus.send(
                    "node-1", {"t": "snapshot", "stream": stream, "sequence": self.sequences[stream], "revision": 1, "items": items}
                )

    def until(self, true: Callable[[], Any], seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, [message["t"] for message in self.heard]
            self.turn()
            time.sleep(0.001)

    def publish(self, stream: str, key: str, item: Any) -> None:
        self.tables[stream][key] = item
        if item is None:
            del self.tables[stream][key]
        self.sequences[stream] += 1
        change = ("del", key, b"") if item is None else (SET, key, pack(NodeRecord.of(item) if stream == NODES else item))
        self.bus.publish(Update(stream, self.sequences[stream], 1, [change]))

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.heard if message["t"] == kind]

    def applied(self) -> dict[str, int]:
        leases = self.said("lease")
        return leases[-1]["applied"] if leases else {}

    def synced(self) -> None:
        self.until(lambda: self.applied() == self.sequences)

    def rules(self) -> str:
        return save_text(self.machine.node.netfilter.ruleset)

    def status(self, name: str) -> dict[str, Any]:
        reports = [report for message in self.said("pods") for report in message["statuses"] if report["name"] == name]
        return reports[-1] if reports else {}


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
