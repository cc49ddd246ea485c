"""Event handlers: how a program without a thread is fed from the stack's sockets.

Decides order: a container's events run one at a time and never nested, in whichever thread delivered them, with the node's
lock free. Decides flow control too: nothing is read from a connection whose answers have not gone out. What an event means is
the program's business.
"""

from __future__ import annotations

import socket as std
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emu.pod.errors import ContainerKilled
from emu.stack.sockets import Socket as StackSocket
from emu.stack.sockets import UdpSocket
from emu.stack.softnet import INFINITY
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import Ip, SockAddr, format_ip, parse_ip

if TYPE_CHECKING:
    from emu.pod.blocking import Address
    from emu.pod.process import Process
    from emu.pod.program import Handler

CHUNK = 65536  # bytes a read; also the most that flow control lets pile up in a connection's output
BACKLOG = 4096
AT_A_TIME = 64  # datagrams taken from a socket in one go


class Events:
    """The events of one process: sockets report here, the handler is called from here."""

    def __init__(self, process: Process, handler: Handler) -> None:
        self.process, self.handler = process, handler
        self._queue: deque[Callable[[], None]] = deque()
        self._running = threading.Lock()

    def post(self, event: Callable[[], None]) -> None:
        """Run an event now, or after those that are running. The node's lock must be free."""
        queue, running, process = self._queue, self._running, self.process
        queue.append(event)
        while queue and running.acquire(blocking=False):
            process.handling = threading.get_ident()
            try:
                while queue:
                    self._run(queue.popleft())
            finally:
                process.handling = 0
                running.release()

    def _run(self, event: Callable[[], None]) -> None:
        process = self.process
        if process.exit_code is not None:
            return
        try:
            event()
        except ContainerKilled:
            process.finish(process.kill_code)
        except BaseException as error:
            process.crash(error)

    @property
    def busy(self) -> bool:
        """A handler is running now; one that runs on after a kill has to be abandoned."""
        return self._running.locked()

    # ---- what contexts offer -----------------------------------------------------------------------------------------------------

    def listen_tcp(self, ip: str, port: int) -> int:
        process = self.process
        process.check()
        process.kernel.enter()
        try:
            listener = TcpListener(process.ns, _address(parse_ip(ip), port), BACKLOG)
            process.held.add(listener)
            listener.on_event = lambda _: self.post(accept)
            port = listener.local.port
        finally:
            process.kernel.leave()

        def accept() -> None:
            self._accept(listener)

        process.listening("TCP", port)
        return port

    def _accept(self, listener: TcpListener) -> None:
        process = self.process
        while True:
            process.kernel.enter()
            try:
                child = listener.accept()
                conn = None if child is None else Connection(self, child)
            finally:
                process.kernel.leave()
            if conn is None:
                return
            self.handler.on_connect(process.ctx, conn)
            conn.run()  # data may have come before anybody listened for it

    def listen_udp(self, ip: str, port: int) -> DatagramPort:
        process = self.process
        process.check()
        process.kernel.enter()
        try:
            sock = UdpSocket(process.ns)
            sock.bind(_address(parse_ip(ip), port))
            datagrams = DatagramPort(self, sock)
        finally:
            process.kernel.leave()
        process.listening("UDP", datagrams.port)
        return datagrams

    def connect_tcp(self, address: Address) -> Connection:
        process = self.process
        to = _address(process.resolve(address[0]), address[1])
        process.check()
        process.kernel.enter()
        try:
            sock = TcpSocket(process.ns)
            sock.connect(to)
            return Connection(self, sock, connecting=True)
        finally:
            process.kernel.leave()

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        process = self.process
        process.check()
        now = process.kernel.enter()
        try:
            Alarm(self, now + seconds, call)
        finally:
            process.kernel.leave()


class Connection:
    """A TCP connection of a handler program. `state` is the program's own."""

    __slots__ = ("_closing", "_connecting", "_ended", "_events", "_out", "_sock", "error", "state")

    def __init__(self, events: Events, sock: TcpSocket, *, connecting: bool = False) -> None:
        """Under the lock."""
        self._events, self._sock, self._connecting = events, sock, connecting
        self._out: deque[bytes] = deque()
        self._closing = self._ended = False
        self.error = 0
        self.state: Any = None
        events.process.held.add(sock)
        sock.on_event = self._on_event

    @property
    def local(self) -> Address:
        """The address by which the peer reached this connection: before NAT's hand, the pod's own."""
        return format_ip(self._sock.local.ip), self._sock.local.port

    @property
    def peer(self) -> Address:
        remote = self._sock.remote
        assert remote is not None
        return format_ip(remote.ip), remote.port

    def send(self, data: bytes) -> None:
        """Send, keeping what does not fit until it does. Without effect once the connection is over (see `on_close`)."""
        if self._closing or not data:
            return
        process = self._events.process
        process.enter()
        try:
            if self._out:
                self._out.append(data)
            elif not self._sock.closed:
                written = self._sock.write(data)
                if written < len(data):
                    self._out.append(data[written:])
        except (BrokenPipeError, ConnectionResetError):
            self._out.clear()  # the peer is gone: `on_close` follows from the socket's own event
        finally:
            process.kernel.leave()

    def close(self) -> None:
        """Close once everything sent has gone out."""
        if not self._closing:
            self._closing = True
            if not self._out:
                self._end(0)

    def abort(self) -> None:
        """Reset the connection."""
        if not self._ended:
            self._closing = True
            process = self._events.process
            process.enter()
            try:
                self._sock.on_event = None
                self._sock.abort()
            finally:
                process.kernel.leave()
            self._end(0)

    def _on_event(self, _: StackSocket) -> None:
        self._events.post(self.run)

    def run(self) -> None:
        """Look at the socket: an event of the process."""
        if self._ended:
            return
        events, sock = self._events, self._sock
        process, handler = events.process, events.handler
        while True:
            process.enter()
            try:
                if self._out:
                    self._flush()
                data = sock.read(CHUNK) if not self._out and not self._closing and not self._connecting else None
                error = 0 if data else sock.take_error()
                connected = self._connecting and sock.connected
                more = bool(data) and sock.readable
            finally:
                process.kernel.leave()
            if error:
                self._end(error)
                return
            if connected:
                self._connecting, more = False, True
                handler.on_connect(process.ctx, self)
            if data:
                handler.on_data(process.ctx, self, data)
            elif data is not None:
                handler.on_eof(process.ctx, self)
            if self._closing and not self._out:
                self._end(0)
            if not more or self._ended:
                return

    def _flush(self) -> None:
        out, write = self._out, self._sock.write
        while out:
            written = 0 if self._sock.closed else write(out[0])
            if written < len(out[0]):
                out[0] = out[0][written:]
                return
            out.popleft()

    def _end(self, error: int) -> None:
        if self._ended:
            return
        self._ended = self._closing = True
        self.error = error
        self._out.clear()
        process = self._events.process
        process.enter()
        try:
            process.held.discard(self._sock)
            self._sock.on_event = None
            self._sock.close()
        finally:
            process.kernel.leave()
        self._events.post(lambda: self._events.handler.on_close(process.ctx, self))


class DatagramPort:
    """A bound UDP socket of a handler program."""

    __slots__ = ("_events", "_sock", "port")

    def __init__(self, events: Events, sock: UdpSocket) -> None:
        """Under the lock."""
        self._events, self._sock, self.port = events, sock, sock.local.port
        events.process.held.add(sock)
        sock.on_event = self._on_event

    def send_to(self, data: bytes, address: Address) -> None:
        """Send one datagram; OSError as sendto(2)."""
        self._send(data, _address(std.inet_aton(address[0]), address[1]))

    def _send(self, data: bytes, to: SockAddr) -> None:
        process = self._events.process
        process.enter()
        try:
            self._sock.send_to(data, to)
        finally:
            process.kernel.leave()

    def _on_event(self, _: StackSocket) -> None:
        self._events.post(self._run)

    def _run(self) -> None:
        events = self._events
        process = events.process
        heard, address = None, ("", 0)
        while True:
            process.enter()
            try:
                self._sock.take_error()  # of an answer that found nobody: udp(7) would tell the next call, which is no one's here
                datagrams = self._sock.receive_many(AT_A_TIME)
            finally:
                process.kernel.leave()
            if not datagrams:
                return
            for data, sender in datagrams:
                if process.killed:
                    break
                if sender is not heard:
                    heard, address = sender, (format_ip(sender.ip), sender.port)
                events.handler.on_datagram(process.ctx, self, data, address)


class Alarm(StackSocket):
    """A timer of a handler program: a socket that nothing but time happens to, so that it is queued as sockets are."""

    def __init__(self, events: Events, at: float, call: Callable[[], None]) -> None:
        """Under the lock."""
        super().__init__(events.process.ns)
        self.armed = INFINITY
        self._at, self._events, self._call = at, events, call
        self.on_event = self._ring
        events.process.held.add(self)
        self.softnet.arm(self, at)

    def poll_at(self) -> float:
        return INFINITY if self.closed else self._at

    def on_timer(self, now: float) -> None:
        self._at = INFINITY
        self.notify()

    def _ring(self, _: StackSocket) -> None:
        self._events.process.held.discard(self)
        if not self.closed:
            self._events.post(self._call)

    def close(self) -> None:
        self.closed = True


def _address(ip: Ip, port: int) -> SockAddr:
    """An address as the socket module takes it: what is no port must not get as far as a header."""
    if not 0 <= port <= 65535:
        raise OverflowError("port must be 0-65535.")
    return SockAddr(ip, port)
