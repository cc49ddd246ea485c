"""TCP over links in trouble, pod to pod in VXLAN: whatever the weather, bytes arrive once, in order and all; a cut only delays them."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.errors import DropReason
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.tcp import Connection, TcpConfig
from emu.wire.addr import ANY, SockAddr
from tests.kit.fabric import Fabric

CHUNK = 1 << 16
PATIENCE = 900.0  # seconds of the manual clock


@contextmanager
def offload(on: bool) -> Iterator[None]:
    """All connections with or without segmentation offload."""
    config = TcpConfig(gso=on)
    made = {name: getattr(Connection, name) for name in ("active", "passive")}

    def configured(name: str) -> Callable[..., Connection]:
        return lambda *args, **more: made[name](*args, **{**more, "config": config})

    with mock.patch.object(Connection, "active", configured("active")), mock.patch.object(Connection, "passive", configured("passive")):
        yield


class Transfer:
    """A client on node 1 that writes `data` to a server on node 2, which keeps what it reads."""

    def __init__(self, data: bytes, *, seed: int = 1) -> None:
        self.fabric, self.data, self.received, self.sent = Fabric(2, seed=seed), data, bytearray(), 0
        client, server = self.fabric.pod(1, "client"), self.fabric.pod(2, "server")
        self.listener = TcpListener(server, SockAddr(ANY, 80))
        self.client, self.sock = client, TcpSocket(client)
        self.target = SockAddr(server.devices["eth0"].addresses[0][0], 80)
        self.accepted: TcpSocket | None = None

    def start(self) -> None:
        self.sock.connect(self.target)
        self.fabric.run()

    def step(self) -> None:
        """Write and read until no more can be, then let time pass to the next thing that happens."""
        while self._exchange():
            self.fabric.run()
        assert self.fabric.horizon() < float("inf") or self.done, "nobody will ever do anything"
        if not self.done:
            self.fabric.advance_to(max(self.fabric.horizon(), self.fabric.clock.now() + 1e-4))

    def _exchange(self) -> bool:
        """Write and read what can be; could anything?"""
        before = self.sent, len(self.received), self.accepted
        if self.sock.connected and self.sent < len(self.data):
            self.sent += self.sock.write(self.data[self.sent : self.sent + CHUNK])
            if self.sent == len(self.data):
                self.sock.shutdown_write()
        self.accepted = self.accepted or self.listener.accept()
        while self.accepted is not None and (piece := self.accepted.read(1 << 20)):
            self.received += piece
        return before != (self.sent, len(self.received), self.accepted)

    @property
    def done(self) -> bool:
        return len(self.received) >= len(self.data)

    def run(self, seconds: float = PATIENCE) -> float:
        """Until all has arrived; how long that took. AssertionError if it does not come about, or what arrives is not what was sent."""
        began = self.fabric.clock.now()
        while not self.done:
            if self.sock.error == errno.ETIMEDOUT and not self.sent:  # seven SYNs or their answers lost: a client would try again
                self.sock = TcpSocket(self.client)
                self.start()
            assert not self.sock.error, errno.errorcode[self.sock.error]
            assert self.fabric.clock.now() - began < seconds, f"{len(self.received)} of {len(self.data)} bytes after {seconds:g} s"
            self.step()
        assert bytes(self.received) == self.data
        return self.fabric.clock.now() - began


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def percent(most: float) -> st.SearchStrategy[float]:
    return st.one_of(st.just(0.0), st.floats(0.1, most))


WEATHER = st.fixed_dictionaries(
    {},
    optional={
        "delay": st.sampled_from(["1ms", "10ms", "100ms", "600ms"]),
        "jitter": st.sampled_from(["500us", "5ms", "50ms"]),
        "loss": percent(25),
        "rate": st.sampled_from(["1mbit", "10mbit", "1gbit"]),
        "duplicate": percent(100),
        "reorder": percent(80),
    },
).filter(bool)


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no gso"])
@settings(max_examples=100, deadline=None)
@given(there=WEATHER, back=WEATHER, size=st.integers(1, 150_000), seed=st.integers(0, 1 << 20))
def test_bytes_arrive_once_in_order_and_all(gso: bool, there: dict[str, Any], back: dict[str, Any], size: int, seed: int) -> None:
    with offload(gso):
        transfer = Transfer(noise(size, seed), seed=seed)
        transfer.fabric.fault(link="node-1->node-2", **there)
        transfer.fabric.fault(link="node-2->node-1", **back)
        transfer.start()
        transfer.run()


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no gso"])
@settings(max_examples=40, deadline=None)
@given(at=st.floats(0.0, 0.3), lasts=st.floats(0.001, 30.0), direction=st.sampled_from(["node-1->node-2", "node-2->node-1", "*->*"]))
def test_a_cut_only_delays(gso: bool, at: float, lasts: float, direction: str) -> None:
    """However long it lasts, the next retransmission comes before as much time again has passed (RTOs double).

    If its answer shows that the segment had arrived and only ACKs were cut, the timeout is taken back (Eifel), and what else was lost
    waits for a probe of the tail: one timeout more, to which that long round trip has been added (1.125 of it, RFC 6298). Then 3 s.
    """
    with offload(gso):
        transfer = Transfer(noise(400_000, 1))
        transfer.fabric.fault(link="*->*", delay="20ms", rate="20mbit")
        transfer.start()
        began = transfer.fabric.clock.now()
        while not transfer.done and transfer.fabric.clock.now() - began < at:
            transfer.step()
        transfer.fabric.fault(link=direction, cut=True)
        end = transfer.fabric.clock.now() + lasts
        while not transfer.done and transfer.fabric.clock.now() < end and transfer.fabric.horizon() < end:
            transfer.step()
        transfer.fabric.advance_to(end)
        transfer.fabric.fault(link=direction, cut=False)  # the delay stays: an answer faster than any before it would be distrusted (RACK)
        assert transfer.run() < lasts + 1.125 * 2 * lasts + 3.0


def test_under_a_cut_retransmissions_back_off_by_doubling() -> None:
    transfer = Transfer(noise(4_000_000, 1))
    transfer.fabric.fault(link="*->*", delay="10ms", rate="50mbit")
    transfer.start()
    while len(transfer.received) < 1_000_000:
        transfer.step()
    attempts: list[float] = []
    sender = transfer.fabric.machines["node-1"]

    def lost(reason: DropReason, segments: int, packet: bytes, trace: int) -> None:
        attempts.append(transfer.fabric.clock.now())

    sender.carrier._dropped = lost
    transfer.fabric.fault(link="node-1->node-2", cut=True)
    cut_at = transfer.fabric.clock.now()
    while transfer.fabric.clock.now() < cut_at + 12.0:
        transfer.step()
    moments = [at for at, _ in itertools.groupby(round(at - cut_at, 3) for at in attempts)]
    gaps = [b - a for a, b in itertools.pairwise(moments) if b - a > 0.15]
    assert len(gaps) >= 5
    for shorter, longer in itertools.pairwise(gaps[-4:]):
        assert longer == pytest.approx(2 * shorter, rel=0.05)
    transfer.fabric.heal()
    received = len(transfer.received)
    transfer.fabric.advance(gaps[-1] * 2 + 0.1)
    transfer.step()
    assert len(transfer.received) > received
    transfer.run()


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no gso"])
def test_the_rate_of_the_link_is_the_rate_of_the_stream(gso: bool) -> None:
    """20 Mbit/s less headers (50 of VXLAN, 40 to 60 of IPv4 and TCP, of 1,500) for 4 MB."""
    with offload(gso):
        transfer = Transfer(noise(4_000_000, 1))
        transfer.fabric.fault(link="node-1->node-2", rate="20mbit", delay="5ms")
        transfer.start()
        seconds = transfer.run()
    assert 4e6 * 8 / seconds == pytest.approx(20e6 * 0.93, rel=0.05)
