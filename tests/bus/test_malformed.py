"""Garbage on the broadcast and on the control channel: each frame is taken or counted as malformed, and what is taken is a real one."""

from __future__ import annotations

import pytest

from emu.bus.follower import Follower
from emu.bus.memory import MemoryBus
from emu.bus.messages import DEL, SET, Update, decode, decode_update, encode, encode_update, pack
from tests.kit.garbage import Garbage

HELLO = {
    "t": "hello", "name": "node-1", "ip": "192.168.0.2", "pod_cidr": "10.244.1.0/24", "endpoint": "ipc:///x", "incarnation": 1,
    "labels": {}, "pid": 1,
}  # fmt: skip
NODE = pack({"name": "node-2", "ip": "192.168.0.3", "pod_cidr": "10.244.2.0/24", "endpoint": "ipc:///y", "incarnation": 1})
UPDATES = [
    encode_update(update)
    for update in (
        Update("nodes", 1, 5, [(SET, "node-2", NODE)]),
        Update("services", 1, 6, [(SET, "default/web", pack({"service": {}})), (DEL, "default/old", b"")]),
        Update("node/node-1", 9, 7, []),
        Update("welcome", 0, 0, []),
    )
]
TO_NODE = [
    encode(message)
    for message in (
        {"t": "snapshot", "stream": "nodes", "sequence": 0, "revision": 1, "items": [["node-2", NODE]]},
        {"t": "resync", "stream": "services"},
        {"t": "hello?"},
        {"t": "call", "id": 1, "method": "rules", "params": {"format": "iptables-save"}},
        {"t": "input", "id": 1, "data": {"taken": 1}},
        {"t": "cancel", "id": 1},
    )
]
FROM_NODE = [
    encode(message)
    for message in (
        HELLO,
        {"t": "lease", "applied": {"nodes": 1}, "abandoned": 0},
        {"t": "pods", "statuses": [{"namespace": "default", "name": "web", "uid": "1", "status": {"podIP": "10.244.1.2"}}]},
        {"t": "answer", "id": 1, "body": {"text": "x"}, "last": True},
        {"t": "hops", "hops": [[2, "node-1"]]},
    )
]


def storm(count: int, seed: int) -> None:
    garbage = Garbage(seed)
    bus = MemoryBus(0)
    follower = Follower(HELLO)
    link = bus.connect("node-1", follower.streams)
    link.poll(0)
    taken = 0
    for number in range(count):
        is_update = number % 2 == 0
        frame = garbage.of(UPDATES if is_update else TO_NODE)
        genuine = frame in (UPDATES if is_update else TO_NODE)
        before = link.malformed
        link.push(frame, is_update=is_update)
        found = link.poll(0)
        assert (len(found), link.malformed - before) == ((1, 0) if genuine else (0, 1)), frame.hex()
        taken += len(found)
        for message in found:
            step = follower.on_message(message)
            for stream, keys in step.changed.items():
                for key in keys:
                    follower.mirrors[stream].get(key)
        report = garbage.of(FROM_NODE)
        assert (decode(report) is not None) == (report in FROM_NODE)
        assert decode_update(report) is None
    assert link.malformed + taken == count
    assert taken > count / 100


def test_every_frame_is_taken_or_counted() -> None:
    storm(20_000, 1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_million_frames_are_taken_or_counted() -> None:
    storm(1_000_000, 2)
