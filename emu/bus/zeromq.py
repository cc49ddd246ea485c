"""A node's end of the bus over ZeroMQ: SUB for the broadcast, DEALER for all else, and an eventfd by which other threads wake it.

Imports as little as can be, for every node process pays for it. The controller's end is `broadcast`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from threading import get_ident

import zmq

from emu.bus.messages import WELCOME, Message, Update, decode, decode_update, encode, topic

EVENTS, POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)  # an enum's member would be converted at every call
NODE_HIGH_WATER = 10_000
OUTBOX = 10_000  # messages of a node kept while the controller is away


class NodeBus:
    """A node's end; a `NodeLink`. Make it after the fork: a ZeroMQ context does not survive one.

    `streams` are subscribed to at once (`Follower.streams`). `context` may be shared with the node's data sockets. Endpoints
    need not be bound yet, and may be bound anew by a later controller.
    """

    def __init__(
        self, node: str, publish_at: str, control_at: str, streams: Iterable[str], context: zmq.Context[zmq.Socket[bytes]] | None = None
    ) -> None:
        self._own = None if context else zmq.Context[zmq.Socket[bytes]](1)
        self._context = context or self._own
        assert self._context is not None
        self._sub, self._dealer = self._context.socket(zmq.SUB), self._context.socket(zmq.DEALER)
        self._sub.set(zmq.RCVHWM, NODE_HIGH_WATER)
        for stream in (*streams, WELCOME):
            self._sub.subscribe(topic(stream))
        self._dealer.set(zmq.IDENTITY, node.encode())
        for socket, endpoint in ((self._sub, publish_at), (self._dealer, control_at)):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.RECONNECT_IVL, 50)
            socket.set(zmq.RECONNECT_IVL_MAX, 500)
            socket.connect(endpoint)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._outbox: deque[Message] = deque(maxlen=OUTBOX)
        self._woken = False
        self._reader = 0  # the thread that polls
        self._poller = zmq.Poller()
        for thing in (self._sub, self._dealer, self._wake):
            self._poller.register(thing, zmq.POLLIN)
        self.malformed = 0

    def poll(self, timeout: float | None) -> list[Message | Update]:
        self._reader = get_ident()
        self._clear()  # before what it announced is looked at, so that nothing announced later is slept over
        woken, self._woken = self._woken, False
        blocked = self._flush()
        found = self._receive()
        if found or woken or timeout == 0:
            return found
        self._poller.modify(self._dealer, zmq.POLLIN | zmq.POLLOUT if blocked else zmq.POLLIN)
        # zmq_poll counts whole milliseconds: round up, lest a short wait become a busy loop.
        if not self._poller.poll(None if timeout is None else int(timeout * 1000 + 0.999)):
            return []
        self._flush()
        return self._receive()

    def _clear(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass  # nobody has written to it

    def _receive(self) -> list[Message | Update]:
        found: list[Message | Update] = []
        for socket, read in ((self._sub, decode_update), (self._dealer, decode)):
            while int(socket.getsockopt(EVENTS)) & POLLIN:  # asking costs a tenth of an exception
                value: Message | Update | None = read(socket.recv(zmq.NOBLOCK))
                if value is None:
                    self.malformed += 1
                else:
                    found.append(value)
        return found

    def _flush(self) -> bool:
        """Send what was posted; True if some of it must wait for the controller to take more."""
        while self._outbox:
            message = self._outbox.popleft()
            try:
                self._dealer.send(encode(message), zmq.NOBLOCK)
            except zmq.Again:
                self._outbox.appendleft(message)
                return True
        return False

    def post(self, message: Message) -> None:
        self._outbox.append(message)
        if get_ident() != self._reader or self._flush():  # who polls may send; most that is said is his
            os.eventfd_write(self._wake, 1)

    def wake(self) -> None:
        self._woken = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Give way; what was posted is sent first if the controller takes it at once."""
        self._flush()
        self._sub.close()
        self._dealer.close(linger=100)
        os.close(self._wake)
        if self._own is not None:
            self._own.term()
