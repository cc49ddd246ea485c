"""The way in takes anything: real frames, mutated at random, raise nothing, are counted where they end, and deliver nothing wrong."""

from __future__ import annotations

from collections import Counter

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.errors import DropReason
from emu.stack.sockets import PingSocket, UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.stack.vxlan import OVERHEAD
from emu.wire.addr import ANY, SockAddr
from emu.wire.message import FIRST
from tests.kit.fabric import Fabric
from tests.kit.services import value
from tests.kit.skbs import ipv4
from tests.kit.tap import Host

INNER = FIRST.size + OVERHEAD  # where the inner packet starts in a message with one packet
PAYLOAD = b"payload " * 8
GARBAGE = 0xEE


class World:
    """A client on node-1 and a server on node-2, with what node-1 said to node-2 while they talked."""

    def __init__(self, *, tracked: bool = True) -> None:
        self.fabric = Fabric(2)
        if tracked:  # rules, hence conntrack, hence shortcuts
            self.fabric.services({"ns1/svc1": value(endpoints=["10.244.2.9"])})
        self.client, self.server = self.fabric.pod(1, "client"), self.fabric.pod(2, "server")
        self.frames: list[bytes] = []
        wire = self.fabric.machines["node-1"].underlay.wire
        send = wire.send

        def tapped(ip: bytes, message: bytes) -> bool:
            self.frames.append(message)
            return send(ip, message)

        wire.send = tapped
        self.node = self.fabric.machines["node-2"]
        ip = self.server.devices["eth0"].addresses[0][0]
        self.asked, self.asks = UdpSocket(self.server), UdpSocket(self.client)
        self.asked.bind(SockAddr(ANY, 53))
        self.asks.connect(SockAddr(ip, 53))
        self.listener, self.stream = TcpListener(self.server, SockAddr(ANY, 80)), TcpSocket(self.client)
        self.stream.connect(SockAddr(ip, 80))
        self.fabric.run()
        accepted = self.listener.accept()
        assert accepted is not None
        self.accepted = accepted

    def datagrams(self, count: int) -> list[bytes]:
        """The frames of some datagrams; the server has taken them, and the flow cache knows them."""
        self.frames.clear()
        for _ in range(count):
            self.asks.send_to(PAYLOAD)
            self.fabric.run()
            assert self.asked.receive() is not None
            self.asked.send_to(b"answer", self.asks.local)
            self.fabric.run()
        self.asks.queue.clear()
        return self.frames[:]

    def segments(self) -> list[bytes]:
        """A SYN, the stream's segments, an echo request, a FIN: all that one end of a conversation may say."""
        self.frames.clear()
        for _ in range(3):
            self.stream.write(PAYLOAD)
            self.fabric.run()
            assert self.accepted.read(1000)
            self.accepted.write(PAYLOAD)
            self.fabric.run()
            assert self.stream.read(1000)
        again = TcpSocket(self.client)
        again.connect(SockAddr(self.server.devices["eth0"].addresses[0][0], 80))
        PingSocket(self.client).send_echo(self.server.devices["eth0"].addresses[0][0], 1, PAYLOAD)
        self.fabric.run()
        again.abort()
        self.stream.shutdown_write()
        self.fabric.run()
        return self.frames[:]

    def drops(self) -> Counter[DropReason]:
        """Of everybody together."""
        total: Counter[DropReason] = Counter()
        for ns in (self.client, self.server, *(machine.node for machine in self.fabric.machines.values())):
            total += ns.drops
        return total

    def receive(self, message: bytes) -> None:
        self.node.softnet.now = self.fabric.clock.now()
        self.node.underlay.receive_message(message)
        self.fabric.run()


HEADERS = FIRST.size + OVERHEAD + 28
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, HEADERS - 1), st.integers(0, 255)),
        st.tuples(st.just("flip"), st.integers(0, HEADERS - 1), st.integers(0, 7)),
        st.tuples(st.just("cut"), st.integers(0, 220), st.just(0)),
        st.tuples(st.just("extend"), st.integers(1, 60), st.just(0)),
        # the fields that say how long something is, near to what they ought to be
        st.tuples(st.just("longer"), st.sampled_from([16, FIRST.size + 2, FIRST.size + 24, INNER + 2, INNER + 24]), st.integers(-30, 30)),
        st.tuples(st.just("options"), st.sampled_from([FIRST.size, INNER]), st.integers(1, 10)),
        st.tuples(st.just("fragment"), st.sampled_from([FIRST.size, INNER]), st.sampled_from([0x2000, 0x2010, 0x0001, 0x1FFF, 0x8000])),
    ),
    min_size=1,
    max_size=3,
)


def mutate(frame: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(frame)
    for what, at, amount in changes:
        if what == "cut":
            del data[max(0, len(data) - at) :]
        elif what == "extend":
            data += bytes((GARBAGE,)) * at
        elif at + 8 > len(data):
            continue
        elif what == "set":
            data[at] = amount
        elif what == "flip":
            data[at] ^= 1 << amount
        elif what == "longer":
            data[at : at + 2] = (max(0, (data[at] << 8 | data[at + 1]) + amount) & 0xFFFF).to_bytes(2, "big")
        elif what == "options":  # a longer header, as its first byte says; lengths are set right
            data[at] = 0x40 | 5 + amount
            data[at + 20 : at + 20] = b"\x01" * 4 * amount
            for field in (16, *((FIRST.size + 2, FIRST.size + 24) if at == INNER else ()), at + 2):
                data[field : field + 2] = ((data[field] << 8 | data[field + 1]) + 4 * amount).to_bytes(2, "big")
        elif what == "fragment":
            data[at + 6 : at + 8] = amount.to_bytes(2, "big")
    return bytes(data)


@settings(max_examples=400)
@given(st.integers(0, 5), CHANGES, st.booleans())
def test_a_mutated_datagram_is_delivered_right_or_counted(which: int, changes: list[tuple[str, int, int]], tracked: bool) -> None:
    world = World(tracked=tracked)
    frame = world.datagrams(6)[which]
    message = mutate(frame, changes)
    before = world.drops()
    world.receive(message)
    delivered = []
    while world.asked.queue:
        delivered.append(world.asked.queue.popleft()[0])
    if len(delivered) <= 1 and all(part == PAYLOAD for part in delivered):
        world.fabric.advance(4)  # an address without an owner takes three seconds
        assert delivered or world.asks.queue or sum((world.drops() - before).values()) >= 1
        return
    (payload,) = delivered  # a length field has been made shorter: less may come, as its header says, and nothing else
    if not {"cut", "extend"} <= {what for what, _, _ in changes}:  # which together put other bytes where lengths still agree
        assert PAYLOAD.startswith(payload) or GARBAGE in message
    at = INNER if message[FIRST.size] == 0x45 else INNER + ((message[FIRST.size] & 15) - 5) * 4
    inner = dpkt.ip.IP(message[at:])
    assert isinstance(inner.data, dpkt.udp.UDP)
    assert payload == bytes(inner.data.data)[: inner.data.ulen - 8]
    assert len(payload) == inner.data.ulen - 8


@settings(max_examples=300)
@given(st.data(), CHANGES, st.booleans())
def test_a_mutated_segment_raises_nothing(data: st.DataObject, changes: list[tuple[str, int, int]], tracked: bool) -> None:
    world = World(tracked=tracked)
    frame = data.draw(st.sampled_from(world.segments()))
    message = mutate(frame, changes)
    world.receive(message)
    received = world.accepted.read(1 << 20) or b""
    if all(what not in {"set", "flip", "options", "longer"} or at < INNER for what, at, _ in changes):
        assert GARBAGE not in received, "what is beyond the packet's own length is padding"
    world.receive(frame)
    world.fabric.advance(2)


@given(st.binary(max_size=300))
def test_bytes_that_never_were_a_frame_are_counted(noise: bytes) -> None:
    world = World()
    before = world.drops()
    world.receive(noise)
    assert sum((world.drops() - before).values()) == 1
    world.receive(FIRST.pack(1, 0, 0, 1, 0, len(noise), 0, 0) + noise)
    assert sum((world.drops() - before).values()) == 2


def test_both_tests_above_do_meet_the_fast_path() -> None:
    world = World()
    world.datagrams(6)
    assert world.node.softnet.shortcuts
    assert world.node.underlay.flows


# ---- one reason each ---------------------------------------------------------------------------------------------------------

ME, PEER = "10.0.0.1", "10.0.0.2"
BODY = (4000).to_bytes(2, "big") + (53).to_bytes(2, "big") + (8 + len(PAYLOAD)).to_bytes(2, "big") + b"\x00\x00" + PAYLOAD
GOOD = ipv4(b"\x0a\x00\x00\x02", b"\x0a\x00\x00\x01", 17, BODY)


def changed(*changes: tuple[int, bytes]) -> bytes:
    data = bytearray(GOOD)
    for at, new in changes:
        data[at : at + len(new)] = new
    return bytes(data)


REASONS = {
    "nothing": (b"", DropReason.TRUNCATED),
    "a header cut short": (GOOD[:19], DropReason.TRUNCATED),
    "a packet shorter than it says": (GOOD[:-1], DropReason.TRUNCATED),
    "a packet that says it is longer": (changed((2, (len(GOOD) + 1).to_bytes(2, "big"))), DropReason.TRUNCATED),
    "a total length within the header": (changed((2, b"\x00\x13")), DropReason.MALFORMED),
    "no room for UDP": (changed((2, b"\x00\x1b")), DropReason.TRUNCATED),
    "version 6": (changed((0, b"\x65")), DropReason.MALFORMED),
    "a header of four words": (changed((0, b"\x44")), DropReason.MALFORMED),
    "a first fragment": (changed((6, b"\x20\x00")), DropReason.UNSUPPORTED),
    "a later fragment": (changed((6, b"\x00\x05")), DropReason.UNSUPPORTED),
    "a datagram longer than its packet": (changed((24, (9 + len(PAYLOAD)).to_bytes(2, "big"))), DropReason.TRUNCATED),
    "a datagram shorter than its header": (changed((24, b"\x00\x07")), DropReason.TRUNCATED),
    "somebody else's": (changed((16, b"\x0a\x00\x00\x09")), DropReason.NOT_OURS),
    "a loopback destination": (changed((16, b"\x7f\x00\x00\x01")), DropReason.MARTIAN),
    "a loopback source": (changed((12, b"\x7f\x00\x00\x01")), DropReason.MARTIAN),
    "no socket": (changed((22, b"\x00\x36")), DropReason.NO_SOCKET),
}


@pytest.mark.parametrize("warm", [False, True], ids=["first packet", "known flow"])
@pytest.mark.parametrize("what", REASONS)
def test_what_is_wrong_with_a_packet_is_what_is_counted(what: str, warm: bool) -> None:
    data, reason = REASONS[what]
    host = Host(f"{ME}/24", gateway="")
    sock = UdpSocket(host.ns)
    sock.bind(SockAddr(ANY, 53))
    for _ in range(3 if warm else 0):
        host.receive(GOOD)
        assert sock.receive() is not None
    assert bool(host.tap.flows) == warm
    host.receive(data)
    assert sock.receive() is None
    assert host.ns.drops == {reason: 1}
    host.receive(GOOD)
    assert sock.receive() is not None


def test_link_padding_is_no_payload() -> None:
    host = Host(f"{ME}/24", gateway="")
    sock = UdpSocket(host.ns)
    sock.bind(SockAddr(ANY, 53))
    for _ in range(3):
        host.receive(GOOD + b"\xee" * 20)
        assert sock.receive() == (PAYLOAD, SockAddr.parse(f"{PEER}:4000"))


def test_ip_options_take_the_slow_path_and_arrive() -> None:
    host = Host(f"{ME}/24", gateway="")
    sock = UdpSocket(host.ns)
    sock.bind(SockAddr(ANY, 53))
    longer = bytearray(GOOD[:20] + b"\x01\x01\x01\x00" + GOOD[20:])
    longer[0], longer[2:4] = 0x46, (len(longer)).to_bytes(2, "big")
    for _ in range(3):
        host.receive(bytes(longer))
        assert sock.receive() == (PAYLOAD, SockAddr.parse(f"{PEER}:4000"))
    assert not host.tap.flows
