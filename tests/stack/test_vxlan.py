"""What flannel.1 puts on the wire, as scapy and dpkt read it, and what it takes from the wire."""

from __future__ import annotations

import dpkt
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from emu.cni.flannel import vtep_mac
from emu.errors import DropReason
from emu.stack.sockets import PingSocket, UdpSocket
from emu.stack.tcp_sockets import TcpSocket
from emu.stack.vxlan import OVERHEAD, UDP_PORT
from emu.wire.addr import ANY, SockAddr, format_ip, format_mac, parse_ip
from emu.wire.message import decode
from tests.kit.fabric import Fabric

NODES = {1: "192.168.0.2", 2: "192.168.0.3"}


class World:
    """Two nodes and a pod on each; `frames` are the outer packets that node-1 has sent since they were asked for."""

    def __init__(self) -> None:
        self.fabric = Fabric(2)
        self.client, self.server = self.fabric.pod(1, "client"), self.fabric.pod(2, "server")
        self.node = self.fabric.machines["node-2"].node
        self.address = self.server.devices["eth0"].addresses[0][0]
        self._sent: list[bytes] = []
        wire = self.fabric.machines["node-1"].underlay.wire
        send = wire.send
        wire.send = lambda ip, message: self._sent.append(message) or send(ip, message)
        self.listening = UdpSocket(self.server)
        self.listening.bind(SockAddr(ANY, 53))

    def frames(self) -> list[bytes]:
        self.fabric.run()
        sent, self._sent[:] = self._sent[:], []
        return [packet for message in sent for packet, _, _ in decode(message)]  # type: ignore[union-attr]


@pytest.fixture
def world() -> World:
    return World()


def talk(world: World, what: str) -> list[bytes]:
    if what == "udp":
        sock = UdpSocket(world.client)
        for size in (0, 1, 1000):
            sock.send_to(b"x" * size, SockAddr(world.address, 53))
    elif what == "tcp":
        TcpSocket(world.client).connect(SockAddr(world.address, 80))
    else:
        PingSocket(world.client).send_echo(world.address, 3, b"payload")
    return world.frames()


@pytest.mark.parametrize(("what", "layer"), [("udp", UDP), ("tcp", TCP), ("icmp", ICMP)])
def test_scapy_and_dpkt_see_a_pod_s_packet_in_a_flannel_frame(world: World, what: str, layer: type) -> None:
    frames = talk(world, what)
    assert frames
    for frame in frames:
        outer = IP(frame)
        assert (outer.src, outer.dst, outer.proto, outer.ttl, outer.ihl, outer.len) == (NODES[1], NODES[2], 17, 64, 5, len(frame))
        assert not outer.flags.DF  # as flannel makes its device: df unset
        assert (outer[UDP].dport, outer[UDP].len, outer[UDP].chksum) == (8472, len(frame) - 20, 0)
        assert outer[UDP].sport in range(32768, 61000)
        vxlan = VXLAN(bytes(outer[UDP].payload))  # scapy binds only 4789 by itself
        assert (vxlan.vni, int(vxlan.flags), vxlan.reserved1, vxlan.reserved2) == (1, 0x08, 0, 0)
        ether = vxlan[Ether]
        assert (ether.src, ether.dst) == (format_mac(vtep_mac(parse_ip(NODES[1]))), format_mac(vtep_mac(parse_ip(NODES[2]))))
        assert ether.type == 0x0800
        inner = ether[IP]
        assert (inner.src, inner.dst, inner.ttl) == ("10.244.1.2", format_ip(world.address), 63)
        assert inner.haslayer(layer)
        assert bytes(dpkt.ethernet.Ethernet(frame[36:]).data)[12:20] == frame[62:70]
        assert len(frame) == inner.len + OVERHEAD


def test_a_flow_keeps_its_port_and_flows_are_spread_as_udp_flow_src_port_does(world: World) -> None:
    ports = set()
    for _ in range(40):
        sock = UdpSocket(world.client)
        for _ in range(3):
            sock.send_to(b"x", SockAddr(world.address, 53))
        (port,) = {IP(frame)[UDP].sport for frame in world.frames()}
        ports.add(port)
    assert len(ports) > 35


def test_fast_and_slow_path_number_their_packets_one_after_the_other(world: World) -> None:
    sock = UdpSocket(world.client)
    for _ in range(6):
        sock.send_to(b"x", SockAddr(world.address, 53))
    idents = [IP(frame).id for frame in world.frames()]
    assert idents == list(range(idents[0], idents[0] + 6))


@pytest.mark.parametrize(("size", "arrives"), [(1422, True), (1423, True), (65457, True), (65458, False), (65507, False)])
def test_a_datagram_that_no_outer_packet_holds_is_dropped_and_counted(world: World, size: int, arrives: bool) -> None:
    """65,507 is UDP's own limit; the tunnel takes 50 bytes of an IPv4 packet's 65,535."""
    sock = UdpSocket(world.client)
    for _ in range(3):
        sock.send_to(b"x" * size, SockAddr(world.address, 53))
        world.fabric.run()
        received = world.listening.receive()
        assert (received is not None and len(received[0]) == size) == arrives
    assert world.fabric.machines["node-1"].node.drops[DropReason.TOO_BIG] == (0 if arrives else 3)


@pytest.mark.parametrize("warm", [0, 3], ids=["slow path", "fast path"])
@pytest.mark.parametrize(
    ("at", "new", "reason"),
    [
        (28, b"\x00", DropReason.UNKNOWN_VNI),  # no valid VNI
        (28, b"\x88", DropReason.UNKNOWN_VNI),  # a flag of an extension
        (32, b"\x00\x00\x02", DropReason.UNKNOWN_VNI),
        (36, b"\x02", DropReason.NOT_OURS),  # another VTEP's MAC
        (48, b"\x86\xdd", DropReason.UNSUPPORTED),  # IPv6 inside
        (50, b"\x55", DropReason.MALFORMED),
        (22, (4789).to_bytes(2, "big"), DropReason.NO_SOCKET),
        (16, b"\xc0\xa8\x00\x63", DropReason.NOT_OURS),
    ],
)
def test_what_is_not_for_us_is_counted(world: World, at: int, new: bytes, reason: DropReason, warm: int) -> None:
    sock = UdpSocket(world.client)
    for _ in range(warm):
        sock.send_to(b"x", SockAddr(world.address, 53))
    sock.send_to(b"x", SockAddr(world.address, 53))
    frame = bytearray(world.frames()[-1])
    while world.listening.receive() is not None:
        pass
    frame[at : at + len(new)] = new
    world.node.forwarding = at != 16
    world.node.devices["eth0"].receive(bytes(frame), 0, 0)
    world.fabric.run()
    assert world.node.drops == {reason: 1}
    assert world.listening.receive() is None


@pytest.mark.parametrize("size", range(28, 70, 7))
def test_a_frame_too_short_for_its_headers_is_counted(world: World, size: int) -> None:
    frame = bytearray(talk(world, "udp")[-1][:size])
    world.listening.queue.clear()
    frame[2:4], frame[24:26] = size.to_bytes(2, "big"), (size - 20).to_bytes(2, "big")
    world.node.devices["eth0"].receive(bytes(frame), 0, 0)
    world.fabric.run()
    assert sum(world.node.drops.values()) == 1


def test_a_neighbour_that_flanneld_never_wrote_is_dropped_not_asked_for(world: World) -> None:
    node = world.fabric.machines["node-1"].node
    node.devices["flannel.1"].neighbours = {}
    talk(world, "udp")
    assert node.drops[DropReason.UNKNOWN_PEER] == 3
    assert not node.neighbours.incomplete
    assert UDP_PORT in node.tunnels
