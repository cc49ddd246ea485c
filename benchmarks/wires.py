"""References of `bench_rtt`: 64 bytes there and back over bare pyzmq, and over the kernel's TCP through a veth pair.

Decides what "bare" is: the same two sockets (PUSH and PULL over ipc) and the same blocking calls as the carrier's, and
nothing else. The veth pair lives in two network namespaces of its own, gone with their processes; it needs root.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack

import zmq

from benchmarks.harness import Child, Round, answer, commands
from emu.overlay.zeromq import ZmqCarrier, open_context

SIZE = 64
_CLONE_NEWNET = 0x40000000
_PEER = b"peer"


def times_of(send: Callable[[bytes], object], recv: Callable[[], object], count: int) -> array[int]:
    """So many blocking round trips, one after the other."""
    now, payload = time.perf_counter_ns, bytes(SIZE)
    times: array[int] = array("Q")
    for _ in range(count):
        start = now()
        send(payload)
        recv()
        times.append(now() - start)
    return times


def pyzmq(stack: ExitStack, directory: str, cpus: tuple[int, int]) -> Round:
    """Ping-pong over two bare pyzmq sockets a process."""
    here, there = f"ipc://{directory}/bare-{cpus[1]}-a", f"ipc://{directory}/bare-{cpus[1]}-b"

    def sockets(mine: str, other: str) -> tuple[Callable[[bytes], object], Callable[[], bytes]]:
        context = zmq.Context()
        pull = context.socket(zmq.PULL)
        pull.bind(mine)
        push = context.socket(zmq.PUSH)
        push.connect(other)
        return push.send, pull.recv

    return _pair(stack, cpus, lambda: sockets(there, here), lambda: sockets(here, there))


def carrier(stack: ExitStack, directory: str, cpus: tuple[int, int]) -> Round:
    """The same through the carrier, without a stack: what the carrier itself costs."""
    here, there = f"ipc://{directory}/carrier-{cpus[1]}-a", f"ipc://{directory}/carrier-{cpus[1]}-b"

    def ends(mine: str, other: str) -> tuple[Callable[[bytes], object], Callable[[], bytes]]:
        made = ZmqCarrier(open_context(), mine)
        made.add_peer(_PEER, other)
        return (lambda message: made.send(_PEER, message)), made.recv

    return _pair(stack, cpus, lambda: ends(there, here), lambda: ends(here, there))


def veth(stack: ExitStack, cpus: tuple[int, int]) -> Round:
    """Ping-pong over the kernel's TCP between two namespaces; PermissionError or RuntimeError where they cannot be made."""
    if os.geteuid() != 0:
        raise PermissionError("a veth pair needs root")

    def server(_: int, out: int) -> None:
        unshare_network()
        os.write(out, b"+")
        while "pwbench1" not in {name for _, name in socket.if_nameindex()}:
            time.sleep(0.001)
        ip("link set lo up", "addr add 10.99.0.2/24 dev pwbench1", "link set pwbench1 up")
        with socket.create_server(("10.99.0.2", 7)) as listener:
            os.write(out, b"+")
            conn, _peer = listener.accept()
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := conn.recv(SIZE):
                conn.sendall(data)

    far = stack.enter_context(Child(cpus[1], server))
    far.ready()

    def client(orders: int, out: int) -> None:
        unshare_network()
        ip(f"link add pwbench0 type veth peer name pwbench1 netns {far.pid}", "addr add 10.99.0.1/24 dev pwbench0", "link set pwbench0 up")
        far.ready()
        with socket.create_connection(("10.99.0.2", 7), timeout=10) as conn:
            conn.settimeout(None)
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            os.write(out, b"+")
            for count, _ in commands(orders):
                answer(out, times_of(conn.sendall, lambda: conn.recv(SIZE), count))

    near = stack.enter_context(Child(cpus[0], client))
    near.ready()
    return near.round


Ends = tuple[Callable[[bytes], object], Callable[[], bytes]]


def _pair(stack: ExitStack, cpus: tuple[int, int], far: Callable[[], Ends], near: Callable[[], Ends]) -> Round:
    def echo(_: int, out: int) -> None:
        send, recv = far()
        os.write(out, b"+")
        while True:
            send(recv())

    def ping(orders: int, out: int) -> None:
        send, recv = near()
        os.write(out, b"+")
        for count, _ in commands(orders):
            answer(out, times_of(send, recv, count))

    server = stack.enter_context(Child(cpus[1], echo))
    client = stack.enter_context(Child(cpus[0], ping))
    server.ready()
    client.ready()
    return client.round


def unshare_network() -> None:
    """Give this process a network namespace of its own; PermissionError without the right to."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def ip(*orders: str) -> None:
    """Run `ip` commands in this process's namespace."""
    for order in orders:
        subprocess.run(["ip", *order.split()], check=True, capture_output=True)
