"""Two nodes pass a packet: pod to pod over VXLAN, with nothing translated, and Linux's errors where there is nobody."""

from __future__ import annotations

import errno

import pytest

from emu.errors import DropReason
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import PingSocket, UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, Network, SockAddr, parse_ip
from tests.kit.fabric import Fabric


def address(ns: NetNamespace) -> bytes:
    return ns.devices["eth0"].addresses[0][0]


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(2)


@pytest.mark.parametrize("node", [1, 2], ids=["same node", "other node"])
def test_a_datagram_arrives_with_the_clients_own_address_and_is_answered(fabric: Fabric, node: int) -> None:
    client, server = fabric.pod(1, "client"), fabric.pod(node, "server")
    listening = UdpSocket(server)
    listening.bind(SockAddr(ANY, 53))
    sending = UdpSocket(client)

    for number in range(3):  # the second and third take the flow cache's way
        sending.send_to(b"question %d" % number, SockAddr(address(server), 53))
        fabric.run()
        datagram = listening.receive()
        assert datagram is not None
        assert datagram[0] == b"question %d" % number
        assert datagram[1] == SockAddr(address(client), sending.local.port)
        listening.send_to(b"answer %d" % number, datagram[1])
        fabric.run()

        assert sending.receive() == (b"answer %d" % number, SockAddr(address(server), 53))


@pytest.mark.parametrize("node", [1, 2], ids=["same node", "other node"])
def test_a_tcp_stream_flows_both_ways_and_ends(fabric: Fabric, node: int) -> None:
    client, server = fabric.pod(1, "client"), fabric.pod(node, "server")
    listener = TcpListener(server, SockAddr(ANY, 80))
    sock = TcpSocket(client)
    sock.connect(SockAddr(address(server), 80))
    fabric.run()
    accepted = listener.accept()

    assert accepted is not None
    assert accepted.remote == sock.local
    assert accepted.local == SockAddr(address(server), 80)

    request = bytes(range(256)) * 4096
    sent, received = 0, bytearray()
    while len(received) < len(request):
        sent += sock.write(request[sent : sent + 65536])
        fabric.run()
        while chunk := accepted.read(1 << 20):
            received += chunk
        fabric.advance(0.001)
    assert bytes(received) == request

    accepted.write(b"thanks")
    sock.shutdown_write()
    fabric.run()
    assert sock.read(100) == b"thanks"
    assert accepted.read(100) == b""
    accepted.close()
    fabric.run()
    assert sock.read(100) == b""
    sock.close()
    fabric.advance(61)
    assert not client.sockets.established
    assert not server.sockets.established


@pytest.mark.parametrize("node", [1, 2], ids=["same node", "other node"])
def test_a_closed_port_is_refused_at_once(fabric: Fabric, node: int) -> None:
    client, server = fabric.pod(1, "client"), fabric.pod(node, "server")
    sock = TcpSocket(client)
    sock.connect(SockAddr(address(server), 81))
    fabric.run()
    assert sock.error == errno.ECONNREFUSED

    datagrams = UdpSocket(client)
    datagrams.connect(SockAddr(address(server), 81))
    datagrams.send_to(b"?")
    fabric.run()
    assert datagrams.error == errno.ECONNREFUSED


@pytest.mark.parametrize("node", [1, 2], ids=["same node", "other node"])
def test_an_address_without_a_pod_on_a_live_node_is_no_route_to_host_after_three_seconds(fabric: Fabric, node: int) -> None:
    client = fabric.pod(1, "client")
    sock = TcpSocket(client)
    sock.connect(SockAddr(parse_ip(f"10.244.{node}.99"), 80))
    fabric.advance(2.9)
    assert sock.error == 0
    fabric.advance(0.2)
    assert sock.error == errno.EHOSTUNREACH


def test_a_node_that_is_gone_is_silence_until_tcp_gives_up(fabric: Fabric) -> None:
    client, server = fabric.pod(1, "client"), fabric.pod(2, "server")
    del fabric.machines["node-2"]
    sock = TcpSocket(client)
    sock.connect(SockAddr(address(server), 80))
    fabric.advance(126)
    assert sock.error == 0
    fabric.advance(2)
    assert sock.error == errno.ETIMEDOUT


def test_no_route_is_network_unreachable_at_once() -> None:
    fabric = Fabric(1)
    node = fabric.machines["node-1"].node
    node.remove_route(Network.parse("0.0.0.0/0"))
    with pytest.raises(OSError, match="Network is unreachable"):
        TcpSocket(node).connect(SockAddr(parse_ip("203.0.113.1"), 80))


def test_ping_is_answered_and_its_ttl_runs_out_on_the_way(fabric: Fabric) -> None:
    client, server = fabric.pod(1, "client"), fabric.pod(2, "server")
    ping = PingSocket(client)
    ping.send_echo(address(server), 7, b"payload")
    fabric.run()
    assert ping.receive() == (0, 0, 7, b"payload", address(server), 62)  # two nodes have each taken one
    ping.send_echo(address(server), 8, b"", ttl=1)
    fabric.run()
    answer = ping.receive()
    assert answer is not None
    assert answer[:3] == (11, 0, 8)


def test_loopback_is_a_pods_own(fabric: Fabric) -> None:
    first, second = fabric.pod(1, "first"), fabric.pod(1, "second")
    TcpListener(first, SockAddr(parse_ip("127.0.0.1"), 80))
    inside, outside = TcpSocket(first), TcpSocket(second)
    inside.connect(SockAddr(parse_ip("127.0.0.1"), 80))
    outside.connect(SockAddr(parse_ip("127.0.0.1"), 80))
    fabric.run()
    assert inside.connected
    assert outside.error == errno.ECONNREFUSED


def test_a_port_is_taken_once() -> None:
    pod = Fabric(1).pod(1, "pod")
    TcpListener(pod, SockAddr(ANY, 80))
    with pytest.raises(OSError, match="Address already in use"):
        TcpListener(pod, SockAddr(address(pod), 80))


def test_a_pod_that_is_gone_leaves_no_way_to_its_address(fabric: Fabric) -> None:
    client, server = fabric.pod(1, "client"), fabric.pod(2, "server")
    listening = UdpSocket(server)
    listening.bind(SockAddr(ANY, 53))
    sending = UdpSocket(client)
    for _ in range(3):
        sending.send_to(b"x", SockAddr(address(server), 53))
        fabric.run()
    assert len(listening.queue) == 3
    gone = address(server)
    fabric.machines["node-2"].cni.remove_pod("pod/default/server")
    sending.send_to(b"x", SockAddr(gone, 53))
    fabric.advance(4)
    assert fabric.machines["node-2"].node.drops[DropReason.HOST_UNREACHABLE] == 1


def test_a_message_for_another_life_of_the_node_is_dropped(fabric: Fabric) -> None:
    client, server = fabric.pod(1, "client"), fabric.pod(2, "server")
    fabric.machines["node-2"].underlay.incarnation = 2
    sending = UdpSocket(client)
    sending.send_to(b"x", SockAddr(address(server), 53))
    fabric.run()
    assert fabric.machines["node-2"].node.drops[DropReason.STALE_INCARNATION] == 1
