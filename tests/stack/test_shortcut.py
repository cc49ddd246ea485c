"""Shortcuts stand aside for all that the entries they are joined from would send the slow way."""

from __future__ import annotations

import pytest

from emu.errors import DropReason
from emu.stack.shortcut import exit_for
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, SockAddr
from emu.wire.message import FIRST
from tests.kit.fabric import Fabric
from tests.kit.services import value


class World:
    """A datagram and a stream between two nodes, used until shortcuts stand; `frames` is what node-1 sent."""

    def __init__(self) -> None:
        self.fabric = Fabric(2)
        self.fabric.services({"ns1/svc1": value(endpoints=["10.244.2.9"])})
        self.one, self.two = (self.fabric.machines[f"node-{n}"] for n in (1, 2))
        self.client, self.server = self.fabric.pod(1, "client"), self.fabric.pod(2, "server")
        self.frames: list[bytes] = []
        wire = self.one.underlay.wire
        send = wire.send
        wire.send = lambda ip, message: self.frames.append(message) or send(ip, message)
        to = self.server.devices["eth0"].addresses[0][0]
        self.asked, self.asks = UdpSocket(self.server), UdpSocket(self.client)
        self.asked.bind(SockAddr(ANY, 53))
        self.asks.connect(SockAddr(to, 53))
        listener, self.stream = TcpListener(self.server, SockAddr(ANY, 80)), TcpSocket(self.client)
        self.stream.connect(SockAddr(to, 80))
        self.fabric.run()
        accepted = listener.accept()
        assert accepted is not None
        self.accepted = accepted
        for _ in range(5):
            self.ask()
            self.asked.send_to(b"answer", self.asks.local)
            self.write()
            self.accepted.write(b"answer")
            self.fabric.run()

    def ask(self, size: int = 10, trace: int = 0) -> bytes | None:
        self.asks.send_to(b"x" * size, trace=trace)
        self.fabric.run()
        datagram = self.asked.receive()
        return datagram[0] if datagram else None

    def write(self) -> bytes | None:
        self.stream.write(b"x" * 10)
        self.fabric.run()
        return self.accepted.read(100)


@pytest.fixture
def world() -> World:
    return World()


class Watch:
    """Counts which way packets take: past a device's `receive` (the long way) or not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: object) -> None:
        self.long = 0
        receive = device.receive  # type: ignore[attr-defined]

        def counted(data: bytes, gso_size: int, trace: int) -> None:
            self.long += 1
            receive(data, gso_size, trace)

        monkeypatch.setattr(device, "receive", counted)


def test_both_ends_take_a_step_where_flows_are_known(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    port = world.one.cni._pods["pod/default/client"][1]  # type: ignore[attr-defined]
    out, back = Watch(monkeypatch, port), Watch(monkeypatch, world.two.underlay)
    assert world.ask() == b"x" * 10
    assert world.write() == b"x" * 10
    assert (out.long, back.long) == (0, 0)


@pytest.mark.parametrize("what", ["traced", "over the MTU", "expired", "reconfigured", "rules swapped"])
def test_an_exit_refuses(world: World, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    port = world.one.cni._pods["pod/default/client"][1]  # type: ignore[attr-defined]
    if what == "expired":
        world.fabric.advance(181)
    elif what == "reconfigured":
        world.one.node.invalidate()
    elif what == "rules swapped":
        world.one.node.swap(world.one.node.netfilter.ruleset)
    before = world.asks.shortcut
    size = 1500 if what == "over the MTU" else 10
    out = world.asks._transmit
    taken: list[int] = []
    monkeypatch.setattr(world.asks, "_transmit", lambda *args: (taken.append(1), out(*args)))
    if what == "traced":
        monkeypatch.setattr(world.client, "output", lambda *args: (taken.append(1), type(world.client).output(world.client, *args)))
    if what in {"reconfigured", "rules swapped"}:
        assert before is not None
        assert not before.send(bytes(38), 0)
        return
    assert world.ask(size, trace=9 if what == "traced" else 0) == b"x" * size
    assert taken == [1]
    assert port.peer is not None


def test_a_shortcut_joined_before_a_connection_moved_is_joined_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A UDP connection becomes a stream only after two seconds, which outdates every shortcut from before."""
    world.fabric.advance(3)
    for _ in range(3):
        world.ask()
        world.asked.send_to(b"answer", world.asks.local)
        world.fabric.run()
    back = Watch(monkeypatch, world.two.underlay)
    assert world.ask() == b"x" * 10
    assert back.long == 0


def test_an_exit_is_only_for_a_pod_s_cable_into_a_tunnel(world: World) -> None:
    packet = bytes(28)
    assert exit_for(world.one.underlay, packet) is None
    assert exit_for(world.client.lo, packet) is None
    cable = world.client.devices["eth0"]
    assert exit_for(cable, packet) is None  # no flow
    cable.peer = None  # type: ignore[attr-defined]
    assert exit_for(cable, packet) is None


INNER = FIRST.size + 50
CHANGES = {
    "a SYN": ("stream", INNER + 33, 0x12),
    "a FIN": ("stream", INNER + 33, 0x11),
    "a RST": ("stream", INNER + 33, 0x14),
    "an outer header with options": ("either", FIRST.size, 0x46),
    "an outer length that does not agree": ("either", FIRST.size + 3, None),
    "an outer UDP length that does not agree": ("either", FIRST.size + 25, None),
    "an inner length that does not agree": ("either", INNER + 3, None),
    "a datagram's length that does not agree": ("datagram", INNER + 25, None),
}


@pytest.mark.parametrize("kind", ["datagram", "stream"])
@pytest.mark.parametrize("what", CHANGES)
def test_an_entry_refuses(world: World, what: str, kind: str) -> None:
    only, at, byte = CHANGES[what]
    if only not in {kind, "either"}:
        return
    world.frames.clear()
    if kind == "datagram":
        world.ask()
    else:
        world.write()
    frame = bytearray(world.frames[-1])
    frame[at] = frame[at] + 1 & 255 if byte is None else byte
    entries = [entry for entry in world.two.softnet.shortcuts.values() if (entry.tcp is not None) == (kind == "stream")]
    (entry,) = [entry for entry in entries if entry.sock in {world.asked, world.accepted}]
    assert not entry.take(bytes(frame), FIRST.size, len(frame) - FIRST.size, 0)
    assert entry.take(world.frames[-1], FIRST.size, len(frame) - FIRST.size, 0)


def test_an_entry_refuses_what_is_old_large_or_of_a_connection_that_has_moved(world: World) -> None:
    world.frames.clear()
    world.ask()
    frame = world.frames[-1]
    entry = next(entry for entry in world.two.softnet.shortcuts.values() if entry.sock is world.asked)
    length = len(frame) - FIRST.size
    assert not entry.take(frame, FIRST.size, length, 1400)  # a datagram in several segments
    assert not entry.take(frame, FIRST.size, length - 1, 0)
    assert not entry.take(frame, FIRST.size, 70, 0)
    for conn in (entry.inner, entry.outer):
        conn.epoch += 1
        assert not entry.take(frame, FIRST.size, length, 0)
        conn.epoch -= 1
        expires, conn.expires = conn.expires, world.two.softnet.now
        assert not entry.take(frame, FIRST.size, length, 0)
        conn.expires = expires
    assert entry.take(frame, FIRST.size, length, 0)


@pytest.mark.parametrize("gone", ["the socket", "the pod", "the namespace's rules", "the connection"])
def test_a_shortcut_ends_with_what_it_rests_on(world: World, gone: str) -> None:
    def of_datagrams() -> int:
        return sum(entry.sock is world.asked for entry in world.two.softnet.shortcuts.values())

    assert of_datagrams() == 1
    entry = next(entry for entry in world.two.softnet.shortcuts.values() if entry.sock is world.asked)
    if gone == "the socket":
        world.asked.close()
    elif gone == "the pod":
        world.two.cni.remove_pod("pod/default/server")
    elif gone == "the namespace's rules":
        world.two.node.swap(world.two.node.netfilter.ruleset)
    else:
        world.two.node.netfilter.conntrack.delete(entry.inner)
    assert of_datagrams() == 0
    world.asks.send_to(b"late")
    world.fabric.advance(4)
    if gone in {"the socket", "the pod"}:
        counted = world.server.drops[DropReason.NO_SOCKET] + world.two.node.drops[DropReason.HOST_UNREACHABLE]
        assert counted == 1
    else:
        assert world.asked.receive() is not None
