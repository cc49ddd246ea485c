"""A node under garbage from the wire: every message has a fate that is counted, nothing is raised, and memory stays as it was.

What must sum to what, for each message: the underlay counts it as bad (BAD_MESSAGE), stale (STALE_INCARNATION, STALE_AGE), or
receives each of its whole records (`rx_packets`), and BAD_MESSAGE once more if bytes are left over. Each packet received is dropped with
a reason, handed to a socket, or sent on or answered; never none of these.
"""

from __future__ import annotations

import gc
import os
import struct
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from emu.errors import DropReason
from emu.stack.neighbour import NeighbourTable
from emu.stack.socket_table import SocketTable
from emu.stack.sockets import PingSocket, UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire import checksum
from emu.wire import packet as packets
from emu.wire.addr import ANY, SockAddr, format_ip, parse_ip
from emu.wire.icmp import Icmp
from emu.wire.ipv4 import Ipv4
from emu.wire.message import FIRST, PREAMBLE, RECORD, VERSION, encode, encode_one
from emu.wire.sctp import Init, Sctp
from tests.kit.capturing import Recording
from tests.kit.fabric import Fabric
from tests.kit.garbage import Garbage
from tests.kit.services import value

STEP = 0.001  # seconds between messages: what expires on a real node expires here
MESSAGE_REASONS = (DropReason.BAD_MESSAGE, DropReason.STALE_INCARNATION, DropReason.STALE_AGE)


class Hearing:
    """A wire that tells of every message."""

    def __init__(self, hear: Callable[[bytes], None], send: Callable[[bytes, bytes], bool]) -> None:
        self._hear, self._send = hear, send

    def send(self, ip: bytes, message: bytes) -> bool:
        self._hear(message)
        return self._send(ip, message)


class Node:
    """node-2 with a server behind a Service, connections and captures; `samples` are messages that it has had from node-1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fabric = self.fabric = Fabric(2)
        self.machine = fabric.machines["node-2"]
        self.client, self.server = fabric.pod(1, "client"), fabric.pod(2, "server")
        ip, theirs = (ns.devices["eth0"].addresses[0][0] for ns in (self.server, self.client))
        fabric.services({"ns1/svc1": value(endpoints=[format_ip(ip)], cluster_ip="10.96.0.7", node_port=30080)})
        self.fates: Counter[str] = Counter()
        self._watch_sockets(monkeypatch)
        self.samples: list[bytes] = []
        underlay = fabric.machines["node-1"].underlay
        carrier = underlay.wire

        underlay.wire = Hearing(self.samples.append, carrier.send)
        self.listener = TcpListener(self.server, SockAddr(ANY, 8080))
        self.udp, asks, ping = UdpSocket(self.server), UdpSocket(self.client), PingSocket(self.client)
        self.udp.bind(SockAddr(ANY, 5300))
        for to in ((ip, 8080), (parse_ip("10.96.0.7"), 80), (parse_ip("192.168.0.3"), 30080), (ip, 81)):
            sock = TcpSocket(self.client)
            sock.connect(SockAddr(*to))
            fabric.run()
            if sock.connected:
                sock.write(bytes(3000))
                fabric.run()
        for size in (10, 100, 4000):
            for port in (5300, 5300, 5400):
                asks.send_to(bytes(size), SockAddr(ip, port))
                fabric.run()
        ping.send_echo(ip, 1, b"payload")
        ping.send_echo(ip, 2, b"payload", ttl=2)
        init = packets.Packet(Ipv4(theirs, ip, checksum.SCTP), Sctp(1, 2, 0, (Init(1, 65535, 1, 1, 1),)))
        quoted = self.samples[0][FIRST.size + 50 :][:40]
        errors = [
            packets.Packet(Ipv4(theirs, ip, checksum.ICMP), Icmp(kind, code, 1400), quoted)
            for kind, code in ((3, 1), (3, 3), (3, 4), (11, 0), (12, 0))
        ]
        for packet in (init, *errors):
            fabric.machines["node-1"].softnet.now = fabric.clock.now()
            self.client.output(packets.emit(packet))
            fabric.run()
        records = [(sample[FIRST.size :], 0, 0) for sample in self.samples[:6]]
        self.samples += [
            encode(1, 0, records),
            encode_one(1, 0, packets.emit(init)),
            encode_one(1, 0, self.samples[0][FIRST.size :], 1400, 6),
        ]
        # from now on the node is alone
        self.machine.underlay.wire = Hearing(lambda message: self.fates.update(("sent",)), lambda to, message: True)
        self.captures = [Recording(fabric, 2), Recording(fabric, 2, self.server, filter="tcp[tcpflags] & tcp-syn != 0 or vxlan and udp")]

    def _watch_sockets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count what reaches sockets, however it does."""
        for owner, name in (
            (TcpSocket, "input"), (TcpSocket, "segment"), (TcpListener, "on_syn"), (UdpSocket, "datagram"), (UdpSocket, "datagrams"),
            (PingSocket, "input"), (SocketTable, "icmp_error"), (NeighbourTable, "output"),
        ):  # fmt: skip
            method = getattr(owner, name)

            def counting(sock, *arguments, _method=method, _name=f"{owner.__name__}.{name}"):
                self.fates[_name] += 1
                return _method(sock, *arguments)

            monkeypatch.setattr(owner, name, counting)

    def drops(self) -> Counter[DropReason]:
        return self.machine.node.drops + self.server.drops

    def received(self) -> int:
        return self.machine.underlay.rx_packets

    def take(self, message: bytes) -> None:
        machine, clock = self.machine, self.fabric.clock
        clock.advance(STEP)
        softnet = machine.softnet
        softnet.now = clock.now()
        softnet.expire()
        machine.expire()
        machine.underlay.receive_message(message)
        self.fabric.settle(machine)
        self.udp.queue.clear()
        self.udp.queued_bytes = 0
        softnet.hops.clear()
        softnet.traced.clear()
        for sock in [*self.listener.queue]:
            sock.abort()
        self.listener.queue.clear()
        self.fabric.settle(machine)


def expected(message: bytes, now: float) -> tuple[int, DropReason | None]:
    """Whole records that are to be received, and what the message itself is counted as. Written from the layout, not from the code."""
    if len(message) < PREAMBLE.size + RECORD.size or message[0] != VERSION:
        return 0, DropReason.BAD_MESSAGE
    _, _, _, incarnation, sent = struct.unpack_from("!BBHIQ", message)
    if incarnation != 1:
        return 0, DropReason.STALE_INCARNATION
    if now * 1e6 - sent > 1e6:
        return 0, DropReason.STALE_AGE
    at, records = 16, 0
    while at < len(message):
        if at + 8 > len(message) or at + 8 + int.from_bytes(message[at : at + 2], "big") > len(message):
            return records, DropReason.BAD_MESSAGE
        at += 8 + int.from_bytes(message[at : at + 2], "big")
        records += 1
    return records, None


def storm(node: Node, count: int, seed: int) -> Counter[str]:
    """`count` messages, each accounted for; what became of them."""
    garbage = Garbage(seed)
    told: Counter[str] = Counter()
    for number in range(count):
        now = node.fabric.clock.now()
        stamp = int(now * 1e6).to_bytes(8, "big")
        message = garbage.of(node.samples)
        if garbage.rng.random() < 0.9 and len(message) >= 16:
            message = message[:8] + stamp + message[16:]
        records, reason = expected(message, now + STEP)
        drops, received, fates = node.drops(), node.received(), node.fates.total()
        node.take(message)
        new = node.drops() - drops
        arrived, ended = node.received() - received, new.total() + node.fates.total() - fates
        if node.machine.softnet.backlog or (arrived, sum(new[kind] for kind in MESSAGE_REASONS)) != (records, 0 if reason is None else 1):
            raise AssertionError((number, message[:120].hex(), records, reason, arrived, new))
        assert reason is None or new[reason] == 1
        assert ended >= (1 if records or reason else 0), (number, message[:120].hex())
        told.update(reason.value for reason in new.elements())
        if number % 100 == 0:
            for capture in node.captures:
                capture.turn()
                capture.bodies.clear()
    told.update(node.fates)
    return told


def test_a_node_counts_every_malformed_message_and_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    told = storm(Node(monkeypatch), 20_000, 1)
    for reason in (
        "bad-message",
        "stale-incarnation",
        "stale-age",
        "truncated",
        "malformed",
        "unsupported",
        "no-socket",
        "unknown-vni",
        "TcpSocket.input",
    ):
        assert told[reason] > 0, (reason, told)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_of_them_leave_memory_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(monkeypatch)
    process = psutil.Process(os.getpid())
    storm(node, 300_000, 2)
    gc.collect()
    before = process.memory_info().rss
    told = storm(node, 700_000, 3)
    gc.collect()
    assert process.memory_info().rss - before < 16 << 20, told
