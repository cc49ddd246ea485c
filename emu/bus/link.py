"""What a bus is, on either side. Decides nothing; `zeromq.py` with `broadcast.py`, and `memory.py`, keep these promises and share a suite.

What comes in is already decoded: `Update` for the broadcast, a dict for all else; malformed messages are counted and dropped.
Best effort, in order per direction and socket: an update may be lost (the mirror sees the gap), and nothing is promised between
the broadcast and the messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from emu.bus.messages import Message, Update


class NodeLink(Protocol):
    """A node's end. One thread polls (the control loop); any thread may `post`."""

    malformed: int

    def poll(self, timeout: float | None) -> list[Message | Update]:
        """What has come in, waiting up to `timeout` seconds for it (None: until something comes or `post` is called)."""

    def post(self, message: Message) -> None:
        """Send a message to the controller, from any thread. Never blocks; kept while the controller is away, oldest dropped."""

    def wake(self) -> None:
        """Make a running or the next `poll` return at once; from any thread."""

    def close(self) -> None: ...


class ControllerLink(Protocol):
    """The controller's end; one thread (its event loop's)."""

    malformed: int

    def publish(self, update: Update) -> None:
        """To all nodes that follow the update's stream."""

    def send(self, node: str, message: Message) -> bool:
        """To one node; False if no node of that name is connected, or it takes nothing any more (paused)."""

    def receive(self) -> list[tuple[str, Message]]:
        """What nodes have sent: (node, message), until nothing is left."""

    def on_arrival(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called (in the event loop) when `receive` may have something; None stops it."""

    def close(self) -> None: ...
