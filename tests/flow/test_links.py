"""Trouble on links between two nodes with a manual clock: round trips, zones, partitions, and a node that leaves and returns."""

from __future__ import annotations

import pytest

from emu.bus.messages import pack
from emu.bus.views import NodeRecord
from emu.errors import DropReason
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import PingSocket, UdpSocket
from emu.wire.addr import ANY, SockAddr
from tests.kit.fabric import Fabric


def address(ns: NetNamespace) -> bytes:
    return ns.devices["eth0"].addresses[0][0]


class Pinging:
    """A client on node 1 and a server on node 2."""

    def __init__(self, nodes: int = 2, zones: tuple[str, ...] = ()) -> None:
        self.fabric = Fabric(nodes, zones=zones)
        self.client, self.server = self.fabric.pod(1, "client"), self.fabric.pod(2, "server")
        self.socket = PingSocket(self.client)
        self.number = 0

    def ping(self, within: float = 1.0, ns: NetNamespace | None = None) -> float | None:
        """Seconds until the answer comes, None if it does not; to a tenth of a millisecond."""
        self.number += 1
        self.socket.send_echo(address(ns or self.server), self.number, b"x")
        began = self.fabric.clock.now()
        self.fabric.run()
        while (answer := self.socket.receive()) is None or answer[2] != self.number:
            if self.fabric.clock.now() - began >= within:
                return None
            self.fabric.advance(0.0001)
        return self.fabric.clock.now() - began


def test_each_direction_has_its_own_delay_and_a_link_that_heals_has_none() -> None:
    pair = Pinging()
    assert pair.ping() == 0.0
    pair.fabric.fault(link="node-1->node-2", delay="20ms")
    assert pair.ping() == pytest.approx(0.02, abs=2e-4)
    pair.fabric.fault(link="node-2->node-1", delay="30ms")
    assert pair.ping() == pytest.approx(0.05, abs=2e-4)
    pair.fabric.heal()
    assert pair.ping() == 0.0


def test_fair_weather_costs_nothing() -> None:
    pair = Pinging(3)
    bare = [machine.underlay.wire for machine in pair.fabric.machines.values()]
    pair.fabric.fault(link="node-1->node-2", delay="20ms")
    now = [machine.underlay.wire for machine in pair.fabric.machines.values()]
    assert now[0] is pair.fabric.machines["node-1"].carrier
    assert now[1:] == bare[1:]
    pair.fabric.heal()
    assert [machine.underlay.wire for machine in pair.fabric.machines.values()] == bare


def test_a_delay_longer_than_any_queue_still_arrives() -> None:
    pair = Pinging()
    pair.fabric.fault(link="*->*", delay="3s")
    assert pair.ping(10.0) == pytest.approx(6.0, abs=2e-4)
    assert DropReason.STALE_AGE not in pair.fabric.machines["node-2"].node.drops


def test_zones_are_labels_of_nodes() -> None:
    pair = Pinging(3, zones=("a", "b", "a"))
    neighbour = pair.fabric.pod(3, "neighbour")
    pair.fabric.fault(link="zone/a<->zone/b", delay="10ms")
    assert pair.ping() == pytest.approx(0.02, abs=2e-4)
    assert pair.ping(ns=neighbour) == 0.0


def test_a_partition_is_silence_both_ways_until_it_heals() -> None:
    pair = Pinging(3)
    third = pair.fabric.pod(3, "third")
    pair.fabric.fault(partition=[["node-1"], ["node-2"]])
    assert pair.ping() is None
    assert pair.ping(ns=third) == 0.0
    assert pair.fabric.machines["node-1"].node.drops == {DropReason.LINK_CUT: 1}
    pair.fabric.heal()
    assert pair.ping() == 0.0


def test_the_same_seed_loses_the_same_packets_whatever_else_is_sent() -> None:
    def arrived(chatter: bool) -> list[int]:
        fabric = Fabric(3, seed=5)
        client, server, other = fabric.pod(1, "client"), fabric.pod(2, "server"), fabric.pod(3, "other")
        fabric.fault(link="*->*", loss="10%")
        listening, sending = UdpSocket(server), UdpSocket(client)
        listening.bind(SockAddr(ANY, 53))
        found = []
        for number in range(300):
            sending.send_to(number.to_bytes(2, "big"), SockAddr(address(server), 53))
            if chatter:
                sending.send_to(b"noise", SockAddr(address(other), 53))
            fabric.run()
            while (datagram := listening.receive()) is not None:
                found.append(int.from_bytes(datagram[0], "big"))
        return found

    quiet = arrived(chatter=False)
    assert 230 < len(quiet) < 295
    assert arrived(chatter=True) == quiet


def test_a_peer_that_comes_after_the_fault_is_in_trouble_too() -> None:
    pair = Pinging()
    machine = pair.fabric.machines["node-1"]
    machine.update_peers([("node-2", None)])
    pair.fabric.fault(link="node-1->node-2", delay="20ms")
    machine.update_peers([("node-2", pack(NodeRecord.of(pair.fabric.records[1])))])
    assert pair.ping() == pytest.approx(0.02, abs=2e-4)


def test_what_is_under_way_to_a_node_that_restarts_never_arrives() -> None:
    pair = Pinging()
    pair.fabric.fault(link="node-1->node-2", delay="1s")
    pair.socket.send_echo(address(pair.server), 1, b"x")
    pair.fabric.run()
    pair.fabric.machines["node-1"].update_peers([("node-2", pack(NodeRecord.of({**pair.fabric.records[1], "incarnation": 2})))])
    pair.fabric.advance(2.0)
    assert pair.fabric.machines["node-1"].node.drops == {DropReason.UNKNOWN_PEER: 1}
    assert pair.socket.receive() is None
