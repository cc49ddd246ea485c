"""Calls to nodes: whatever a node answers is told, whenever it comes."""

from __future__ import annotations

import asyncio

import pytest

from emu.controller import calls
from emu.errors import ApiError


class Link:
    """Takes everything, and remembers it."""

    def __init__(self) -> None:
        self.sent = []

    def send(self, node, message):
        self.sent.append((node, message))
        return True


def test_the_last_piece_is_told_though_it_comes_while_the_stream_looks_whether_its_node_lives(monkeypatch):
    """With no time between looks, every piece comes in such a moment."""
    monkeypatch.setattr(calls, "LOOK_EVERY", 0.0)

    async def run():
        asking = calls.Calls(Link(), lambda node: True)
        stream = asking.stream("node-1", "exec", {})

        async def answer():
            for _ in range(5):
                await asyncio.sleep(0)
            asking.on_answer("node-1", {"id": stream.number, "body": {"stdout": b"x"}, "last": False})
            await asyncio.sleep(0)
            asking.on_answer("node-1", {"id": stream.number, "body": {"exit": 28}, "last": True})

        answering = asyncio.ensure_future(answer())
        told = [piece async for piece in stream]
        await answering
        return told

    assert asyncio.run(asyncio.wait_for(run(), 5)) == [{"stdout": b"x"}, {"exit": 28}]


def test_a_stream_whose_node_is_gone_says_so(monkeypatch):
    monkeypatch.setattr(calls, "LOOK_EVERY", 0.0)

    async def run():
        stream = calls.Calls(Link(), lambda node: False).stream("node-1", "exec", {})
        return [piece async for piece in stream]

    with pytest.raises(ApiError, match="it is gone"):
        asyncio.run(asyncio.wait_for(run(), 5))
