"""Strangers at a node's data socket: bytes that are no ZMTP, greetings that break off, frames that are no messages; peers go on."""

from __future__ import annotations

import random
import socket
import time

import pytest
import zmq

from emu.overlay.zeromq import ZmqCarrier, open_context
from emu.wire.message import encode_one
from tests.kit.garbage import Garbage

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
READY = b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x04PUSH"


def strangers(path: str, count: int, rng: random.Random) -> None:
    """Connections that say something wrong, and leave or stay for a while."""
    held: list[socket.socket] = []
    for number in range(count):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(path)
        whole = GREETING + READY + b"\x02" + (1 << 62).to_bytes(8, "big")  # a frame of four exabytes
        cut = whole[: rng.randrange(len(whole) + 1)]
        said = (rng.randbytes(rng.randrange(200)), cut, cut + rng.randbytes(50), whole)[number % 4]
        try:
            stranger.sendall(said)
        except OSError:
            stranger.close()  # thrown out already
            continue
        held.append(stranger)
        if len(held) > 50:
            held.pop(rng.randrange(len(held))).close()
    for stranger in held:
        stranger.close()


def received(carrier: ZmqCarrier, count: int) -> list[bytes]:
    found: list[bytes] = []
    end = time.monotonic() + 30
    while len(found) < count and time.monotonic() < end:
        message = carrier.recv_for(1.0)
        if message:
            found.append(message)
    return found


def storm(path: str, strange: int, frames: int, seed: int) -> None:
    context = open_context()
    garbage = Garbage(seed)
    carrier = ZmqCarrier(context, f"ipc://{path}")
    peer = context.socket(zmq.PUSH)
    peer.set(zmq.LINGER, 0)
    peer.connect(f"ipc://{path}")
    try:
        strangers(path, strange, garbage.rng)
        while carrier.recv_for(0.3):  # some have spoken ZMTP by accident: what they say are frames, which the underlay judges
            pass
        sample = encode_one(1, 0, bytes(100))
        left = frames
        while left:
            sent = [garbage.of([sample]) or b"\0" for _ in range(min(left, 500))]
            for message in sent:
                peer.send(message)
            assert received(carrier, len(sent)) == sent
            left -= len(sent)
    finally:
        peer.close()
        carrier.close()
        context.term()


def test_a_peer_is_heard_whatever_strangers_say(tmp_path) -> None:
    storm(f"{tmp_path}/node.data", 400, 20_000, 1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_million_frames_and_ten_thousand_strangers(tmp_path) -> None:
    storm(f"{tmp_path}/node.data", 10_000, 1_000_000, 2)
