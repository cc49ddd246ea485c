"""The flow cache and its shortcuts change nothing but the speed: with and without them all sockets, tables and counters agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emu.stack.shortcut_entry import Entry
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.tcp import TcpInfo
from emu.wire.addr import ANY, SockAddr, format_ip
from tests.kit.fabric import Fabric
from tests.kit.services import endpoint, value

VIP = SockAddr.parse("172.30.0.41:80")

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("datagram"), st.sampled_from(["vip", "near", "far"]), st.integers(0, 3000)),
        st.tuples(
            st.just("batch"),
            st.lists(st.tuples(st.sampled_from(["vip", "far"]), st.integers(0, 1500)), min_size=1, max_size=5),
            st.sampled_from([1, 8]),
        ),
        st.tuples(st.just("stream"), st.sampled_from(["vip", "near", "far"]), st.integers(1, 200_000)),
        st.tuples(st.just("endpoints"), st.sets(st.sampled_from(["near", "far"])).map(sorted)),
        st.tuples(st.just("wait"), st.sampled_from([0.01, 1.0, 31.0, 130.0])),
        st.tuples(st.just("close")),
        st.tuples(st.just("detour"), st.booleans()),
    ),
    min_size=1,
    max_size=25,
)


class World:
    """A client and two servers, one on its own node; everything that reaches a pod is written down."""

    def __init__(self, *, cached: bool) -> None:
        self.fabric = Fabric(2, seed=3)
        self.pods = {name: self.fabric.pod(node, name) for name, node in (("client", 1), ("near", 1), ("far", 2))}
        self.told: list[object] = []  # what sockets received, in order
        self.spaces = spaces = [machine.node for machine in self.fabric.machines.values()] + list(self.pods.values())
        if not cached:
            for ns in spaces:
                ns.remember = lambda *args: None  # type: ignore[method-assign]
        self.servers = {}
        self.listeners = {}
        for name in ("near", "far"):
            self.servers[name] = UdpSocket(self.pods[name])
            self.servers[name].bind(SockAddr(ANY, 8080))
            self.listeners[name] = TcpListener(self.pods[name], SockAddr(ANY, 8080))
        self.datagrams = UdpSocket(self.pods["client"])
        self.datagrams.bind(SockAddr(ANY, 40000))
        self.streams: dict[str, TcpSocket] = {}
        self.accepted: list[TcpSocket] = []
        self.endpoints(["near", "far"])

    def address(self, name: str) -> SockAddr:
        return VIP if name == "vip" else SockAddr(self.pods[name].devices["eth0"].addresses[0][0], 8080)

    def endpoints(self, names: list[str]) -> None:
        listed = [endpoint(format_ip(self.address(name).ip)) for name in names]
        self.fabric.services(
            {
                f"ns1/{protocol.lower()}": value(f"ns1/{protocol.lower()}", listed, cluster_ip="172.30.0.41", protocol=protocol)
                for protocol in ("TCP", "UDP")
            }
        )

    def datagram(self, to: str, size: int) -> None:
        self.datagrams.error = 0
        self.datagrams.send_to(b"d" * size, self.address(to))
        self._answer()

    def batch(self, wanted: list[tuple[str, int]], times: int) -> None:
        """Datagrams in one call, and their answers in another; many times over, they are more than a socket's buffer holds."""
        self.datagrams.error = 0
        self.told.append(self.datagrams.send_many([(b"b" * size, self.address(to)) for to, size in wanted] * times))
        self._answer()

    def _answer(self) -> None:
        self.fabric.run()
        for server in self.servers.values():
            received = server.receive_many(1000)
            self.told.append(received)
            self.told.append(server.send_many([(data[::-1], sender) for data, sender in received]))
            server.error = 0
        self.fabric.run()
        while (received := self.datagrams.receive()) is not None:
            self.told.append(received)

    def stream(self, to: str, size: int) -> None:
        sock = self.streams.get(to)
        if sock is None or sock.closed or sock.error:
            sock = self.streams[to] = TcpSocket(self.pods["client"])
            sock.connect(self.address(to))
            self.fabric.run()
        if sock.connected:
            self.write(sock, b"s" * size)
        self.pump()

    def write(self, sock: TcpSocket, data: bytes) -> None:
        """What a program does; that it is told of a broken pipe is also to be the same."""
        try:
            sock.write(data)
        except BrokenPipeError:
            self.told.append((sock.local, sock.remote, "broken pipe"))

    def pump(self) -> None:
        for _ in range(5):
            self.fabric.advance(0.01)
            for listener in self.listeners.values():
                while (child := listener.accept()) is not None:
                    self.accepted.append(child)
            for child in self.accepted:
                while chunk := child.read(1 << 20):
                    self.told.append((child.local, child.remote, chunk))
                    self.write(child, chunk[:100])
            for sock in self.streams.values():
                while sock.started and (chunk := sock.read(1 << 20)):
                    self.told.append((sock.local, sock.remote, chunk))

    def wait(self, seconds: float) -> None:
        self.fabric.advance(seconds)
        for machine in self.fabric.machines.values():
            machine.softnet.now = self.fabric.clock.now()
            machine.expire()

    def close(self) -> None:
        for sock in self.streams.values():
            sock.close()
        self.streams.clear()
        self.pump()

    def detour(self, on: bool) -> None:
        """Change a route to and fro: whatever is remembered must give way."""
        node = self.fabric.machines["node-2"]
        if on:
            node.cni.set_peers([])
        else:
            node.cni.set_peers([self.fabric.machines["node-1"].me])

    def tables(self) -> Iterator[object]:
        """Everything that the stack remembers or counts."""
        for ns in self.spaces:
            conntrack = ns.netfilter.conntrack
            conntrack.check()
            yield conntrack.listing(self.fabric.clock.now())
            yield [(conn.original, conn.packets, conn.bytes, conn.reply_packets, conn.reply_bytes) for conn in conntrack]
            yield ns.drops
            for device in ns.devices.values():
                yield device.name, device.rx_packets, device.rx_bytes, device.tx_packets, device.tx_bytes
            for sock in ns.sockets.established.values():
                yield sock.key, TcpInfo.of(sock.conn)


def transcript(steps: list[tuple[Any, ...]], *, cached: bool) -> tuple[list[object], list[object]]:
    world = World(cached=cached)
    for verb, *arguments in steps:
        getattr(world, verb)(*arguments)
    return world.told, list(world.tables())


def test_streams_and_datagrams_between_nodes_do_take_shortcuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lest the comparison below compare the slow path with itself."""
    world = World(cached=True)
    runs = []
    take_run = Entry.take_run
    monkeypatch.setattr(Entry, "take_run", lambda *args: runs.append(take_run(*args)) or runs[-1])
    for _ in range(3):
        world.stream("far", 100)
        world.datagram("far", 100)
        world.batch([("far", 100)], 9)
    assert runs
    assert all(machine.softnet.shortcuts for machine in world.fabric.machines.values())
    assert world.streams["far"].shortcut is not None
    assert world.datagrams.shortcut is not None


@given(STEPS)
@example([("datagram", "far", 1), ("batch", [("far", 10), ("far", 1400), ("far", 1500)], 100)] * 3)
@example([("stream", "vip", 27961), ("endpoints", []), ("stream", "near", 1), ("stream", "vip", 32768)])  # overtook its own ACK
def test_the_flow_cache_is_invisible(steps: list[tuple[Any, ...]]) -> None:
    slow, fast = transcript(steps, cached=False), transcript(steps, cached=True)

    assert fast[0] == slow[0]
    assert fast[1] == slow[1]


def test_a_server_s_socket_does_not_remember_the_flows_of_clients_that_are_gone() -> None:
    fabric = Fabric(2)
    client, server = fabric.pod(1, "client"), fabric.pod(2, "server")
    listening = UdpSocket(server)
    listening.bind(SockAddr(ANY, 53))
    to = SockAddr(server.devices["eth0"].addresses[0][0], 53)
    for _ in range(300):
        sending = UdpSocket(client)
        for _ in range(3):
            sending.send_to(b"x", to)
            fabric.run()
        sending.close()
        server.invalidate()  # as any change of the pod's network does
        listening.queue.clear()
    assert len(listening.flows) < 130
