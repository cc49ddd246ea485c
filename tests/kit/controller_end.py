"""The controller's end of the bus against a real node in this process: answers snapshots, publishes, keeps all that the node says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

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
from tests.kit.nodes import PATIENCE

OWN = node_stream("node-1")


class Controller:
    """The other end: answers snapshots from `tables`, and keeps all that the node says."""

    def __init__(self, lease_period: float = 0.3, **spec: Any) -> None:
        timings = {"nodeMonitorGracePeriod": "2s", "nodeLeaseRenewPeriod": f"{int(lease_period * 1000)}ms"}
        self.spec = ClusterSpec.from_mapping({"name": "test", "nodes": 2, "timings": timings, **spec}, run_dir="/nowhere")
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
        self.publish_all(stream, {key: item})

    def publish_all(self, stream: str, items: Mapping[str, Any]) -> None:
        """In one update; None for what is deleted."""
        changes = []
        for key, item in items.items():
            self.tables[stream][key] = item
            if item is None:
                del self.tables[stream][key]
            changes.append(("del", key, b"") if item is None else (SET, key, pack(NodeRecord.of(item) if stream == NODES else item)))
        self.sequences[stream] += 1
        self.bus.publish(Update(stream, self.sequences[stream], 1, changes))

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
