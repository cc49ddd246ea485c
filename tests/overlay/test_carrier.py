"""The carrier's contract, asked of every carrier alike."""

from __future__ import annotations

import itertools
import os
import threading

import pytest

from emu.model.links import Conditions, Trouble
from emu.overlay.links import Leg, Links
from emu.overlay.memory import MemoryNetwork
from emu.overlay.zeromq import ZmqCarrier, open_context

A, B, C = b"\xc0\xa8\0\x02", b"\xc0\xa8\0\x03", b"\xc0\xa8\0\x04"


class Memory:
    """Makes carriers of one memory network."""

    def __init__(self, directory):
        self.network = MemoryNetwork()
        self.names = itertools.count()

    def endpoint(self):
        return f"node-{next(self.names)}"

    def carrier(self, endpoint):
        return self.network.carrier(endpoint)

    def finish(self):
        pass


class Wrapped(Memory):
    """Makes carriers whose links may have conditions, one of them to a peer that no test here sends to."""

    def carrier(self, endpoint):
        inner = self.network.carrier(endpoint)
        made = Links(inner, lambda timed, deadline: None, {}, lambda *drop: None)
        made.endpoint = inner.endpoint
        made.set({b"\xc0\xa8\0\x09": Leg("a->b", Trouble(Conditions(cut=True), {"cut": "fault-1"}))}.get, 0.0)
        return made


class Ipc:
    """Makes ZeroMQ carriers over Unix sockets."""

    scheme = "ipc"

    def __init__(self, directory):
        self.directory, self.context, self.names = directory, open_context(), itertools.count()

    def endpoint(self):
        return f"ipc://{self.directory}/{next(self.names)}"

    def carrier(self, endpoint):
        return ZmqCarrier(self.context, endpoint)

    def finish(self):
        self.context.term()


class Tcp(Ipc):
    """Makes ZeroMQ carriers over loopback tcp."""

    def endpoint(self):
        return "tcp://127.0.0.1:0"


@pytest.fixture(params=[Memory, Wrapped, Ipc, Tcp], ids=["memory", "links", "ipc", "tcp"])
def make(request, tmp_path):
    maker = request.param(tmp_path)
    made = []

    def carrier(endpoint=None):
        made.append(maker.carrier(endpoint or maker.endpoint()))
        return made[-1]

    yield carrier
    for one in made:
        one.close()
    maker.finish()


def within(seconds, call):
    """The result of a call that blocks; fails if it is not there in time."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, f"nothing within {seconds} s"
    return results[0]


def test_messages_of_a_peer_arrive_whole_and_in_order(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)
    sent = [bytes((n,)) * (1 + n * 997) for n in range(100)]

    assert all(a.send(B, message) for message in sent)
    assert [within(5, b.recv) for _ in sent] == sent


def test_the_first_message_to_a_new_peer_is_not_lost(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)

    assert a.send(B, b"SYN")
    assert within(5, b.recv) == b"SYN"


def test_both_directions_are_apart(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)
    b.add_peer(A, a.endpoint)
    a.send(B, b"ping")
    assert within(5, b.recv) == b"ping"
    b.send(A, b"pong")
    assert within(5, a.recv) == b"pong"


def test_a_peer_nobody_named_is_refused(make):
    a = make()
    assert a.send(B, b"x") is False
    a.remove_peer(B)  # and no error to forget it


def test_a_full_queue_refuses_and_does_not_block(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)
    message = bytes(30_000)
    accepted = sum(within(20, lambda: [a.send(B, message) for _ in range(2000)]))

    assert 128 <= accepted < 1000
    got = 0
    while got < accepted:
        assert within(5, b.recv) == message
        got += 1
    assert a.send(B, b"again")
    assert within(5, b.recv) == b"again"


def test_a_full_queue_to_one_peer_does_not_hold_up_another(make):
    a, b, c = make(), make(), make()
    a.add_peer(B, b.endpoint)
    a.add_peer(C, c.endpoint)
    while a.send(B, bytes(30_000)):
        pass

    assert a.send(C, b"free")
    assert within(5, c.recv) == b"free"


def test_a_kick_wakes_the_reader_with_an_empty_message(make):
    a = make()
    a.kick()
    assert within(5, a.recv) == b""

    results = []
    reader = threading.Thread(target=lambda: results.append(a.recv()), daemon=True)
    reader.start()
    a.kick()
    reader.join(5)
    assert results == [b""]


def test_a_timed_reader_gets_what_comes_or_an_empty_message_when_time_is_up(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)
    assert within(5, lambda: b.recv_for(0.002)) == b""
    a.send(B, b"x")
    assert within(5, lambda: b.recv_for(5)) == b"x"
    b.kick()
    assert within(5, lambda: b.recv_for(5)) == b""


def test_a_reader_without_limit_waits_longer_than_the_one_before(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)
    b.recv_for(0.001)
    b.wait_forever()
    later = threading.Timer(0.02, lambda: a.send(B, b"late"))
    later.start()
    assert within(5, b.recv) == b"late"
    later.join()


def test_kicks_without_a_reader_never_block(make):
    a = make()
    within(5, lambda: [a.kick() for _ in range(1000)])
    assert a.recv_nowait() == b""


def test_recv_nowait_tells_nothing_from_something(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)
    assert b.recv_nowait() is None
    a.send(B, b"x")
    got = None
    while got is None:
        got = b.recv_nowait()
    assert got == b"x"
    assert b.recv_nowait() is None


def test_a_removed_peer_is_unknown(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)
    a.send(B, b"1")
    assert within(5, b.recv) == b"1"
    a.remove_peer(B)
    assert a.send(B, b"2") is False


def test_a_peer_named_again_elsewhere_is_reached_there_only(make):
    a, old, new = make(), make(), make()
    a.add_peer(B, old.endpoint)
    a.send(B, b"1")
    assert within(5, old.recv) == b"1"
    a.add_peer(B, new.endpoint)
    a.send(B, b"2")

    assert within(5, new.recv) == b"2"
    assert old.recv_nowait() is None


def test_naming_a_peer_twice_alike_keeps_what_is_queued(make):
    a, b = make(), make()
    a.add_peer(B, b.endpoint)
    a.send(B, b"1")
    a.add_peer(B, b.endpoint)
    a.send(B, b"2")
    assert [within(5, b.recv), within(5, b.recv)] == [b"1", b"2"]


def test_many_senders_reach_one_receiver(make):
    receiver, senders = make(), [make() for _ in range(5)]
    for n, sender in enumerate(senders):
        sender.add_peer(A, receiver.endpoint)
        for k in range(10):
            assert sender.send(A, bytes((n, k)))
    got = [within(5, receiver.recv) for _ in range(50)]
    for n in range(5):
        assert [k for sender, k in got if sender == n] == list(range(10))


def test_a_peer_that_is_not_there_yet_gets_what_was_sent_before(tmp_path):
    maker = Ipc(tmp_path)
    a, endpoint = maker.carrier(maker.endpoint()), maker.endpoint()
    a.add_peer(B, endpoint)
    assert a.send(B, b"early")
    b = maker.carrier(endpoint)

    assert within(5, b.recv) == b"early"
    a.close()
    b.close()
    maker.finish()
    assert os.listdir(tmp_path) == []
