"""A capture at one node: taps on its devices, and batches of finished packets for the controller.

The data path pays for a filter and a place in a queue; cutting GSO packets, checksums and snaplen are the control loop's, some packets
a turn. The queue is bounded, and so are batches under way (`WINDOW`, until the controller has taken them): what finds no
place is lost and counted, never waited for. A device that appears meanwhile is tapped if it is wanted.

    answers   {"devices": [[number, name, mtu], ...], "packets": [[number, at, direction, data, length, trace], ...],
               "counts": [[number, received, accepted, lost], ...]}            at: nanoseconds of the node's clock
    input     {"taken": n} for each batch that has gone on, {"stop": True} for what is left and the end
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from emu.errors import ApiError
from emu.node.machine import Machine
from emu.observe.packet_filter import Filter
from emu.pod.kernel import Kernel
from emu.stack import tap
from emu.stack.device import Device
from emu.stack.namespace import NetNamespace
from emu.wire import checksum, gso

QUEUE = 4096  # packets
QUEUE_BYTES = 8 << 20
BATCH = 128  # packets as they were seen that are finished in one turn: a few milliseconds
BATCH_BYTES = 1 << 18
WINDOW = 8  # batches that the controller has not taken yet
PATIENCE = 60.0  # seconds without a sign of the controller after which nobody is believed to listen: it may have been killed
SNAPLEN = 262_144  # bytes, tcpdump's own: a packet whole

Body = dict[str, Any]
Reply = Callable[[Body, bool], None]  # a piece of the answer; is it the last?


@dataclass(slots=True)
class _Tapped:
    """A device under capture."""

    number: int
    device: Device
    name: str
    received: int = 0
    accepted: int = 0
    lost: int = 0
    told: tuple[int, int, int] = (0, 0, 0)
    tap: tap.Tap = lambda direction, data, gso_size, trace: None

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.received, self.accepted, self.lost


class Capture:
    """One capture under way. `turn` and `input` run on the control loop, taps under the node's lock."""

    def __init__(
        self, machine: Machine, kernel: Kernel, ns: NetNamespace, params: Mapping[str, Any], reply: Reply,
        wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._node, self._softnet, self._kernel, self._reply, self._wake = machine.me.name, machine.softnet, kernel, reply, wake
        self._netns, self._pattern = ns.name, params.get("device") or "*"
        self._filter = Filter(params.get("filter") or "")
        self._snaplen = params.get("snaplen") or SNAPLEN
        self._tapped: list[_Tapped] = []
        self._queue: deque[tuple[int, float, int, bytes, int, int]] = deque()
        self._queued_bytes = 0
        self._new: list[_Tapped] = []  # not told of yet
        self._under_way = 0
        self._stopping = self.over = False
        self._heard_at = kernel.now()
        self._kernel.enter()
        try:
            for device in ns.devices.values():
                self._consider(device)
            self._softnet.device_added.append(self._consider)
        finally:
            self._kernel.leave()
        if not self._tapped and self._netns != "node":
            self.cancel()
            raise ApiError(404, "NotFound", f"no device of {self._netns} on node {self._node} is named {self._pattern!r}")
        self._post({}, last=False)

    # ---- under the node's lock -----------------------------------------------------------------------------------------------

    def _consider(self, device: Device) -> None:
        """Tap the device if it is wanted."""
        if device.ns.name != self._netns or not fnmatchcase(device.name, self._pattern) or not device.name:
            return
        place = self._node if self._netns == "node" else self._netns
        tapped = _Tapped(len(self._tapped), device, f"{place}/{device.name}")
        tapped.tap = lambda direction, data, gso_size, trace: self._see(tapped, direction, data, gso_size, trace)
        self._tapped.append(tapped)
        self._new.append(tapped)
        tap.listen(device, tapped.tap)

    def _see(self, tapped: _Tapped, direction: int, data: bytes, gso_size: int, trace: int) -> None:
        packets = gso.segment_count(data, gso_size) if gso_size else 1
        tapped.received += packets
        if packets > 1 and (self._filter.by_segment or not gso.divisible(data, gso_size)):
            for part in gso.segments(data, gso_size):
                if self._filter.matches(part):
                    self._keep(tapped, direction, part, 0, trace, 1)
        elif self._filter.matches(data):
            self._keep(tapped, direction, data, gso_size, trace, packets)

    def _keep(self, tapped: _Tapped, direction: int, data: bytes, gso_size: int, trace: int, packets: int) -> None:
        tapped.accepted += packets
        queue = self._queue
        if len(queue) >= QUEUE or self._queued_bytes + len(data) > QUEUE_BYTES:
            tapped.lost += packets
            return
        self._queued_bytes += len(data)
        queue.append((tapped.number, self._softnet.now, direction, data, gso_size, trace))
        if len(queue) == 1:
            self._wake()

    # ---- on the control loop ---------------------------------------------------------------------------------------------------

    def poll_at(self) -> float:
        """When `turn` has something to do; 0 for at once."""
        at_once = self._stopping or (bool(self._queue or self._new) and self._under_way < WINDOW)
        return 0.0 if at_once else self._heard_at + PATIENCE

    def turn(self, now: float) -> None:
        """Send a batch of what has been seen, if the controller has taken enough of those before."""
        due = self.poll_at()
        if self.over or now < due:
            return
        if due:
            self.cancel()
            return
        self._kernel.enter()
        seen = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        size = 0
        for place, packet in enumerate(seen):
            size += len(packet[3])
            if size > BATCH_BYTES and place:
                self._queue.extendleft(reversed(seen[place:]))
                del seen[place:]
                break
        self._queued_bytes -= sum(len(packet[3]) for packet in seen)
        self._kernel.leave()
        last = self._stopping and not self._queue
        if last:
            self.cancel()
        self._post({"packets": [finished for packet in seen for finished in self._finished(*packet)]}, last=last)

    def _finished(self, number: int, at: float, direction: int, data: bytes, gso_size: int, trace: int) -> Iterator[list[Any]]:
        """What a card would put on a wire for one packet as it was seen."""
        nanoseconds = int(at * 1e9)
        for part in gso.segments(data, gso_size) if gso_size else (data,):
            whole = checksum.fill(part)
            yield [number, nanoseconds, direction, whole[: self._snaplen], len(whole), trace]

    def _post(self, body: Body, *, last: bool) -> None:
        if self._new:
            body["devices"] = [[new.number, new.name, new.device.mtu] for new in self._new]
            self._new = []
        counts = []
        for tapped in self._tapped:
            now = tapped.counts
            if now != tapped.told:
                tapped.told = now
                counts.append([tapped.number, *now])
        if counts:
            body["counts"] = counts
        self._under_way += 1
        self._reply(body, last)

    def input(self, data: Mapping[str, Any]) -> None:
        """The controller has taken batches, or wants the rest and no more."""
        self._heard_at = self._kernel.now()
        taken = data.get("taken")
        self._under_way -= taken if isinstance(taken, int) else 0
        if data.get("stop"):
            self._silence()
            self._stopping = True

    def cancel(self) -> None:
        """Nobody listens any more."""
        self.over = True
        self._silence()

    def _silence(self) -> None:
        self._kernel.enter()
        try:
            if self._consider in self._softnet.device_added:
                self._softnet.device_added.remove(self._consider)
            for tapped in self._tapped:
                tap.leave(tapped.device, tapped.tap)
        finally:
            self._kernel.leave()
