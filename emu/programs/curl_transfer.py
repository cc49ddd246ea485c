"""One HTTP exchange of `curl`: connect, ask, receive; what went wrong is a `CurlError` with curl's own code and words.

Decides curl's behaviour on the wire (headers, when a connection counts as failed, which of its exit codes that is) and what
`-v` says of it. Options and output files are `curl`'s. HTTP is h11's. Messages follow curl 7.88, but a failed connect gives the
reason, as curl 7.81 did: it is what one looks for.
"""

from __future__ import annotations

import errno
import os
import socket as std
from collections.abc import Callable
from dataclasses import dataclass, field

import h11

from emu.pod.program import Context, Socket

VERSION = "7.88.1"
COULDNT_RESOLVE, COULDNT_CONNECT, PARTIAL, TIMED_OUT, EMPTY, SEND_ERROR, RECV_ERROR, WEIRD = 6, 7, 18, 28, 52, 55, 56, 1


class CurlError(Exception):
    """A failure with its exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Ask:
    """One request: where to, and what."""

    url: str
    host: str  # without brackets
    port: int
    authority: str  # as the Host header has it
    target: str
    method: str = "GET"
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | None = None


@dataclass(slots=True)
class Result:
    """What came of it, as far as it got; times are seconds since the transfer's start."""

    status: int = 0
    version: str = "0"
    headers: list[tuple[str, str]] = field(default_factory=list)
    size: int = 0
    connects: int = 0
    local: tuple[str, int] = ("", 0)
    remote: tuple[str, int] = ("", 0)
    resolved: float = 0.0
    connected: float = 0.0
    started: float = 0.0

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")


Sink = Callable[[bytes], None]
Verbose = Callable[[str], None]


class Exchange:
    """Carries one `Ask` out. `on_head` is given the raw head of the response, `on_body` its bytes as they come."""

    def __init__(
        self, ctx: Context, ask: Ask, *, begun: float, deadline: float | None, connect_timeout: float | None, number: int,
        on_head: Sink, on_body: Sink, verbose: Verbose,
    ) -> None:  # fmt: skip
        self.ctx, self.ask, self.result = ctx, ask, Result()
        self._begun, self._deadline, self._connect_timeout = begun, deadline, connect_timeout
        self._number, self._on_head, self._on_body, self._verbose = number, on_head, on_body, verbose

    def run(self) -> Result:
        """The whole exchange; CurlError if it fails, with `result` as far as it got."""
        sock = self._connect()
        try:
            self._talk(sock)
        finally:
            if self._closes():
                self._verbose(f"* Closing connection {self._number}")
            else:
                self._verbose(f"* Connection #{self._number} to host {self.ask.host} left intact")
            sock.close()
        return self.result

    def _closes(self) -> bool:
        return self.result.status == 0 or self.result.version == "1.0" or self.result.header("connection").lower() == "close"

    def _since(self) -> float:
        return self.ctx.now() - self._begun

    def _milliseconds(self) -> int:
        return int(self._since() * 1000)

    # ---- connecting ------------------------------------------------------------------------------------------------------------

    def _connect(self) -> Socket:
        ask, ctx = self.ask, self.ctx
        try:
            addresses = [row[4] for row in ctx.getaddrinfo(ask.host, ask.port, type=std.SOCK_STREAM)]
        except std.gaierror:
            self._verbose(f"* Could not resolve host: {ask.host}")
            self._verbose(f"* Closing connection {self._number}")
            raise CurlError(COULDNT_RESOLVE, f"Could not resolve host: {ask.host}") from None
        self.result.resolved = self._since()
        started = ctx.now()
        reason = ""
        for address in addresses:
            self._verbose(f"*   Trying {address[0]}:{address[1]}...")
            sock = ctx.socket()
            try:
                sock.setsockopt(std.IPPROTO_TCP, std.TCP_NODELAY, 1)
                sock.settimeout(self._time_left(started))
                sock.connect(address)
            except OSError as error:
                sock.close()
                reason = self._connect_failed(error, address, started)
                continue
            self.result.connected, self.result.connects = self._since(), 1
            self.result.local, self.result.remote = sock.getsockname(), address
            self._verbose(f"* Connected to {ask.host} ({address[0]}) port {address[1]} (#{self._number})")
            return sock
        message = f"Failed to connect to {ask.host} port {ask.port} after {int((ctx.now() - started) * 1000)} ms: {reason}"
        self._verbose(f"* {message}")
        self._verbose(f"* Closing connection {self._number}")
        raise CurlError(TIMED_OUT if reason == "Timeout was reached" else COULDNT_CONNECT, message)

    def _time_left(self, started: float) -> float:
        """Until the nearer of `--max-time` and `--connect-timeout` (300 s without)."""
        limits = [started + (self._connect_timeout or 300.0)]
        if self._deadline is not None:
            limits.append(self._deadline)
        return max(0.001, min(limits) - self.ctx.now())

    def _connect_failed(self, error: OSError, address: tuple[str, int], started: float) -> str:
        if not isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
            words = os.strerror(error.errno or 0)
            if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
                self._verbose(f"* Immediate connect fail for {address[0]}: {words}")
            else:
                self._verbose(f"* connect to {address[0]} port {address[1]} failed: {words}")
            return words
        if self._deadline is not None and self.ctx.now() >= self._deadline:
            raise CurlError(TIMED_OUT, f"Connection timed out after {self._milliseconds()} milliseconds") from None
        self._verbose(f"* ipv4 connect timeout after {int((self.ctx.now() - started) * 1000)}ms, move on!")
        return "Timeout was reached"

    # ---- talking ---------------------------------------------------------------------------------------------------------------

    def _talk(self, sock: Socket) -> None:
        ask, http = self.ask, h11.Connection(h11.CLIENT)
        request = h11.Request(method=ask.method, target=ask.target, headers=ask.headers)
        for line in (f"{ask.method} {ask.target} HTTP/1.1", *(f"{name}: {value}" for name, value in ask.headers), ""):
            self._verbose(f"> {line}\r")
        if ask.body:
            self._verbose(f"}} [{len(ask.body)} bytes data]")
        events = [request, *([h11.Data(data=ask.body)] if ask.body else []), h11.EndOfMessage()]
        data = b"".join(http.send(event) or b"" for event in events)  # the head goes out with the body, as curl's does
        try:
            sock.settimeout(self._left())
            sock.sendall(data)
        except TimeoutError:
            raise self._timed_out(0) from None
        except OSError as error:
            raise CurlError(SEND_ERROR, f"Send failure: {os.strerror(error.errno or 0)}") from None
        self._receive(sock, http)

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.001, self._deadline - self.ctx.now())

    def _timed_out(self, expected: int) -> CurlError:
        out_of = f" out of {expected}" if expected else ""
        received = f"with {self.result.size}{out_of} bytes received"
        return CurlError(TIMED_OUT, f"Operation timed out after {self._milliseconds()} milliseconds {received}")

    def _receive(self, sock: Socket, http: h11.Connection) -> None:
        result = self.result
        expected, ended = 0, False
        while True:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError as error:
                raise self._protocol_error(ended, expected, str(error)) from None
            if event is h11.NEED_DATA:
                ended = not self._more(sock, http, expected)
            elif isinstance(event, h11.InformationalResponse):
                continue
            elif isinstance(event, h11.Response):
                self._on_response(event)
                length = result.header("content-length")
                expected = int(length) if length.isdecimal() and self.ask.method != "HEAD" else 0
            elif isinstance(event, h11.Data):
                self._verbose(f"{{ [{len(event.data)} bytes data]")
                result.size += len(event.data)
                self._on_body(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return
            elif isinstance(event, h11.ConnectionClosed):
                raise CurlError(EMPTY, "Empty reply from server")

    def _more(self, sock: Socket, http: h11.Connection, expected: int) -> bool:
        try:
            sock.settimeout(self._left())
            data = sock.recv(65536)
        except TimeoutError as error:
            if error.errno == errno.ETIMEDOUT:
                raise CurlError(RECV_ERROR, "Recv failure: Connection timed out") from None
            raise self._timed_out(expected) from None
        except OSError as error:
            raise CurlError(RECV_ERROR, f"Recv failure: {os.strerror(error.errno or 0)}") from None
        if data and not self.result.started:
            self.result.started = self._since()
        http.receive_data(data)
        return bool(data)

    def _protocol_error(self, ended: bool, expected: int, why: str) -> CurlError:
        if ended and self.result.status == 0:
            return CurlError(EMPTY, "Empty reply from server")
        if ended:
            return CurlError(PARTIAL, f"transfer closed with {expected - self.result.size} bytes remaining to read")
        if self.result.status == 0:
            return CurlError(WEIRD, "Received HTTP/0.9 when not allowed")
        return CurlError(RECV_ERROR, f"Malformed response: {why}")

    def _on_response(self, response: h11.Response) -> None:
        result = self.result
        result.status, result.version = response.status_code, response.http_version.decode()
        result.headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw_items()]
        reason = response.reason.decode("latin-1")
        lines = [
            f"HTTP/{result.version} {result.status}{' ' if reason else ''}{reason}",
            *(f"{name}: {value}" for name, value in result.headers),
            "",
        ]
        for line in lines:
            self._verbose(f"< {line}\r")
        self._on_head("".join(line + "\r\n" for line in lines).encode("latin-1"))
