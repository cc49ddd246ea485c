"""Calls that name an address, one datagram or many at a time: the other hot path of blocking programs.

Decides what `sendto`, `recvfrom` and Linux's `sendmmsg` and `recvmmsg` come to; waiting is `blocking`'s. A batch is one entry into the
stack, so that its datagrams leave for a node as one message. The standard library has no sendmmsg and recvmmsg: names, order of
arguments and results are the system calls', as far as lists of pairs can be arrays of `struct mmsghdr`. See sendmmsg(2), recvmmsg(2).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from emu.pod.blocking import HONOURED, MSG_DONTWAIT, SOCK_DGRAM, SOCK_STREAM, Address, BlockingSocket
from emu.pod.errors import failure, timed_out
from emu.wire.addr import SockAddr, format_ip

MSG_WAITFORONE = 0x10000  # recvmmsg(2); the standard library's module does not name it
UIO_MAXIOV = 1024  # the most messages of one call; the rest is not looked at

Datagram = tuple[bytes | bytearray | memoryview, Address | None]
"""Data and where to; None is the connected peer."""


class DatagramSocket(BlockingSocket):
    """What a socket does with addressed data. `sendto` and `recvfrom` are `socket.socket`'s."""

    __slots__ = ()

    def sendto(self, data: bytes | bytearray | memoryview, *args: Any) -> int:
        """`sendto(data, address)` or `sendto(data, flags, address)`."""
        if self.type == SOCK_STREAM:
            return self.send(data)
        addr = self._sockaddr(args[-1])
        self._enter()
        try:
            return int(self._sock.send_to(bytes(data), addr))
        finally:
            self._leave()

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Address | None]:
        if self.type == SOCK_STREAM:
            return self.recv(bufsize, flags), None
        now = self._enter()
        try:
            sock = self._sock
            got = sock.receive()
            if got is None:
                deadline = self._deadline(now, flags)
                while got is None:
                    woken = self._wait(deadline)
                    got = sock.receive()
                    if got is None and not woken:
                        raise timed_out()
        finally:
            self._leave()
        return got[0][:bufsize], self._address(got[1])

    def sendmmsg(self, messages: Sequence[Datagram], flags: int = 0) -> int:
        """Send datagrams, at most `UIO_MAXIOV`, in one call; how many were sent.

        That is fewer than were given if one of them fails; the call raises only if the first one does.
        """
        if self.type != SOCK_DGRAM:
            raise failure(errno.EOPNOTSUPP)
        if flags & ~HONOURED:
            raise failure(errno.EOPNOTSUPP)
        sockaddr = self._sockaddr
        batch: list[tuple[bytes, SockAddr | None]] = []
        named, addr = None, None
        for data, address in messages[:UIO_MAXIOV]:
            if address is not named:
                named, addr = address, None if address is None else sockaddr(address)
            batch.append((bytes(data), addr))
        self._enter()
        try:
            return int(self._sock.send_many(batch))
        finally:
            self._leave()

    def recvmmsg(self, vlen: int, bufsize: int, flags: int = 0) -> list[tuple[bytes, Address]]:
        """Receive `vlen` datagrams, each cut to `bufsize` bytes, in one call: pairs of data and sender.

        Blocks until all have come; with MSG_WAITFORONE until one has, and then takes what else is there. A socket's timeout is for
        the first datagram (TimeoutError) and ends the wait for more; so does an error, which is the next call's.
        """
        if self.type != SOCK_DGRAM:
            raise failure(errno.EOPNOTSUPP)
        limit = min(vlen, UIO_MAXIOV)
        wait_for_all = not flags & MSG_WAITFORONE
        got: list[tuple[bytes, SockAddr]] = []
        now = self._enter()
        try:
            sock = self._sock
            deadline: float | None = None
            while True:
                if not got:
                    sock.raise_error()
                got += sock.receive_many(limit - len(got))
                if len(got) >= limit or (got and (not wait_for_all or sock.error or flags & MSG_DONTWAIT or self._timeout == 0.0)):
                    break
                deadline = self._deadline(now, flags & ~MSG_WAITFORONE) if deadline is None else deadline
                if not self._wait(deadline) and not sock.readable:
                    if got:
                        break
                    raise timed_out()
        finally:
            self._leave()
        address = self._address
        return [(data[:bufsize], address(sender)) for data, sender in got]

    def _address(self, sender: SockAddr) -> Address:
        """A sender as programs are told of it. Many datagrams in a row have the same one."""
        heard = self._heard
        if heard is not None and heard[0] is sender:
            return heard[1]
        address = format_ip(sender.ip), sender.port
        self._heard = sender, address
        return address

    def _sockaddr(self, address: Any) -> SockAddr:
        """What a program's address means. A numeric one is looked up once: programs name the same one again and again."""
        named = self._named
        if named is not None and named[0] == address:
            return named[1]
        if not isinstance(address, tuple) or len(address) != 2:
            raise TypeError(f"AF_INET address must be a pair (host, port), not {address!r}")
        host, port = address
        if not 0 <= port <= 65535:
            raise OverflowError("port must be 0-65535.")
        addr = SockAddr(self._owner.resolve(host), port)
        if host == format_ip(addr.ip):
            self._named = address, addr
        return addr
