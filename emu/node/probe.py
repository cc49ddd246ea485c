"""The probe of a trace: one real packet that carries a trace id, and whatever answers it.

Decides what is sent (a SYN, a datagram, an echo request), what counts as an answer, and that nothing of it stays: the
connection is reset the moment it is answered, and the sockets are closed. What the packet met on its way is told by its hops.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from emu.pod.kernel import Kernel
from emu.stack.icmp import ECHO_REPLY
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import PingSocket, Socket, UdpSocket
from emu.stack.softnet import INFINITY
from emu.stack.tcp_sockets import TcpSocket
from emu.wire.addr import SockAddr

PAYLOAD = b"podwire trace probe\n"
UDP_PATIENCE = 0.3  # seconds; a datagram need not be answered, so silence after delivery is no failure


class Probe:
    """One probe. Made, and called back by socket and timer, under the node's lock; `done` is called once, with the result:
    connected, answered, refused, unreachable, silent, or the name of another errno."""

    def __init__(
        self, kernel: Kernel, ns: NetNamespace, proto: str, to: SockAddr, trace: int, deadline: float, done: Callable[[str], None]
    ) -> None:
        self._kernel, self._ns, self._done = kernel, ns, done
        self.armed = INFINITY
        self._deadline = deadline
        self._sock: Socket | None = None
        start = {"tcp": self._tcp, "udp": self._udp, "icmp": self._icmp}[proto]
        try:
            self._sock = start(to, trace)
        except OSError as error:
            self._finish(_result(error.errno or 0))
            return
        self._sock.on_event = self._on_event
        ns.softnet.arm(self, self._deadline)
        if self._sock.error:
            self._settle(self._sock)

    def _tcp(self, to: SockAddr, trace: int) -> Socket:
        sock = TcpSocket(self._ns)
        sock.probe = True
        sock.connect(to, trace)
        return sock

    def _udp(self, to: SockAddr, trace: int) -> Socket:
        sock = UdpSocket(self._ns)
        sock.connect(to)
        sock.send_to(PAYLOAD, to, trace)
        self._deadline = min(self._deadline, self._ns.softnet.now + UDP_PATIENCE)
        return sock

    def _icmp(self, to: SockAddr, trace: int) -> Socket:
        sock = PingSocket(self._ns)
        sock.send_echo(to.ip, 1, PAYLOAD, trace=trace)
        return sock

    def _on_event(self, sock: Socket) -> None:
        """Something has come back; handlers run without the lock."""
        self._kernel.enter()
        try:
            self._settle(sock)
        finally:
            self._kernel.leave()

    def _settle(self, sock: Socket) -> None:
        if isinstance(sock, PingSocket):
            echo = sock.receive()
            if echo is not None:
                self._finish("answered" if echo.kind == ECHO_REPLY else "unreachable")
        elif isinstance(sock, TcpSocket) and sock.answered:
            self._finish("connected")
        elif sock.error:
            self._finish(_result(sock.take_error()))
        elif isinstance(sock, TcpSocket):
            return  # still under way
        else:
            self._finish("answered")

    def poll_at(self) -> float:
        return self._deadline

    def on_timer(self, now: float) -> None:
        self._finish("silent")

    @property
    def running(self) -> bool:
        """Is an answer still waited for?"""
        return self._sock is not None

    def cancel(self) -> None:
        """Nobody waits for the answer any more: send nothing further."""
        self._kernel.enter()
        try:
            self._finish("cancelled")
        finally:
            self._kernel.leave()

    def _finish(self, result: str) -> None:
        if self._deadline == INFINITY and self._sock is None:
            return
        self._deadline = INFINITY
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.on_event = None
            if isinstance(sock, TcpSocket):
                sock.abort()
            else:
                sock.close()
        self._done(result)


def _result(number: int) -> str:
    names = {errno.ECONNREFUSED: "refused", errno.EHOSTUNREACH: "unreachable", errno.ENETUNREACH: "unreachable"}
    return names.get(number, errno.errorcode.get(number, "failed"))
