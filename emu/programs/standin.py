"""The stand-in for an image that we do not have: it answers on every port that anybody expects of it.

Decides which ports are opened (the declared ones; those that Services want, as they come), and what is answered: HTTP to what
looks like HTTP, an echo to everything else over TCP and to every datagram.
"""

from __future__ import annotations

import errno

from emu.pod.blocking import Address
from emu.pod.program import Connection, Context, DatagramPort
from emu.programs.http import HttpServer, Request, Respond, text

METHODS = tuple(f"{method} ".encode() for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE"))
Ports = frozenset[tuple[str, int]]


class StandIn(HttpServer):
    """Answers in place of `image` on `declared` ports, ("TCP", 80) and so on, and on those that Services ask for."""

    def __init__(self, image: str, declared: Ports) -> None:
        self.image, self._declared = image, declared
        self._wanted: Ports = frozenset()
        self._open: set[tuple[str, int]] = set()
        self._started = False

    def on_start(self, ctx: Context) -> None:
        self._started = True
        for protocol, port in sorted(self._declared):
            self._listen(ctx, protocol, port)
        self.on_service_ports(ctx, self._wanted)
        ports = ", ".join(f"{port}/{protocol}" for protocol, port in sorted(self._open))
        ctx.log(f"stand-in for {self.image}: listening on {ports or 'nothing'}")

    def on_service_ports(self, ctx: Context, ports: Ports) -> None:
        self._wanted = ports
        if not self._started:
            return
        for protocol, port in sorted(ports - self._open):
            try:
                self._listen(ctx, protocol, port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                ctx.log(f"port {port}/{protocol}, wanted by a Service, is taken")  # by another container of the pod, which is as well

    def _listen(self, ctx: Context, protocol: str, port: int) -> None:
        if protocol == "TCP":
            ctx.listen_tcp(port)
        elif protocol == "UDP":
            ctx.listen_udp(port)
        else:
            return
        self._open.add((protocol, port))

    def on_connect(self, ctx: Context, conn: Connection) -> None:
        """What the client speaks shows with its first bytes."""

    def on_data(self, ctx: Context, conn: Connection, data: bytes) -> None:
        if conn.state is None:
            if data.startswith(METHODS):
                super().on_connect(ctx, conn)
            else:
                conn.state = "echo"
        if conn.state == "echo":
            conn.send(data)
        else:
            super().on_data(ctx, conn, data)

    def on_eof(self, ctx: Context, conn: Connection) -> None:
        if conn.state in (None, "echo"):
            conn.close()
        else:
            super().on_eof(ctx, conn)

    def serve(self, ctx: Context, request: Request, respond: Respond) -> None:
        pod = ctx.pod
        if request.path in ("/hostname", "/hostName"):
            respond(text(ctx.gethostname()))
            return
        lines = [
            f"Hostname: {ctx.gethostname()}",
            f"Pod: {pod.namespace}/{pod.name} at {pod.ip} on {pod.node}",
            f"Image: {self.image} (stand-in)",
            f"Client: {request.client[0]}:{request.client[1]}",
            f"{request.method} {request.target} HTTP/1.1",
            *(f"{name.title()}: {value}" for name, value in request.headers),
        ]
        respond(text("\n".join(lines) + "\n"))

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Address) -> None:
        port.send_to(data, address)
