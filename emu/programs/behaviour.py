"""Misbehaviour on demand: the annotation `podwire.dev/behaviour`, as a handler around another handler.

Decides what each word (`model.behaviour`) does to a server: `refuse` (its ports stay closed), `close` (every connection is closed at once),
`blackhole` (accepts, reads, never answers, as a hung process does), `delay=3s` (answers late), `status=500` (HTTP only).
"""

from __future__ import annotations

from collections.abc import Callable

from emu.model.behaviour import ANNOTATION, Behaviour
from emu.pod.blocking import Address
from emu.pod.program import Connection, Context, DatagramPort, Handler
from emu.programs.http import REASONS, HttpServer, Request, Respond, text


def behave(program: Handler, behaviour: Behaviour) -> Handler:
    """The program, behaving so; ValueError if it cannot."""
    if behaviour.status and not isinstance(program, HttpServer):
        raise ValueError(f"{ANNOTATION}: status={behaviour.status} needs an HTTP server, which {type(program).__name__} is not")
    return program if behaviour == Behaviour() else Behaving(program, behaviour)


class Behaving(Handler):
    """A handler seen through a behaviour."""

    def __init__(self, program: Handler, behaviour: Behaviour) -> None:
        self._program, self._behaviour = program, behaviour
        if behaviour.status and isinstance(program, HttpServer):
            program.serve = self._fail  # type: ignore[method-assign]

    def _fail(self, ctx: Context, request: Request, respond: Respond) -> None:
        status = self._behaviour.status
        respond(text(f"{status} {REASONS.get(status, '')}\n", status))

    def _later(self, ctx: Context, event: Callable[[], None]) -> None:
        if self._behaviour.delay:
            ctx.call_later(self._behaviour.delay, event)
        else:
            event()

    def on_start(self, ctx: Context) -> None:
        if not self._behaviour.refuse:
            self._program.on_start(ctx)

    def on_service_ports(self, ctx: Context, ports: frozenset[tuple[str, int]]) -> None:
        if not self._behaviour.refuse:
            self._program.on_service_ports(ctx, ports)

    def on_connect(self, ctx: Context, conn: Connection) -> None:
        if self._behaviour.close:
            conn.close()
        else:
            self._program.on_connect(ctx, conn)

    def on_data(self, ctx: Context, conn: Connection, data: bytes) -> None:
        if not self._behaviour.blackhole:
            self._later(ctx, lambda: self._program.on_data(ctx, conn, data))

    def on_eof(self, ctx: Context, conn: Connection) -> None:
        if not self._behaviour.blackhole:
            self._later(ctx, lambda: self._program.on_eof(ctx, conn))

    def on_close(self, ctx: Context, conn: Connection) -> None:
        self._program.on_close(ctx, conn)

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Address) -> None:
        if not (self._behaviour.blackhole or self._behaviour.close):
            self._later(ctx, lambda: self._program.on_datagram(ctx, port, data, address))

    def on_terminate(self, ctx: Context) -> None:
        self._program.on_terminate(ctx)
