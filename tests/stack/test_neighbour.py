"""Neighbours: three probes a second apart, then host unreachable; what waits is bounded and goes out when somebody answers."""

from __future__ import annotations

import pytest

from emu.errors import DropReason
from emu.stack.neighbour import QUEUE_PACKETS
from emu.wire.addr import parse_ip
from tests.kit.skbs import udp
from tests.kit.tap import Host

SILENT = parse_ip("10.0.0.9")


@pytest.fixture
def host() -> Host:
    """Forwards for others, so that its errors go out by the tap."""
    host = Host(forwarding=True)
    host.tap.silent.add(SILENT)
    return host


def question(number: int = 0) -> bytes:
    return bytes(udp("10.0.0.5:4000", "10.0.0.9:53", b"question %d" % number).buf)


def test_an_address_that_never_answers_is_unreachable_after_three_seconds(host: Host) -> None:
    assert host.receive(question()) == []
    assert host.at(2.999) == []
    (error,) = host.at(3.0)
    assert (error[20], error[21]) == (3, 1)  # destination unreachable: host
    assert error[16:20] == parse_ip("10.0.0.5")
    assert host.ns.drops == {DropReason.HOST_UNREACHABLE: 1}
    assert not host.ns.neighbours.incomplete


def test_all_that_waited_is_told_and_the_next_packet_starts_over(host: Host) -> None:
    host.receive(question(1))
    host.at(1.5)
    host.receive(question(2))
    assert len(host.at(3.0)) == 2
    assert host.receive(question(3)) == []
    assert host.at(5.999) == []
    assert len(host.at(6.0)) == 1


@pytest.mark.parametrize("answers_at", [0.5, 1.5, 2.5])
def test_what_waited_goes_out_in_order_at_the_next_probe(host: Host, answers_at: float) -> None:
    for number in range(3):
        host.receive(question(number))
    assert host.at(answers_at) == []
    host.tap.silent.clear()
    sent = host.at(answers_at + 0.5)
    assert [packet[28:] for packet in sent] == [b"question 0", b"question 1", b"question 2"]
    assert not host.ns.neighbours.incomplete
    assert host.at(10.0) == []
    assert not host.ns.drops


def test_the_oldest_goes_when_too_many_wait(host: Host) -> None:
    for number in range(QUEUE_PACKETS + 3):
        host.receive(question(number))
    assert host.ns.drops == {DropReason.NEIGHBOUR_QUEUE_FULL: 3}
    host.tap.silent.clear()
    sent = host.at(1.0)
    assert [packet[28:] for packet in sent] == [b"question %d" % number for number in range(3, QUEUE_PACKETS + 3)]


def test_every_neighbour_has_a_time_of_its_own(host: Host) -> None:
    other = parse_ip("10.0.0.10")
    host.tap.silent.add(other)
    host.receive(question())
    host.at(1.0)
    host.receive(bytes(udp("10.0.0.5:4000", "10.0.0.10:53").buf))
    assert len(host.at(3.5)) == 1
    assert len(host.at(4.0)) == 1


def test_a_namespace_that_goes_meanwhile_takes_them_along_without_a_word(host: Host) -> None:
    host.receive(question())
    host.ns.close()
    assert host.at(5.0) == []


def test_the_gateway_is_whom_one_asks_for_what_is_not_on_the_link(host: Host) -> None:
    gateway, packet = parse_ip("10.0.0.254"), bytes(udp("10.0.0.5:4000", "8.8.8.8:53").buf)
    host.tap.receive(packet, 0, 0)
    assert [next_hop for _, next_hop in host.tap.packets] == [gateway]
    host.tap.packets.clear()
    host.tap.silent.add(gateway)
    host.ns.invalidate()
    assert host.receive(packet) == []
    assert list(host.ns.neighbours.incomplete) == [("eth0", gateway)]
