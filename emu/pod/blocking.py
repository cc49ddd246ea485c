"""How a program's call waits, and how its bytes get in and out: the hot path of every blocking program.

Decides waiting (timeouts, EAGAIN), which error a transfer raises, and what a killed process sees; the protocols are the
stack's. Must not know nodes or carriers: it waits through `Kernel` alone. What one call adds to the stack is kept to one
`enter`, one `leave` and a few attribute reads. `socket.Socket` adds all that happens once a connection. See recv(2), send(2).
"""

from __future__ import annotations

import errno
import socket as std
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from weakref import WeakSet

from emu.pod.errors import ContainerKilled, failure, timed_out
from emu.stack.sockets import Socket as StackSocket
from emu.stack.sockets import UdpSocket, Waiter
from emu.stack.tcp_sockets import TcpSocket
from emu.wire.addr import SockAddr

if TYPE_CHECKING:
    from emu.pod.kernel import Kernel
    from emu.stack.namespace import NetNamespace

AF_INET, SOCK_STREAM, SOCK_DGRAM = int(std.AF_INET), int(std.SOCK_STREAM), int(std.SOCK_DGRAM)  # enum arithmetic is slow
MSG_DONTWAIT = int(std.MSG_DONTWAIT)
HONOURED = MSG_DONTWAIT | int(std.MSG_NOSIGNAL)  # the latter by doing nothing: a broken pipe is an exception here
Address = tuple[str, int]


class Owner(Protocol):
    """The process that a socket belongs to."""

    kernel: Kernel
    ns: NetNamespace
    killed: bool
    handling: int  # the thread that runs one of the process's event handlers now, 0 for none
    sockets: WeakSet[BlockingSocket]
    orphans: deque[StackSocket]  # of sockets dropped without `close`: the garbage collector must not take the lock

    def may_block(self) -> None:
        """RuntimeError if the caller is an event handler, which must not wait."""

    def resolve(self, host: str) -> bytes:
        """The first IPv4 address of `host`; `socket.gaierror` if it has none."""

    def listening(self, protocol: str, port: int) -> None:
        """A socket of the process now waits for clients."""


def bad_descriptor() -> NoReturn:
    raise failure(errno.EBADF)


def killed() -> NoReturn:
    raise ContainerKilled


class BlockingSocket:
    """The transferring half of a socket: what is called once a message. Methods are `socket.socket`'s of the same names."""

    __slots__ = (
        "__weakref__", "_enter", "_heard", "_io_refs", "_kernel", "_leave", "_named", "_options", "_owner", "_read", "_reset_on_close",
        "_sock", "_timeout", "_waiter", "_wants_close", "_write", "family", "proto", "type",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, family: int = AF_INET, kind: int = SOCK_STREAM, proto: int = 0, *, made: TcpSocket | None = None
    ) -> None:
        _check_kind(family, kind, proto)
        if owner.killed:
            raise ContainerKilled
        self.family, self.type, self.proto = family, kind, proto
        self._owner, self._kernel = owner, owner.kernel
        self._enter: Callable[[], float] = owner.kernel.enter
        self._leave = owner.kernel.leave
        self._timeout: float | None = None
        self._waiter: Waiter | None = None
        self._options: dict[tuple[int, int], int] = {}
        self._heard: tuple[SockAddr, Address] | None = None  # the last datagram's sender, and what the program is told of it
        self._named: tuple[Any, SockAddr] | None = None  # the last numeric address that a call named, and what it means
        self._reset_on_close = False
        self._io_refs, self._wants_close = 0, False
        self._attach(made if made is not None else self._make())
        owner.sockets.add(self)

    def _make(self) -> StackSocket:
        orphans = self._owner.orphans
        self._enter()
        try:
            while orphans:
                orphans.popleft().close()
            return TcpSocket(self._owner.ns) if self.type == SOCK_STREAM else UdpSocket(self._owner.ns)
        finally:
            self._leave()

    def _attach(self, sock: StackSocket) -> None:
        self._sock: Any = sock
        self._read: Callable[[int], bytes | None] = self._not_connected
        self._write: Callable[[Any], int] = self.broken_pipe
        if isinstance(sock, UdpSocket):
            self._read, self._write = self._read_datagram, sock.send_to
        elif isinstance(sock, TcpSocket) and sock.started:
            self._read, self._write = sock.read, sock.write

    # ---- waiting -----------------------------------------------------------------------------------------------------------

    def _wait(self, deadline: float | None) -> bool:
        """Sleep until something happens to the socket (True) or time is up. The lock is held before and after, not meanwhile."""
        owner, sock, waiter = self._owner, self._sock, self._waiter
        if owner.handling:
            owner.may_block()
        if waiter is None:
            waiter = Waiter()
        else:
            self._waiter, waiter.ready = None, False  # a second thread on the same socket makes its own
        waiters = sock.waiters
        waiters.append(waiter)
        try:
            woken = self._kernel.wait(waiter, deadline)
        finally:
            waiters.remove(waiter)
            self._waiter = waiter
        if owner.killed:
            raise ContainerKilled
        if sock is not self._sock or self._enter is bad_descriptor:
            raise failure(errno.EBADF)
        return woken

    def _deadline(self, now: float, flags: int = 0) -> float | None:
        if flags:
            if flags & ~HONOURED:
                raise failure(errno.EOPNOTSUPP)  # MSG_PEEK, MSG_OOB, MSG_WAITALL
            if flags & MSG_DONTWAIT:
                raise failure(errno.EAGAIN)
        timeout = self._timeout
        if timeout is None:
            return None
        if timeout == 0.0:
            raise failure(errno.EAGAIN)
        return now + timeout

    def _broken(self) -> OSError:
        """Why nothing can be sent: what the network said, if nobody has been told yet (sk_err), else EPIPE."""
        return failure(self._sock.take_error() or errno.EPIPE)

    def _raise_pending(self) -> None:
        if self._sock.error:
            raise failure(self._sock.take_error())

    def _not_connected(self, _: Any) -> NoReturn:
        raise failure(errno.ENOTCONN)

    def broken_pipe(self, _: Any) -> NoReturn:
        """What sending into an unconnected or shut TCP socket comes to."""
        raise failure(errno.EPIPE)

    # ---- the end ---------------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Close for good, whatever files are still open."""
        if self._enter in (bad_descriptor, killed):
            return
        self._enter()
        self._enter = bad_descriptor
        try:
            (self._sock.abort if self._reset_on_close and isinstance(self._sock, TcpSocket) else self._sock.close)()
        finally:
            self._leave()
        self._owner.sockets.discard(self)

    def kill(self, *, reset: bool) -> None:
        """Reset or close the socket; whoever uses it now or later gets ContainerKilled. The caller holds the lock."""
        self._enter = killed
        (self._sock.abort if reset and isinstance(self._sock, TcpSocket) else self._sock.close)()
        self._sock.notify()

    # ---- data ----------------------------------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """b"" at the end of the stream."""
        now = self._enter()
        try:
            data = self._read(bufsize)
            return data or self._read_later(data, bufsize, now, flags)
        finally:
            self._leave()

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """The number of bytes taken, at least one."""
        now = self._enter()
        try:
            return self._write(data) or self._write_later(data, now, flags)
        except BrokenPipeError:
            raise self._broken() from None
        finally:
            self._leave()

    def _read_later(self, data: bytes | None, size: int, now: float, flags: int) -> bytes:
        """The first look found nothing: an error, the end of the stream, an empty datagram, or nothing yet."""
        if data is None:
            self._raise_pending()
            deadline = self._deadline(now, flags)
            while data is None:
                woken = self._wait(deadline)
                data = self._read(size)
                if data:
                    return data
                self._raise_pending()
                if data is None and not woken:
                    raise timed_out()
        elif not (self.type == SOCK_STREAM and self._sock.done):
            self._raise_pending()
        return data

    def _write_later(self, data: Any, now: float, flags: int) -> int:
        """Nothing was taken: an error, a full buffer, or there was nothing to write."""
        written = 0
        self._raise_pending()
        if len(data):
            deadline = self._deadline(now, flags)
            while not written:
                woken = self._wait(deadline)
                written = self._write(data)
                self._raise_pending()
                if not written and not woken:
                    raise timed_out()
        return written

    def sendall(self, data: bytes | bytearray | memoryview, flags: int = 0) -> None:
        """The timeout, as in the standard library, is for the whole of it."""
        now = self._enter()
        try:
            sent = self._write(data)
            if sent == len(data):
                return
            self._raise_pending()
            deadline = self._deadline(now, flags)
            view = memoryview(data).cast("B")
            while sent < len(view):
                written = self._write(view[sent:])
                if not written:
                    self._raise_pending()
                    if not self._wait(deadline):
                        raise timed_out()
                sent += written
        except BrokenPipeError:
            raise self._broken() from None
        finally:
            self._leave()

    def _read_datagram(self, size: int) -> bytes | None:
        got: tuple[bytes, SockAddr] | None = self._sock.receive()
        return None if got is None else got[0][:size]  # what does not fit is lost, udp(7)

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)


def _check_kind(family: int, kind: int, proto: int) -> None:
    if family != AF_INET:
        raise failure(errno.EAFNOSUPPORT)
    if kind not in (SOCK_STREAM, SOCK_DGRAM):
        raise failure(errno.ESOCKTNOSUPPORT)
    if proto not in (0, std.IPPROTO_TCP if kind == SOCK_STREAM else std.IPPROTO_UDP):
        raise failure(errno.EPROTONOSUPPORT)
