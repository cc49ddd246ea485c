"""kube-proxy's health-check node ports: an HTTP server for each Service that has one, in the node's own network namespace.

Decides when ports open and close, and what is said of one that cannot be opened. What is answered is `emu.proxy.health`'s.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from emu.bus.messages import unpack
from emu.pod.kernel import Kernel
from emu.pod.process import Process
from emu.pod.program import Context, PodInfo
from emu.programs.http import HttpServer, Request, Respond, Response
from emu.proxy.health import FIELD, HealthCheck, health_check
from emu.stack.namespace import NetNamespace


class _Server(HttpServer):
    """Answers for one Service, on every address that answers node ports."""

    def __init__(self, check: HealthCheck, addresses: Sequence[str]) -> None:
        self.check, self._addresses = check, addresses
        self.error: OSError | None = None

    def on_start(self, ctx: Context) -> None:
        try:
            for address in self._addresses:
                ctx.listen_tcp(self.check.port, address)
        except OSError as error:
            self.error = error
            ctx.exit(1)

    def serve(self, ctx: Context, request: Request, respond: Respond) -> None:
        check = self.check
        respond(Response(check.status, check.body, check.headers))


class HealthPorts:
    """The health-check node ports of one node. No method may be called under the node's lock."""

    def __init__(
        self, kernel: Kernel, node: NetNamespace, info: PodInfo, addresses: Sequence[str], warn: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        """`info` is who serves; `addresses` are where, "0.0.0.0" for everywhere; `warn` takes an Event for the controller."""
        self._kernel, self._node, self._info, self._addresses, self._warn = kernel, node, info, addresses, warn
        self._wanted: dict[str, HealthCheck] = {}
        self._open: dict[str, tuple[_Server, Process]] = {}
        self._changed = False

    def on_services(self, changes: Iterable[tuple[str, bytes | None]]) -> None:
        """Changed Services, packed as the `services` stream has them, None for one that is gone."""
        for key, packed in changes:
            check = health_check(unpack(packed), self._info.node) if packed is not None and FIELD in packed else None
            if check != self._wanted.get(key):
                self._changed = True
                if check is None:
                    del self._wanted[key]
                else:
                    self._wanted[key] = check

    def sync(self) -> None:
        """Open, close and update ports after what has been heard; one that could not be opened is tried again."""
        if not self._changed and len(self._open) == len(self._wanted):
            return
        self._changed = False
        for key, (server, _) in list(self._open.items()):
            check = self._wanted.get(key)
            if check is None or check.port != server.check.port:
                self._close(key)
            else:
                server.check = check
        for key, check in self._wanted.items():
            if key not in self._open:
                self._listen(key, check)

    def close(self) -> None:
        """The proxy has ended, and its sockets with it."""
        for key in list(self._open):
            self._close(key)
        self._wanted.clear()

    def _listen(self, key: str, check: HealthCheck) -> None:
        server = _Server(check, self._addresses)
        process = Process(
            self._kernel, self._node, self._info, server, name=f"kube-proxy/{key}",
            output=lambda _, data: _log(data), on_exit=lambda _: None,
        )  # fmt: skip
        process.start()
        if server.error is None:
            self._open[key] = (server, process)
            return
        why = f"listen tcp {self._addresses[0]}:{check.port}: {os.strerror(server.error.errno or 0)}"
        message = f'node {self._info.node} failed to start healthcheck "{key}" on port {check.port}: {why}'
        about = {"kind": "Service", "namespace": check.namespace, "name": check.name, "uid": key}
        self._warn({"object": about, "type": "Warning", "reason": "FailedToStartServiceHealthcheck", "message": message})

    def _close(self, key: str) -> None:
        _, process = self._open.pop(key)
        process.finish(0)


def _log(data: bytes) -> None:
    """What a server says when it fails: into the node's own log."""
    sys.stderr.write(data.decode(errors="replace"))
