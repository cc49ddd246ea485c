"""The controller process: `run` is what the launcher calls. Owns the event loop, the bus's sockets, the store's file and the end.

Ends cleanly on SIGTERM, and when the life pipe does (its supervisor is gone). RUN/api.json appears, whole, once requests are
answered; RUN/store.db outlives the process, so a restarted controller has lost nothing.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emu.api.handler import Api
from emu.api.http import app, serve
from emu.bus.broadcast import ControllerBus
from emu.controller.plane import ControlPlane
from emu.errors import ApiError, PodwireError
from emu.model.cluster import ClusterSpec
from emu.registry.bootstrap import bootstrap
from emu.registry.registry import Registry, RegistryConfig
from emu.store.store import Store

PUBLISH_PERIOD_A_NODE, LONGEST_PUBLISH_PERIOD = 1e-4, 0.05  # seconds: what a broadcast costs grows with those who hear it
STORM_PERIOD_A_NODE = 1e-3  # seconds, while changes keep coming: hearing and answering is most of a millisecond of CPU a node
FAULT_PATIENCE = 15.0  # seconds for the supervisor: a node that is started again says hello first


def run(spec: ClusterSpec, life_fd: int) -> None:
    """Be the controller of the cluster until SIGTERM or the end of the life pipe. SystemExit with a sentence if it cannot be."""
    try:
        asyncio.run(Process(spec).main(life_fd))
    except PodwireError as error:
        sys.exit(str(error))


class Process(ControlPlane):
    """The control plane with its sockets, its file and the wall clock."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._run_dir = Path(spec.run_dir)
        self._store_file = Store(str(self._run_dir / "store.db"))
        registry = Registry(self._store_file, RegistryConfig.of(spec), timestamp)
        bootstrap(registry)
        bus = ControllerBus(f"ipc://{self._run_dir / 'bus.pub'}", f"ipc://{self._run_dir / 'bus.ctl'}", self._store_file.revision)
        period = min(PUBLISH_PERIOD_A_NODE * len(spec.nodes), LONGEST_PUBLISH_PERIOD)
        storm = STORM_PERIOD_A_NODE * len(spec.nodes)
        super().__init__(spec, registry, bus, time.monotonic, on_error=_log, publish_period=period, storm_period=storm)
        self._wake = asyncio.Event()
        self._stopping = False

    async def main(self, life_fd: int) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        if life_fd >= 0:
            loop.add_reader(life_fd, self._life_ended, life_fd)
        self.runner.on_work = self._wake.set
        self.store.subscribe(lambda changes: self._wake.set())  # what no controller acts on may still have to be broadcast
        self.link.on_arrival(self._arrived)
        serving = await serve(app(Api(self.registry), self), port=self.spec.api_port)
        self.url = serving.url
        self._publish_url()
        gc.freeze()  # schemas and code never die: let the collector not walk them
        try:
            await self._turn_until_stopped()
        finally:
            await serving.stop()
            self.link.close()
            self._store_file.close()

    def _publish_url(self) -> None:
        path = self._run_dir / "api.json"
        try:
            _write_whole(path, json.dumps({"url": self.url, "pid": os.getpid()}))
        except OSError as error:
            raise PodwireError(f"cannot write {path}: {error.strerror}; clients would not find the API") from error

    async def _turn_until_stopped(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._stopping:
            self._wake.clear()
            wait = self.turn()
            if wait <= 0:
                await asyncio.sleep(0)  # requests and reports take their turns in between
                continue
            timer = loop.call_later(wait, self._wake.set)
            await self._wake.wait()
            timer.cancel()

    def _arrived(self) -> None:
        """Most of what arrives are leases, which leave nothing to do; what is written, and a controller that has work, wake the loop."""
        self.receive()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def _life_ended(self, life_fd: int) -> None:
        if not os.read(life_fd, 1):
            asyncio.get_running_loop().remove_reader(life_fd)
            self.stop()

    async def fault(self, node: str, state: str) -> dict[str, Any]:
        """Ask the supervisor, who alone may signal and start processes."""
        try:
            async with asyncio.timeout(FAULT_PATIENCE):
                reader, writer = await asyncio.open_unix_connection(str(self._run_dir / "supervisor.sock"))
                try:
                    writer.write(json.dumps({"node": node, "state": state}).encode() + b"\n")
                    line = await reader.readline()
                finally:
                    writer.close()
        except TimeoutError:
            raise ApiError(504, "Timeout", f"the supervisor did not bring {node} to {state!r} within {FAULT_PATIENCE:g} s") from None
        except OSError as error:
            raise ApiError(503, "ServiceUnavailable", f"the supervisor is not there: {error.strerror}") from None
        answer: dict[str, Any] = json.loads(line) if line else {"ok": False, "message": "the supervisor went away"}
        if not answer.pop("ok", False):
            raise ApiError(409, "Conflict", str(answer.get("message", "the supervisor refused")))
        return {"node": node, "state": state, **answer}


def timestamp() -> str:
    """Now, as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _log(controller: str, key: str, error: Exception) -> None:
    told = f"{error.code} {error.message}" if isinstance(error, ApiError) else "".join(traceback.format_exception(error))
    sys.stderr.write(f"{controller} {key}: {told}\n")
    sys.stderr.flush()


def _write_whole(path: Path, text: str) -> None:
    """A reader finds the old content or the new, never a part."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)
