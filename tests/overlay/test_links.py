"""The carrier that holds back, loses and copies: what it does to messages, to what it holds when a link changes, and to memory."""

from __future__ import annotations

from collections import Counter

import pytest

from emu.clock import ManualClock
from emu.errors import DropReason
from emu.model.links import Conditions, Trouble
from emu.overlay import links as module
from emu.overlay.links import Leg, Links
from emu.overlay.memory import MemoryNetwork
from emu.stack.softnet import Softnet
from emu.wire import gso, packet
from emu.wire.ipv4 import Ipv4
from emu.wire.message import decode, encode, encode_one, preamble
from emu.wire.tcp import Tcp
from emu.wire.udp import Udp

B, C = b"\xc0\xa8\0\x03", b"\xc0\xa8\0\x04"


def tcp_gso(size, number):
    """A GSO packet with `size` bytes of a stream, unlike that of any other number."""
    data = b"".join((number * size + at).to_bytes(8, "big") for at in range(0, size, 8))
    return packet.emit(packet.Packet(Ipv4(B, C, 6), Tcp(40000, 80, number * size, 1, 0x10, 0x40), data)), 1400


def vxlan_gso(size, number):
    inner, gso_size = tcp_gso(size, number)
    frame = packet.encapsulate(inner, 1, bytes(6), bytes(6))
    return packet.emit(packet.Packet(Ipv4(B, C, 17), Udp(40000, 8472), frame)), gso_size


class Node:
    """One node's links over a memory network, and what comes out of them at its peers."""

    def __init__(self, **conditions):
        self.clock, self.drops, self.traced = ManualClock(), Counter(), []
        self.softnet = Softnet("a")
        network = MemoryNetwork()
        inner = network.carrier("a")
        self.peers = {ip: network.carrier(name) for ip, name in ((B, "b"), (C, "c"))}
        self.incarnations = {B: 1, C: 1}
        self.links = Links(inner, self.softnet.arm, self.incarnations, self.dropped, seed=1)
        for ip, peer in self.peers.items():
            self.links.add_peer(ip, peer.endpoint)
        self.at(0.0)
        if conditions:
            self.set(**conditions)

    def dropped(self, reason, segments, packet, trace):
        self.drops[reason] += segments
        if trace:
            self.traced.append((reason, trace))

    def leg(self, name="a->b", **conditions):
        return Leg(name, Trouble(Conditions(**conditions), dict.fromkeys(conditions, "fault-1")))

    def set(self, **conditions):
        self.links.set(({B: self.leg(**conditions)} if conditions else {}).get, self.clock.now())

    def at(self, seconds):
        """Let time pass."""
        self.clock.advance(seconds)
        self.softnet.now = self.clock.now()
        self.softnet.expire()

    def send(self, packet, gso_size=0, trace=0, ip=B, incarnation=1):
        return self.links.send(ip, encode_one(incarnation, round(self.clock.now() * 1e6), packet, gso_size, trace))

    def messages(self, ip=B):
        found = []
        while (message := self.peers[ip].recv_nowait()) is not None:
            found.append(message)
        return found

    def records(self, ip=B):
        return [record for message in self.messages(ip) for record in decode(message)]

    def numbers(self, ip=B):
        return [packet[0] for packet, _, _ in self.records(ip)]


def test_what_a_link_delays_comes_when_it_is_due_in_order_and_stamped_anew():
    node = Node(delay=0.02)
    for number in range(3):
        node.send(bytes((number,)))
        node.at(0.001)
    node.at(0.016)
    assert node.messages() == []
    node.at(0.002)
    (first,) = node.messages()
    assert preamble(first).sent == pytest.approx(node.clock.now() * 1e6, abs=1)
    node.at(0.01)
    assert node.numbers() == [1, 2]
    assert node.links.held_bytes == 0
    assert node.links.poll_at() == float("inf")


def test_only_the_link_that_is_named_is_in_trouble():
    node = Node(delay=0.02)
    node.send(b"x", ip=C)
    assert len(node.messages(C)) == 1


def test_what_a_fair_chance_leaves_alone_goes_on_untouched():
    node = Node(loss=1e-9)
    message = encode(1, 5, [(b"one", 0, 3), (b"two", 0, 0)])
    assert node.links.send(B, message)
    assert node.messages() == [message]


@pytest.mark.parametrize("make", [tcp_gso, vxlan_gso], ids=["bare", "in VXLAN"])
@pytest.mark.parametrize("conditions", [{"loss": 0.1}, {"loss": 0.1, "delay": 0.02}, {"loss": 0.1, "rate": 100e6}], ids=str)
def test_gso_packets_lose_segments_and_the_rest_is_what_a_card_would_have_sent(make, conditions):
    node = Node(**conditions)
    sent, arrived = [], []
    for number in range(50):
        packet, size = make(40_000, number)
        sent += gso.segments(packet, size)
        node.send(packet, size)
        node.at(0.05)
        arrived += [piece for packet, size, _ in node.records() for piece in gso.segments(packet, size)]
    assert Counter(arrived) <= Counter(sent)
    assert arrived == [piece for piece in sent if piece in set(arrived)], "in order"
    lost = len(sent) - len(arrived)
    assert node.drops == {DropReason.LINK_LOSS: lost}
    assert lost == pytest.approx(len(sent) * 0.1, abs=4 * (len(sent) * 0.09) ** 0.5)
    assert node.links.counters()["fault-1"]["lost"] == lost


def test_segments_that_share_a_fate_travel_as_one():
    node = Node(delay=0.02)
    packet, size = tcp_gso(40_000, 0)
    node.send(packet, size)
    node.at(0.02)
    assert node.records() == [(packet, size, 0)]


def test_a_batch_is_judged_packet_by_packet():
    node = Node(loss=0.5)
    packets = [bytes((n,)) for n in range(200)]
    node.links.send(B, encode(1, round(node.clock.now() * 1e6), [(packet, 0, 0) for packet in packets]))
    (message,) = node.messages()
    kept = [packet for packet, _, _ in decode(message)]
    assert kept == [packet for packet in packets if packet in kept]
    assert 60 < len(kept) < 140
    assert node.drops[DropReason.LINK_LOSS] == 200 - len(kept)


def test_what_is_due_together_leaves_in_one_message():
    node = Node(delay=0.02)
    for number in range(5):
        node.send(bytes((number,)))
    node.at(0.02)
    (message,) = node.messages()
    assert [packet[0] for packet, _, _ in decode(message)] == [0, 1, 2, 3, 4]


def test_a_link_that_heals_lets_go_at_once_and_in_order():
    node = Node(delay=5.0)
    for number in range(3):
        node.send(bytes((number,)))
    node.set()
    node.send(b"\x03")
    assert node.numbers() == [0, 1, 2, 3]
    assert node.links.held_bytes == 0


def test_a_delay_that_changes_does_not_change_what_is_under_way():
    node = Node(delay=0.02)
    node.send(b"\x00")
    node.set(delay=0.5)
    node.at(0.02)
    assert node.numbers() == [0]


def test_a_cut_link_loses_what_is_sent_and_what_is_under_way():
    node = Node(delay=0.02)
    node.send(b"\x00")
    node.set(delay=0.02, cut=True)
    assert node.send(b"\x01"), "lost on the way, not refused"
    node.at(0.02)
    assert node.messages() == []
    assert node.drops == {DropReason.LINK_CUT: 2}
    assert node.links.counters() == {"fault-1": {"cut": 2, "delayed": 1}}


def test_what_is_held_for_a_life_of_the_peer_that_is_over_is_dropped():
    node = Node(delay=0.02)
    node.send(b"\x00")
    node.incarnations[B] = 2
    node.at(0.02)
    assert node.messages() == []
    assert node.drops == {DropReason.STALE_INCARNATION: 1}


def test_what_is_held_for_a_peer_that_goes_is_dropped():
    node = Node(delay=0.02)
    node.links.set({B: node.leg(delay=0.02), C: node.leg("a->c", delay=0.02)}.get, node.clock.now())
    node.send(b"\x00")
    node.send(b"\x01", ip=C)
    node.links.remove_peer(B)
    node.at(0.02)
    assert node.numbers(C) == [1]
    assert node.drops == {DropReason.UNKNOWN_PEER: 1}
    assert node.links.held_bytes == 0
    assert node.send(b"\x02") is False


def test_a_node_that_was_paused_does_not_send_what_it_held_long_ago():
    node = Node(delay=3.0)
    node.send(b"\x00", trace=8)
    node.at(2.5)
    node.send(b"\x01")
    node.at(60.0)
    assert node.messages() == []
    assert node.drops == {DropReason.STALE_AGE: 2}
    assert node.traced == [(DropReason.STALE_AGE, 8)]


def test_what_is_held_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD", 100_000)
    node = Node(delay=1.0)
    for _ in range(200):
        node.send(bytes(1000))
    assert node.links.held_bytes == 100_000
    assert node.drops == {DropReason.LINK_OVERFLOW: 100}
    node.at(1.0)
    assert len(node.records()) == 100
    assert node.links.held_bytes == 0


def test_a_full_queue_behind_the_link_is_counted_packet_by_packet():
    node = Node(delay=1.0)
    for _ in range(150):
        node.send(bytes(10))
        node.at(0.001)
    for _ in range(1000):
        node.at(0.001)
    assert len(node.records()) == 128
    assert node.drops == {DropReason.QUEUE_FULL: 22}


def test_a_packet_that_is_lost_ends_its_trace():
    node = Node(loss=1.0)
    node.send(b"\x00", trace=6)
    assert node.traced == [(DropReason.LINK_LOSS, 6)]


def test_a_message_that_is_none_of_ours_is_counted():
    node = Node(delay=1.0)
    assert node.links.send(B, b"?")
    assert node.drops == {DropReason.BAD_MESSAGE: 1}


def test_two_addresses_of_a_peer_share_one_link():
    node = Node()
    leg = node.leg(rate=1e6)
    node.links.set({B: leg, C: leg}.get, node.clock.now())
    node.send(bytes(1250))
    node.send(bytes(1250), ip=C)
    node.at(0.0101)
    assert (len(node.records(B)), len(node.records(C))) == (1, 0)
    node.at(0.01)
    assert len(node.records(C)) == 1


def test_the_rate_is_kept_over_a_second():
    node = Node(rate=10e6, delay=0.01)
    packet, size = tcp_gso(40_000, 0)
    for _ in range(30):
        node.send(packet, size)
    node.at(0.01)
    arrived = 0
    for _ in range(500):
        node.at(0.001)
        arrived += sum(len(piece) for packet, size, _ in node.records() for piece in gso.segments(packet, size))
    assert arrived * 8 == pytest.approx(10e6 * 0.5, rel=0.01)
