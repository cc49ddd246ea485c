"""The ZeroMQ carrier: PULL where messages come in, one PUSH to each peer that has been sent to.

Decides when pipes are opened and closed, how much they hold, and what may leave the machine: tcp beyond loopback is CURVE
or nothing. A pipe is dialled at its first message and takes messages while the peer is still being dialled (no
ZMQ_IMMEDIATE: that would lose the first packet to every new peer, a second of SYN timer each). A full pipe drops, as a
network card does. A kick is an empty message by way of the same socket's inproc endpoint, so that whoever waits can wait in
plain `recv` with nothing to poll. Must not know what a packet is. See zmq_socket(7), zmq_ipc(7), zmq_curve(7).
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
from collections.abc import Callable
from functools import partial
from os import sched_yield
from time import perf_counter

import zmq
from zmq.backend import Socket as BackendSocket

from emu.errors import CarrierError
from emu.overlay.curve import CurveKeys, Doorkeeper, call, serve
from emu.overlay.polling import HaltPolling
from emu.wire.addr import Ip

QUEUE = 128  # messages at each end of a pipe; a message is at most a batch of 128 KiB
LONGEST_MESSAGE = 1 << 20  # bytes; a peer that sends more is not ours and is disconnected
LONGEST_PATH = 107  # bytes of sun_path without its final NUL, unix(7)
REDIAL_MS, REDIAL_MAX_MS = 5, 1000  # a peer that starts is found at once, one that stays away costs little
MAX_SOCKETS = 4096  # a pipe to every node of a big cluster; libzmq's own limit is 1023

EVENTS = int(zmq.EVENTS)
NOBLOCK = int(zmq.NOBLOCK)  # an enum's member would be converted at every call

_serial = itertools.count()


Send = Callable[[bytes, int, bool], object]  # message, flags, whether to copy


def open_context() -> zmq.Context[zmq.Socket[bytes]]:
    """A context as a node process needs it: one I/O thread (a second gains nothing), room for a pipe to every peer."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    return context


class ZmqCarrier:
    """One node's end of the underlay (see `carrier.Carrier`), bound to an `ipc://` or `tcp://` endpoint.

    `endpoint` is the bound one: tcp's port 0 is resolved. With `keys` (tcp only) the carrier encrypts, and hears only peers
    whose public keys `add_peer` has named. CarrierError if the endpoint cannot be bound, or could be reached from other
    machines without keys.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, keys: CurveKeys | None = None, queue: int = QUEUE
    ) -> None:
        _check(endpoint, secured=keys is not None)
        self._context, self._keys, self._queue = context, keys, queue
        self._peers: dict[Ip, tuple[str, bytes]] = {}
        self._pipes: dict[Ip, zmq.Socket[bytes]] = {}
        self._sends: dict[Ip, Send] = {}  # each pipe's `send`
        self._used: set[Ip] = set()  # sent to since the last `close_idle`
        self._doorkeeper = Doorkeeper(context) if keys is not None and endpoint.startswith("tcp://") else None
        self._pull = self._socket(zmq.PULL)
        self._pull.set(zmq.MAXMSGSIZE, LONGEST_MESSAGE)
        if self._doorkeeper is not None and keys is not None:
            serve(self._pull, keys)
        kicks = f"inproc://kick-{next(_serial)}"
        try:
            self._pull.bind(endpoint)
        except zmq.ZMQError as error:
            self._pull.close()
            self._dismiss_doorkeeper()
            raise CarrierError(f"cannot bind {endpoint}: {error.strerror}") from error
        self.endpoint = self._pull.get_string(zmq.LAST_ENDPOINT) if endpoint.startswith("tcp://") else endpoint
        self._pull.bind(kicks)
        self._kick = self._socket(zmq.PUSH)
        self._kick.connect(kicks)
        self._take, self._ask = self._pull.recv, self._pull.getsockopt
        self._polling = HaltPolling()
        self._limit = -1

    def add_peer(self, ip: Ip, endpoint: str, public_key: bytes = b"") -> None:
        known = self._peers.get(ip)
        if known == (endpoint, public_key):
            return
        _check(endpoint, secured=self._keys is not None and bool(public_key))
        if known is not None:
            self.remove_peer(ip)
        self._peers[ip] = endpoint, public_key
        if self._doorkeeper is not None and public_key:
            self._doorkeeper.trusted.add(public_key)

    def remove_peer(self, ip: Ip) -> None:
        known = self._peers.pop(ip, None)
        if known is not None and self._doorkeeper is not None:
            self._doorkeeper.trusted.discard(known[1])
        self._hang_up(ip)

    def send(self, ip: Ip, message: bytes) -> bool:
        send = self._sends.get(ip)
        if send is None:
            send = self._dial(ip)
            if send is None:
                return False
        self._used.add(ip)
        try:
            send(message, NOBLOCK, True)  # copied: to lend a message to libzmq and have it back takes pyzmq a thread, and longer
        except zmq.Again:
            return False
        return True

    def recv(self) -> bytes:
        began = perf_counter()
        if self._polling.budget and self._poll(began):
            return self._take()
        message = self._take()
        self._polling.waited(perf_counter() - began)
        return message

    def recv_for(self, seconds: float) -> bytes:
        began = perf_counter()
        if self._polling.budget and self._poll(began):
            return self._take()
        limit = max(1, int(seconds * 1000))
        if limit != self._limit:
            self._pull.set(zmq.RCVTIMEO, limit)
            self._limit = limit
        try:
            return self._take()
        except zmq.Again:
            return b""
        finally:
            self._polling.waited(perf_counter() - began)

    def _poll(self, began: float) -> bool:
        """Look for a message until the time for that is up; is there one?"""
        ask, end = self._ask, began + self._polling.budget
        while not ask(EVENTS):
            if perf_counter() > end:
                return False
            sched_yield()
        return True

    def wait_forever(self) -> None:
        if self._limit != -1:
            self._pull.set(zmq.RCVTIMEO, -1)
            self._limit = -1

    def recv_nowait(self) -> bytes | None:
        # to ask first costs 1 µs, an exception for "nothing there" 2.7
        return self._pull.recv(zmq.NOBLOCK) if self._pull.getsockopt(zmq.EVENTS) else None

    def kick(self) -> None:
        with contextlib.suppress(zmq.Again):  # full of kicks already: the reader will look up
            self._kick.send(b"", zmq.NOBLOCK)

    def close_idle(self) -> int:
        """Close the pipes that nothing was sent to since the last call; they are dialled again when needed. Returns how many.

        To be called every few seconds, by which time an idle pipe has long been empty: closing one that is not loses its tail.
        """
        idle = self._pipes.keys() - self._used
        for ip in idle:
            self._hang_up(ip)
        self._used.clear()
        return len(idle)

    @property
    def pipes(self) -> int:
        """How many peers have an open pipe."""
        return len(self._pipes)

    def close(self) -> None:
        for ip in list(self._pipes):
            self._hang_up(ip)
        self._kick.close()
        self._pull.close()
        self._dismiss_doorkeeper()
        if self.endpoint.startswith("ipc://"):
            with contextlib.suppress(FileNotFoundError):  # libzmq's I/O thread removes it too, but in its own time
                os.unlink(self.endpoint.removeprefix("ipc://"))

    def _dial(self, ip: Ip) -> Send | None:
        known = self._peers.get(ip)
        if known is None:
            return None
        endpoint, public_key = known
        pipe = self._socket(zmq.PUSH)
        pipe.set(zmq.RECONNECT_IVL, REDIAL_MS)
        pipe.set(zmq.RECONNECT_IVL_MAX, REDIAL_MAX_MS)
        if self._keys is not None and public_key and endpoint.startswith("tcp://"):
            call(pipe, self._keys, public_key)
        pipe.connect(endpoint)
        self._pipes[ip] = pipe
        # the backend's own method: zmq.Socket's is a Python one around it that looks for RADIO groups, 0.35 µs a message
        send = self._sends[ip] = partial(BackendSocket.send, pipe)
        return send

    def _hang_up(self, ip: Ip) -> None:
        pipe = self._pipes.pop(ip, None)
        if pipe is not None:
            pipe.close()
        self._sends.pop(ip, None)
        self._used.discard(ip)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, self._queue)
        socket.set(zmq.RCVHWM, self._queue)
        return socket

    def _dismiss_doorkeeper(self) -> None:
        if self._doorkeeper is not None:
            self._doorkeeper.stop()


def _check(endpoint: str, *, secured: bool) -> None:
    """CarrierError unless libzmq can use the endpoint and nobody unknown can."""
    transport, _, rest = endpoint.partition("://")
    if transport == "ipc":
        length = len(os.fsencode(rest))
        if length > LONGEST_PATH:
            raise CarrierError(f"ipc path of {length} bytes, where a socket address holds {LONGEST_PATH}: {rest}")
    elif transport != "tcp":
        raise CarrierError(f"{endpoint!r} is neither ipc://PATH nor tcp://HOST:PORT")
    elif not secured and not _is_loopback(rest.rpartition(":")[0].strip("[]")):
        raise CarrierError(f"{endpoint} can be reached from other machines: tcp beyond loopback needs CURVE keys at both ends")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
