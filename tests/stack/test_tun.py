"""A TUN device without a kernel: what is handed over, what is taken, and what is counted instead."""

from __future__ import annotations

import pytest

from emu.errors import DropReason
from emu.stack.sockets import UdpSocket
from emu.stack.tun import Tun
from emu.wire import checksum, virtio
from emu.wire.addr import ANY, Network, SockAddr, parse_ip
from emu.wire.ipv4 import Ipv4
from emu.wire.packet import Packet, emit
from emu.wire.udp import Udp
from tests.kit.fabric import Fabric
from tests.wire.test_gso import tcp

KERNEL, US = parse_ip("172.31.0.1"), parse_ip("10.244.1.2")


class World:
    """A pod with a TUN device whose kernel only remembers."""

    def __init__(self, *, offload: bool) -> None:
        self.fabric = Fabric(1)
        self.pod = self.fabric.pod(1, "pod")
        self.frames: list[bytes] = []
        self.refusal: DropReason | None = None
        self.device = Tun(self.pod, "pw0", 1500, self._write, offload=offload)
        self.pod.add_device(self.device)
        self.pod.add_address("pw0", Network.parse("172.31.0.0/24"), parse_ip("172.31.0.2"))

    def _write(self, frame: bytes) -> DropReason | None:
        self.frames.append(frame)
        return self.refusal


@pytest.fixture(params=[True, False], ids=["offload", "segments"])
def world(request):
    return World(offload=request.param)


def whole(frame, world):
    """The packet of a frame, as tests of checksums see it; a kernel would not take it otherwise."""
    return virtio.parse(frame) if world.device.offload else (checksum.accept(frame), 0)


def test_a_gso_packet_crosses_whole_or_in_segments(world):
    packet = tcp(b"x" * 4000)
    world.device.transmit(packet, 1448, 0)
    if world.device.offload:
        assert [whole(frame, world) for frame in world.frames] == [(packet, 1448)]
    else:
        assert [len(frame) - 40 for frame in world.frames] == [1448, 1448, 1104]
        assert not any(checksum.wrong(frame) for frame in world.frames)


def test_a_long_datagram_crosses_as_fragments_that_make_it_up(world):
    datagram = emit(Packet(Ipv4(US, KERNEL, 17), Udp(1, 2), bytes(range(256)) * 12))
    world.device.transmit(datagram, 1480, 0)
    parts = [frame[virtio.HEADER.size :] if world.device.offload else frame for frame in world.frames]
    assert [len(part) for part in parts] == [1500, 1500, 140]
    assert not any(checksum.wrong(part) for part in parts)
    data = b"".join(part[20:] for part in parts)
    assert data == checksum.fill(datagram)[20:]


def datagram(payload=b"hello", **fields):
    return checksum.fill(emit(Packet(Ipv4(KERNEL, parse_ip("172.31.0.2"), 17), Udp(9, 53), payload)))


def test_a_datagram_of_the_kernels_reaches_its_socket(world):
    sock = UdpSocket(world.pod)
    sock.bind(SockAddr(ANY, 53))
    for _ in range(3):
        world.device.from_kernel(bytes(10) * world.device.offload + datagram())
        assert sock.receive() == (b"hello", SockAddr(KERNEL, 9))
    assert world.device.rx_packets == 3
    assert not world.pod.drops


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", DropReason.TRUNCATED),
        (datagram()[:-1], DropReason.TRUNCATED),
        (datagram()[:-1] + b"?", DropReason.BAD_CHECKSUM),
        (b"\x60" + bytes(60), DropReason.UNSUPPORTED),
        (b"\xf0" + bytes(60), DropReason.MALFORMED),
    ],
)
def test_what_a_network_card_would_not_take_is_counted(world, packet, reason):
    world.device.from_kernel(bytes(10) * world.device.offload + packet)
    assert world.pod.drops == {reason: 1}


def test_a_kernel_that_does_not_take_a_packet_is_counted(world):
    world.refusal = DropReason.QUEUE_FULL
    sock = UdpSocket(world.pod)
    sock.send_to(b"hello", SockAddr(KERNEL, 9))
    assert len(world.frames) == 1
    assert world.pod.drops == {DropReason.QUEUE_FULL: 1}
