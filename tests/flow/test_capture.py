"""Captures see what crosses a device, fast path or slow, both ways and finished for a wire; a node without one pays nothing."""

from __future__ import annotations

import json
import shutil
import subprocess

import dpkt
import pytest

from emu.node.capture import QUEUE, WINDOW
from emu.stack.sockets import PingSocket, UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire import checksum
from emu.wire import packet as packets
from emu.wire.addr import ANY, SockAddr, format_ip, parse_ip
from emu.wire.udp import Udp
from tests.kit.capturing import Recording
from tests.kit.fabric import Fabric
from tests.kit.services import value

VIP = "10.96.0.7"


class World:
    """A client on node-1, a server on node-2 (or beside it) and a Service before it; a TCP connection through the Service."""

    def __init__(self, node: int = 2) -> None:
        self.fabric = Fabric(2)
        self.client, self.server = self.fabric.pod(1, "client"), self.fabric.pod(node, "server")
        self.ip = self.server.devices["eth0"].addresses[0][0]
        self.fabric.services({"default/server": value("default/server", [format_ip(self.ip)], cluster_ip=VIP)})
        self.listener = TcpListener(self.server, SockAddr(ANY, 8080))
        self.asked, self.asks = UdpSocket(self.server), UdpSocket(self.client)
        self.asked.bind(SockAddr(ANY, 5300))

    def connect(self) -> tuple[TcpSocket, TcpSocket]:
        sock = TcpSocket(self.client)
        sock.connect(SockAddr(parse_ip(VIP), 80))
        self.fabric.run()
        accepted = self.listener.accept()
        assert accepted is not None
        return sock, accepted

    def exchange(self, sock: TcpSocket, accepted: TcpSocket, size: int = 10) -> None:
        for sender, receiver in ((sock, accepted), (accepted, sock)):
            sent, got = 0, 0
            while got < size:
                sent += sender.write(bytes(size - sent)) if sent < size else 0
                self.fabric.run()
                while chunk := receiver.read(1 << 20):
                    got += len(chunk)
                self.fabric.advance(0.001)

    def ask(self, count: int = 1) -> None:
        for _ in range(count):
            self.asks.send_to(b"question", SockAddr(self.ip, 5300))
            self.fabric.run()
            assert self.asked.receive() is not None


def route_of(seen: list[tuple[str, str, bytes]], data: bytes = b"question") -> list[tuple[str, str]]:
    """Where the packets that hold `data` were seen."""
    return [
        (device.replace("node-1/veth", "veth/").partition("/")[2][:9] if "veth" not in device else "veth", way)
        for device, way, packet in seen
        if data in packet
    ]


@pytest.mark.parametrize("tracked", [False, True], ids=["no rules", "rules"])
@pytest.mark.parametrize("count", [1, 5], ids=["first packet", "known flow"])
def test_every_device_on_the_way_shows_every_packet_once(tracked: bool, count: int) -> None:
    world = World() if tracked else World.__new__(World)
    if not tracked:
        world.fabric = Fabric(2)
        world.client, world.server = world.fabric.pod(1, "client"), world.fabric.pod(2, "server")
        world.ip = world.server.devices["eth0"].addresses[0][0]
        world.asked, world.asks = UdpSocket(world.server), UdpSocket(world.client)
        world.asked.bind(SockAddr(ANY, 5300))
    world.ask(3)  # shortcuts are joined, and must stand aside
    here, there, pod = Recording(world.fabric, 1), Recording(world.fabric, 2), Recording(world.fabric, 2, world.server)
    world.ask(count)
    assert route_of(here.packets) == [("veth", "in"), ("cni0", "in"), ("flannel.1", "out"), ("eth0", "out")] * count
    assert route_of(there.packets) == [("eth0", "in"), ("flannel.1", "in"), ("cni0", "out"), ("veth", "out")] * count
    assert [(device, way) for device, way, packet in pod.packets] == [("pod/default/server/eth0", "in")] * count
    assert here.wakes > 0


def test_pods_of_one_node_are_seen_at_their_cables_and_at_the_bridge() -> None:
    world = World(1)
    world.ask(3)
    here, pod = Recording(world.fabric, 1), Recording(world.fabric, 1, world.client)
    world.ask(4)
    assert route_of(here.packets) == [("veth", "in"), ("cni0", "in"), ("veth", "out")] * 4
    assert [way for _, way, _ in pod.packets] == ["out"] * 4


def test_loopback_shows_a_packet_once() -> None:
    world = World()
    inside, asks = UdpSocket(world.client), UdpSocket(world.client)
    inside.bind(SockAddr(ANY, 54))
    recording = Recording(world.fabric, 1, world.client)
    for _ in range(3):
        asks.send_to(b"question", SockAddr(parse_ip("127.0.0.1"), 54))
        world.fabric.run()
    assert [(device, way) for device, way, _ in recording.packets] == [("pod/default/client/lo", "in")] * 3


def test_only_wanted_devices_and_those_that_appear_later() -> None:
    world = World()
    recording = Recording(world.fabric, 1, device="veth*")
    assert len(recording.devices) == 1
    world.fabric.pod(1, "later")
    recording.turn()
    assert len(recording.devices) == 2


def test_after_the_capture_everything_is_as_fast_as_before() -> None:
    world = World()
    softnet = world.fabric.machines["node-2"].softnet
    sock, accepted = world.connect()
    world.exchange(sock, accepted)
    assert softnet.shortcuts
    recording = Recording(world.fabric, 2)
    world.exchange(sock, accepted)
    assert not softnet.shortcuts
    seen = len(recording.packets)
    recording.capture.cancel()
    for _ in range(3):
        world.exchange(sock, accepted)
    assert softnet.shortcuts
    assert softnet.tapped == 0
    assert len(recording.packets) == seen
    for device in world.fabric.machines["node-2"].node.devices.values():
        assert not {"receive", "transmit", "queue"} & vars(device).keys()


def test_two_captures_of_a_device_are_independent() -> None:
    world = World()
    one, two = Recording(world.fabric, 1, device="eth0"), Recording(world.fabric, 1, device="eth0")
    world.ask()
    one.turn()
    one.capture.cancel()
    world.ask()
    assert (len(one.packets), len(two.packets)) == (1, 2)


def test_a_filter_keeps_the_rest_on_the_node_and_both_are_counted() -> None:
    world = World()
    recording = Recording(world.fabric, 1, device="eth0", filter="vxlan and udp port 5300")
    world.connect()
    world.ask(2)
    assert len(recording.packets) == 2
    counts = recording.counts["node-1/eth0"]
    assert counts.received > 2
    assert (counts.accepted, counts.lost) == (2, 0)


def test_gso_packets_are_told_apart_segment_by_segment() -> None:
    world = World()
    sock, accepted = world.connect()
    everything = Recording(world.fabric, 1, device="flannel.1")
    pushed = Recording(world.fabric, 1, device="flannel.1", filter="tcp[tcpflags] & tcp-push != 0")
    bulk = Recording(world.fabric, 1, device="flannel.1", filter="tcp dst port 8080")
    world.exchange(sock, accepted, 50_000)
    sizes = [len(data) for _, way, data in everything.packets if way == "out"]
    assert max(sizes) == 1450
    assert sum(size > 1000 for size in sizes) >= 35
    wanted = [entry for entry in everything.packets if entry[2][33] & 8]
    assert 0 < len(wanted) < len(sizes)
    assert pushed.packets == wanted
    assert bulk.packets == [entry for entry in everything.packets if entry[1] == "out"]


def test_what_finds_no_place_is_lost_and_counted_and_the_way_goes_on() -> None:
    world = World()
    recording = Recording(world.fabric, 1, device="eth0", taken=False)
    world.ask(WINDOW * 3)
    for _ in range(QUEUE + 50):
        world.asks.send_to(b"question", SockAddr(world.ip, 5300))
    world.fabric.run()
    recording.turn()
    counts = recording.counts["node-1/eth0"]
    delivered = sum(len(body.get("packets", ())) for body in recording.bodies)
    assert len(recording.bodies) <= WINDOW
    recording.taken = True
    recording.capture.input({"taken": WINDOW})
    world.ask()
    assert len(recording.packets) > delivered
    counts = recording.counts["node-1/eth0"]
    assert counts.lost > 0
    assert counts.received == counts.accepted == len(recording.packets) + counts.lost


def test_snaplen_keeps_the_length_and_cuts_the_rest() -> None:
    world = World()
    recording = Recording(world.fabric, 1, world.client, snaplen=20)
    world.ask()
    recording.turn()
    (packet,) = [packet for body in recording.bodies for packet in body.get("packets", ())]
    assert (len(packet[3]), packet[4]) == (20, 36)


def test_a_controller_that_says_nothing_for_a_minute_is_believed_to_be_gone() -> None:
    world = World()
    recording = Recording(world.fabric, 1)
    world.fabric.advance(30)
    recording.capture.input({"taken": 0})
    world.fabric.advance(40)
    recording.capture.turn(world.fabric.clock.now())
    assert not recording.capture.over
    world.fabric.advance(30)
    recording.capture.turn(world.fabric.clock.now())
    assert recording.capture.over
    assert world.fabric.machines["node-1"].softnet.tapped == 0


def test_the_rest_comes_before_the_end() -> None:
    world = World()
    recording = Recording(world.fabric, 1, device="eth0")
    world.ask(3)
    recording.stop()
    assert recording.capture.over
    assert len(recording.packets) == 3


# ---- what others read in it --------------------------------------------------------------------------------------------------------------


def everything(world: World, device: str = "*") -> bytes:
    """A node's traffic of all kinds that it knows: TCP with offload, datagrams whole and in fragments, echoes, errors."""
    recording = Recording(world.fabric, 1, device=device)
    sock, accepted = world.connect()
    world.exchange(sock, accepted, 20_000)
    world.ask(2)
    world.asks.send_to(bytes(3000), SockAddr(world.ip, 5300))
    world.asks.send_to(b"nobody", SockAddr(world.ip, 5400))
    ping = PingSocket(world.client)
    ping.send_echo(world.ip, 1, b"payload")
    ping.send_echo(world.ip, 2, b"payload", ttl=1)
    world.fabric.run()
    sock.close()
    accepted.close()
    world.fabric.run()
    return recording.file()


def test_every_checksum_is_right_and_the_packet_inside_a_tunnel_is_the_one_outside_it() -> None:
    world = World()
    recording = Recording(world.fabric, 1)
    sock, accepted = world.connect()
    world.exchange(sock, accepted, 5000)
    inside, outside = [], []
    for device, _, data in recording.packets:
        assert checksum.wrong(data) == ()
        parsed = packets.parse(data)
        assert isinstance(parsed, packets.Packet)
        if device == "node-1/eth0":
            assert isinstance(parsed.transport, Udp)
            assert parsed.transport.checksum == 0
            found = packets.decapsulate(parsed.payload)
            assert isinstance(found, tuple)
            assert (found[0].vni, found[1].dst != found[1].src) == (1, True)
            inside.append(found[2])
        elif device == "node-1/flannel.1":
            outside.append(data)
    assert inside == outside
    assert inside


def test_dpkt_finds_all_interfaces_packets_readable(tmp_path) -> None:
    path = tmp_path / "all.pcapng"
    path.write_bytes(everything(World()))
    with path.open("rb") as file:
        kinds = {type(dpkt.ip.IP(data).data).__name__ for _, data in dpkt.pcapng.Reader(file)}
    assert {"TCP", "UDP", "ICMP"} <= kinds


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
@pytest.mark.parametrize(("device", "severity"), [("*", 6291456), ("eth0", 4194304), ("veth*", 4194304)])
def test_tshark_finds_nothing_wrong_and_reads_the_packets_inside(tmp_path, device: str, severity: int) -> None:
    """Nothing worse than a note; where the same segment is seen at many devices, warnings of repeated numbers are as they should be."""
    path = tmp_path / "all.pcapng"
    path.write_bytes(everything(World(), device))
    checks = [word for layer in ("ip", "tcp", "udp") for word in ("-o", f"{layer}.check_checksum:TRUE")]
    tshark = ["tshark", "-n", "-r", str(path), *checks, "-d", "udp.port==8472,vxlan"]

    def run(*more: str) -> str:
        return subprocess.run([*tshark, *more], capture_output=True, text=True, check=True, timeout=60).stdout

    bad = " or ".join(f"{layer}.checksum.status == 0" for layer in ("ip", "tcp", "udp", "icmp"))
    wrong = f"_ws.malformed or _ws.expert.severity > {severity} or {bad}"
    assert run("-Y", wrong) == ""
    assert "Errors" not in run("-q", "-z", "expert")
    if device == "veth*":
        return
    told = json.loads(
        run(
            "-T",
            "json",
            "-Y",
            "vxlan and tcp.flags.syn == 1",
            "-e",
            "vxlan.vni",
            "-e",
            "ip.dst",
            "-e",
            "frame.interface_name",
            "-e",
            "eth.dst",
        )
    )
    assert [packet["_source"]["layers"]["vxlan.vni"] for packet in told] == [["1"]] * 2
    assert told[0]["_source"]["layers"]["ip.dst"] == ["192.168.0.3", "10.244.2.2"]
    assert told[0]["_source"]["layers"]["frame.interface_name"] == ["node-1/eth0"]
    assert told[0]["_source"]["layers"]["eth.dst"] == ["1a:2b:c0:a8:00:03"]
