"""Paths that take less than the device: connections shrink their segments, sockets are told, and it is forgotten after ten minutes."""

from __future__ import annotations

import errno

import pytest

from emu.stack import icmp
from emu.stack.pmtu import MTU_EXPIRES
from emu.stack.sockets import IP_PMTUDISC_DO, IP_PMTUDISC_DONT, IP_PMTUDISC_PROBE, UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, SockAddr
from tests.kit.fabric import Fabric

NARROW = 1280


class World:
    """A client and a server on two nodes; the tunnel of the client's node takes 1280 bytes, which neither of them knows."""

    def __init__(self) -> None:
        self.fabric = Fabric(2)
        self.client, self.server = self.fabric.pod(1, "client"), self.fabric.pod(2, "server")
        self.fabric.machines["node-1"].node.devices["flannel.1"].mtu = NARROW
        self.ip = self.server.devices["eth0"].addresses[0][0]
        self.listener = TcpListener(self.server, SockAddr(ANY, 80))

    def connect(self) -> tuple[TcpSocket, TcpSocket]:
        ours = TcpSocket(self.client)
        ours.connect(SockAddr(self.ip, 80))
        self.fabric.run()
        theirs = self.listener.accept()
        assert theirs is not None
        return ours, theirs

    def carry(self, ours: TcpSocket, theirs: TcpSocket, data: bytes) -> bytes:
        got = b""
        for _ in range(200):
            data = data[ours.write(data) :] if data else data
            self.fabric.run()
            while piece := theirs.read(1 << 20):
                got += piece
            self.fabric.advance(0.01)
        return got


@pytest.fixture
def world():
    return World()


def test_a_connection_adapts_to_a_narrow_place_on_the_way(world):
    ours, theirs = world.connect()
    data = bytes(range(256)) * 400
    assert world.carry(ours, theirs, data) == data
    assert ours.conn.mtu == NARROW
    assert ours.conn.mss == NARROW - 52
    assert theirs.conn.mtu == 1450  # nobody has told it


def test_the_next_connection_knows_it_from_the_start_but_tells_the_peer_its_devices_own(world):
    ours, theirs = world.connect()
    world.carry(ours, theirs, bytes(5000))
    again, other = world.connect()
    assert again.conn.mtu == NARROW
    assert other.conn.peer_mss == 1410
    assert world.client.path_mtu(world.ip) == NARROW
    assert world.client.mtu_to(world.ip) == 1450


def test_it_is_forgotten_after_ten_minutes_and_longer_segments_are_tried_again(world):
    ours, theirs = world.connect()
    world.carry(ours, theirs, bytes(5000))
    world.fabric.advance(MTU_EXPIRES - 10)
    assert ours.conn.mtu == world.client.path_mtu(world.ip) == NARROW
    world.fabric.machines["node-1"].node.devices["flannel.1"].mtu = 1450
    world.fabric.advance(10)
    assert ours.conn.mtu == world.client.path_mtu(world.ip) == 1450
    assert world.carry(ours, theirs, bytes(5000)) == bytes(5000)


def test_a_connected_datagram_socket_is_told_once_and_then_sends_fragments(world):
    asked, asks = UdpSocket(world.server), UdpSocket(world.client)
    asked.bind(SockAddr(ANY, 53))
    asks.connect(SockAddr(world.ip, 53))
    asks.send_to(bytes(1400))
    world.fabric.run()
    with pytest.raises(OSError) as told:  # ip(7): the error of an earlier datagram, reported by the next call
        asks.send_to(bytes(1400))
    assert told.value.errno == errno.EMSGSIZE
    asks.send_to(bytes(1400))
    world.fabric.run()
    assert asked.receive() == (bytes(1400), SockAddr(world.client.devices["eth0"].addresses[0][0], asks.local.port))


@pytest.mark.parametrize(("how", "longest"), [(IP_PMTUDISC_DO, NARROW - 28), (IP_PMTUDISC_PROBE, 1450 - 28)])
def test_with_df_forced_what_is_longer_is_refused_at_once(world, how, longest):
    world.client.paths.learn(world.ip, NARROW)
    asks = UdpSocket(world.client)
    asks.discover_mtu(how)
    asks.send_to(bytes(longest), SockAddr(world.ip, 53))
    with pytest.raises(OSError) as refused:
        asks.send_to(bytes(longest + 1), SockAddr(world.ip, 53))
    assert refused.value.errno == errno.EMSGSIZE


def test_without_path_discovery_df_is_not_set(world):
    sent = []
    world.client.devices["eth0"].transmit = lambda data, gso_size, trace: sent.append(data)
    asks = UdpSocket(world.client)
    asks.send_to(b"x", SockAddr(world.ip, 53))
    asks.discover_mtu(IP_PMTUDISC_DONT)
    asks.send_to(b"x", SockAddr(world.ip, 53))
    assert [data[6:8] for data in sent] == [b"\x40\0", b"\0\0"]


@pytest.mark.parametrize(("told", "taken"), [(0, 552), (600, 600), (40, 68), (1449, 1449), (1450, 1450), (9000, 1450)])
def test_what_is_told_only_ever_makes_a_path_smaller(world, told, taken):
    assert world.client.paths.learn(world.ip, told) == taken
    assert world.client.path_mtu(world.ip) == taken
    assert world.client.paths.learn(world.ip, 1400) == min(taken, 1400)


def test_a_word_about_a_segment_that_is_not_outstanding_is_not_believed(world):
    """RFC 5927, 4: whoever cannot guess sequence numbers cannot make us send tiny segments."""
    ours, _ = world.connect()
    quote = bytearray(40)
    quote[0], quote[9], quote[12:16], quote[16:20] = 0x45, 6, ours.local.ip, world.ip
    quote[20:24] = ours.local.port.to_bytes(2, "big") + b"\0\x50"
    quote[24:28] = (ours.conn.snd_nxt + 100_000 & 0xFFFFFFFF).to_bytes(4, "big")
    lie = icmp.message(world.ip, ours.local.ip, icmp.DEST_UNREACHABLE, icmp.FRAGMENTATION_NEEDED, 0, 100, bytes(quote))
    world.client.devices["eth0"].receive(lie, 0, 0)
    world.fabric.run()
    assert (ours.conn.mtu, world.client.path_mtu(world.ip)) == (1450, 1450)
