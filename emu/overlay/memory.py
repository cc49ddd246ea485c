"""A carrier inside one process: what flow tests and `--in-process` run on, under the same contract as the ZeroMQ one.

Decides nothing about order: messages are received in the order in which they were sent, whoever sent them, so that the same
calls give the same run. An endpoint exists as soon as somebody sends to it, like a socket path that libzmq keeps dialling.
Must not know a packet, a clock or a node.
"""

from __future__ import annotations

import threading
from collections import Counter, deque

from emu.errors import CarrierError
from emu.wire.addr import Ip

QUEUE = 128  # messages from one peer, as the ZeroMQ carrier has them


class _Inbox:
    """What has been sent to one endpoint: (who sent it, message), and how much of it is each sender's."""

    def __init__(self) -> None:
        self.arrived = threading.Condition()  # guards the two below
        self.messages: deque[tuple[MemoryCarrier | None, bytes]] = deque()
        self.queued: Counter[MemoryCarrier | None] = Counter()
        self.bound = False


class MemoryNetwork:
    """The underlay between the carriers of one process. Endpoints are any text."""

    def __init__(self, queue: int = QUEUE) -> None:
        self.queue = queue
        self._inboxes: dict[str, _Inbox] = {}

    def carrier(self, endpoint: str) -> MemoryCarrier:
        """A carrier bound to `endpoint`; CarrierError if another one is."""
        inbox = self.inbox(endpoint)
        if inbox.bound:
            raise CarrierError(f"{endpoint} is in use by another carrier")
        inbox.bound = True
        return MemoryCarrier(self, endpoint)

    def inbox(self, endpoint: str) -> _Inbox:
        return self._inboxes.setdefault(endpoint, _Inbox())

    def busy(self) -> tuple[str, ...]:
        """The bound endpoints that have something to receive, in the order in which they were first named."""
        return tuple(endpoint for endpoint, inbox in self._inboxes.items() if inbox.bound and inbox.messages)


class MemoryCarrier:
    """One node's end of a MemoryNetwork (see `carrier.Carrier`)."""

    def __init__(self, network: MemoryNetwork, endpoint: str) -> None:
        self.endpoint = endpoint
        self._network = network
        self._inbox = network.inbox(endpoint)
        self._peers: dict[Ip, str] = {}

    def add_peer(self, ip: Ip, endpoint: str, public_key: bytes = b"") -> None:
        if self._peers.get(ip, endpoint) != endpoint:
            self.remove_peer(ip)
        self._peers[ip] = endpoint

    def close_idle(self) -> int:
        return 0  # there are no pipes

    def remove_peer(self, ip: Ip) -> None:
        endpoint = self._peers.pop(ip, None)
        if endpoint is None:
            return
        inbox = self._network.inbox(endpoint)
        with inbox.arrived:
            kept = [entry for entry in inbox.messages if entry[0] is not self]
            inbox.messages.clear()
            inbox.messages.extend(kept)
            del inbox.queued[self]

    def send(self, ip: Ip, message: bytes) -> bool:
        endpoint = self._peers.get(ip)
        if endpoint is None:
            return False
        inbox = self._network.inbox(endpoint)
        with inbox.arrived:
            if inbox.queued[self] >= self._network.queue:
                return False
            inbox.queued[self] += 1
            inbox.messages.append((self, message))
            inbox.arrived.notify()
        return True

    def recv(self) -> bytes:
        inbox = self._inbox
        with inbox.arrived:
            while not inbox.messages:
                inbox.arrived.wait()
            return self._take()

    def recv_for(self, seconds: float) -> bytes:
        inbox = self._inbox
        with inbox.arrived:
            return self._take() if inbox.messages or inbox.arrived.wait(seconds) else b""

    def wait_forever(self) -> None:
        """Nothing to take away: a limit is each call's own here."""

    def recv_nowait(self) -> bytes | None:
        inbox = self._inbox
        with inbox.arrived:
            return self._take() if inbox.messages else None

    def _take(self) -> bytes:
        sender, message = self._inbox.messages.popleft()
        if sender is not None:
            self._inbox.queued[sender] -= 1
        return message

    def kick(self) -> None:
        inbox = self._inbox
        with inbox.arrived:
            inbox.messages.append((None, b""))
            inbox.arrived.notify()

    def close(self) -> None:
        for ip in list(self._peers):
            self.remove_peer(ip)
        inbox = self._inbox
        with inbox.arrived:
            inbox.messages.clear()
            inbox.queued.clear()
            inbox.bound = False
