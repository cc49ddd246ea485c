"""The pod's sockets behave as the kernel's: every scenario runs on both, by the standard library and by ours, and must tell the same."""

from __future__ import annotations

import errno
import socket as std
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from emu.pod.program import Context
from emu.pod.socket import Socket
from tests.kit.pods import Node, pod_ip

LINGER_0 = struct.pack("ii", 1, 0)


class Kernel:
    """The machine's own loopback."""

    ip = "127.0.0.1"

    def socket(self, kind: int = std.SOCK_STREAM) -> Any:
        return std.socket(std.AF_INET, kind)

    def nap(self) -> None:
        time.sleep(0.02)


class Ours:
    """A pod's own address, seen from a program in it."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self.ip = ctx, ctx.pod.ip

    def socket(self, kind: int = std.SOCK_STREAM) -> Socket:
        return self._ctx.socket(type=kind)

    def nap(self) -> None:
        self._ctx.sleep(0.02)


def listener(net: Any) -> Any:
    sock = net.socket()
    sock.bind((net.ip, 0))
    sock.listen(5)
    return sock


def pair(net: Any) -> tuple[Any, Any]:
    """A connection's two ends."""
    server = listener(net)
    client = net.socket()
    client.connect(server.getsockname())
    accepted, _ = server.accept()
    server.close()
    return client, accepted


def free_port(net: Any, kind: int = std.SOCK_STREAM) -> int:
    with net.socket(kind) as sock:
        sock.bind((net.ip, 0))
        return int(sock.getsockname()[1])


def told(call: Callable[[], Any]) -> Any:
    """What a call comes to: its value, or the exception's class, errno and text."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__, getattr(error, "errno", None), str(error)


# ---- scenarios: each returns what happened, addresses and ports left out ---------------------------------------------------------


def a_closed_port_refuses(net):
    return told(lambda: net.socket().connect((net.ip, free_port(net))))


def connect_ex_returns_the_errno(net):
    return net.socket().connect_ex((net.ip, free_port(net)))


def bytes_arrive_in_order(net):
    client, server = pair(net)
    client.sendall(b"hello ")
    client.sendall(b"world")
    got = b""
    while len(got) < 11:
        got += server.recv(4)
    return got


def a_closed_peer_is_the_end_of_the_stream(net):
    client, server = pair(net)
    server.sendall(b"bye")
    server.close()
    return [client.recv(100), client.recv(100), client.recv(100)]


def half_close_leaves_the_other_direction_open(net):
    client, server = pair(net)
    client.shutdown(std.SHUT_WR)
    end = server.recv(10)
    server.sendall(b"late")
    return [end, client.recv(10), told(lambda: client.send(b"x"))]


def a_reset_is_told_once_and_then_the_stream_has_ended(net):
    client, server = pair(net)
    server.setsockopt(std.SOL_SOCKET, std.SO_LINGER, LINGER_0)
    server.close()
    net.nap()
    return [told(lambda: client.recv(10)), client.recv(10)]


def sending_into_a_reset_connection_breaks_the_pipe(net):
    client, server = pair(net)
    server.setsockopt(std.SOL_SOCKET, std.SO_LINGER, LINGER_0)
    server.close()
    net.nap()
    return [told(lambda: client.send(b"x")), told(lambda: client.send(b"x")), told(lambda: client.sendall(b"x"))]


def closing_with_unread_data_resets(net):
    client, server = pair(net)
    client.sendall(b"never read")
    net.nap()
    server.close()
    net.nap()
    return told(lambda: client.recv(10))


def a_receive_timeout_has_no_errno(net):
    client, _server = pair(net)
    client.settimeout(0.01)
    return told(lambda: client.recv(10))


def an_accept_timeout(net):
    server = listener(net)
    server.settimeout(0.01)
    return told(server.accept)


def a_send_timeout_when_nobody_reads(net):
    client, _server = pair(net)
    client.settimeout(0.02)
    return told(lambda: client.sendall(bytes(30_000_000)))


def not_blocking_means_again(net):
    client, _server = pair(net)
    client.setblocking(False)
    other = listener(net)
    other.setblocking(False)
    udp = net.socket(std.SOCK_DGRAM)
    udp.bind((net.ip, 0))
    udp.setblocking(False)
    return [told(lambda: client.recv(10)), told(other.accept), told(lambda: udp.recvfrom(10))]


def one_call_may_not_block(net):
    client, _server = pair(net)
    return told(lambda: client.recv(10, std.MSG_DONTWAIT))


def a_port_is_taken_once(net):
    server = listener(net)
    second = net.socket()
    return told(lambda: second.bind(server.getsockname()))


def a_udp_port_is_taken_once(net):
    first, second = net.socket(std.SOCK_DGRAM), net.socket(std.SOCK_DGRAM)
    first.bind((net.ip, 0))
    return told(lambda: second.bind(first.getsockname()))


def a_foreign_address_cannot_be_bound(net):
    return told(lambda: net.socket().bind(("192.0.2.1", 80)))


def binding_twice(net):
    sock = net.socket()
    sock.bind((net.ip, 0))
    sock.listen()
    return told(lambda: sock.bind((net.ip, 0)))


def without_a_connection(net):
    tcp, udp = net.socket(), net.socket(std.SOCK_DGRAM)
    return [
        told(lambda: tcp.recv(1)), told(lambda: tcp.send(b"x")), told(tcp.getpeername), told(lambda: tcp.shutdown(std.SHUT_WR)),
        told(tcp.accept), told(lambda: udp.send(b"x")), told(udp.getpeername), told(udp.listen), tcp.getsockname(),
    ]  # fmt: skip


def connecting_twice(net):
    client, server = pair(net)
    return told(lambda: client.connect(server.getsockname()))


def a_closed_socket_is_a_bad_descriptor(net):
    client, _server = pair(net)
    client.close()
    client.close()
    return [told(lambda: client.recv(1)), told(lambda: client.send(b"x")), told(client.getsockname)]


def an_unknown_option(net):
    return [told(lambda: net.socket().setsockopt(std.IPPROTO_TCP, 99, 1)), told(lambda: net.socket().getsockopt(std.IPPROTO_TCP, 99))]


def known_options(net):
    sock = net.socket()
    before = sock.getsockopt(std.IPPROTO_TCP, std.TCP_NODELAY)
    for level, option in ((std.IPPROTO_TCP, std.TCP_NODELAY), (std.SOL_SOCKET, std.SO_REUSEADDR), (std.SOL_SOCKET, std.SO_KEEPALIVE)):
        sock.setsockopt(level, option, 1)
    return [before, sock.getsockopt(std.IPPROTO_TCP, std.TCP_NODELAY), sock.getsockopt(std.SOL_SOCKET, std.SO_KEEPALIVE)]


def datagrams_keep_their_bounds(net):
    server, client = net.socket(std.SOCK_DGRAM), net.socket(std.SOCK_DGRAM)
    server.bind((net.ip, 0))
    for data in (b"one", b"", b"three and more"):
        client.sendto(data, server.getsockname())
    got = [server.recv(100), server.recv(100), server.recv(5)]
    server.settimeout(0.01)
    return [*got, told(lambda: server.recv(100))]


def a_connected_udp_socket_hears_of_a_closed_port(net):
    client = net.socket(std.SOCK_DGRAM)
    client.connect((net.ip, free_port(net, std.SOCK_DGRAM)))
    client.settimeout(1)
    return [client.send(b"x"), told(lambda: client.recv(10)), client.send(b"x"), told(lambda: client.send(b"y"))]


def a_connected_udp_socket_hears_its_peer_only(net):
    server, other, client = (net.socket(std.SOCK_DGRAM) for _ in range(3))
    server.bind((net.ip, 0))
    other.bind((net.ip, 0))
    client.connect(server.getsockname())
    other.sendto(b"stranger", client.getsockname())
    server.sendto(b"peer", client.getsockname())
    return client.recv(100)


def a_datagram_too_long(net):
    return told(lambda: net.socket(std.SOCK_DGRAM).sendto(bytes(70_000), (net.ip, 9)))


def lines_by_makefile(net):
    client, server = pair(net)
    with client, client.makefile("rw", encoding="utf-8") as stream:
        stream.write("größe\nzwei\n")
        stream.flush()
    with server.makefile("rb") as lines:
        return [lines.readline(), lines.read()]


def a_file_outlives_its_socket_s_close(net):
    client, server = pair(net)
    reader = client.makefile("rb")
    client.close()
    server.sendall(b"still here\n")
    line = reader.readline()
    reader.close()
    net.nap()
    return [line, server.recv(10)]


def received_into_a_buffer(net):
    client, server = pair(net)
    client.sendall(b"abcdef")
    net.nap()
    buffer = bytearray(b"........")
    return [server.recv_into(buffer, 4), server.recv_into(memoryview(buffer)[4:]), bytes(buffer)]


def nonsense_arguments(net):
    return [told(lambda: net.socket().settimeout(-1)), told(lambda: net.socket().connect((net.ip, 70_000)))[:2]]


def a_big_transfer_by_two_threads(net):
    client, server = pair(net)
    payload = bytes(range(256)) * 4096

    def receive() -> None:
        while len(got) < len(payload):
            got.extend(server.recv(65536))

    got = bytearray()
    if isinstance(net, Ours):
        net._ctx.start_thread(receive)
    else:
        threading.Thread(target=receive).start()
    client.sendall(payload)
    for _ in range(200):
        if len(got) == len(payload):
            break
        net.nap()
    return bytes(got) == payload


def a_non_blocking_connect_is_in_progress_and_then_done(net):
    server = listener(net)
    client = net.socket()
    client.setblocking(False)
    first = client.connect_ex(server.getsockname())
    net.nap()
    return [first in (0, errno.EINPROGRESS), client.getsockopt(std.SOL_SOCKET, std.SO_ERROR), client.getpeername() == server.getsockname()]


SCENARIOS = [value for name, value in list(globals().items()) if callable(value) and getattr(value, "__code__", None)
             and value.__code__.co_varnames[:1] == ("net",) and name not in {"listener", "pair", "free_port"}]  # fmt: skip


@pytest.fixture(scope="module")
def node():
    node = Node()
    yield node
    node.close()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_ours_tells_what_the_kernel_tells(scenario, node):
    ns = node.machine.cni._pods.get("pod/default/one")
    namespace = ns[0] if ns else node.pod("one")
    assert node.call(namespace, lambda ctx: scenario(Ours(ctx))) == scenario(Kernel())


def test_the_table_of_scenarios_is_not_empty():
    assert len(SCENARIOS) > 25


# ---- what the loopback of this machine cannot show ---------------------------------------------------------------------------------


def test_a_pod_gone_from_a_live_node_has_no_route_after_three_seconds():
    node = Node(speed=50)
    ns = node.pod("a")

    def main(ctx):
        start = ctx.now()
        error = told(lambda: ctx.create_connection(("10.244.1.200", 80)))
        return error, ctx.now() - start

    error, took = node.call(ns, main)
    node.close()
    assert error == ("OSError", errno.EHOSTUNREACH, "[Errno 113] No route to host")
    assert 1.9 < took < 4.5


def test_silence_times_out_with_an_errno_after_six_syn_retries():
    """tcp(7): tcp_syn_retries 6 is 127 s; unlike a program's own timeout it has an errno."""
    node = Node(speed=2000)
    ns = node.pod("a")

    def main(ctx):
        start = ctx.now()
        return told(lambda: ctx.create_connection(("1.1.1.1", 80))), ctx.now() - start

    error, took = node.call(ns, main)
    node.close()
    assert error == ("TimeoutError", errno.ETIMEDOUT, "[Errno 110] Connection timed out")
    assert 120 < took < 140


def test_another_pod_s_loopback_is_out_of_reach(node):
    a, b = node.pod("left"), node.pod("right")

    def serve(ctx):
        sock = ctx.socket()
        sock.bind(("127.0.0.1", 80))
        sock.listen()
        sock.accept()

    server = node.run(a, serve)
    while ("TCP", 80) not in server.ports:
        time.sleep(0.001)
    assert told(lambda: node.call(b, lambda ctx: ctx.create_connection(("127.0.0.1", 80))))[0] == "ConnectionRefusedError"
    assert told(lambda: node.call(b, lambda ctx: ctx.create_connection((pod_ip(a), 80))))[0] == "ConnectionRefusedError"
    assert node.call(a, lambda ctx: ctx.create_connection(("localhost", 80)).getpeername()) == ("127.0.0.1", 80)


def test_a_dropped_socket_is_closed_without_the_collector_taking_the_lock(node):
    """Its stack socket is an orphan, which the process's next socket closes."""
    a = node.pod("careless")

    def main(ctx):
        server = ctx.socket()
        server.bind((ctx.pod.ip, 9))
        server.listen()
        client = ctx.create_connection((ctx.pod.ip, 9))
        accepted, _ = server.accept()
        del client
        ctx.socket().close()
        return accepted.recv(1)

    assert node.call(a, main) == b""


def test_there_is_no_file_descriptor(node):
    assert told(lambda: node.call(node.pod("plain"), lambda ctx: ctx.socket().fileno()))[0] == "UnsupportedOperation"
