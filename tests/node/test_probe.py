"""A trace's probe says what became of one real packet, and leaves nothing behind."""

from __future__ import annotations

import pytest

from emu.netfilter.conn import parts
from emu.node.probe import Probe
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import TcpListener
from emu.stack.vxlan import UDP_PORT
from emu.wire.addr import ANY, SockAddr, format_ip
from tests.kit.fabric import Fabric
from tests.kit.rulesets import rules, table
from tests.kit.services import endpoint, value

TRACE, DEADLINE = 42, 5.0


class World:
    def __init__(self) -> None:
        self.fabric = Fabric(2)
        self.client, self.server = self.fabric.pod(1, "client"), self.fabric.pod(2, "server")
        self.address = format_ip(self.server.devices["eth0"].addresses[0][0])
        TcpListener(self.server, SockAddr(ANY, 80))
        self.echo = UdpSocket(self.server)
        self.echo.bind(SockAddr(ANY, 53))
        self.echo.on_event = self._answer  # type: ignore[assignment]
        mute = UdpSocket(self.server)
        mute.bind(SockAddr(ANY, 54))
        backend = endpoint(self.address, "node-2")
        self.fabric.services({"ns1/svc1": value(endpoints=[backend], cluster_ip="172.30.0.41", port=80, target=80)})

    def _answer(self, sock: UdpSocket) -> None:
        while (datagram := sock.receive()) is not None:
            sock.send_to(b"answer", datagram[1])

    def probe(self, proto: str, to: str, ns: NetNamespace | None = None) -> tuple[list[str], float]:
        """The result, and how many seconds it took."""
        results: list[str] = []
        fabric = self.fabric
        began = fabric.clock.now()
        kernel = fabric.kernel(1)
        kernel.enter()
        probe = Probe(kernel, ns or self.client, proto, SockAddr.parse(to), TRACE, began + DEADLINE, results.append)
        kernel.leave()
        fabric.run()
        while probe.running and fabric.horizon() != float("inf"):
            fabric.advance_to(fabric.horizon())
        return results, round(fabric.clock.now() - began, 3)


@pytest.fixture
def world() -> World:
    return World()


ROWS = [
    ("tcp", "{server}:80", "connected", 0.0),
    ("tcp", "172.30.0.41:80", "connected", 0.0),
    ("tcp", "{server}:81", "refused", 0.0),
    ("tcp", "10.244.2.99:80", "unreachable", 3.0),
    ("tcp", "192.168.0.77:80", "silent", DEADLINE),
    ("tcp", "127.0.0.1:80", "refused", 0.0),
    ("udp", "{server}:53", "answered", 0.0),
    ("udp", "{server}:54", "silent", 0.3),
    ("udp", "{server}:55", "refused", 0.0),
    ("udp", "10.244.2.99:53", "silent", 0.3),
    ("icmp", "{server}:0", "answered", 0.0),
    ("icmp", "192.168.0.3:0", "answered", 0.0),
    ("icmp", "10.244.2.99:0", "unreachable", 3.0),
    ("icmp", "192.168.0.77:0", "silent", DEADLINE),
]


@pytest.mark.parametrize(("proto", "to", "result", "seconds"), ROWS)
def test_what_became_of_the_packet(world: World, proto: str, to: str, result: str, seconds: float) -> None:
    assert world.probe(proto, to.format(server=world.address)) == ([result], seconds)


@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
def test_without_a_route_it_is_unreachable_at_once(world: World, proto: str) -> None:
    for route in list(world.client.routes):
        world.client.remove_route(route.prefix)
    assert world.probe(proto, "8.8.8.8:80") == (["unreachable"], 0.0)


@pytest.mark.parametrize(
    ("how", "result"),
    [("icmp-port-unreachable", "refused"), ("icmp-host-prohibited", "unreachable"), ("icmp-admin-prohibited", "unreachable")],
)
@pytest.mark.parametrize("proto", ["tcp", "udp", "icmp"])
def test_a_rule_that_rejects(world: World, proto: str, how: str, result: str) -> None:
    world.fabric.machines["node-1"].node.swap(rules(table("filter", f"FORWARD -d {world.address} -j REJECT --reject-with {how}")))
    results, seconds = world.probe(proto, f"{world.address}:80")
    assert (results, seconds) == (["unreachable" if proto == "icmp" else result], 0.0)


def test_a_rule_that_drops_is_silence(world: World) -> None:
    world.fabric.machines["node-2"].node.swap(rules(table("filter", f"FORWARD -d {world.address} -j DROP")))
    assert world.probe("tcp", f"{world.address}:80") == (["silent"], DEADLINE)


@pytest.mark.parametrize(("proto", "to", "result", "seconds"), ROWS)
def test_nothing_of_a_probe_is_left(world: World, proto: str, to: str, result: str, seconds: float) -> None:
    """Sockets at once, on both sides; conntrack when the trace is forgotten; timers when they come up."""
    world.probe(proto, to.format(server=world.address))
    world.fabric.run()
    sockets = [ns.sockets for ns in (world.client, world.server)]
    assert [table.established for table in sockets] == [{}, {}]
    assert world.client.sockets.bound == world.client.sockets.udp == world.client.sockets.pings == {}
    forgotten = 0
    for machine in world.fabric.machines.values():
        forgotten += machine.forget(TRACE)
        left = [parts(conn.original) for conn in machine.node.netfilter.conntrack]
        assert all(dport == UDP_PORT for _, _, _, dport in left), "only the tunnel's own may stay"
        assert machine.softnet.traced == {}
    assert forgotten or to.startswith("127.")
    world.fabric.advance(DEADLINE + 1)
    assert [machine.softnet._timers for machine in world.fabric.machines.values()] == [[], []]


def test_a_cancelled_probe_says_so_once_and_sends_no_more(world: World) -> None:
    results: list[str] = []
    kernel = world.fabric.kernel(1)
    now = kernel.enter()
    probe = Probe(kernel, world.client, "tcp", SockAddr.parse("192.168.0.77:80"), TRACE, now + DEADLINE, results.append)
    kernel.leave()
    probe.cancel()
    probe.cancel()
    world.fabric.advance(DEADLINE + 1)
    assert results == ["cancelled"]
    assert not probe.running
    assert world.client.sockets.established == {}


def test_the_node_itself_may_ask(world: World) -> None:
    node = world.fabric.machines["node-1"].node
    assert world.probe("tcp", "172.30.0.41:80", node) == (["connected"], 0.0)
