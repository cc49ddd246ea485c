"""Kernel clients and servers at a node's TUN device, and our pods: streams cross both ways, refusals are told, sizes are respected."""

from __future__ import annotations

import errno
import hashlib
import random
import socket
from contextlib import contextmanager

import pytest

from emu.stack.route import Route
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, Network, SockAddr, format_ip, parse_ip
from tests.kit import netns
from tests.kit.fabric import Fabric
from tests.kit.tun import Junction

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(bool(netns.missing()), reason=netns.missing())]

KERNEL = "172.31.0.1"
MEGABYTE = 1 << 20


class World:
    """A pod on the node with the device, and a kernel's network namespace behind it."""

    def __init__(self, namespace: str, *, offload: bool) -> None:
        self.fabric, self.namespace = Fabric(2), namespace
        self.junction = Junction(self.fabric, namespace, f"{KERNEL}/24", offload=offload)
        self.turn, self.until = self.junction.turn, self.junction.until
        self.pod = self.fabric.pod(1, "pod")
        self.ip = self.pod.devices["eth0"].addresses[0][0]

    def listen(self, port=80):
        return TcpListener(self.pod, SockAddr(ANY, port))

    def socket(self):
        sock = netns.socket_in(self.namespace)
        sock.setblocking(False)
        return sock

    def served(self):
        """A connection of the kernel's to a pod: its end and ours."""
        listener, theirs = self.listen(), self.socket()
        theirs.connect_ex((format_ip(self.ip), 80))
        self.until(lambda: listener.queue)
        return theirs, listener.accept()

    def connected(self):
        """A connection of a pod's to the kernel: its end and ours."""
        with self.socket() as listener:
            listener.bind((KERNEL, 80))
            listener.listen()
            ours = TcpSocket(self.pod)
            ours.connect(SockAddr(parse_ip(KERNEL), 80))
            self.until(lambda: ours.connected)
            theirs, _ = listener.accept()
        theirs.setblocking(False)
        return theirs, ours


@contextmanager
def world(*, offload=True):
    with netns.namespaces("flow") as names:
        made = World(names["flow"], offload=offload)
        try:
            yield made
        finally:
            made.junction.close()


ROLES = {"server": World.served, "client": World.connected}  # our role


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "segments"])
def test_megabytes_cross_both_ways_at_once(role, offload):
    size = (16 if offload else 3) * MEGABYTE
    outgoing, incoming = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    with world(offload=offload) as run:
        theirs, ours = ROLES[role](run)
        got_ours, got_theirs = bytearray(), bytearray()
        written = sent = 0
        ours_done = theirs_done = False

        def exchanged():
            nonlocal written, sent, ours_done, theirs_done
            if written < size:
                written += ours.write(outgoing[written : written + MEGABYTE])
                if written == size:
                    ours.shutdown_write()
            while piece := ours.read(MEGABYTE):
                got_ours.extend(piece)
            ours_done = piece == b""
            try:
                while sent < size:
                    sent += theirs.send(incoming[sent : sent + MEGABYTE])
                    if sent == size:
                        theirs.shutdown(socket.SHUT_WR)
            except BlockingIOError:
                pass
            try:
                while piece := theirs.recv(MEGABYTE):
                    got_theirs.extend(piece)
                theirs_done = True
            except BlockingIOError:
                pass
            run.fabric.run()
            return ours_done and theirs_done

        run.until(exchanged, 60)
        theirs.close()
        assert hashlib.sha256(got_ours).digest() == hashlib.sha256(incoming).digest()
        assert hashlib.sha256(got_theirs).digest() == hashlib.sha256(outgoing).digest()
        assert run.junction.device.rx_packets < size // (10_000 if offload else 1000)


def test_a_port_that_nobody_has_refuses_either_side():
    with world() as run, run.socket() as theirs:
        theirs.connect_ex((format_ip(run.ip), 81))
        run.until(lambda: theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED)
        ours = TcpSocket(run.pod)
        ours.connect(SockAddr(parse_ip(KERNEL), 81))
        run.until(lambda: ours.error == errno.ECONNREFUSED)


def carry(run, theirs, ours, size, *, up):
    """A stream of `size` bytes from the kernel (`up`) or to it; what arrived."""
    data, got, sent = random.Random(size).randbytes(size), bytearray(), 0

    def done():
        nonlocal sent
        try:
            while up and sent < size:
                sent += theirs.send(data[sent : sent + MEGABYTE])
            while not up and (piece := theirs.recv(MEGABYTE)):
                got.extend(piece)
        except BlockingIOError:
            pass
        if not up and sent < size:
            sent += ours.write(data[sent : sent + MEGABYTE])
        while up and (piece := ours.read(MEGABYTE)):
            got.extend(piece)
        run.fabric.run()
        return len(got) >= size

    run.until(done, 30)
    assert got == data


def path_mtu(sock):
    """What the kernel takes the path of a connected socket to be."""
    return sock.getsockopt(socket.IPPROTO_IP, 14)  # IP_MTU


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "segments"])
def test_the_kernel_adapts_to_the_tunnel_between_our_nodes(offload):
    """1500 bytes at its device, 1450 at the pod's, so TCP's maximum segment size alone does not tell: 1300 on the way. Our node does."""
    with world(offload=offload) as run:
        run.fabric.services({})  # rules, hence flannel's masquerade: the far node knows no way to the kernel
        run.fabric.machines["node-1"].node.devices["flannel.1"].mtu = 1300
        far = run.fabric.pod(2, "far")
        listener, theirs = TcpListener(far, SockAddr(ANY, 80)), run.socket()
        with theirs:
            theirs.connect_ex((format_ip(far.devices["eth0"].addresses[0][0]), 80))
            run.until(lambda: listener.queue)
            ours = listener.accept()
            carry(run, theirs, ours, 2 * MEGABYTE, up=True)
            assert path_mtu(theirs) == 1300
            carry(run, theirs, ours, MEGABYTE, up=False)
    assert run.fabric.machines["node-1"].node.drops["too-big"] > 0


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "segments"])
def test_we_adapt_to_a_narrow_link_behind_the_kernel(offload):
    with netns.namespaces("beyond") as names, world(offload=offload) as run:
        beyond, near = names["beyond"], run.namespace
        netns.configure(
            near, [f"link add v0 mtu 1300 type veth peer name v1 netns {beyond}", "addr add 172.30.0.1/24 dev v0", "link set v0 up"]
        )
        netns.configure(beyond, ["addr add 172.30.0.2/24 dev v1", "link set v1 up", "route add default via 172.30.0.1"])
        netns.sysctl(near, {"net.ipv4.ip_forward": 1})
        run.fabric.machines["node-1"].node.add_route(Route(Network.parse("172.30.0.0/24"), "pw0"))
        with netns.socket_in(beyond) as listener:
            listener.bind(("172.30.0.2", 80))
            listener.listen()
            ours = TcpSocket(run.pod)
            ours.connect(SockAddr(parse_ip("172.30.0.2"), 80))
            run.until(lambda: ours.connected)
            theirs, _ = listener.accept()
        with theirs:
            theirs.setblocking(False)
            assert (ours.conn.mtu, ours.conn.peer_mss) == (1450, 1460)
            carry(run, theirs, ours, 2 * MEGABYTE, up=False)
            assert ours.conn.mtu == run.pod.path_mtu(parse_ip("172.30.0.2")) == 1300
            carry(run, theirs, ours, MEGABYTE, up=True)


def test_a_datagram_of_the_kernels_with_df_set_is_answered_with_the_tunnels_mtu():
    with world() as run, netns.socket_in(run.namespace, kind=socket.SOCK_DGRAM) as theirs:
        run.fabric.services({})
        far = run.fabric.pod(2, "far")
        asked = UdpSocket(far)
        asked.bind(SockAddr(ANY, 53))
        theirs.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: DO
        theirs.connect((format_ip(far.devices["eth0"].addresses[0][0]), 53))
        theirs.send(bytes(1472))
        run.until(lambda: theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE)
        assert path_mtu(theirs) == 1450
        theirs.send(bytes(1422))
        run.until(lambda: asked.queue)
        assert asked.receive()[0] == bytes(1422)
        with pytest.raises(OSError) as refused:
            theirs.send(bytes(1423))
        assert refused.value.errno == errno.EMSGSIZE
