"""An API server in this process, for clients that need a real socket: a thread with its own event loop, and nodes that are fakes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from emu.api import http
from emu.api.handler import Api
from emu.errors import ApiError
from emu.registry.bootstrap import bootstrap
from emu.registry.registry import Registry, RegistryConfig
from emu.store.store import Store


def wall_clock() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def registry(now: str | None = "2026-01-02T03:04:05Z", **config: Any) -> Registry:
    """A registry over an empty in-memory cluster, with a clock that stands still (or the machine's, for None)."""
    made = Registry(Store(), RegistryConfig(**config), wall_clock if now is None else lambda: now)
    bootstrap(made)
    return made


class FakeStream:
    """A program on a node: echoes stdin, or says what it was asked; `exit N` ends with N."""

    def __init__(self, method: str, params: dict[str, Any]) -> None:
        self.method, self.params, self.inputs = method, params, asyncio.Queue[dict[str, Any]]()

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        if self.method == "logs":
            yield {"stdout": b"first line\n"}
            yield {"stdout": b"second line\n", "exit": 0}
            return
        command = self.params["command"]
        if command[0] == "cat":
            while "stdin_eof" not in (data := await self.inputs.get()):
                yield {"stdout": data["stdin"]}
        elif command[0] == "exit":
            yield {"stderr": b"leaving\n"}
            yield {"exit": int(command[1])}
            return
        elif command[0] == "silent":
            raise ApiError(504, "Timeout", "node node-1 does not answer")
        else:
            yield {"stdout": " ".join(command).encode() + b"\n"}
        yield {"exit": 0}

    async def send(self, data: dict[str, Any]) -> None:
        await self.inputs.put(data)

    async def close(self) -> None:
        pass


class FakeCalls:
    """NodeCalls without nodes."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []

    async def call(self, node: str, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        return {"node": node, "method": method, "params": params}

    def stream(self, node: str, method: str, params: dict[str, Any]) -> FakeStream:
        return FakeStream(method, params)

    async def trace(self, params: dict[str, Any]) -> dict[str, Any]:
        return {"outcome": "delivered", "asked": params}

    async def fault(self, node: str, state: str) -> dict[str, Any]:
        self.faults.append((node, state))
        return {"ok": True}

    def publications(self) -> list[dict[str, Any]]:
        return []

    def fault_counters(self) -> dict[str, dict[str, int]]:
        return {}

    def status(self) -> dict[str, Any]:
        return {"name": "test"}


class ApiServer:
    """What a test sees of the thread: the URL, and a way to run code where the store is written."""

    def __init__(self) -> None:
        self.registry = registry(now=None)
        self.store = self.registry.store
        self.calls = FakeCalls()
        self.url = ""
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        serving = await http.serve(http.app(Api(self.registry), self.calls))
        self.url = serving.url
        self._ready.set()
        await self._stop.wait()
        await serving.stop()

    def run(self, act: Any) -> Any:
        """Call `act` in the server's thread and return what it returns."""

        async def there() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(there(), self._loop).result(5)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[ApiServer]:
        server = cls()
        thread = threading.Thread(target=lambda: asyncio.run(server._serve()), daemon=True)
        thread.start()
        assert server._ready.wait(10)
        try:
            yield server
            server.run(server.store.check)
        finally:
            server._loop.call_soon_threadsafe(server._stop.set)
            thread.join(10)
            assert not thread.is_alive()
