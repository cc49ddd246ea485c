"""HTTP/1.1 servers as event handlers: bytes in, `Request` out, `Response` back. The wire format is h11's.

Decides keep-alive, pipelining (one answer at a time, in order) and what a malformed request gets; what to answer is the
subclass's. See RFC 9110 and RFC 9112.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import h11

from emu.pod.program import Connection, Context, Handler

MAX_BODY = 10 << 20  # bytes; what is longer is refused, as the built-in servers keep bodies in memory
REASONS = {status.value: status.phrase for status in HTTPStatus} | {413: "Request Entity Too Large"}  # net/http's words


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `path` is decoded, `query` keeps every value, header names are lower case, `client` is the TCP peer."""

    method: str
    target: str
    path: str
    query: dict[str, list[str]]
    headers: tuple[tuple[str, str], ...]
    body: bytes
    client: tuple[str, int]

    def header(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.headers if key == name), default)

    def param(self, name: str, default: str = "") -> str:
        """The first value of a query parameter, or of a form field as net/http's FormValue finds it."""
        values = self.form().get(name) or self.query.get(name)
        return values[0] if values else default

    def form(self) -> dict[str, list[str]]:
        if self.header("content-type").startswith("application/x-www-form-urlencoded"):
            return parse_qs(self.body.decode("latin-1"), keep_blank_values=True)
        return {}


@dataclass(frozen=True, slots=True)
class Response:
    """What is answered; Content-Length and Date are added. `close` ends the connection after it."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/plain; charset=utf-8"),)
    close: bool = False


def text(body: str, status: int = 200) -> Response:
    return Response(status, body.encode())


def json_response(value: Any, status: int = 200) -> Response:
    """Compact JSON, as Go's encoder prints it, under the content type that net/http guesses for it."""
    return Response(status, json.dumps(value, separators=(",", ":")).encode())


Respond = Callable[[Response], None]


class HttpSession:
    """One connection's HTTP. `take` is given bytes; requests come out one at a time through `on_request`."""

    def __init__(self, conn: Connection, on_request: Callable[[Request, Respond], None], now: Callable[[], float]) -> None:
        self._conn, self._on_request, self._now = conn, on_request, now
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=65536)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._busy = False

    def take(self, data: bytes) -> None:
        """Bytes of the client's; b"" for its end of stream."""
        try:
            self._http.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))

    def _advance(self) -> None:
        http = self._http
        while not self._busy:
            event = http.next_event()
            if event is h11.NEED_DATA:
                if http.they_are_waiting_for_100_continue:
                    self._conn.send(http.send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")) or b"")
                return
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                if isinstance(event, h11.ConnectionClosed):
                    self._conn.close()
                return
            if isinstance(event, h11.Request):
                self._head = event
                self._body.clear()
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MAX_BODY:
                    self._refuse(413, "request body too large")
                    return
            elif isinstance(event, h11.EndOfMessage):
                assert self._head is not None
                self._busy = True
                self._on_request(_request(self._head, bytes(self._body), self._conn.peer), self.respond)

    def respond(self, response: Response) -> None:
        """Answer the request at hand, now or later."""
        http = self._http
        if http.our_state != h11.SEND_RESPONSE:
            return  # the client has gone, or has been refused
        bodiless = response.status in (204, 304)
        headers = [*response.headers, ("Date", formatdate(self._now(), usegmt=True))]
        if not bodiless:
            headers.append(("Content-Length", str(len(response.body))))
        if response.close:
            headers.append(("Connection", "close"))
        try:
            out = [http.send(h11.Response(status_code=response.status, headers=headers, reason=REASONS.get(response.status, "").encode()))]
            if response.body and not bodiless and self._head is not None and self._head.method != b"HEAD":
                out.append(http.send(h11.Data(data=response.body)))
            out.append(http.send(h11.EndOfMessage()))
        except h11.LocalProtocolError:
            self._conn.abort()  # a status or a header that cannot be: net/http's handler panics, and the connection with it
            return
        self._conn.send(b"".join(part for part in out if part))
        if http.states[h11.SERVER] == h11.MUST_CLOSE:
            self._conn.close()
            return
        http.start_next_cycle()
        self._busy = False
        self._advance()

    def _refuse(self, status: int, why: str) -> None:
        """net/http's answer to nonsense: the reason in plain text, and the end."""
        http = self._http
        if http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [("Content-Type", "text/plain; charset=utf-8"), ("Connection", "close"), ("Content-Length", str(len(why)))]
            head = h11.Response(status_code=status, reason=REASONS.get(status, "").encode(), headers=headers)
            out = (http.send(event) or b"" for event in (head, h11.Data(data=why.encode()), h11.EndOfMessage()))
            self._conn.send(b"".join(out))
        self._conn.close()


def _request(head: h11.Request, body: bytes, client: tuple[str, int]) -> Request:
    target = head.target.decode("latin-1")
    parts = urlsplit(target if target.startswith(("/", "http")) else "/")
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in head.headers)
    query = parse_qs(parts.query, keep_blank_values=True)
    return Request(head.method.decode(), target, unquote(parts.path) or "/", query, headers, body, client)


class HttpServer(Handler):
    """A handler whose connections speak HTTP. Subclasses listen in `on_start` and implement `serve`."""

    def serve(self, ctx: Context, request: Request, respond: Respond) -> None:
        """Call `respond(Response)` once, now or later."""
        raise NotImplementedError

    def on_connect(self, ctx: Context, conn: Connection) -> None:
        conn.state = HttpSession(conn, lambda request, respond: self.serve(ctx, request, respond), ctx.time)

    def on_data(self, ctx: Context, conn: Connection, data: bytes) -> None:
        conn.state.take(data)

    def on_eof(self, ctx: Context, conn: Connection) -> None:
        conn.state.take(b"")
