"""Both buses keep the same promises: late subscribers, gaps, lost tails, restarts and threads, each on real sockets and in memory."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from emu.bus.audience import Audience
from emu.bus.broadcast import ControllerBus
from emu.bus.follower import Follower
from emu.bus.memory import MemoryBus
from emu.bus.messages import SERVICES, WELCOME, Update, encode_update
from emu.bus.publisher import Publisher
from emu.bus.zeromq import NodeBus
from emu.store.store import Change, Store


def service(name, port=80):
    return {"metadata": {"namespace": "default", "name": name}, "spec": {"ports": [{"port": port}]}}


def hello(name):
    return {"t": "hello", "name": name, "ip": "", "pod_cidr": "", "endpoint": "", "incarnation": 1, "labels": {}, "pid": 1}


class Memory:
    def __init__(self, tmp_path):
        self.controller = None

    def start(self, epoch=0):
        old, self.controller = self.controller, MemoryBus(epoch)
        for link in list(old._nodes.values()) if old else ():  # as sockets reconnect by themselves
            link._bus = self.controller
            self.controller._nodes[link.node] = link
            link.push(encode_update(Update(WELCOME, epoch, 0, [])), is_update=True)
        return self.controller

    def node(self, name, streams):
        return self.controller.connect(name, streams)


class Zeromq:
    def __init__(self, tmp_path):
        self.at = f"ipc://{tmp_path}/pub", f"ipc://{tmp_path}/ctl"
        self.controller, self.nodes = None, []

    def start(self, epoch=0):
        if self.controller:
            self.controller.close()
        self.controller = ControllerBus(*self.at, epoch)
        return self.controller

    def node(self, name, streams):
        self.nodes.append(NodeBus(name, *self.at, streams))
        return self.nodes[-1]

    def close(self):
        for node in self.nodes:
            node.close()
        self.controller.close()


@pytest.fixture(params=[Memory, Zeromq], ids=["memory", "zeromq"])
def wires(request, tmp_path_factory):
    wires = request.param(tmp_path_factory.mktemp("b"))
    yield wires
    if isinstance(wires, Zeromq):
        wires.close()


class Cluster:
    """A controller's publishing half and any number of nodes, pumped by hand."""

    def __init__(self, wires):
        self.wires, self.store = wires, Store()
        self.nodes, self.changed, self.received = {}, {}, []
        self.restart(0)

    def restart(self, epoch):
        self.publisher = Publisher(self.store.get, epoch)
        self.audience = Audience(patience=0)
        for resource in ("services", "endpointslices", "nodes", "pods"):
            self.publisher.on_changes(Change(self.store.revision, "ADDED", resource, obj, None) for obj in self.store.list(resource)[0])
        self.publisher.flush()
        self.store._subscribers.clear()
        self.store.subscribe(self.publisher.on_changes)
        self.bus = self.wires.start(epoch)

    def add(self, name):
        follower = Follower(hello(name))
        self.nodes[name] = (self.wires.node(name, follower.streams), follower)
        self.changed[name] = []
        return follower

    def publish(self):
        for update in self.publisher.flush():
            self.bus.publish(update)

    def pump(self):
        for node, message in self.bus.receive():
            self.received.append((node, message))
            if message["t"] == "snapshot?":
                self.bus.send(node, self.publisher.snapshot(message["stream"]))
            elif message["t"] == "lease":
                for stream in self.audience.on_lease(node, message["applied"], self.publisher.sequences, time.monotonic()):
                    self.bus.send(node, {"t": "resync", "stream": stream})
        for name, (link, follower) in self.nodes.items():
            for message in link.poll(0):
                step = follower.on_message(message)
                for answer in step.send:
                    link.post(answer)
                self.changed[name] += [key for keys in step.changed.values() for key in keys]
                if step.message:
                    self.received.append((name, step.message))

    def until(self, true, seconds=5.0):
        deadline = time.monotonic() + seconds
        while not true():
            self.pump()
            assert time.monotonic() < deadline, "it never came about"
            time.sleep(0.0005)


@pytest.fixture
def cluster(wires):
    return Cluster(wires)


def ports(follower):
    return {key: value["service"]["spec"]["ports"][0]["port"] for key, value in follower.services.items()}


def test_a_late_subscriber_gets_what_was_before_it_and_what_comes_after(cluster):
    cluster.store.create("services", service("old"))
    cluster.publish()
    follower = cluster.add("node-1")
    cluster.until(lambda: follower.synced)
    assert ports(follower) == {"default/old": 80}
    cluster.store.create("services", service("new", 81))
    cluster.publish()
    cluster.until(lambda: len(follower.services) == 2)
    assert ports(follower) == {"default/old": 80, "default/new": 81}
    assert follower.resyncs == 0


def test_updates_published_while_a_node_joins_are_never_missed(cluster):
    follower = cluster.add("node-1")
    for n in range(200):
        cluster.store.create("services", service(f"s{n}"))
        cluster.publish()
        cluster.pump()
    cluster.until(lambda: follower.synced and len(follower.services) == 200)


def test_a_lost_update_is_found_by_its_gap(cluster):
    follower = cluster.add("node-1")
    cluster.until(lambda: follower.synced)
    cluster.store.create("services", service("lost"))
    assert cluster.publisher.flush()  # and not published
    cluster.store.create("services", service("next"))
    cluster.publish()
    cluster.until(lambda: ports(follower) == {"default/lost": 80, "default/next": 80})
    assert follower.resyncs == 1


def test_a_lost_last_update_shows_no_gap_and_is_found_by_the_leases(cluster):
    follower = cluster.add("node-1")
    cluster.until(lambda: follower.synced)
    cluster.store.create("services", service("last"))
    assert cluster.publisher.flush()  # and not published
    link = cluster.nodes["node-1"][0]
    link.post(follower.lease())
    cluster.until(lambda: cluster.received[-1][1]["t"] == "lease")
    assert ports(follower) == {}, "one lease may just have crossed the update"
    link.post(follower.lease())
    cluster.until(lambda: ports(follower) == {"default/last": 80})
    assert cluster.audience.resyncs == 1


def test_a_restarted_controller_is_followed_again_and_only_differences_are_changes(cluster):
    for name in ("same", "gone"):
        cluster.store.create("services", service(name))
    cluster.publish()
    follower = cluster.add("node-1")
    cluster.until(lambda: follower.synced)
    cluster.changed["node-1"].clear()
    cluster.received.clear()
    cluster.store.delete("services", "default", "gone")
    cluster.restart(epoch=1_000_000)
    cluster.until(lambda: ports(follower) == {"default/same": 80} and follower.synced)
    assert cluster.changed["node-1"] == ["default/gone"]
    assert [m["t"] for node, m in cluster.received if m["t"] == "hello"] == ["hello"]
    assert follower.services.sequence > 1_000_000


def test_a_node_that_was_killed_and_started_takes_over_its_name(cluster):
    cluster.add("node-1")
    cluster.until(lambda: any(message["t"] == "hello" for _, message in cluster.received))
    follower = cluster.add("node-1")
    cluster.until(lambda: follower.synced)
    assert cluster.bus.send("node-1", {"t": "call", "id": 1, "method": "rules", "params": {}})
    cluster.until(lambda: ("node-1", {"t": "call", "id": 1, "method": "rules", "params": {}}) in cluster.received)


def test_a_message_to_a_node_that_is_not_there_is_refused(cluster):
    assert cluster.bus.send("nobody", {"t": "hello?"}) is False


def test_a_node_hears_only_its_own_pods(cluster):
    followers = [cluster.add(f"node-{n}") for n in (1, 10)]
    cluster.until(lambda: all(follower.synced for follower in followers))
    cluster.store.create("pods", {"metadata": {"namespace": "default", "name": "p"}, "spec": {"nodeName": "node-10"}})
    cluster.publish()
    cluster.until(lambda: "default/p" in followers[1].pods)
    assert cluster.changed["node-1"] == []


def test_any_thread_may_post_and_it_ends_a_sleeping_poll(cluster):
    follower = cluster.add("node-1")
    cluster.until(lambda: follower.synced)
    link = cluster.nodes["node-1"][0]
    link.poll(0)
    threading.Timer(0.02, link.wake).start()
    started = time.monotonic()
    link.poll(5)
    assert time.monotonic() - started < 2
    thread = threading.Thread(target=lambda: link.post({"t": "answer", "id": 4, "body": {}, "last": True}))
    thread.start()
    thread.join()
    cluster.until(lambda: cluster.received and cluster.received[-1] == ("node-1", {"t": "answer", "id": 4, "body": {}, "last": True}))


def test_a_malformed_message_is_counted_and_dropped(cluster):
    cluster.add("node-1")
    cluster.until(lambda: bool(cluster.received))
    link = cluster.nodes["node-1"][0]
    if isinstance(link, NodeBus):
        link._dealer.send(b"\xc1 nonsense")
        link._dealer.send_multipart([b"two", b"frames"])
    else:
        cluster.bus.arrive("node-1", b"\xc1 nonsense")
        cluster.bus.arrive("node-1", b"")
    cluster.until(lambda: cluster.bus.malformed == 2)


def test_arrivals_call_back_in_the_event_loop(cluster):
    """Every message is told, also those that come while the sockets are being used (their descriptors are edge-triggered)."""

    async def run():
        got, done = [], asyncio.Event()

        def arrived():
            got.extend(message for _, message in cluster.bus.receive() if message["t"] == "lease")
            for update in cluster.publisher.flush():
                cluster.bus.publish(update)
            if len(got) >= 100:
                done.set()

        cluster.bus.on_arrival(arrived)
        follower = cluster.add("node-1")
        link = cluster.nodes["node-1"][0]
        for n in range(100):
            link.post(follower.lease(n))
            link.poll(0)
            if n % 10 == 0:
                cluster.store.create("services", service(f"s{n}"))
                cluster.publish()
                await asyncio.sleep(0)
        await asyncio.wait_for(done.wait(), 5)
        cluster.bus.on_arrival(None)
        return [message["abandoned"] for message in got]

    assert asyncio.run(run()) == list(range(100))


def test_latency_is_measured_from_publication_to_the_lease_that_has_it():
    audience = Audience()
    audience.on_lease("node-1", {SERVICES: 4}, {SERVICES: 4}, 10.0)
    audience.on_publish(SERVICES, 5, 11.0)
    assert audience.behind("node-1", {SERVICES: 5, "policy": 9}) == 1
    assert audience.on_lease("node-1", {SERVICES: 5}, {SERVICES: 5}, 11.25) == []
    assert list(audience.latencies) == [0.25]
    assert audience.behind("node-1", {SERVICES: 5}) == 0
