"""`agnhost`: the subcommands of Kubernetes' test image that network tests use, as an image and as a command for `exec`.

Decides which exist: `netexec`, `pause`, `connect`, `serve-hostname`. Another one fails as a wrong subcommand does, by name.
"""

from __future__ import annotations

import socket as std
from collections.abc import Sequence

from emu.pod.blocking import Address
from emu.pod.program import Connection, Context, DatagramPort, Program
from emu.programs.echo import Idle
from emu.programs.flags import FlagError, Value, parse_flags
from emu.programs.http import HttpServer, Request, Respond, text
from emu.programs.netexec import NetExec, go_duration

CONNECT_FLAGS: dict[str, Value] = {"timeout": "0", "protocol": "tcp", "udp-data": ""}


def agnhost(args: Sequence[str]) -> Program:
    """The program of an agnhost command line, without `agnhost` itself; without any, it pauses, as the image does."""
    name, rest = (args[0], tuple(args[1:])) if args else ("pause", ())
    if name == "netexec":
        return NetExec(rest)
    if name == "pause":
        return Idle()
    if name == "connect":
        return lambda ctx: connect(ctx, rest)
    if name == "serve-hostname":
        return ServeHostname(rest)
    return lambda ctx: _unknown(ctx, name)


def _unknown(ctx: Context, name: str) -> int:
    ctx.log(f'Error: unknown command "{name}" for "app" (Podwire has: netexec, pause, connect, serve-hostname)')
    return 1


def connect(ctx: Context, argv: Sequence[str]) -> int:
    """`agnhost connect HOST:PORT [--timeout=3s] [--protocol=tcp|udp]`: 0, or 1 and one word that says what went wrong."""
    targets: list[str] = []
    try:
        flags = parse_flags(argv, CONNECT_FLAGS, targets)
        timeout = go_duration(str(flags["timeout"])) or None
    except (FlagError, ValueError) as error:
        ctx.log(f"Error: {error}")
        return 1
    if len(targets) != 1 or flags["protocol"] not in ("tcp", "udp"):
        ctx.log("OTHER: only HOST:PORT over tcp or udp")
        return 1
    host, _, port = targets[0].rpartition(":")
    try:
        address = ctx.getaddrinfo(host, port)[0][4]
    except std.gaierror as error:
        ctx.log(f"DNS: {error.strerror}")
        return 1
    try:
        if flags["protocol"] == "udp":
            _ask_udp(ctx, address, str(flags["udp-data"]), timeout)
        else:
            ctx.create_connection(address, timeout).close()
    except TimeoutError:
        ctx.log("TIMEOUT")
    except ConnectionRefusedError:
        ctx.log("REFUSED")
    except OSError as error:
        ctx.log(f"OTHER: {error.strerror}")
    else:
        return 0
    return 1


def _ask_udp(ctx: Context, address: Address, data: str, timeout: float | None) -> None:
    with ctx.socket(type=std.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect(address)
        sock.send(data.encode() or b"hostname\n")
        sock.recv(1024)


class ServeHostname(HttpServer):
    """`agnhost serve-hostname [--http=true] [--tcp] [--udp] [--port 9376]`: the hostname, by HTTP, raw TCP or UDP."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self._argv = tuple(f"{flag}=true" if flag in ("--tcp", "--udp", "--http", "--close") else flag for flag in argv)
        self._http = True

    def on_start(self, ctx: Context) -> None:
        try:
            flags = parse_flags(self._argv, {"http": "true", "tcp": "false", "udp": "false", "close": "false", "port": 9376})
        except FlagError as error:
            ctx.log(f"Error: {error}")
            ctx.exit(1)
            return
        self._http = flags["tcp"] != "true" and flags["udp"] != "true"
        if flags["udp"] == "true":
            ctx.listen_udp(int(flags["port"]))
        if self._http or flags["tcp"] == "true":
            ctx.listen_tcp(int(flags["port"]))

    def on_connect(self, ctx: Context, conn: Connection) -> None:
        if self._http:
            super().on_connect(ctx, conn)
        else:
            conn.send(ctx.gethostname().encode() + b"\n")
            conn.close()

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Address) -> None:
        port.send_to(ctx.gethostname().encode() + b"\n", address)

    def serve(self, ctx: Context, request: Request, respond: Respond) -> None:
        respond(text(ctx.gethostname()))
