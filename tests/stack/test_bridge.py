"""cni0: switched where both pods are on it, routed where not, and through netfilter either way, as br_netfilter has it."""

from __future__ import annotations

import errno

import pytest

from emu.errors import DropReason
from emu.stack.bridge import Bridge
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import PingSocket, UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, SockAddr, format_ip, parse_ip
from tests.kit.fabric import Fabric
from tests.kit.rulesets import rules, table
from tests.kit.services import endpoint, value

VIP = "172.30.0.41"


def address(ns: NetNamespace) -> bytes:
    return ns.devices["eth0"].addresses[0][0]


class World:
    def __init__(self) -> None:
        self.fabric = Fabric(1)
        self.node = self.fabric.machines["node-1"].node
        self.client, self.server = self.fabric.pod(1, "client"), self.fabric.pod(1, "server")
        bridge = self.node.devices["cni0"]
        assert isinstance(bridge, Bridge)
        self.bridge = bridge

    def ping(self, to: bytes, ttl: int = 64) -> tuple[int, int] | None:
        """Type of the answer and the TTL it had left."""
        ping = PingSocket(self.client)
        ping.send_echo(to, 1, b"", ttl)
        self.fabric.run()
        echo = ping.receive()
        ping.close()
        return None if echo is None else (echo.kind, echo.ttl)


@pytest.fixture
def world() -> World:
    return World()


def test_a_frame_between_ports_keeps_its_ttl_and_one_for_the_bridge_itself_too(world: World) -> None:
    assert world.ping(address(world.server), ttl=1) == (0, 64)
    assert world.ping(parse_ip("10.244.1.1"), ttl=1) == (0, 64)


def test_what_is_not_on_the_link_is_routed_and_loses_one(world: World) -> None:
    assert world.ping(parse_ip("192.168.0.2"), ttl=1) == (0, 64)  # the node's other address: still for the node itself
    kind, _ = world.ping(parse_ip("10.244.9.9"), ttl=1) or (None, None)
    assert kind == 11


@pytest.mark.parametrize("netfilter", [True, False])
@pytest.mark.parametrize(("chain", "counted"), [("FORWARD", 1), ("INPUT", 0), ("OUTPUT", 0)])
def test_a_switched_frame_passes_forward_unless_the_sysctl_says_no(world: World, chain: str, counted: int, netfilter: bool) -> None:
    world.bridge.nf_call_iptables = netfilter
    world.node.swap(rules(table("filter", f"{chain} -d {format_ip(address(world.server))} -j DROP")))
    answered = world.ping(address(world.server)) is not None
    assert answered == (counted == 0 or not netfilter)
    assert world.node.drops[DropReason.NETFILTER_DROP] == (counted if netfilter else 0)


@pytest.mark.parametrize(("netfilter", "connected"), [(True, True), (False, False)])
def test_without_nf_call_iptables_a_same_node_service_does_not_connect(world: World, netfilter: bool, connected: bool) -> None:
    """The reply is switched past conntrack, so the client sees it from the pod itself, which it never asked (as Linux: a time-out)."""
    world.fabric.services({"ns1/svc1": value(endpoints=[endpoint(format_ip(address(world.server)), "node-1")], cluster_ip=VIP)})
    world.bridge.nf_call_iptables = netfilter
    TcpListener(world.server, SockAddr(ANY, 8080))
    sock = TcpSocket(world.client)
    sock.connect(SockAddr(parse_ip(VIP), 80))
    world.fabric.advance(10)
    assert sock.connected == connected
    if not connected:
        world.fabric.advance(130)
        assert sock.error == errno.ETIMEDOUT


def test_a_direct_connection_on_the_same_node_works_either_way(world: World) -> None:
    world.bridge.nf_call_iptables = False
    TcpListener(world.server, SockAddr(ANY, 8080))
    sock = TcpSocket(world.client)
    sock.connect(SockAddr(address(world.server), 8080))
    world.fabric.run()
    assert sock.connected


def test_a_service_dnat_on_a_bridged_frame_is_routed(world: World) -> None:
    """Both on one bridge, and yet the client addresses the gateway: the Service's address is not on the link."""
    world.fabric.services({"ns1/svc1": value(endpoints=[endpoint(format_ip(address(world.server)), "node-1")], cluster_ip="10.244.1.200")})
    TcpListener(world.server, SockAddr(ANY, 8080))
    sock = TcpSocket(world.client)
    sock.connect(SockAddr.parse("10.244.1.200:80"))  # an address of the pods' own subnet: nobody answers for it, so nobody can ask
    world.fabric.advance(4)
    assert sock.error == errno.EHOSTUNREACH


def test_ports_come_and_go(world: World) -> None:
    port = world.bridge.port_to(address(world.server))
    assert port is not None
    sock, receiving = UdpSocket(world.client), UdpSocket(world.server)
    receiving.bind(SockAddr(ANY, 53))
    for _ in range(3):
        sock.send_to(b"x", SockAddr(address(world.server), 53))
        world.fabric.run()
        assert receiving.receive() is not None
    world.bridge.detach(port)
    sock.send_to(b"x", SockAddr(address(world.server), 53))
    world.fabric.run()
    assert receiving.receive() is None
    world.bridge.attach(port)
    world.fabric.advance(4)
    sock.error = 0
    sock.send_to(b"y", SockAddr(address(world.server), 53))
    world.fabric.run()
    assert [receiving.receive(), receiving.receive()].count(None) <= 1


def test_each_port_counts_what_it_carries(world: World) -> None:
    world.ping(address(world.server))
    for ns in (world.client, world.server):
        port = world.bridge.port_to(address(ns))
        assert port is not None
        assert (port.rx_packets, port.tx_packets) == (1, 1)
