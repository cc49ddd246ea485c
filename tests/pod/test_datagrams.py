"""sendmmsg and recvmmsg do what the kernel's do: every scenario runs on both and must tell the same."""

from __future__ import annotations

import errno
import socket as std
import threading
from typing import Any

import pytest

from emu.pod.datagrams import MSG_WAITFORONE
from emu.pod.program import SOCK_DGRAM
from tests.kit.mmsg import KernelSocket
from tests.kit.pods import Node

LONG = b"x" * 70_000  # longer than a datagram can be


class Ends:
    """Two bound sockets, on the machine's loopback or at a pod's own address."""

    def __init__(self, ip: str, make: Any) -> None:
        self.ip = ip
        self.a, self.b = make(), make()
        for sock in (self.a, self.b):
            sock.bind((ip, 0))
        self.to_a, self.to_b = self.a.getsockname(), self.b.getsockname()


def told(call: Any) -> Any:
    """What a call comes to: its value, or the exception's class and errno."""
    try:
        return call()
    except OSError as error:
        return type(error).__name__, error.errno


def data_of(received: Any) -> Any:
    return [data for data, _ in received] if isinstance(received, list) else received


def a_batch_arrives_in_order_and_names_its_sender(ends):
    sent = ends.a.sendmmsg([(b"%d" % n, ends.to_b) for n in range(5)])
    received = ends.b.recvmmsg(5, 100)
    return sent, data_of(received), {sender == ends.to_a for _, sender in received}


def a_connected_socket_needs_no_address(ends):
    ends.a.connect(ends.to_b)
    return ends.a.sendmmsg([(b"1", None), (b"2", None)]), data_of(ends.b.recvmmsg(2, 100))


def one_batch_goes_to_many(ends):
    ends.a.sendmmsg([(b"b", ends.to_b), (b"a", ends.to_a), (b"bb", ends.to_b)])
    return data_of(ends.b.recvmmsg(2, 100)), data_of(ends.a.recvmmsg(1, 100))


def waiting_for_one_takes_what_is_there(ends):
    ends.a.sendmmsg([(b"%d" % n, ends.to_b) for n in range(3)])
    return data_of(ends.b.recvmmsg(2, 100, MSG_WAITFORONE)), data_of(ends.b.recvmmsg(9, 100, MSG_WAITFORONE))


def else_all_are_waited_for(ends):
    ends.a.sendto(b"early", ends.to_b)
    threading.Timer(0.03, lambda: ends.a.sendto(b"late", ends.to_b)).start()
    return data_of(ends.b.recvmmsg(2, 100))


def not_waiting_takes_what_is_there_or_fails(ends):
    ends.a.sendto(b"1", ends.to_b)
    return [told(lambda: data_of(ends.b.recvmmsg(4, 100, std.MSG_DONTWAIT))) for _ in range(2)]


def what_does_not_fit_is_cut(ends):
    ends.a.sendmmsg([(b"abcdef", ends.to_b), (b"", ends.to_b), (b"gh", ends.to_b)])
    return data_of(ends.b.recvmmsg(3, 4))


def a_failure_in_the_middle_ends_the_batch(ends):
    sent = ends.a.sendmmsg([(b"1", ends.to_b), (LONG, ends.to_b), (b"3", ends.to_b)])
    return sent, data_of(ends.b.recvmmsg(4, 100, MSG_WAITFORONE)), told(lambda: ends.b.recvmmsg(1, 9, std.MSG_DONTWAIT))


def a_failure_at_the_start_raises(ends):
    return told(lambda: ends.a.sendmmsg([(LONG, ends.to_b), (b"2", ends.to_b)])), told(lambda: ends.a.sendmmsg([(b"1", None)]))


def an_empty_batch_is_nothing(ends):
    return ends.a.sendmmsg([])


SCENARIOS = [
    a_batch_arrives_in_order_and_names_its_sender, a_connected_socket_needs_no_address, one_batch_goes_to_many,
    waiting_for_one_takes_what_is_there, else_all_are_waited_for, not_waiting_takes_what_is_there_or_fails, what_does_not_fit_is_cut,
    a_failure_in_the_middle_ends_the_batch, a_failure_at_the_start_raises, an_empty_batch_is_nothing,
]  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_as_the_kernel(scenario):
    kernel = Ends("127.0.0.1", lambda: KernelSocket(std.AF_INET, std.SOCK_DGRAM))
    theirs = scenario(kernel)
    kernel.a.close()
    kernel.b.close()
    node = Node()
    ours = node.call(node.pod("a"), lambda ctx: scenario(Ends(ctx.pod.ip, lambda: ctx.socket(type=SOCK_DGRAM))))
    node.close()

    assert ours == theirs


@pytest.fixture
def call():
    """Run code in a pod, given its context."""
    node = Node()
    ns = node.pod("a")
    yield lambda main: node.call(ns, main)
    node.close()


def test_a_timeout_is_for_the_first_datagram_and_ends_the_wait_for_more(call):
    def main(ctx):
        ends = Ends(ctx.pod.ip, lambda: ctx.socket(type=SOCK_DGRAM))
        ends.b.settimeout(0.02)
        nothing = told(lambda: ends.b.recvmmsg(2, 10))
        ends.a.sendto(b"1", ends.to_b)
        return nothing, data_of(ends.b.recvmmsg(2, 10))

    assert call(main) == (("TimeoutError", None), [b"1"])


def test_a_stream_has_no_datagrams(call):
    def main(ctx):
        return told(lambda: ctx.socket().sendmmsg([])), told(lambda: ctx.socket().recvmmsg(1, 1))

    assert call(main) == (("OSError", errno.EOPNOTSUPP),) * 2


def test_a_name_is_looked_up_each_time(call):
    """Only a numeric address may be remembered: what a name means may change."""

    def main(ctx):
        sock = ctx.socket(type=SOCK_DGRAM)
        sock.sendto(b"", ("localhost", 9))
        sock.sendto(b"", (ctx.pod.ip, 9))
        remembered = sock._named
        sock.sendto(b"", ("localhost", 9))
        return remembered[0] == (ctx.pod.ip, 9), sock._named is remembered

    assert call(main) == (True, True)
