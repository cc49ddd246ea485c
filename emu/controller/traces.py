"""Traces: has the probe sent, gathers its hops from all nodes, and says what became of it. Runs in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from emu.controller.calls import Calls
from emu.controller.resolve import source, target
from emu.errors import ApiError
from emu.observe.assembly import Assembly
from emu.store.store import Store
from emu.trace import REPLY, Hop

DEADLINE = 4.0  # seconds for the probe: a neighbour that is not there takes 3 to be known for it
STRAGGLERS = 1.0  # seconds that hops may come after the probe's result
MAX_DEADLINE = 60.0


class Traces:
    """The traces under way."""

    def __init__(self, store: Store, calls: Calls) -> None:
        self._store, self._calls = store, calls
        self._open: dict[int, tuple[Assembly, asyncio.Event]] = {}
        self._next = 2
        self.late = 0  # hops of traces that are over

    def on_hop(self, hop: Hop) -> None:
        """A node has reported a hop."""
        found = self._open.get(hop.trace & ~REPLY)
        if found is None:
            self.late += 1
            return
        assembly, news = found
        assembly.add(hop)
        news.set()

    async def trace(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """`{"from", "to", "port", "proto", "namespace", "timeout"}` to the trace's JSON; ApiError if it cannot be started."""
        namespace = str(params.get("namespace") or "default")
        start = source(self._store, _text(params, "from"), namespace)
        goal = target(self._store, _text(params, "to"), namespace, params.get("port"), params.get("proto") or None)
        deadline = _deadline(params.get("timeout"))
        number, self._next = self._next, (self._next + 2) & 0xFFFFFFFE or 2
        assembly = Assembly(number, start.node, self._node_addresses(), goal.proto)
        news = asyncio.Event()
        self._open[number] = (assembly, news)
        probe = {"id": number, "netns": start.netns, "dst": goal.ip, "dport": goal.port, "proto": goal.proto, "deadline": deadline}
        try:
            answer = await self._calls.call(start.node, "trace", probe, deadline + STRAGGLERS)
            assembly.result = str(answer.get("result", "silent"))
            await _until_complete(assembly, news)
        finally:
            del self._open[number]
            for node in assembly.seen_nodes():
                self._calls.tell(node, "forget", {"id": number})
        asked = {
            "from": start.netns if start.netns != "node" else f"node/{start.node}",
            "to": goal.ip,
            "port": goal.port,
            "proto": goal.proto,
        }
        return {**asked, "result": assembly.result, **assembly.report()}

    def _node_addresses(self) -> dict[str, str]:
        return {
            address["address"]: node["metadata"]["name"]
            for node in self._store.list("nodes")[0]
            for address in (node.get("status") or {}).get("addresses") or ()
        }


async def _until_complete(assembly: Assembly, news: asyncio.Event) -> None:
    """Wait for hops that are still on their way, or for the time after which they are lost."""
    try:
        async with asyncio.timeout(STRAGGLERS):
            while not assembly.complete:
                news.clear()
                await news.wait()
    except TimeoutError:
        return


def _text(params: Mapping[str, Any], key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str) or not value:
        raise ApiError(400, "BadRequest", f"{key}: must be given, such as pod/default/web-0")
    return value


def _deadline(value: Any) -> float:
    if value is None:
        return DEADLINE
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_DEADLINE:
        raise ApiError(400, "BadRequest", f"timeout: {value!r} is not a number of seconds up to {MAX_DEADLINE:g}")
    return float(value)
