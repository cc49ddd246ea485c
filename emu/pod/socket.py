"""Sockets as programs in a container use them: blocking, shaped like the standard library's, failing as Linux fails.

Decides what happens once a connection: binding, connecting (EINPROGRESS and all), options, closing, dying with the container;
transfers are `blocking`'s and `datagrams`'. Must not know nodes or carriers. See socket(7), tcp(7), connect(2).
"""

from __future__ import annotations

import errno
import io
import socket as std
from typing import Any, NoReturn, Self

from emu.pod import options
from emu.pod.blocking import SOCK_DGRAM, SOCK_STREAM, Address, bad_descriptor, killed
from emu.pod.datagrams import DatagramSocket
from emu.pod.errors import failure, timed_out
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import SOMAXCONN, TcpListener, TcpSocket
from emu.wire.addr import format_ip

MTU_DISCOVER, IP_MTU = (std.IPPROTO_IP, 10), (std.IPPROTO_IP, 14)  # ip(7); the standard library has no names for them


class Socket(DatagramSocket):
    """A TCP or UDP socket of a container's process; every method is `socket.socket`'s of the same name.

    `settimeout(None)` blocks (the start), 0 does not, else a call raises `TimeoutError("timed out")` after so many seconds.
    A connection that gives up by itself raises `TimeoutError` with `errno` ETIMEDOUT, as the standard library's does.
    """

    __slots__ = ()

    # ---- addresses -------------------------------------------------------------------------------------------------------------

    def bind(self, address: Address) -> None:
        addr = self._sockaddr(address)
        self._enter()
        try:
            if self._sock.local.port:
                raise failure(errno.EINVAL)
            self._sock.bind(addr)
        finally:
            self._leave()
        if self.type == SOCK_DGRAM and addr.port:
            self._owner.listening("UDP", addr.port)

    def listen(self, backlog: int = 128) -> None:
        if self.type != SOCK_STREAM:
            raise failure(errno.EOPNOTSUPP)
        self._enter()
        try:
            sock = self._sock
            if isinstance(sock, TcpListener):
                sock.backlog = min(max(0, backlog), SOMAXCONN)
                return
            if sock.started:
                raise failure(errno.EINVAL)
            sock.close()  # the port passes to the listener under the same lock
            self._attach(TcpListener(self._owner.ns, sock.local, max(0, backlog)))
            port = self._sock.local.port
        finally:
            self._leave()
        self._owner.listening("TCP", port)

    def accept(self) -> tuple[Socket, Address]:
        now = self._enter()
        try:
            listener = self._sock
            if not isinstance(listener, TcpListener):
                raise failure(errno.EINVAL if self.type == SOCK_STREAM else errno.EOPNOTSUPP)
            child = listener.accept()
            if child is None:
                deadline = self._deadline(now)
                while child is None:
                    woken = self._wait(deadline)
                    child = listener.accept()
                    if child is None and not woken:
                        raise timed_out()
        finally:
            self._leave()
        assert child.remote is not None
        made = Socket(self._owner, self.family, self.type, self.proto, made=child)
        made._inherit(self)
        return made, (format_ip(child.remote.ip), child.remote.port)

    def _inherit(self, listener: Socket) -> None:
        """An accepted socket has its listener's options."""
        self._reset_on_close = listener._reset_on_close
        if listener._options:
            self._options = dict(listener._options)
            self._enter()
            try:
                self._apply_options(self._options)
            finally:
                self._leave()

    def connect(self, address: Address) -> None:
        addr = self._sockaddr(address)
        now = self._enter()
        try:
            sock = self._sock
            if self.type == SOCK_DGRAM:
                sock.connect(addr)
                return
            if isinstance(sock, TcpListener):
                raise failure(errno.EISCONN)
            if sock.started and not sock.connected:
                self._raise_pending()
                raise failure(errno.EALREADY)
            sock.connect(addr)
            self._attach(sock)
            self._apply_options(self._options)
            if self._timeout == 0.0:
                raise failure(errno.EINPROGRESS)
            deadline = self._deadline(now)
            while not sock.connected:
                self._raise_pending()
                if not self._wait(deadline) and not sock.connected:
                    raise timed_out()
            self._raise_pending()
        finally:
            self._leave()

    def connect_ex(self, address: Address) -> int:
        """As `connect`, but the errno is returned; a timeout is EAGAIN as in the standard library."""
        try:
            self.connect(address)
        except std.gaierror:
            raise
        except OSError as error:
            return error.errno or errno.EAGAIN
        return 0

    def getsockname(self) -> Address:
        self._enter()
        try:
            return format_ip(self._sock.local.ip), self._sock.local.port
        finally:
            self._leave()

    def getpeername(self) -> Address:
        self._enter()
        try:
            remote = self._sock.remote
            if remote is None or (self.type == SOCK_STREAM and not self._sock.connected):
                raise failure(errno.ENOTCONN)
            return format_ip(remote.ip), remote.port
        finally:
            self._leave()

    # ---- options ---------------------------------------------------------------------------------------------------------------

    def settimeout(self, value: float | None) -> None:
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        self._timeout = None if value is None else float(value)

    def gettimeout(self) -> float | None:
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        self._timeout = None if flag else 0.0

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """What `options` has, SO_LINGER (0 s: reset on close), and IP_MTU_DISCOVER of UDP; else ENOPROTOOPT."""
        self._enter()
        try:
            if (level, option) == (std.SOL_SOCKET, std.SO_LINGER) and isinstance(value, bytes) and len(value) == 8:
                self._reset_on_close = value[:4] != bytes(4) and value[4:] == bytes(4)
            elif (level, option) == MTU_DISCOVER and isinstance(self._sock, UdpSocket):
                if value not in range(4):
                    raise failure(errno.EINVAL)
                self._sock.discover_mtu(int(value))
            else:
                self._options[level, option] = options.checked((level, option), value)
                self._apply_options({(level, option): self._options[level, option]})
        finally:
            self._leave()

    def _apply_options(self, values: dict[options.Key, int]) -> None:
        sock = self._sock
        if isinstance(sock, TcpSocket) and sock.started and values:
            for key, value in values.items():
                options.apply(sock.conn, key, value, sock.softnet.now)
            sock.settle()

    def getsockopt(self, level: int, option: int) -> int:
        self._enter()
        try:
            if (level, option) == (std.SOL_SOCKET, std.SO_ERROR):
                return int(self._sock.so_error())
            if (level, option) == MTU_DISCOVER and isinstance(self._sock, UdpSocket):
                return self._sock.mtu_discover
            if (level, option) == IP_MTU:
                if self._sock.remote is None:
                    raise failure(errno.ENOTCONN)
                return self._owner.ns.path_mtu(self._sock.remote.ip)
            return options.current((level, option), self._options)
        finally:
            self._leave()

    def fileno(self) -> NoReturn:
        """No descriptor of the host stands behind the socket, so select() and subprocesses cannot have it."""
        raise io.UnsupportedOperation("a pod's socket has no file descriptor")

    # ---- the end ---------------------------------------------------------------------------------------------------------------

    def shutdown(self, how: int) -> None:
        """SHUT_WR sends FIN; SHUT_RD ends reading here only, as in Linux; either needs a connection."""
        self._enter()
        try:
            sock = self._sock
            if isinstance(sock, TcpListener) or (sock.remote is None):
                raise failure(errno.ENOTCONN)
            if self.type == SOCK_DGRAM:
                return
            if not sock.connected:
                raise failure(errno.ENOTCONN)
            if how in (std.SHUT_WR, std.SHUT_RDWR):
                sock.shutdown_write()
                self._write = self.broken_pipe
            if how in (std.SHUT_RD, std.SHUT_RDWR):
                sock.shutdown_read()
            sock.notify()
        finally:
            self._leave()

    def makefile(self, mode: str = "r", buffering: int | None = None, **text: str | None) -> Any:
        """A file over the socket, buffered as `open` would; the socket stays open until it and its files are closed."""
        from emu.pod.sockfile import open_socket

        self._io_refs += 1
        return open_socket(self, mode, -1 if buffering is None else buffering, **text)

    def release_file(self) -> None:
        """A file made by `makefile` has been closed."""
        self._io_refs -= 1
        if self._wants_close and self._io_refs <= 0:
            self.finish()

    def close(self) -> None:
        self._wants_close = True
        if self._io_refs <= 0:
            self.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_sock", None) is not None and self._enter is not bad_descriptor and self._enter is not killed:
            self._owner.orphans.append(self._sock)

    def __repr__(self) -> str:
        return f"<pod socket {'tcp' if self.type == SOCK_STREAM else 'udp'} {self._sock.local} to {self._sock.remote}>"
