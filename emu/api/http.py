"""The API on a socket: starlette's requests to ours, our replies to HTTP, watches and exec streams.

A shell: it decides nothing. Runs in the event loop of the thread that writes to the store, so a commit's subscribers may wake
watches directly. Serves plain HTTP on loopback; the port may be 0, and the one chosen is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
import websockets.http11
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from emu.api import channels
from emu.api.calls import NodeCalls, NodeStream
from emu.api.handler import Api
from emu.api.request import Deferred, Exec, Logs, Request, Response, Streamed, refused
from emu.api.watch import WatchStream
from emu.errors import ApiError
from emu.store.store import Change

BOOKMARK_EVERY = 60.0  # seconds, as kube-apiserver's watch cache
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
LONGEST_LINE = 1 << 20  # bytes of an exec's request line, which holds its command: kube-apiserver's limit of all headers
_SLOWEST = 64 << 20  # bytes that may wait for one watcher before he is cut off, and lists again


def app(api: Api, calls: NodeCalls) -> Starlette:
    """The ASGI application."""

    async def http(request: HttpRequest) -> HttpResponse:
        reply = api.handle(_parsed(request, await request.body()))
        try:
            if isinstance(reply, Deferred):
                reply = await reply.run(calls)
            elif isinstance(reply, Streamed):
                return StreamingResponse(await reply.run(calls), media_type=reply.content_type)
            elif isinstance(reply, Logs):
                return await _logs(calls.stream(reply.node, "logs", reply.params))
            elif isinstance(reply, Exec):
                raise ApiError(400, "BadRequest", "exec needs a WebSocket (kubectl 1.31 or later); the SPDY upgrade is not served")
        except ApiError as error:
            reply = refused(error)
        return StreamingResponse(_watch(reply), media_type="application/json") if isinstance(reply, WatchStream) else _whole(reply)

    async def websocket(ws: WebSocket) -> None:
        reply = api.handle(_parsed(ws, b""))
        if isinstance(reply, Exec):
            await _exec(ws, calls, reply)
            return
        answer = reply if isinstance(reply, Response) else refused(ApiError(400, "BadRequest", "no WebSocket is served on this path"))
        await ws.send_denial_response(_whole(answer))

    return Starlette(routes=[Route("/{path:path}", http, methods=_METHODS), WebSocketRoute("/{path:path}", websocket)])


def _parsed(connection: HttpRequest | WebSocket, body: bytes) -> Request:
    method = connection.method if isinstance(connection, HttpRequest) else "GET"
    headers = {name.lower(): value for name, value in connection.headers.items()}
    return Request(method, connection.url.path, tuple(connection.query_params.multi_items()), headers, body)


def _whole(response: Response) -> HttpResponse:
    made = HttpResponse(response.encoded(), response.status, media_type=response.content_type)
    for name, value in response.headers():
        made.headers.append(name, value)
    return made


async def _watch(stream: WatchStream) -> AsyncIterator[bytes]:
    """Send what a watch has, then sleep until a commit brings more, the bookmark is due, or its time is up."""
    waiting, more = bytearray(), asyncio.Event()

    def take(changes: list[Change]) -> None:
        new = stream.feed(changes)
        if new:
            waiting.extend(new)
            more.set()

    loop = asyncio.get_running_loop()
    end = loop.time() + stream.timeout if stream.timeout else None
    stop = stream.store.subscribe(take)
    try:
        yield stream.start()
        while not stream.over and len(waiting) < _SLOWEST:
            patience = BOOKMARK_EVERY if end is None else min(BOOKMARK_EVERY, end - loop.time())
            if patience <= 0:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(more.wait(), patience)
            more.clear()
            chunk = bytes(waiting) or stream.bookmark()
            waiting.clear()
            if chunk:
                yield chunk
    finally:
        stop()


async def _logs(stream: NodeStream) -> HttpResponse:
    """Plain text; the first piece is awaited before the status is sent, so that a refusal is still a Status."""
    pieces = aiter(stream)
    first = await anext(pieces, None)

    async def lines() -> AsyncIterator[bytes]:
        try:
            if first is not None:
                yield _text(first)
            async for piece in pieces:
                yield _text(piece)
        finally:
            await stream.close()

    return StreamingResponse(lines(), media_type="text/plain")


def _text(piece: dict[str, Any]) -> bytes:
    return bytes(piece.get("stdout") or b"") + bytes(piece.get("stderr") or b"")


async def _exec(ws: WebSocket, calls: NodeCalls, wanted: Exec) -> None:
    """Join a WebSocket's channels to a program's streams until the program ends or the client leaves."""
    offered = ws.scope.get("subprotocols") or []
    protocol = next((name for name in channels.PROTOCOLS if name in offered), None)
    if protocol is None:
        await ws.send_denial_response(
            _whole(refused(ApiError(400, "BadRequest", f"offer one of the subprotocols {', '.join(channels.PROTOCOLS)}")))
        )
        return
    await ws.accept(protocol)
    stream = calls.stream(wanted.node, "exec", wanted.params)
    reader = asyncio.ensure_future(_client_input(ws, stream))
    try:
        async for piece in stream:
            for message in channels.emit(piece):
                await ws.send_bytes(message)
    except ApiError as error:
        await ws.send_bytes(channels.failure(error.status()))
    except WebSocketDisconnect:
        return
    finally:
        reader.cancel()
        await stream.close()
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client may have closed first
        await ws.close()


async def _client_input(ws: WebSocket, stream: NodeStream) -> None:
    """Carry stdin to the node; a client that goes away ends the call."""
    try:
        while True:
            meant = channels.parse(await ws.receive_bytes())
            if meant is not None:
                await stream.send(meant)
    except (WebSocketDisconnect, RuntimeError, ApiError):  # the last: the node is gone, which the reader of its answers tells
        await stream.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Serving:
    """A running server: `url`, and `stop`."""

    def __init__(self, server: uvicorn.Server, task: asyncio.Task[None], url: str) -> None:
        self._server, self._task, self.url = server, task, url

    async def stop(self) -> None:
        """Close the socket and every connection, watches included."""
        self._server.should_exit = self._server.force_exit = True
        await self._task


async def serve(application: Starlette, *, host: str = "127.0.0.1", port: int = 0) -> Serving:
    """Listen, and serve in this event loop until `stop`. OSError if the port is taken."""
    listener = socket.create_server((host, port))
    websockets.http11.MAX_LINE_LENGTH = max(websockets.http11.MAX_LINE_LENGTH, LONGEST_LINE)  # it has no other switch in this process
    config = uvicorn.Config(
        application, log_config=None, access_log=False, lifespan="off", ws="websockets-sansio", timeout_graceful_shutdown=1
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        if task.done():
            task.result()
        await asyncio.sleep(0.001)
    return Serving(server, task, f"http://{host}:{listener.getsockname()[1]}")
