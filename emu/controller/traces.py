"""Traces: has the probe sent, gathers its hops from all nodes, and says what became of it. Runs in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from emu.controller.calls import Calls
from emu.controller.resolve import source, target
from emu.errors import ApiError
from emu.observe.assembly import SILENT, Assembly
from emu.store.store import Store
from emu.trace import REPLY, Hop

DEADLINE = 4.0  # seconds for the probe: a neighbour that is not there takes 3 to be known for it
STRAGGLERS = 1.0  # seconds that hops may come after the probe's result
QUIET = 0.5  # seconds without news after which a packet known to be dropped is believed to stay unanswered
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
        if ":" in goal.ip:
            raise ApiError(400, "BadRequest", f"to: {goal.ip} is IPv6, for which pods and nodes have no sockets yet")
        deadline = _deadline(params.get("timeout"))
        number, self._next = self._next, (self._next + 2) & 0xFFFFFFFE or 2
        assembly = Assembly(number, start.node, self._node_addresses(), goal.proto)
        news = asyncio.Event()
        self._open[number] = (assembly, news)
        probe = {"id": number, "netns": start.netns, "dst": goal.ip, "dport": goal.port, "proto": goal.proto, "deadline": deadline}
        call = asyncio.ensure_future(self._calls.call(start.node, "trace", probe, deadline + STRAGGLERS))
        try:
            assembly.result = await _result(call, assembly, news)
            await _until_complete(assembly, news)
        finally:
            del self._open[number]
            self._forget(number, assembly.seen_nodes())
            if call.cancelled():  # the probe may go on sending until its own deadline
                asyncio.get_running_loop().call_later(deadline, self._forget, number, assembly.seen_nodes())
            call.cancel()
        asked = {
            "from": start.netns if start.netns != "node" else f"node/{start.node}",
            "to": goal.ip,
            "port": goal.port,
            "proto": goal.proto,
        }
        return {**asked, "result": assembly.result, **assembly.report()}

    def _forget(self, number: int, nodes: set[str]) -> None:
        """Have the probe's conntrack entries removed."""
        for node in nodes:
            self._calls.tell(node, "forget", {"id": number})

    def _node_addresses(self) -> dict[str, str]:
        return {
            address["address"]: node["metadata"]["name"]
            for node in self._store.list("nodes")[0]
            for address in (node.get("status") or {}).get("addresses") or ()
        }


async def _result(call: asyncio.Future[dict[str, Any]], assembly: Assembly, news: asyncio.Event) -> str:
    """What the probe says became of it; its silence is taken for granted once the packet is known to have been dropped."""
    while True:
        news.clear()
        waiter = asyncio.ensure_future(news.wait())
        either: set[asyncio.Future[Any]] = {call, waiter}
        done, _ = await asyncio.wait(either, timeout=QUIET if assembly.hopeless else None, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if call in done:
            return str(call.result().get("result", SILENT))
        if not done:
            call.cancel()
            await asyncio.wait({call})
            return SILENT


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
