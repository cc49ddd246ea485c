"""The controller's end of the bus over ZeroMQ: XPUB to all nodes, ROUTER to each. Apart from the node's, which loads no asyncio.

- A PUB socket drops silently at its high-water mark (measured: 60 % of a burst of 10,000 at the default), so the mark is far off,
  and a drop is found by its gap or by the next lease.
- The XPUB greets every new subscription socket with a welcome; only then does a node ask for snapshots. Before a snapshot is
  answered the XPUB's own commands are run, so that the asker's subscriptions stand before its snapshot is made.
- ROUTER_HANDOVER: a node that was killed and restarted takes over its name; ROUTER_MANDATORY: a message to nobody is an error.
- libzmq's file descriptors are edge-triggered: after every use the socket is asked again what is there (zmq_getsockopt(3), ZMQ_FD).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

from emu.bus.messages import WELCOME, Message, Update, decode, encode, encode_update
from emu.errors import CarrierError

HIGH_WATER = 100_000  # messages a node may be behind: a snapshot follows long before


class ControllerBus:
    """The controller's end; a `ControllerLink`. `publish_at` and `control_at` are endpoints, such as ipc://RUN/bus.pub."""

    def __init__(self, publish_at: str, control_at: str, epoch: int, context: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        self._own = None if context else zmq.Context[zmq.Socket[bytes]](1)
        self._context = context or self._own
        assert self._context is not None
        self._context.set(zmq.MAX_SOCKETS, 16_384)  # a ROUTER takes a file descriptor and a slot for each node
        self._pub, self._router = self._context.socket(zmq.XPUB), self._context.socket(zmq.ROUTER)
        self._pub.set(zmq.SNDHWM, HIGH_WATER)
        self._pub.set(zmq.XPUB_WELCOME_MSG, encode_update(Update(WELCOME, epoch, 0, [])))
        for option, value in ((zmq.ROUTER_HANDOVER, 1), (zmq.ROUTER_MANDATORY, 1), (zmq.RCVHWM, HIGH_WATER), (zmq.SNDHWM, HIGH_WATER)):
            self._router.set(option, value)
        for socket, endpoint in ((self._pub, publish_at), (self._router, control_at)):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.BACKLOG, 4096)  # all nodes of a cluster connect in the same second
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as error:
                self.close()
                raise CarrierError(f"the bus cannot bind {endpoint}: {error}") from error
        self.malformed = 0
        self._callback: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again = False

    def publish(self, update: Update) -> None:
        self._pub.send(encode_update(update), zmq.NOBLOCK)
        self._look_again()

    def send(self, node: str, message: Message) -> bool:
        if message["t"] == "snapshot":
            self._take_subscriptions()
        try:
            self._router.send_multipart((node.encode(), encode(message)), zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        finally:
            self._look_again()
        return True

    def receive(self) -> list[tuple[str, Message]]:
        self._take_subscriptions()
        found: list[tuple[str, Message]] = []
        while True:
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return found
            message = decode(frames[1]) if len(frames) == 2 else None
            if message is None:
                self.malformed += 1
            else:
                found.append((frames[0].decode(errors="replace"), message))

    def _take_subscriptions(self) -> None:
        """Run the XPUB's commands, which make subscriptions stand. What they say is of no interest."""
        try:
            while True:
                self._pub.recv(zmq.NOBLOCK)
        except zmq.Again:
            pass

    def on_arrival(self, callback: Callable[[], None] | None) -> None:
        """In the running asyncio loop; see `ControllerLink`."""
        descriptors = (self._pub.fileno(), self._router.fileno())
        if self._loop is not None:
            for descriptor in descriptors:
                self._loop.remove_reader(descriptor)
        self._callback, self._loop = callback, None
        if callback is not None:
            self._loop = asyncio.get_running_loop()
            for descriptor in descriptors:
                self._loop.add_reader(descriptor, self._arrived)
            self._look_again()

    def _arrived(self) -> None:
        self._again = False
        if self._callback is not None:
            self._callback()

    def _look_again(self) -> None:
        """Something may have come without the descriptor telling: the edge was consumed by our own use of the socket."""
        if self._loop is not None and not self._again and self._router.poll(0):
            self._again = True
            self._loop.call_soon(self._arrived)

    def close(self) -> None:
        if getattr(self, "_loop", None) is not None:
            self.on_arrival(None)
        self._pub.close()
        self._router.close()
        if self._own is not None:
            self._own.term()
