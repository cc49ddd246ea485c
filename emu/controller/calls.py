"""Calls to nodes over the bus: numbers each, waits for its answers, gives up when its time or its node is gone.

An answer's body `{"error": {code, reason, message}}` is raised as the ApiError it says. Runs in the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

from emu.bus.link import ControllerLink
from emu.errors import ApiError

Body = dict[str, Any]
LOOK_EVERY = 0.5  # seconds between looks at whether a stream's node is still there
BACKLOG = 1000  # pieces of a stream that may wait for a slow client before the node is told to stop


class Calls:
    """The calls under way. `lives(node)` tells whether a node is there; None: there is no such node."""

    def __init__(self, link: ControllerLink, lives: Callable[[str], bool | None]) -> None:
        self._link, self._lives = link, lives
        self._numbers = itertools.count(1)
        self._waiting: dict[int, CallStream] = {}

    async def call(self, node: str, method: str, params: Body, timeout: float) -> Body:
        """One question, one answer; ApiError 404 for no such node, 504 if it is silent for `timeout` seconds."""
        stream = self.stream(node, method, params)
        try:
            async with asyncio.timeout(timeout):
                async for body in stream:
                    return body
        except TimeoutError:
            raise silent(node, f"it did not answer {method!r} within {timeout:g} s") from None
        finally:
            await stream.close()
        raise silent(node, f"it gave no answer to {method!r}")

    def stream(self, node: str, method: str, params: Body) -> CallStream:
        """A call whose answer comes in pieces."""
        if self._lives(node) is None:
            raise ApiError(404, "NotFound", f'nodes "{node}" not found', details={"name": node, "kind": "nodes"})
        number = next(self._numbers)
        stream = self._waiting[number] = CallStream(self, node, number)
        if not self._link.send(node, {"t": "call", "id": number, "method": method, "params": params}):
            del self._waiting[number]
            raise silent(node, "it is not connected")
        return stream

    def tell(self, node: str, method: str, params: Body) -> None:
        """A call whose answer nobody waits for."""
        self._link.send(node, {"t": "call", "id": next(self._numbers), "method": method, "params": params})

    def on_answer(self, node: str, message: Body) -> None:
        """An answer has come."""
        stream = self._waiting.get(message["id"])
        if stream is not None and stream.node == node:
            stream.put(message["body"], last=message["last"])

    def on_new_life(self, node: str) -> None:
        """The node has started anew and knows nothing of what it was asked."""
        for stream in [stream for stream in self._waiting.values() if stream.node == node]:
            stream.put({"error": {"code": 504, "reason": "Timeout", "message": f"node {node} was restarted"}}, last=True)

    def lives(self, node: str) -> bool:
        return bool(self._lives(node))

    def input(self, stream: CallStream, data: Body) -> None:
        if stream.number in self._waiting:
            self._link.send(stream.node, {"t": "input", "id": stream.number, "data": data})

    def end(self, stream: CallStream) -> None:
        """Nobody listens any more."""
        if self._waiting.pop(stream.number, None) is not None and not stream.over:
            self._link.send(stream.node, {"t": "cancel", "id": stream.number})


class CallStream:
    """One call's answers, in order; iterate once. An `api.calls.NodeStream`."""

    def __init__(self, calls: Calls, node: str, number: int) -> None:
        self._calls, self.node, self.number = calls, node, number
        self._pieces: asyncio.Queue[Body] = asyncio.Queue()
        self.over = False

    def put(self, body: Body, *, last: bool) -> None:
        """A piece has come."""
        self._pieces.put_nowait(body)
        if self._pieces.qsize() > BACKLOG and not last:
            self._calls.end(self)
            self._pieces.put_nowait({"error": {"code": 429, "reason": "TooManyRequests", "message": "the client reads too slowly"}})
            last = True
        self.over = self.over or last

    async def __aiter__(self) -> AsyncIterator[Body]:
        pieces = self._pieces
        while True:
            if not pieces.empty():
                body = pieces.get_nowait()
            elif self.over:
                return
            else:
                try:
                    body = await asyncio.wait_for(pieces.get(), LOOK_EVERY)
                except TimeoutError:
                    # a piece may have come in this very moment: it counts before what the node's absence would mean
                    if pieces.empty() and not self._calls.lives(self.node):
                        raise silent(self.node, "it is gone") from None
                    continue
            if "error" in body:
                raise error_of(body["error"])
            yield body

    async def send(self, data: Body) -> None:
        self._calls.input(self, data)

    async def close(self) -> None:
        self._calls.end(self)


def silent(node: str, why: str) -> ApiError:
    return ApiError(504, "Timeout", f"node {node} cannot be asked: {why}", details={"name": node, "kind": "nodes"})


def error_of(error: Body) -> ApiError:
    """The ApiError that a node's answer tells of."""
    return ApiError(int(error.get("code", 500)), str(error.get("reason", "InternalError")), str(error.get("message", "the node failed")))
