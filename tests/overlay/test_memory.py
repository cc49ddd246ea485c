"""What the memory carrier promises beyond the contract: one order for all, and nothing left behind."""

from __future__ import annotations

import pytest

from emu.errors import CarrierError
from emu.overlay.memory import MemoryNetwork

A, B = b"\xc0\xa8\0\x02", b"\xc0\xa8\0\x03"


def test_messages_arrive_in_the_order_they_were_sent_whoever_sent_them():
    network = MemoryNetwork()
    receiver, one, other = (network.carrier(name) for name in ("r", "1", "2"))
    one.add_peer(A, "r")
    other.add_peer(A, "r")
    for carrier, message in ((one, b"a"), (other, b"b"), (one, b"c")):
        carrier.send(A, message)

    assert network.busy() == ("r",)
    assert [receiver.recv_nowait() for _ in range(4)] == [b"a", b"b", b"c", None]
    assert network.busy() == ()


def test_the_queue_is_counted_a_sender():
    network = MemoryNetwork(queue=2)
    receiver, one, other = (network.carrier(name) for name in ("r", "1", "2"))
    one.add_peer(A, "r")
    other.add_peer(A, "r")
    assert [one.send(A, b"1") for _ in range(3)] == [True, True, False]
    assert other.send(A, b"2")
    receiver.recv()
    assert one.send(A, b"1")


def test_an_endpoint_has_one_carrier_at_a_time():
    network = MemoryNetwork()
    first = network.carrier("r")
    with pytest.raises(CarrierError, match="in use"):
        network.carrier("r")
    first.close()
    network.carrier("r")


def test_a_restarted_carrier_hears_nothing_of_its_earlier_life():
    network = MemoryNetwork()
    first, peer = network.carrier("r"), network.carrier("p")
    peer.add_peer(A, "r")
    peer.send(A, b"old")
    first.close()
    second = network.carrier("r")
    peer.send(A, b"new")
    assert (second.recv_nowait(), second.recv_nowait()) == (b"new", None)
