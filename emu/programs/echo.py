"""The plainest servers: TCP and UDP echo (RFC 862), and the program that only waits. Handlers, so they need no thread."""

from __future__ import annotations

from emu.pod.blocking import Address
from emu.pod.program import Connection, Context, DatagramPort, Handler


class Echo(Handler):
    """Sends back what comes, on the given ports; port 7 without any."""

    def __init__(self, tcp: tuple[int, ...] = (7,), udp: tuple[int, ...] = ()) -> None:
        self._tcp, self._udp = tcp, udp

    def on_start(self, ctx: Context) -> None:
        for port in self._tcp:
            ctx.listen_tcp(port)
        for port in self._udp:
            ctx.listen_udp(port)

    def on_data(self, ctx: Context, conn: Connection, data: bytes) -> None:
        conn.send(data)

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Address) -> None:
        port.send_to(data, address)


class Idle(Handler):
    """Waits for its end, as the pause image does."""


class Done(Handler):
    """Ends well at once: what an init container of an unknown image does."""

    def on_start(self, ctx: Context) -> None:
        ctx.exit(0)
