"""Captures: has nodes listen at their devices, puts what they see in order of time, and makes one pcapng stream of it.

Decides which devices a request means, numbers them, and how the stream ends: by count, by time, or because its reader is gone.
A node that dies or was never there is told in the stream (a comment of a statistics or section block) and the others go on;
only a request whose every node refuses is refused. Backpressure is the nodes': a batch that nobody has taken holds up the next, and
what finds no place there is counted (`node.capture`). Runs in the event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from emu import __version__
from emu.controller.calls import Calls, CallStream, silent
from emu.controller.resolve import source
from emu.errors import ApiError
from emu.observe import pcapng
from emu.observe.filter_words import FilterError
from emu.observe.packet_filter import Filter
from emu.store.store import Store

HOLD = 0.25  # seconds a packet waits for earlier ones of other nodes; what comes later than that is out of order in the file
TELL_EVERY = 0.5  # seconds between statistics in the stream
PATIENCE = 3.0  # seconds for a node to begin
STAY_EVERY = 10.0  # seconds between signs to nodes that somebody listens still (`node.capture.PATIENCE`)
GOODBYE = 2.0  # seconds for nodes to send what is left when the time is up
SNAPLEN = 262_144
FIELDS = frozenset(("node", "pod", "link", "namespace", "device", "filter", "snaplen", "count", "duration"))

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be captured: (node, parameters of its `capture` method), and when to stop (0: never)."""

    places: tuple[tuple[str, Body], ...]
    count: int
    duration: float
    snaplen: int
    filter: str

    @classmethod
    def of(cls, store: Store, params: Mapping[str, Any]) -> Request:
        """From a request's body; ApiError says what is wrong with it."""
        unknown = sorted(set(params) - FIELDS)
        if unknown:
            _wrong(f"{unknown[0]}: is none of {', '.join(sorted(FIELDS))}")
        count, snaplen = _number(params, "count", int), _number(params, "snaplen", int) or SNAPLEN
        expression = _text(params, "filter")
        try:
            Filter(expression)
        except FilterError as error:
            _wrong(str(error))
        asked: Body = {"device": _text(params, "device"), "filter": expression, "snaplen": snaplen}
        chosen = [key for key in ("node", "pod", "link") if params.get(key)]
        if len(chosen) > 1:
            _wrong(f"{' and '.join(chosen)} exclude each other")
        places: list[tuple[str, Body]]
        if not chosen:
            places = [(node["metadata"]["name"], {**asked, "netns": "node"}) for node in store.list("nodes")[0]]
            if not places:
                _wrong("node: there is none yet")
        elif chosen == ["link"]:
            places = _link(store, _text(params, "link"), asked)
        else:
            name = _text(params, chosen[0])
            place = source(store, name if "/" in name else f"{chosen[0]}/{name}", _text(params, "namespace") or "default")
            places = [(place.node, {**asked, "netns": place.netns})]
        return cls(tuple(places), count, float(_number(params, "duration", float)), snaplen, expression)


def _link(store: Store, text: str, asked: Body) -> list[tuple[str, Body]]:
    """Both ends of a link, each with the other's addresses before the caller's filter."""
    nodes = {node["metadata"]["name"]: node for node in store.list("nodes")[0]}
    pairs = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "-"]  # names have hyphens of their own
    found = [pair for pair in pairs if pair[0] in nodes and pair[1] in nodes]
    if len(found) != 1 or found[0][0] == found[0][1]:
        _wrong(f"link: {text!r} is not NODE-NODE, such as node-1-node-2")
    places = []
    for here, there in (found[0], found[0][::-1]):
        addresses = [a["address"] for a in (nodes[there].get("status") or {}).get("addresses") or () if a["type"] == "InternalIP"]
        peer = f"({' or '.join(f'host {address}' for address in addresses)})"
        expression = f"{peer} and ({asked['filter']})" if asked["filter"] else peer
        places.append((here, {**asked, "netns": "node", "device": asked["device"] or "eth0", "filter": expression}))
    return places


def _wrong(message: str) -> NoReturn:
    raise ApiError(400, "BadRequest", message)


def _text(params: Mapping[str, Any], key: str) -> str:
    value = params.get(key)
    if value is not None and not isinstance(value, str):
        _wrong(f"{key}: {value!r} is not text")
    return value or ""


def _number(params: Mapping[str, Any], key: str, kind: type[int | float]) -> Any:
    value = params.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | kind) or not 0 < value < 1 << 31:
        _wrong(f"{key}: {value!r} is not a number over 0")
    return value


class Captures:
    """Starts captures."""

    def __init__(self, store: Store, calls: Calls) -> None:
        self._store, self._calls = store, calls

    async def open(self, params: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """Begin a capture; the pcapng stream, from a first piece on that says that all taps are in place."""
        request = Request.of(self._store, params)
        capture = _Running(request)
        try:
            await capture.start(self._calls)
        except BaseException:
            await capture.close()
            raise
        return capture.stream()


class _Running:
    """One capture: streams of nodes in, blocks out."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._clock = time.time_ns() - time.monotonic_ns()  # of the file minus the nodes': one mapping, so that differences stay true
        self._streams: list[tuple[str, CallStream]] = []
        self._readers: list[asyncio.Task[None]] = []
        self._arrived: asyncio.Queue[tuple[CallStream, str, Body | ApiError | None]] = asyncio.Queue(64)
        self._numbers: dict[tuple[str, int], int] = {}  # a node's number of a device to the file's
        self._counts: dict[int, pcapng.Counts] = {}
        self._told: dict[int, pcapng.Counts] = {}
        self._heap: list[tuple[int, int, int, int, bytes, int, int]] = []  # time, order of arrival, device, and so on
        self._sequence = 0
        self._written = 0
        self._out: list[bytes] = []

    async def start(self, calls: Calls) -> None:
        """Have all nodes listen. ApiError if none of them does."""
        refusals: list[ApiError] = []
        for node, params in self._request.places:
            try:
                self._streams.append((node, calls.stream(node, "capture", params)))
            except ApiError as error:
                refusals.append(error)
        begun: list[tuple[str, CallStream, AsyncIterator[Body]]] = []
        firsts = []
        for node, stream in self._streams:
            pieces = aiter(stream)
            try:
                async with asyncio.timeout(PATIENCE):
                    firsts.append(await anext(pieces))
            except TimeoutError:
                refusals.append(silent(node, f"it did not begin within {PATIENCE:g} s"))
            except ApiError as error:
                refusals.append(error)
            else:
                begun.append((node, stream, pieces))
        if len(refusals) == len(self._request.places):
            raise refusals[0]
        notes = "; ".join(f"not captured: {error.message}" for error in refusals)
        self._out.append(pcapng.section(f"podwire {__version__}", notes))
        for (node, stream, pieces), first in zip(begun, firsts, strict=True):
            await self._take(node, stream, first)
            self._readers.append(asyncio.ensure_future(self._read(node, stream, pieces)))

    async def _read(self, node: str, stream: CallStream, pieces: AsyncIterator[Body]) -> None:
        try:
            async for body in pieces:
                await self._arrived.put((stream, node, body))
            await self._arrived.put((stream, node, None))
        except ApiError as error:
            await self._arrived.put((stream, node, error))

    async def stream(self) -> AsyncIterator[bytes]:
        """The blocks, in pieces that end between two of them."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._request.duration if self._request.duration else float("inf")
        last, tell_at, stay_at = end + GOODBYE, loop.time() + TELL_EVERY, loop.time() + STAY_EVERY
        running = len(self._readers)
        try:
            while running and not self._full and loop.time() < last:
                yield self._taken()
                now = loop.time()
                if now >= end:
                    end = float("inf")
                    for _, stream in self._streams:
                        await stream.send({"stop": True})
                if now >= tell_at:
                    tell_at = now + TELL_EVERY
                    self._tell()
                if now >= stay_at:
                    stay_at = now + STAY_EVERY
                    for _, stream in self._streams:
                        await stream.send({"taken": 0})
                wait = max(0.0, min(HOLD if self._heap else TELL_EVERY, end - now, last - now))
                try:
                    arrived = await asyncio.wait_for(self._arrived.get(), wait)
                except TimeoutError:
                    pass  # nothing new, but what is held may be due
                else:
                    running -= await self._arrival(*arrived)
                self._release(time.monotonic_ns() - int(HOLD * 1e9))
            self._release(1 << 63)
            self._tell()
            yield self._taken()
        finally:
            await self.close()

    async def _arrival(self, stream: CallStream, node: str, body: Body | ApiError | None) -> int:
        """Take in what a node has sent; 1 if it was its last."""
        if isinstance(body, ApiError):
            self._tell(node, f"{node} is captured no more: {body.message}")
        elif body is not None:
            await self._take(node, stream, body)
            return 0
        return 1

    async def _take(self, node: str, stream: CallStream, body: Body) -> None:
        for number, name, mtu in body.get("devices") or ():
            self._numbers[node, number] = len(self._numbers)
            self._out.append(pcapng.interface(name, self._request.snaplen, f"mtu {mtu}", self._request.filter))
        for packet in body.get("packets") or ():
            number, at, *rest = packet
            self._sequence += 1
            heapq.heappush(self._heap, (at, self._sequence, self._numbers[node, number], *rest))
        for number, *counts in body.get("counts") or ():
            self._counts[self._numbers[node, number]] = pcapng.Counts(*counts)
        await stream.send({"taken": 1})

    @property
    def _full(self) -> bool:
        return 0 < self._request.count <= self._written

    def _release(self, until: int) -> None:
        """Write the packets of before `until` (nanoseconds of the nodes' clock), in order."""
        heap = self._heap
        while heap and heap[0][0] <= until and not self._full:
            at, _, number, direction, data, length, trace = heapq.heappop(heap)
            self._written += 1
            self._out.append(pcapng.packet(number, at + self._clock, data, length, direction, f"trace {trace}" if trace else ""))

    def _tell(self, node: str = "", comment: str = "") -> None:
        """Write the counts that have changed; with a comment, those of all devices of a node."""
        at = time.time_ns()
        theirs = {number for (owner, _), number in self._numbers.items() if owner == node}
        for number, counts in self._counts.items() if not comment else ((n, self._counts.get(n, pcapng.Counts())) for n in theirs):
            if comment or self._told.get(number) != counts:
                self._told[number] = counts
                self._out.append(pcapng.statistics(number, at, counts, comment))

    def _taken(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out

    async def close(self) -> None:
        """Let the nodes go."""
        for reader in self._readers:
            reader.cancel()
        for _, stream in self._streams:
            await stream.close()
