"""A node's data plane and the nodes around it: which pipes are kept, which are closed, and what a peer's new life changes."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from emu.bus.messages import pack
from emu.bus.views import NodeRecord
from emu.cni.plugin import NodeAddress
from emu.errors import DropReason
from emu.node.machine import Machine
from emu.wire.addr import Network, format_ip, parse_ip


class Pipes:
    """A carrier that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def add_peer(self, ip: bytes, endpoint: str, public_key: bytes = b"") -> None:
        self.told.append(("add", format_ip(ip), endpoint))

    def remove_peer(self, ip: bytes) -> None:
        self.told.append(("remove", format_ip(ip)))

    def take(self) -> list[tuple[str, ...]]:
        told, self.told = self.told, []
        return told


def machine() -> tuple[Machine, Pipes]:
    pipes = Pipes()
    me = NodeAddress("node-1", parse_ip("192.168.0.2"), Network.parse("10.244.1.0/24"))
    return Machine(me, pipes, 1, pod_network=Network.parse("10.244.0.0/16")), pipes  # type: ignore[arg-type]


def node(number: int = 2, **fields: Any) -> dict[str, Any]:
    return {
        "name": f"node-{number}", "ip": f"192.168.0.{number + 1}", "pod_cidr": f"10.244.{number}.0/24", "endpoint": f"ipc://{number}",
        "incarnation": 1, "ready": True, **fields,
    }  # fmt: skip


def packed(value: dict[str, Any]) -> bytes:
    return pack(NodeRecord.of(value))


ADD = ("add", "192.168.0.3", "ipc://2")
REMOVE = ("remove", "192.168.0.3")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (node(), node(), []),
        (node(), node(labels={"new": "label"}), []),
        (node(), node(ready=False), [REMOVE, ADD]),  # what waits in the pipe of a node that is silent must not reach its next life
        (node(ready=False), node(ready=False), []),
        (node(ready=False), node(), [ADD]),
        (node(), node(incarnation=2), [REMOVE, ADD]),
        (node(), node(endpoint="ipc://elsewhere"), [REMOVE, ("add", "192.168.0.3", "ipc://elsewhere")]),
        (node(), node(ip="192.168.0.99"), [REMOVE, ("add", "192.168.0.99", "ipc://2")]),
        (node(), None, [REMOVE]),
    ],
)
def test_a_pipe_is_closed_when_what_waits_in_it_would_reach_the_wrong_one(
    before: dict[str, Any], after: dict[str, Any] | None, told: list[tuple[str, ...]]
) -> None:
    made, pipes = machine()
    made.update_peers([("node-2", packed(before))])
    assert pipes.take() == [], "nobody has sent anything there"
    made.underlay.resolve(parse_ip("192.168.0.3"))
    assert pipes.take() == [ADD]
    made.update_peers([("node-2", after and packed(after))])
    assert pipes.take() == told
    expected = {} if after is None else {parse_ip(after["ip"]): after["incarnation"]}
    assert made.underlay.incarnations == expected


def test_a_node_is_no_peer_of_itself() -> None:
    made, pipes = machine()
    made.set_peers([node(1), node(2)])
    for address in ("192.168.0.2", "192.168.0.3"):
        made.underlay.resolve(parse_ip(address))
    assert pipes.take() == [ADD]


def test_a_record_that_is_none_is_counted_and_changes_nothing() -> None:
    made, _ = machine()
    made.set_peers([node()])
    for malformed in (
        b"",
        b"\x01",
        pack([]),
        pack([["192.168.0.3"], b"1234", 24, "ipc://2", 1, True, ""]),
        pack([[], b"1234", 24, "", 1, True, ""]),
    ):
        made.update_peers([("node-2", malformed)])
    assert made.node.drops[DropReason.BAD_MESSAGE] == 5
    assert "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink" in map(str, made.node.routes)


def test_a_big_cluster_costs_a_node_little_before_it_talks_to_it() -> None:
    """A thousand nodes have a million pairs: 4 KiB a pair would be 4 GiB."""
    made, pipes = machine()
    peers = [
        (f"node-{n}", packed(node(n, ip=f"192.168.{n >> 8}.{n & 255}", pod_cidr=f"10.{n >> 8}.{n & 255}.0/24"))) for n in range(2, 1002)
    ]
    tracemalloc.start()
    made.update_peers(peers)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / len(peers) < 400
    assert not pipes.take()
    assert len(list(made.node.routes)) == 1003


def test_set_peers_is_a_level() -> None:
    made, pipes = machine()
    made.set_peers([node(2), node(3)])
    for peer in (2, 3, 4):
        made.underlay.resolve(parse_ip(f"192.168.0.{peer + 1}"))
    assert pipes.take() == [ADD, ("add", "192.168.0.4", "ipc://3")]
    made.set_peers([node(3), node(4)])
    made.underlay.resolve(parse_ip("192.168.0.5"))
    assert pipes.take() == [REMOVE, ("add", "192.168.0.5", "ipc://4")]
    assert [str(route) for route in made.node.routes if route.device == "flannel.1"] == [
        "10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink",
        "10.244.4.0/24 via 10.244.4.0 dev flannel.1 onlink",
    ]


def test_a_node_that_is_not_ready_keeps_its_routes() -> None:
    """A kubelet that stops does not take flannel's entries with it: packets go there until its pods are replaced."""
    made, _ = machine()
    made.set_peers([node()])
    generation = made.softnet.generation
    made.set_peers([node(ready=False)])
    assert "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink" in map(str, made.node.routes)
    assert made.softnet.generation == generation, "no flow needs to be forgotten for that"
