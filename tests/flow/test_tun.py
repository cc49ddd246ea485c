"""Kernel clients and servers at a node's TUN device, and our pods: streams cross both ways, refusals are told, sizes are respected."""

from __future__ import annotations

import errno
import hashlib
import random
import socket
from contextlib import contextmanager

import pytest

from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, SockAddr, format_ip, parse_ip
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
