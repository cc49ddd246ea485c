"""ICMP echo for blocking programs (`ping`). Decides waiting only; see Linux's `net.ipv4.ping_group_range` sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from emu.pod.errors import ContainerKilled
from emu.stack.sockets import PingSocket as StackPing
from emu.stack.sockets import Waiter
from emu.wire.addr import format_ip

if TYPE_CHECKING:
    from emu.pod.process import Process

Reply = tuple[int, int, int, bytes, str, int]
"""ICMP type, code, echo sequence number, payload (empty for an error), sender, TTL left of the answer."""


class PingSocket:
    """Echo requests out, replies and ICMP errors in; close it, or use it as a context manager."""

    def __init__(self, process: Process) -> None:
        self._process = process
        process.kernel.enter()
        try:
            self._sock = StackPing(process.ns)
            process.held.add(self._sock)
        finally:
            process.kernel.leave()

    def send_echo(self, host: str, seq: int, payload: bytes = b"", ttl: int = 64) -> None:
        """Send one echo request; OSError ENETUNREACH without a route."""
        dst = self._process.resolve(host)
        self._process.check()
        self._process.kernel.enter()
        try:
            self._sock.send_echo(dst, seq, payload, ttl)
        finally:
            self._process.kernel.leave()

    def receive(self, deadline: float | None = None) -> Reply | None:
        """The next reply or error, or None once `deadline` (on `ctx.now()`'s clock) is past. A stop request ends the wait too."""
        process = self._process
        process.kernel.enter()
        try:
            while True:
                if process.killed:
                    raise ContainerKilled
                got = self._sock.receive()
                if got is not None:
                    return got.kind, got.code, got.seq, got.payload, format_ip(got.sender), got.ttl
                waiter = Waiter()
                self._sock.waiters.append(waiter)
                try:
                    if not process.wait(waiter, deadline):
                        return None
                finally:
                    self._sock.waiters.remove(waiter)
        finally:
            process.kernel.leave()

    def close(self) -> None:
        self._process.kernel.enter()
        try:
            self._sock.close()
            self._process.held.discard(self._sock)
        finally:
            self._process.kernel.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
