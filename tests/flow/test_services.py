"""Services as clients find them, through whole stacks: pods, node sockets, node ports, hairpins, and traces of all that."""

from __future__ import annotations

import errno
from collections import Counter

import pytest

from emu.errors import DropReason
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import PingSocket, UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, SockAddr, format_ip, parse_ip
from tests.kit.fabric import Fabric
from tests.kit.services import endpoint, value

VIP = "172.30.0.41"


def address(ns: NetNamespace) -> str:
    return format_ip(ns.devices["eth0"].addresses[0][0])


class Shop:
    """Two nodes, a client on the first, a server `a` beside it and a server `b` on the other node, behind one Service."""

    def __init__(self, seed: int = 0) -> None:
        self.fabric = Fabric(2, seed=seed)
        self.client = self.fabric.pod(1, "client")
        self.pods = {"a": self.fabric.pod(1, "a"), "b": self.fabric.pod(2, "b")}
        self.listeners = {name: TcpListener(pod, SockAddr(ANY, 8080)) for name, pod in self.pods.items()}
        self.serve("a", "b")

    def serve(self, *names: str, protocol: str = "TCP") -> None:
        endpoints = [endpoint(address(self.pods[name]), f"node-{1 if name == 'a' else 2}") for name in names]
        self.fabric.services({"ns1/svc1": value(endpoints=endpoints, cluster_ip=VIP, node_port=30080, type="NodePort", protocol=protocol)})

    def connect(self, source: NetNamespace, to: str = f"{VIP}:80") -> TcpSocket:
        sock = TcpSocket(source)
        sock.connect(SockAddr.parse(to))
        self.fabric.run()
        return sock

    def accepted(self) -> tuple[str, TcpSocket]:
        for name, listener in self.listeners.items():
            sock = listener.accept()
            if sock is not None:
                return name, sock
        raise AssertionError("nobody was asked")


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.mark.parametrize("server", ["a", "b"])
def test_a_connection_to_the_vip_reaches_a_pod_which_sees_the_client_itself(shop: Shop, server: str) -> None:
    shop.serve(server)
    sock = shop.connect(shop.client)
    assert sock.connected
    assert sock.remote == SockAddr.parse(f"{VIP}:80")
    name, accepted = shop.accepted()
    assert name == server
    assert accepted.remote == SockAddr(parse_ip(address(shop.client)), sock.local.port)
    for number in range(5):
        sock.write(b"question %d" % number)
        shop.fabric.run()
        assert accepted.read(100) == b"question %d" % number
        accepted.write(b"answer %d" % number)
        shop.fabric.run()
        assert sock.read(100) == b"answer %d" % number


def test_the_vip_is_on_no_interface(shop: Shop) -> None:
    for machine in shop.fabric.machines.values():
        assert not machine.node.is_local(parse_ip(VIP))
        assert not any(device.owns(parse_ip(VIP)) for device in machine.node.devices.values())


def test_pods_are_chosen_evenly() -> None:
    """χ² over 2,000 connections: 10.83 is the 0.001 quantile for one degree of freedom."""
    shop = Shop(seed=7)
    seen: Counter[str] = Counter()
    for _ in range(2000):
        sock = shop.connect(shop.client)
        name, accepted = shop.accepted()
        seen[name] += 1
        sock.abort()
        shop.fabric.run()
        assert accepted.error == errno.ECONNRESET
        accepted.close()
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in seen.values())
    assert len(seen) == 2
    assert chi_squared < 10.83


def test_a_connection_keeps_its_pod_while_endpoints_come_and_go(shop: Shop) -> None:
    shop.serve("a")
    sock = shop.connect(shop.client)
    _, accepted = shop.accepted()
    for names in (("a", "b"), ("b",), ()):
        shop.serve(*names)
        sock.write(b"still there?")
        shop.fabric.run()
        assert accepted.read(100) == b"still there?"


@pytest.mark.parametrize("source", ["pod", "node"])
def test_a_service_without_endpoints_refuses_at_once(shop: Shop, source: str) -> None:
    shop.serve()
    sock = shop.connect(shop.client if source == "pod" else shop.fabric.machines["node-1"].node)
    assert sock.error == errno.ECONNREFUSED


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_pod_that_reaches_itself_through_its_service_is_masqueraded(shop: Shop, name: str) -> None:
    shop.serve(name)
    sock = shop.connect(shop.pods[name])
    assert sock.connected
    served, accepted = shop.accepted()
    assert served == name
    assert accepted.remote is not None
    assert format_ip(accepted.remote.ip) == ("10.244.1.1" if name == "a" else "10.244.2.1")


@pytest.mark.parametrize("server", ["a", "b"])
@pytest.mark.parametrize("node", [1, 2])
def test_a_node_port_answers_on_every_node_and_masquerades(shop: Shop, server: str, node: int) -> None:
    shop.serve(server)
    sock = shop.connect(shop.client, f"192.168.0.{node + 1}:30080")
    assert sock.connected
    name, accepted = shop.accepted()
    assert name == server
    assert accepted.remote is not None
    assert format_ip(accepted.remote.ip).startswith(f"10.244.{node}.")
    sock.write(b"hello")
    shop.fabric.run()
    assert accepted.read(100) == b"hello"


def test_a_node_port_answers_on_localhost_of_the_node(shop: Shop) -> None:
    shop.serve("b")
    sock = shop.connect(shop.fabric.machines["node-1"].node, "127.0.0.1:30080")
    assert sock.connected


@pytest.mark.parametrize("server", ["a", "b"])
def test_a_process_of_the_node_reaches_the_vip(shop: Shop, server: str) -> None:
    shop.serve(server)
    sock = shop.connect(shop.fabric.machines["node-1"].node)
    assert sock.connected
    sock.write(b"hello")
    shop.fabric.run()
    _, accepted = shop.accepted()
    assert accepted.read(100) == b"hello"


def test_datagrams_through_the_vip_are_answered_from_the_vip(shop: Shop) -> None:
    shop.serve("b", protocol="UDP")
    server = UdpSocket(shop.pods["b"])
    server.bind(SockAddr(ANY, 8080))
    client = UdpSocket(shop.client)
    for number in range(4):
        client.send_to(b"%d" % number, SockAddr.parse(f"{VIP}:80"))
        shop.fabric.run()
        datagram = server.receive()
        assert datagram is not None
        assert datagram[0] == b"%d" % number
        server.send_to(b"re", datagram[1])
        shop.fabric.run()
        assert client.receive() == (b"re", SockAddr.parse(f"{VIP}:80"))


def crossed(shop: Shop, to: str) -> list[str]:
    """The nodes that a traced connection's request passes, in order."""
    sock = TcpSocket(shop.client)
    sock.probe = True
    sock.connect(SockAddr.parse(to), trace=42)
    shop.fabric.run()
    nodes: list[str] = []
    for hop in shop.fabric.hops():
        if hop.trace == 42 and (not nodes or nodes[-1] != hop.node):
            nodes.append(hop.node)
    return nodes


@pytest.mark.parametrize("server", ["a", "b"])
def test_the_way_through_the_vip_crosses_the_nodes_that_the_way_to_the_pod_does(shop: Shop, server: str) -> None:
    shop.serve(server)
    assert crossed(shop, f"{VIP}:80") == crossed(shop, f"{address(shop.pods[server])}:8080")


def test_a_trace_leaves_nothing_behind(shop: Shop) -> None:
    shop.serve("b")
    crossed(shop, f"{VIP}:80")
    shop.fabric.run()
    for machine in shop.fabric.machines.values():
        assert machine.forget(42) > 0
        assert len(machine.node.netfilter.conntrack) == 0
        machine.node.netfilter.conntrack.check()
    assert not shop.client.sockets.established
    assert not shop.pods["b"].sockets.established


def test_ping_of_the_vip_goes_nowhere_as_in_iptables_mode(shop: Shop) -> None:
    ping = PingSocket(shop.client)
    ping.send_echo(parse_ip(VIP), 1)
    shop.fabric.run()
    assert ping.receive() is None
    assert shop.fabric.machines["node-1"].node.drops[DropReason.OUTSIDE] == 1
