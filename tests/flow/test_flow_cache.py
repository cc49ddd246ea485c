"""The flow cache changes nothing but the speed: with and without it, every pod's wire carries the same bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from emu.stack.namespace import NetNamespace
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, SockAddr, format_ip
from tests.kit.fabric import Fabric
from tests.kit.services import endpoint, value

VIP = SockAddr.parse("172.30.0.41:80")

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("datagram"), st.sampled_from(["vip", "near", "far"]), st.integers(0, 3000)),
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
        self.wire: list[tuple[str, bytes, int]] = []
        spaces = [machine.node for machine in self.fabric.machines.values()] + list(self.pods.values())
        if not cached:
            for ns in spaces:
                ns.remember = lambda *args: None  # type: ignore[method-assign]
        for name, pod in self.pods.items():
            self._tap(name, pod)
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

    def _tap(self, name: str, pod: NetNamespace) -> None:
        eth0 = pod.devices["eth0"]
        receive = eth0.receive

        def tapped(data: bytes, gso_size: int, trace: int) -> None:
            self.wire.append((name, data, gso_size))
            receive(data, gso_size, trace)

        eth0.receive = tapped  # type: ignore[method-assign]

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
        self.fabric.run()
        for server in self.servers.values():
            while (received := server.receive()) is not None:
                server.send_to(received[0][::-1], received[1])
        self.fabric.run()
        while self.datagrams.receive() is not None:
            pass

    def stream(self, to: str, size: int) -> None:
        sock = self.streams.get(to)
        if sock is None or sock.closed or sock.error:
            sock = self.streams[to] = TcpSocket(self.pods["client"])
            sock.connect(self.address(to))
            self.fabric.run()
        if sock.connected:
            sock.write(b"s" * size)
        self.pump()

    def pump(self) -> None:
        for _ in range(5):
            self.fabric.advance(0.01)
            for listener in self.listeners.values():
                while (child := listener.accept()) is not None:
                    self.accepted.append(child)
            for child in self.accepted:
                while chunk := child.read(1 << 20):
                    child.write(chunk[:100])
            for sock in self.streams.values():
                while sock.started and sock.read(1 << 20):
                    pass

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


def transcript(steps: list[tuple[Any, ...]], *, cached: bool) -> tuple[list[tuple[str, bytes, int]], list[str]]:
    world = World(cached=cached)
    for verb, *arguments in steps:
        getattr(world, verb)(*arguments)
    tables = []
    for machine in world.fabric.machines.values():
        machine.node.netfilter.conntrack.check()
        tables.append(machine.node.netfilter.conntrack.listing(world.fabric.clock.now()))
    return world.wire, tables


@given(STEPS)
def test_the_flow_cache_is_invisible(steps: list[tuple[Any, ...]]) -> None:
    slow, fast = transcript(steps, cached=False), transcript(steps, cached=True)

    assert fast[0] == slow[0]
    assert fast[1] == slow[1]
