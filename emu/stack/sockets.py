"""Sockets as the stack has them: non-blocking, under the node's lock. UDP and ICMP echo here, TCP in `tcp_sockets`.

Decides buffering, demultiplexing state and errors; must not know threads. Whoever sleeps on a socket leaves a `Waiter`; a
handler program leaves `on_event`, which is queued on the softnet and run once the lock is free.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from emu.errors import DropReason
from emu.netfilter.skb import ICMP, UDP
from emu.stack import icmp
from emu.stack.device import Device
from emu.stack.shortcut import Exit, exit_for
from emu.trace import REPLY
from emu.wire.addr import ANY, Ip, SockAddr

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace

RCVBUF = 212_992  # net.core.rmem_default
SKB_OVERHEAD = 256  # what a queued datagram costs beside its bytes
MAX_UDP = 65_507
IP_PMTUDISC_DONT, IP_PMTUDISC_WANT, IP_PMTUDISC_DO, IP_PMTUDISC_PROBE = range(4)  # ip(7), IP_MTU_DISCOVER
_UDP = struct.Struct("!BBHHHBBH4s4sHHHH")


class Parked(Protocol):
    """What a sleeping thread is woken by."""

    def release(self) -> None: ...


class Waiter:
    """One thread's interest in a socket. `parked` is set by the kernel while the thread sleeps elsewhere than in the stack."""

    __slots__ = ("parked", "ready")

    def __init__(self) -> None:
        self.ready = False
        self.parked: Parked | None = None

    def set(self) -> None:
        """Something has happened that the thread may have waited for."""
        self.ready = True
        parked = self.parked
        if parked is not None:
            self.parked = None
            parked.release()


class Socket:
    """What all sockets share. `error` is a pending errno, raised or returned once, as SO_ERROR is."""

    proto = 0

    def __init__(self, ns: NetNamespace) -> None:
        if ns.closed:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        self.ns, self.softnet = ns, ns.softnet
        self.local = SockAddr(ANY, 0)
        self.remote: SockAddr | None = None
        self.error = 0
        self.closed = False
        self.ttl = 64
        self.waiters: list[Waiter] = []
        self.on_event: Callable[[Socket], None] | None = None
        self.event_queued = False
        self.flows: list[tuple[dict[bytes, Any], bytes]] = []  # where the flow cache leads here
        self._epoch = -1
        self._transmit: Callable[[bytes, int, int], None] = ns.output
        self.shortcut: Exit | None = None

    def notify(self) -> None:
        """Wake whoever waits, and see that the handler runs."""
        for waiter in self.waiters:
            waiter.set()
        if self.on_event is not None and not self.event_queued:
            self.event_queued = True
            self.softnet.due.append(self)

    def take_error(self) -> int:
        """The pending errno, which is cleared."""
        number, self.error = self.error, 0
        return number

    def so_error(self) -> int:
        """Getsockopt SO_ERROR."""
        return self.take_error()

    def raise_error(self) -> None:
        """Raise the pending error, if any, as Linux's next call would."""
        if self.error:
            number = self.take_error()
            raise OSError(number, os.strerror(number))

    def fail(self, number: int) -> None:
        """An error has come from the network."""
        self.error = number
        self.notify()

    def close(self) -> None:
        raise NotImplementedError

    def forget_flows(self) -> None:
        self.shortcut = None
        for flows, key in self.flows:
            flows.pop(key, None)
        self.flows.clear()

    def route(self, dst: Ip) -> None:
        """Remember how packets to `dst` leave: straight to the device where no rule could have a say."""
        ns = self.ns
        self._epoch = ns.epoch
        self._transmit = ns.direct(dst) or ns.output

    def look_for_shortcut(self, packet: bytes) -> None:
        """Join one for packets like this, if its way is known by now."""
        device = getattr(self._transmit, "__self__", None)
        self.shortcut = exit_for(device, packet) if isinstance(device, Device) else None

    def source(self, dst: Ip) -> Ip:
        """The source address towards `dst`; OSError ENETUNREACH if no route leads there."""
        if self.local.ip != ANY:
            return self.local.ip
        ip = self.ns.source_for(dst)
        if ip is None:
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
        return ip


class UdpSocket(Socket):
    """A datagram socket. A datagram over the MTU travels as one packet with `gso_size`, as Linux's UDP fragmentation offload had it."""

    proto = UDP

    def __init__(self, ns: NetNamespace) -> None:
        super().__init__(ns)
        self.queue: deque[tuple[bytes, SockAddr]] = deque()
        self.queued_bytes = 0
        self.answer: tuple[SockAddr, int] | None = None  # a traced datagram's sender: what is sent back inherits its trace
        self._to: SockAddr | None = None
        self._src = ANY
        self._mtu = 0
        self.mtu_discover, self._df = IP_PMTUDISC_WANT, 0x4000

    @property
    def readable(self) -> bool:
        return bool(self.queue) or bool(self.error)

    def bind(self, address: SockAddr) -> None:
        """Take a local port (0: any free one); OSError EADDRINUSE, EADDRNOTAVAIL."""
        self.local = self.ns.sockets.bind(self, address)

    def connect(self, remote: SockAddr) -> None:
        """Fix the peer: only its datagrams are received, and ICMP errors are reported."""
        src = self.source(remote.ip)
        if self.local.port == 0:
            self.bind(SockAddr(self.local.ip, 0))
        self.ns.sockets.rebind(self, SockAddr(src, self.local.port))
        self.remote = remote

    def send_to(self, data: bytes, to: SockAddr | None = None, trace: int = 0) -> int:
        """Send one datagram; OSError EDESTADDRREQ, EMSGSIZE, ENETUNREACH, or the pending error."""
        if self.error:
            self.raise_error()
        if to is None:
            to = self.remote
            if to is None:
                raise OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ))
        if self._to != to or self._epoch != self.ns.epoch:
            self._prepare(to)
        size = len(data) + 28
        if size > MAX_UDP + 28:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        if self.answer is not None:
            sender, traced = self.answer
            if sender == to:
                trace, self.answer = traced | REPLY, None
        shortcut = self.shortcut
        if shortcut is not None and not trace and shortcut.datagram(data):
            return len(data)
        packet = _UDP.pack(0x45, 0, size, 0, self._df, self.ttl, UDP, 0, self._src, to[0], self.local[1], to[1], size - 20, 0) + data
        gso_size = 0 if size <= self._mtu else self._mtu - 20 & ~7
        if gso_size and self.mtu_discover in (IP_PMTUDISC_DO, IP_PMTUDISC_PROBE):
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        if trace:
            self.ns.output(packet, gso_size, trace)
        elif self.shortcut is None or not self.shortcut.send(packet, gso_size):
            self.look_for_shortcut(packet)
            if self.shortcut is not None:  # whose devices know nothing of the path beyond
                self.shortcut.limit = min(self.shortcut.limit, self._mtu)
            self._transmit(packet, gso_size, 0)
        return len(data)

    def send_many(self, batch: Sequence[tuple[bytes, SockAddr | None]]) -> int:
        """As `send_to` for each, in order; how many until one failed. OSError if that is the first."""
        sent, total = 0, len(batch)
        try:
            while sent < total:
                data, to = batch[sent]
                if self.shortcut is not None and not self.error and self.answer is None and self._epoch == self.ns.epoch:
                    run = []
                    known = self._to
                    for payload, address in itertools.islice(batch, sent, None):
                        if (address or self.remote) != known:
                            break
                        run.append(payload)
                    taken = self.shortcut.send_run(run) if run else 0
                    if taken:
                        sent += taken
                        continue
                self.send_to(data, to)
                sent += 1
        except OSError:
            if not sent:
                raise
        return sent

    def discover_mtu(self, how: int) -> None:
        """IP_MTU_DISCOVER: with DO and PROBE, what is longer than path or device takes is EMSGSIZE and not fragments."""
        self.mtu_discover, self._df = how, 0 if how == IP_PMTUDISC_DONT else 0x4000
        self._to = None

    def _prepare(self, to: SockAddr) -> None:
        src = self.source(to.ip)
        if self.local.port == 0:
            self.bind(SockAddr(self.local.ip, 0))
        self.route(to.ip)
        self.shortcut = None
        self._to, self._src = to, src
        self._mtu = self.ns.mtu_to(to.ip) if self.mtu_discover == IP_PMTUDISC_PROBE else self.ns.path_mtu(to.ip)

    def receive(self) -> tuple[bytes, SockAddr] | None:
        """The next datagram and its sender, or None; a pending error is raised first."""
        if self.error:
            self.raise_error()
        if not self.queue:
            return None
        datagram = self.queue.popleft()
        self.queued_bytes -= len(datagram[0]) + SKB_OVERHEAD
        return datagram

    def receive_many(self, limit: int) -> list[tuple[bytes, SockAddr]]:
        """Up to `limit` datagrams that wait, with their senders. A pending error stays."""
        queue = self.queue
        if limit < len(queue):
            got = [queue.popleft() for _ in range(limit)]
            self.queued_bytes -= sum(len(data) for data, _ in got) + limit * SKB_OVERHEAD
        else:
            got = list(queue)
            queue.clear()
            self.queued_bytes = 0
        return got

    def input(self, data: bytes, l4: int, trace: int) -> None:
        """A datagram for this socket; `data` is the whole packet."""
        sender = SockAddr(data[12:16], data[l4] << 8 | data[l4 + 1])
        if trace and not trace & REPLY:
            self.answer = (sender, trace)
        end = l4 + (data[l4 + 4] << 8 | data[l4 + 5])
        if l4 + 8 <= end <= len(data):
            self.datagram(data[l4 + 8 : end], sender)
        else:
            self.ns.count(DropReason.TRUNCATED)

    def datagram(self, payload: bytes, sender: SockAddr) -> None:
        """Queue a datagram, or drop it while the buffer is full."""
        if self.queued_bytes > RCVBUF:
            self.ns.count(DropReason.SOCKET_BUFFER_FULL)
            return
        self.queue.append((payload, sender))
        self.queued_bytes += len(payload) + SKB_OVERHEAD
        self.notify()

    def datagrams(self, payloads: list[bytes], sender: SockAddr) -> None:
        """As many calls of `datagram`, one after the other, but whoever waits is woken once."""
        queue, queued = self.queue, self.queued_bytes
        if queued + sum(map(len, payloads)) + SKB_OVERHEAD * len(payloads) > RCVBUF:
            for payload in payloads:
                self.datagram(payload, sender)
            return
        queue.extend([(payload, sender) for payload in payloads])
        self.queued_bytes = queued + sum(map(len, payloads)) + SKB_OVERHEAD * len(payloads)
        self.notify()

    def flow_input(self, data: bytes, head: bytes, gso_size: int) -> None:
        """The fast path in."""
        self.input(data, 20, 0)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.ns.sockets.release(self)
            self.forget_flows()
            self.notify()


class Echo(NamedTuple):
    """What came back for a PingSocket: a reply or an ICMP error (`payload` empty). `ttl` is what the answer had left."""

    kind: int
    code: int
    seq: int
    payload: bytes
    sender: Ip
    ttl: int


class PingSocket(Socket):
    """ICMP echo for ordinary programs (Linux's IPPROTO_ICMP datagram socket): replies and errors for its identifier."""

    proto = ICMP

    def __init__(self, ns: NetNamespace) -> None:
        super().__init__(ns)
        self.queue: deque[Echo] = deque()
        self.ident = ns.sockets.new_ident(self)

    @property
    def readable(self) -> bool:
        return bool(self.queue)

    def send_echo(self, dst: Ip, seq: int, payload: bytes = b"", ttl: int = 64, trace: int = 0) -> None:
        """Send an echo request; OSError ENETUNREACH without a route."""
        self.ns.output(icmp.message(self.source(dst), dst, icmp.ECHO_REQUEST, 0, self.ident, seq, payload, ttl), 0, trace)

    def receive(self) -> Echo | None:
        """The next reply or error, or None."""
        return self.queue.popleft() if self.queue else None

    def input(self, echo: Echo) -> None:
        if len(self.queue) < 1024:
            self.queue.append(echo)
            self.notify()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.ns.sockets.pings.pop(self.ident, None)
            self.notify()
