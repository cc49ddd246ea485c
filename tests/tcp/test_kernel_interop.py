"""Our TCP against this machine's own, over a TUN device in a network namespace."""

from __future__ import annotations

import errno
import hashlib
import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from emu.tcp import Connection, TcpConfig, TcpState, reset_for
from emu.tcp.info import check
from emu.wire.addr import SockAddr
from tests.kit import netns
from tests.kit.tun import Tun

pytestmark = pytest.mark.kernel

KERNEL, OURS = SockAddr(bytes((10, 99, 0, 1)), 5001), SockAddr(bytes((10, 99, 0, 2)), 8080)
DEADLINE = 30.0  # real seconds; a run takes well under one without loss
MEGABYTE = 1 << 20


class Bench:
    """One connection of ours, a socket of the kernel's, and a lossy wire between, run together on real time."""

    def __init__(self, namespace: str, tun: Tun, *, loss: float, config: TcpConfig) -> None:
        self.namespace, self.tun, self.config = namespace, tun, config
        self.loss, self.random = loss, random.Random(7)
        self.connection: Connection | None = None
        self.listening = True

    @property
    def ours(self) -> Connection:
        assert self.connection is not None
        return self.connection

    def connect(self) -> None:
        self.connection = Connection.active(OURS, KERNEL, iss=0xFFFF0000, mtu=1500, now=time.monotonic(), config=self.config)

    def turn(self) -> None:
        """Whatever can be done at once, or a short sleep."""
        packet = self.tun.receive()
        if packet is None:
            self._flush()
            select.select([self.tun.fd], [], [], 0.001)
        while packet is not None:
            if packet[9] == 6 and self.random.random() >= self.loss:
                self._take(packet)
            self._flush()
            packet = self.tun.receive()
        now = time.monotonic()
        if self.connection is not None and self.connection.deadline <= now:
            self.connection.on_timer(now)
        self._flush()

    def _take(self, packet: bytes) -> None:
        now = time.monotonic()
        if self.connection is not None:
            self.connection.on_packet(packet, 20, now)
        elif self.listening and packet[33] & 0x12 == 0x02:
            self.connection = Connection.passive(packet, 20, iss=0xFFFFFF00, mtu=1500, now=now, config=self.config)
        elif answer := reset_for(packet, 20):
            self.tun.send(answer, 0)

    def _flush(self) -> None:
        if self.connection is None:
            return
        for packet, gso_size in self.connection.out:
            if self.random.random() >= self.loss:
                self.tun.send(packet, gso_size)
        self.connection.out.clear()
        check(self.connection)

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not done():
            assert time.monotonic() < end, "the two stacks do not get anywhere"
            self.turn()


@contextmanager
def bench(
    *, offload: bool = True, loss: float = 0.0, config: TcpConfig | None = None, sysctls: dict[str, object] | None = None
) -> Iterator[Bench]:
    with netns.namespaces("tcp") as names:
        tun = Tun(names["tcp"], "10.99.0.1/24", mtu=1500, offload=offload)
        try:
            netns.sysctl(names["tcp"], sysctls or {})
            yield Bench(names["tcp"], tun, loss=loss, config=config or TcpConfig(gso=offload))
        finally:
            tun.close()


def kernel_server(run: Bench) -> socket.socket:
    """The kernel's accepted socket, after our connection reached its listener."""
    listener = netns.socket_in(run.namespace)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("10.99.0.1", KERNEL.port))
    listener.listen()
    run.connect()
    run.until(lambda: run.ours.established)
    with listener:
        listener.settimeout(DEADLINE)
        run.until(lambda: bool(select.select([listener], [], [], 0)[0]))
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    return accepted


def kernel_client(run: Bench) -> socket.socket:
    """The kernel's socket, connected to ours."""
    client = netns.socket_in(run.namespace)
    client.setblocking(False)
    client.connect_ex(("10.99.0.2", OURS.port))
    run.until(lambda: run.connection is not None and run.ours.established)
    return client


ROLES = {"client": kernel_server, "server": kernel_client}  # our role


def exchange(run: Bench, theirs: socket.socket, size: int) -> None:
    """`size` bytes each way at once, then both half-closes; both ends must have had every byte and end of file."""
    outgoing, incoming = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    got_ours, got_theirs = bytearray(), bytearray()
    written = sent = 0
    ours_done = theirs_done = False
    end = time.monotonic() + DEADLINE
    while not (ours_done and theirs_done):
        assert time.monotonic() < end, f"stuck at {len(got_ours)} and {len(got_theirs)} of {size}"
        now = time.monotonic()
        if written < size:
            written += run.ours.write(memoryview(outgoing)[written:], now)
            if written == size:
                run.ours.shutdown_write(now)
        while piece := run.ours.read(MEGABYTE, now):
            got_ours += piece
        ours_done = piece == b""
        try:
            while sent < size:
                sent += theirs.send(memoryview(incoming)[sent:])
                if sent == size:
                    theirs.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        try:
            while piece := theirs.recv(MEGABYTE):
                got_theirs += piece
            theirs_done = True
        except BlockingIOError:
            pass
        run.turn()
    assert hashlib.sha256(got_ours).digest() == hashlib.sha256(incoming).digest()
    assert hashlib.sha256(got_theirs).digest() == hashlib.sha256(outgoing).digest()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("offload", [True, False], ids=["gso", "segments"])
def test_ten_megabytes_each_way_are_byte_exact(role, offload):
    with bench(offload=offload) as run, ROLES[role](run) as theirs:
        exchange(run, theirs, 10 * MEGABYTE)
        final = (TcpState.TIME_WAIT, TcpState.CLOSED)
        run.until(lambda: run.ours.state in final)
        assert not run.ours.error
        if offload:
            assert min(run.tun.longest_sent, run.tun.longest_received) > 10_000, "offload was not used both ways"


SWITCHES = {
    "all options": ({}, {}),
    "the kernel without SACK": ({"net.ipv4.tcp_sack": 0}, {}),
    "the kernel without timestamps": ({"net.ipv4.tcp_timestamps": 0}, {}),
    "the kernel without window scaling": ({"net.ipv4.tcp_window_scaling": 0}, {}),
    "we without SACK": ({}, {"sack": False}),
    "we without timestamps": ({}, {"timestamps": False}),
    "we without window scaling": ({}, {"window_scaling": False}),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("switches", SWITCHES)
def test_loss_is_repaired_with_whatever_both_agree_on(role, switches):
    sysctls, ours = SWITCHES[switches]
    with bench(loss=0.02, config=TcpConfig(**ours), sysctls=sysctls) as run, ROLES[role](run) as theirs:
        exchange(run, theirs, MEGABYTE // 4)


@pytest.mark.parametrize("role", ROLES)
def test_the_kernel_sees_the_options_that_it_would_agree_on_with_itself(role):
    with bench() as run, ROLES[role](run) as theirs:
        info = theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        timestamps, sack, wscale = 1, 2, 4
        assert info[5] & 7 == timestamps | sack | wscale
        snd_mss, rcv_mss = struct.unpack_from("II", info, 16)
        assert snd_mss == 1448
        assert rcv_mss <= 1448
        assert run.ours.mss == 1448


def test_a_closed_port_of_the_kernels_refuses_us():
    with bench() as run:
        run.connect()
        run.until(lambda: run.ours.closed)
        assert run.ours.error == errno.ECONNREFUSED


def test_our_reset_refuses_the_kernel():
    with bench() as run, netns.socket_in(run.namespace) as client:
        run.listening = False
        client.setblocking(False)
        client.connect_ex(("10.99.0.2", 81))
        run.until(lambda: bool(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED))


@pytest.mark.parametrize("role", ROLES)
def test_closing_with_unread_data_resets_the_other_end(role):
    """RFC 2525, 2.17, both ways round."""
    with bench() as run, ROLES[role](run) as theirs:
        theirs.send(b"never read")
        run.until(lambda: run.ours.readable)
        run.ours.close(time.monotonic())
        run.turn()
        assert theirs.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    with bench() as run, ROLES[role](run) as theirs:
        run.ours.write(b"never read", time.monotonic())
        run.until(lambda: bool(select.select([theirs], [], [], 0)[0]))
        theirs.close()
        run.until(lambda: run.ours.closed)
        assert run.ours.error == errno.ECONNRESET


def test_a_shut_window_is_reopened_without_loss():
    """Neither end reads until the other can write no more; then all of it arrives."""
    with bench() as run, kernel_client(run) as theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        data = random.Random(3).randbytes(3 * MEGABYTE)
        written = 0
        quiet = time.monotonic() + 0.7  # past the first zero-window probes
        while time.monotonic() < quiet:
            written += run.ours.write(memoryview(data)[written:], time.monotonic()) if run.ours.writable else 0
            run.turn()
        assert run.ours.snd_wnd - (run.ours.snd_nxt - run.ours.snd_una) < run.ours.mss
        got = bytearray()
        end = time.monotonic() + DEADLINE
        while len(got) < len(data):
            assert time.monotonic() < end
            try:
                got += theirs.recv(MEGABYTE)
            except BlockingIOError:
                written += run.ours.write(memoryview(data)[written:], time.monotonic()) if written < len(data) else 0
                run.turn()
        assert got == data
