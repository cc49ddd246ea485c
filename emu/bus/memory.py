"""The bus within one process: the same bytes, no sockets. For `--in-process` and the flow tests.

Messages are encoded and decoded as on the wire, so that nothing is shared and nothing unencodable passes. `fault` lets tests
lose updates.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from emu.bus.messages import WELCOME, Message, Update, decode, decode_update, encode, encode_update


class MemoryBus:
    """The controller's end, and the place where nodes connect. A `ControllerLink`."""

    def __init__(self, epoch: int = 0) -> None:
        self._epoch = epoch
        self._nodes: dict[str, MemoryNodeLink] = {}
        self._inbox: deque[tuple[str, bytes]] = deque()
        self._callback: Callable[[], None] | None = None
        self.malformed = 0
        self.fault: Callable[[str, Update], bool] = lambda node, update: False
        """Is this update lost on its way to this node?"""

    def connect(self, node: str, streams: Iterable[str]) -> MemoryNodeLink:
        """A node's end; a node of the same name that was there before is cut off."""
        link = self._nodes[node] = MemoryNodeLink(node, frozenset(streams), self)
        link.push(encode_update(Update(WELCOME, self._epoch, 0, [])), is_update=True)
        return link

    def restart(self, epoch: int) -> None:
        """The controller has begun a new life: what was under way to the old one is lost, and every node is greeted."""
        self._epoch = epoch
        self._inbox.clear()
        for link in self._nodes.values():
            link.push(encode_update(Update(WELCOME, epoch, 0, [])), is_update=True)

    def disconnect(self, node: str) -> None:
        self._nodes.pop(node, None)

    def publish(self, update: Update) -> None:
        data = encode_update(update)
        for link in self._nodes.values():
            if update.stream in link.streams and not self.fault(link.node, update):
                link.push(data, is_update=True)

    def send(self, node: str, message: Message) -> bool:
        link = self._nodes.get(node)
        if link is None:
            return False
        link.push(encode(message), is_update=False)
        return True

    def receive(self) -> list[tuple[str, Message]]:
        found = []
        while self._inbox:
            node, data = self._inbox.popleft()
            message = decode(data)
            if message is None:
                self.malformed += 1
            else:
                found.append((node, message))
        return found

    @property
    def waiting(self) -> bool:
        """Is there something to receive?"""
        return bool(self._inbox)

    def on_arrival(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback

    def arrive(self, node: str, data: bytes) -> None:
        """A node's bytes, as they are."""
        self._inbox.append((node, data))
        if self._callback is not None:
            self._callback()

    def close(self) -> None:
        self._nodes.clear()


class MemoryNodeLink:
    """A node's end. A `NodeLink`."""

    def __init__(self, node: str, streams: frozenset[str], bus: MemoryBus) -> None:
        self.node, self.streams, self._bus = node, streams, bus
        self._inbox: deque[tuple[bytes, bool]] = deque()
        self._arrived = threading.Event()
        self.malformed = 0

    @property
    def waiting(self) -> bool:
        """Would `poll` return at once?"""
        return bool(self._inbox) or self._arrived.is_set()

    def push(self, data: bytes, *, is_update: bool) -> None:
        """Bytes from the controller's side."""
        self._inbox.append((data, is_update))
        self._arrived.set()

    def poll(self, timeout: float | None) -> list[Message | Update]:
        if not self._inbox and timeout != 0:
            self._arrived.wait(timeout)
        self._arrived.clear()
        found: list[Message | Update] = []
        while self._inbox:
            data, is_update = self._inbox.popleft()
            value = decode_update(data) if is_update else decode(data)
            if value is None:
                self.malformed += 1
            else:
                found.append(value)
        return found

    def post(self, message: Message) -> None:
        self._bus.arrive(self.node, encode(message))

    def wake(self) -> None:
        self._arrived.set()

    def close(self) -> None:
        self._bus.disconnect(self.node)
