"""What the ZeroMQ carrier promises beyond the contract: lazy pipes, clean files, and no way in from other machines."""

from __future__ import annotations

import os

import pytest
import zmq

from emu.errors import CarrierError
from emu.overlay.curve import CurveKeys
from emu.overlay.zeromq import LONGEST_PATH, ZmqCarrier, open_context

B, C = b"\xc0\xa8\0\x03", b"\xc0\xa8\0\x04"


@pytest.fixture
def context():
    context = open_context()
    yield context
    context.destroy(linger=0)


def poll(carrier, milliseconds):
    """A message if one comes within the time."""
    return carrier.recv() if carrier._pull.poll(milliseconds) else None


def test_pipes_open_at_the_first_send_and_close_when_idle(context, tmp_path):
    a, b = (ZmqCarrier(context, f"ipc://{tmp_path}/{name}") for name in "ab")
    a.add_peer(B, b.endpoint)
    a.add_peer(C, f"ipc://{tmp_path}/absent")
    assert a.pipes == 0
    a.send(B, b"1")
    assert (b.recv(), a.pipes) == (b"1", 1)
    assert (a.close_idle(), a.pipes) == (0, 1)
    assert (a.close_idle(), a.pipes) == (1, 0)
    a.send(B, b"2")
    assert b.recv() == b"2"
    a.close()
    b.close()


def test_close_leaves_no_file(context, tmp_path):
    carrier = ZmqCarrier(context, f"ipc://{tmp_path}/x")
    assert os.listdir(tmp_path) == ["x"]
    carrier.close()
    assert os.listdir(tmp_path) == []


def test_a_port_of_zero_is_resolved(context):
    carrier = ZmqCarrier(context, "tcp://127.0.0.1:0")
    assert int(carrier.endpoint.rpartition(":")[2]) > 0
    carrier.close()


def test_a_path_is_refused_only_when_the_kernel_would(context, tmp_path):
    path = f"{tmp_path}/".ljust(LONGEST_PATH, "x")
    ZmqCarrier(context, f"ipc://{path}").close()
    with pytest.raises(CarrierError, match="108 bytes"):
        ZmqCarrier(context, f"ipc://{path}x")


@pytest.mark.parametrize("endpoint", ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://10.1.2.3:7000", "tcp://[::]:0"])
def test_tcp_beyond_loopback_needs_keys(context, endpoint):
    with pytest.raises(CarrierError, match="needs CURVE keys"):
        ZmqCarrier(context, endpoint)


def test_a_peer_beyond_loopback_needs_keys(context, tmp_path):
    carrier = ZmqCarrier(context, f"ipc://{tmp_path}/x")
    with pytest.raises(CarrierError, match="needs CURVE keys"):
        carrier.add_peer(B, "tcp://10.1.2.3:7000")
    carrier.close()


@pytest.mark.parametrize("endpoint", ["inproc://x", "udp://127.0.0.1:1", "/tmp/x", ""])
def test_other_transports_are_refused(context, endpoint):
    with pytest.raises(CarrierError, match="neither ipc"):
        ZmqCarrier(context, endpoint)


def test_what_cannot_be_bound_says_why(context, tmp_path):
    with pytest.raises(CarrierError, match=r"cannot bind .*No such file or directory"):
        ZmqCarrier(context, f"ipc://{tmp_path}/absent/x")


def test_curve_lets_in_named_keys_and_nobody_else():
    ours, theirs, strangers = (CurveKeys(*zmq.curve_keypair()) for _ in range(3))
    contexts = [open_context() for _ in range(3)]
    server, friend, stranger = (
        ZmqCarrier(context, "tcp://127.0.0.1:0", keys=keys) for context, keys in zip(contexts, (ours, theirs, strangers), strict=True)
    )
    server.add_peer(B, friend.endpoint, theirs.public)
    for client in (stranger, friend):
        client.add_peer(C, server.endpoint, ours.public)
        client.send(C, b"let me in")

    assert poll(server, 5000) == b"let me in"
    assert poll(server, 200) is None, "the stranger was let in"
    for carrier in (server, friend, stranger):
        carrier.close()
    for context in contexts:
        context.term()
