"""The node's eth0: what is ready together travels together, a lone packet never waits, and old messages never arrive."""

from __future__ import annotations

import pytest

from emu.errors import DropReason
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import UdpSocket
from emu.stack.softnet import Softnet
from emu.stack.underlay import MAX_BATCH, Underlay
from emu.wire.addr import ANY, Network, SockAddr, parse_ip
from emu.wire.message import decode, encode, encode_one, preamble
from tests.kit.skbs import udp

ME, PEER, OTHER = (parse_ip(f"192.168.0.{n}") for n in (2, 3, 4))


class Wire:
    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes]] = []
        self.full: set[bytes] = set()

    def send(self, ip: bytes, message: bytes) -> bool:
        if ip in self.full:
            return False
        self.sent.append((ip, message))
        return True


class Node:
    def __init__(self, incarnation: int = 7) -> None:
        self.softnet, self.wire = Softnet("node-1", checks=True), Wire()
        self.ns = NetNamespace("node", self.softnet)
        self.device = Underlay(self.ns, "eth0", 1500, self.wire, incarnation)
        self.device.incarnations |= {PEER: 3, OTHER: 4}
        self.ns.add_device(self.device)
        self.ns.add_address("eth0", Network.parse("192.168.0.0/16"), ME)
        self.sock = UdpSocket(self.ns)
        self.sock.bind(SockAddr(ANY, 53))

    def send(self, *to: bytes, size: int = 10) -> None:
        """One entry into the stack that sends a datagram to each."""
        for number, ip in enumerate(to):
            self.sock.send_to(bytes([number % 256]) * size, SockAddr(ip, 53))
        self.softnet.run()

    def payloads(self) -> list[bytes]:
        received = []
        while (datagram := self.sock.receive()) is not None:
            received.append(datagram[0])
        return received


def incoming(number: int = 0) -> bytes:
    return bytes(udp("192.168.0.3:53", "192.168.0.2:53", b"%d" % number).buf)


def test_a_lone_packet_is_a_message_of_its_own_at_once() -> None:
    node = Node()
    node.softnet.now = 12.5
    node.send(PEER)
    ((ip, message),) = node.wire.sent
    records, head = decode(message), preamble(message)
    assert ip == PEER
    assert not isinstance(records, DropReason)
    assert not isinstance(head, DropReason)
    assert (head.incarnation, head.sent) == (3, 12_500_000)
    assert [(packet[28:], gso) for packet, gso, _ in records] == [(bytes(10), 0)]


@pytest.mark.parametrize("warm", [False, True], ids=["first packets", "known flows"])
def test_what_one_entry_sends_to_a_peer_leaves_as_one_message_in_order(warm: bool) -> None:
    node = Node()
    for _ in range(3 if warm else 0):
        node.send(PEER, OTHER)
    node.wire.sent.clear()
    node.send(PEER, OTHER, PEER, PEER, OTHER)
    assert [ip for ip, _ in node.wire.sent] == [PEER, OTHER]
    found = {ip: [record[0][28] for record in decode(message)] for ip, message in node.wire.sent}  # type: ignore[union-attr]
    assert found == {PEER: [0, 2, 3], OTHER: [1, 4]}
    assert [preamble(message).incarnation for _, message in node.wire.sent] == [3, 4]  # type: ignore[union-attr]
    assert node.softnet.flush is None


def test_the_next_entry_starts_a_new_message() -> None:
    node = Node()
    node.send(PEER)
    node.send(PEER)
    node.send(PEER, PEER)
    assert [len(decode(message)) for _, message in node.wire.sent] == [1, 1, 2]  # type: ignore[arg-type]


def test_a_batch_is_bounded_in_bytes() -> None:
    node = Node()
    count, size = 400, 1400
    node.send(*[PEER] * count, size=size)
    messages = [message for _, message in node.wire.sent]
    assert len(messages) > 1
    assert all(len(message) <= MAX_BATCH + size + 60 for message in messages)
    assert len(messages) <= count * size // MAX_BATCH + 2
    assert [record[0][28] for message in messages for record in decode(message)] == [n % 256 for n in range(count)]  # type: ignore[union-attr]


def test_a_full_queue_drops_as_a_network_card_does_and_says_which() -> None:
    node = Node()
    node.wire.full = {PEER, parse_ip("192.168.0.9")}
    node.send(PEER, OTHER, PEER, PEER)
    node.device.queue_records(PEER, [bytes(8), bytes(8)], 16)
    node.softnet.run()
    node.send(parse_ip("192.168.0.9"))
    assert [ip for ip, _ in node.wire.sent] == [OTHER]
    assert node.ns.drops == {DropReason.QUEUE_FULL: 5, DropReason.UNKNOWN_PEER: 1}


def test_the_outside_is_counted_and_gone() -> None:
    node = Node()
    node.device.gateway = OTHER
    skb = udp("192.168.0.2:53", "8.8.8.8:53")
    node.device.xmit(skb, OTHER)
    node.softnet.run()
    assert node.wire.sent == []
    assert node.ns.drops == {DropReason.OUTSIDE: 1}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_messages_are_taken_apart_in_order(count: int) -> None:
    node = Node()
    node.device.receive_message(encode(7, 0, [(incoming(n), 0, 0) for n in range(count)]))
    assert node.payloads() == [b"%d" % n for n in range(count)]
    assert not node.ns.drops


@pytest.mark.parametrize(("incarnation", "taken"), [(7, True), (6, False), (8, False), (0, False)])
def test_a_message_for_another_life_of_this_node_never_arrives(incarnation: int, taken: bool) -> None:
    node = Node()
    node.device.receive_message(encode_one(incarnation, 0, incoming()))
    assert bool(node.payloads()) == taken
    assert node.ns.drops == ({} if taken else {DropReason.STALE_INCARNATION: 1})


@pytest.mark.parametrize(("age", "same_host", "taken"), [(0.0, True, True), (1.0, True, True), (1.01, True, False), (60.0, False, True)])
def test_a_message_that_no_wire_would_have_held_so_long_never_arrives(age: float, same_host: bool, taken: bool) -> None:
    node = Node()
    if not same_host:
        node.device = Underlay(node.ns, "eth1", 1500, node.wire, 7, same_host=False)
    node.softnet.now = 100.0
    node.device.receive_message(encode_one(7, int((100.0 - age) * 1e6), incoming()))
    assert bool(node.payloads()) == taken
    assert node.ns.drops == ({} if taken else {DropReason.STALE_AGE: 1})


def test_every_way_to_cut_a_message_is_counted_once() -> None:
    whole = encode(7, 0, [(incoming(1), 0, 0), (incoming(2), 0, 0)])
    first = len(encode_one(7, 0, incoming(1)))
    for size in range(len(whole)):
        node = Node()
        node.device.receive_message(whole[:size])
        if size != first:  # which is a whole message with one packet
            assert node.ns.drops == {DropReason.BAD_MESSAGE: 1}, size
        assert node.payloads() == ([b"1"] if size >= first else [])
    node = Node()
    node.device.receive_message(b"\x02" + whole[1:])
    node.device.receive_message(whole + b"?")
    assert node.ns.drops == {DropReason.BAD_MESSAGE: 2}
