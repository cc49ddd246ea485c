"""TCP sockets: `emu.tcp`'s sans-IO connections joined to a namespace, its tables and timers.

Decides when a connection's packets are sent and who is told of its events; what TCP does is decided in `emu.tcp`.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.skb import TCP
from emu.stack.socket_table import tcp_key
from emu.stack.sockets import Socket
from emu.stack.softnet import INFINITY
from emu.tcp import Connection, Event
from emu.tcp.seq import MASK
from emu.trace import REPLY
from emu.wire.addr import ANY, SockAddr

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace

_READABLE = int(Event.READABLE)
SOMAXCONN = 4096  # net.core.somaxconn
MAX_SYN_BACKLOG = 2048  # net.ipv4.tcp_max_syn_backlog


class TcpSocket(Socket):
    """One connection. It stays in the table after `close` until TCP is done with it (TIME_WAIT included)."""

    proto = TCP
    conn: Connection

    def __init__(self, ns: NetNamespace) -> None:
        super().__init__(ns)
        self.armed = INFINITY
        self.key = b""
        self.listener: TcpListener | None = None
        self.started = False
        self.probe = False  # a trace's probe: reset the moment it is answered,
        self.answered = False  # which is remembered here
        self.orphan = False  # the program has closed it
        self.bound_port = False

    # ---- what programs call -----------------------------------------------------------------------------------------------------

    def bind(self, address: SockAddr) -> None:
        """Fix the local address; port 0 keeps the choice for `connect`."""
        if address.port:
            self.local = self.ns.sockets.bind(self, address)
            self.bound_port = True
        elif address.ip != ANY and not self.ns.is_local(address.ip):
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        else:
            self.local = address

    def connect(self, remote: SockAddr, trace: int = 0) -> None:
        """Send the SYN; OSError ENETUNREACH, EADDRNOTAVAIL at once, anything later in `error`."""
        ns = self.ns
        if self.started:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        if remote.ip == ANY:
            remote = SockAddr(bytes((127, 0, 0, 1)), remote.port)  # connecting to "any" means this host
        src = self.source(remote.ip)
        port = self.local.port or ns.sockets.connection_port(src, remote)
        self.local, self.remote = SockAddr(src, port), remote
        self.key = tcp_key(remote, self.local)
        if self.key in ns.sockets.established:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        iss = self.softnet.rng.getrandbits(32)
        self.conn = Connection.active(self.local, remote, iss=iss, mtu=ns.mtu_to(remote.ip), now=self.softnet.now)
        self.started = True
        ns.sockets.established[self.key] = self
        self.path_changed()
        self._after(trace)

    def write(self, data: bytes) -> int:
        """Take what fits into the send buffer; 0 if nothing does."""
        try:
            taken = self.conn.write(data, self.softnet.now)
        except BrokenPipeError:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        self._after(0)
        return taken

    def read(self, size: int) -> bytes | None:
        """Up to `size` bytes; None if there are none yet, b"" at the end of the stream."""
        data = self.conn.read(size, self.softnet.now)
        conn = self.conn
        if conn.out or conn.deadline < self.armed:
            self._after(0)
        return data

    def settle(self) -> None:
        """Options of the connection have been set: carry out what follows from that."""
        self._after(0)

    def shutdown_read(self) -> None:
        self.conn.shutdown_read()
        self._after(0)

    def shutdown_write(self) -> None:
        self.conn.shutdown_write(self.softnet.now)
        self._after(0)

    def close(self) -> None:
        """The program is done; TCP says goodbye by itself."""
        if self.orphan:
            return
        self.orphan = True
        self.on_event = None
        if not self.started:
            self._release_port()
            return
        self.conn.close(self.softnet.now)
        self._after(0)

    def abort(self) -> None:
        """Reset the connection, telling the peer."""
        self.orphan = True
        if not self.started:
            self._release_port()
        elif not self.closed:
            self.conn.abort(self.softnet.now)
            self._after(0)
        self.notify()

    def so_error(self) -> int:
        """The pending error, or what an ICMP error merely hinted at (sk_err_soft)."""
        number = self.take_error()
        if not number and self.started:
            number, self.conn.soft_error = self.conn.soft_error, 0
        return number

    @property
    def connected(self) -> bool:
        return self.started and self.conn.established

    @property
    def done(self) -> bool:
        """Has the peer finished? Then reads find the end, whatever error came after (Linux's SOCK_DONE)."""
        return self.started and self.conn.done

    @property
    def readable(self) -> bool:
        return self.started and (self.conn.readable or bool(self.error))

    @property
    def writable(self) -> bool:
        return self.started and (self.conn.writable or bool(self.error))

    # ---- what the stack calls -----------------------------------------------------------------------------------------------------

    def input(self, data: bytes, l4: int, trace: int) -> None:
        """A segment of this connection; `data` is the whole packet."""
        self.conn.on_packet(data, l4, self.softnet.now)
        self._after(trace | REPLY if trace and not trace & REPLY else 0)

    def flow_input(self, data: bytes, head: bytes, gso_size: int) -> None:
        """The fast path in."""
        self.segment(data, 20)

    def segment(self, data: bytes | memoryview, l4: int) -> None:
        """A segment at `data[l4:]`, to the end of `data`."""
        conn = self.conn
        conn.on_packet(data, l4, self.softnet.now)
        if conn.out or conn.events != _READABLE or conn.deadline < self.armed:
            self._after(0)
        else:  # nothing to do but to tell: the common end of a segment with data
            conn.events = 0
            self.notify()

    def on_icmp(self, number: int, mtu: int | None, seq: int) -> None:
        """An ICMP error about a segment with sequence number `seq` (ignored if that is not outstanding, RFC 5927)."""
        conn = self.conn
        if (seq - conn.snd_una) & MASK <= conn.snd_nxt - conn.snd_una:
            if mtu is not None:
                assert self.remote is not None
                conn.on_mtu(self.ns.paths.learn(self.remote.ip, mtu), self.softnet.now)
            else:  # whichever it is, it ends a connection that is being set up (tcp_v4_err), and else explains a time-out
                conn.on_icmp(number, True, self.softnet.now)
            self._after(0)

    def path_changed(self) -> None:
        """What was learnt of the path to the peer has expired, or was learnt before this connection."""
        assert self.remote is not None
        self.conn.on_mtu(self.ns.path_mtu(self.remote.ip), self.softnet.now)

    def poll_at(self) -> float:
        return INFINITY if self.closed else self.conn.deadline

    def on_timer(self, now: float) -> None:
        if self.listener is not None and self.listener.closed:
            self.destroy()
            return
        self.conn.on_timer(now)
        self._after(0)

    def start_passive(self, conn: Connection, local: SockAddr, remote: SockAddr, listener: TcpListener, trace: int) -> None:
        """Begin as the answer to a SYN."""
        self.conn, self.local, self.remote, self.listener = conn, local, remote, listener
        self.started = True
        self.key = tcp_key(remote, local)
        self.ns.sockets.established[self.key] = self
        self.path_changed()
        self._after(trace)

    def _after(self, trace: int) -> None:
        """Carry out what the connection has decided: send, arm, tell."""
        conn = self.conn
        events = conn.events
        if events:
            conn.events = 0
            if self.probe and events & Event.CONNECTED:
                self.answered = True
                conn.out.clear()
                conn.abort(self.softnet.now)
        out = conn.out
        if out:
            for packet, gso_size in out:
                shortcut = self.shortcut
                if shortcut is None or trace or not shortcut.send(packet, gso_size):
                    self._send(packet, gso_size, trace)
            out.clear()
        if conn.deadline < self.armed:
            self.softnet.arm(self, conn.deadline)
        if events:
            self._tell(events)
        if conn.closed and not self.closed:
            self.destroy()

    def _send(self, packet: bytes, gso_size: int, trace: int) -> None:
        """Send a packet the long way, and see whether its successors may take a shortcut."""
        assert self.remote is not None
        if self._epoch != self.ns.epoch:
            self.route(self.remote.ip)
        if trace:
            self.ns.output(packet, gso_size, trace)
        else:
            self.look_for_shortcut(packet)
            self._transmit(packet, gso_size, 0)

    def _tell(self, events: int) -> None:
        if self.conn.error and not self.orphan:
            self.error = self.conn.error
            self.conn.error = 0
        listener = self.listener
        if listener is not None and events & Event.CONNECTED:
            self.listener = None
            listener.established(self)
        self.notify()

    def destroy(self) -> None:
        """TCP is done with the connection: it leaves the tables."""
        self.closed = True
        if self.listener is not None:
            self.listener.abandoned()
            self.listener = None
        if self.ns.sockets.established.get(self.key) is self:
            del self.ns.sockets.established[self.key]
        self._release_port()
        self.forget_flows()
        self.notify()

    def _release_port(self) -> None:
        if self.bound_port:
            self.bound_port = False
            self.ns.sockets.release(self)


class TcpListener(Socket):
    """A listening socket. `backlog` bounds the accept queue as in Linux, which holds one more; handshakes are bounded apart.

    Linux answers SYNs beyond its bound with cookies, which remember nothing; here they are dropped.
    """

    proto = TCP

    def __init__(self, ns: NetNamespace, address: SockAddr, backlog: int = 128) -> None:
        super().__init__(ns)
        self.local = ns.sockets.bind(self, address)
        ns.sockets.listeners[self.local] = self
        self.backlog = min(backlog, SOMAXCONN)
        self.queue: deque[TcpSocket] = deque()
        self.pending = 0

    @property
    def readable(self) -> bool:
        return bool(self.queue)

    @property
    def full(self) -> bool:
        """Does the accept queue take no more (`sk_acceptq_is_full`)?"""
        return len(self.queue) > self.backlog

    def accept(self) -> TcpSocket | None:
        """The next established connection, if any."""
        return self.queue.popleft() if self.queue else None

    def on_syn(self, data: bytes, l4: int, trace: int, iss: int | None = None) -> None:
        """A SYN for our port: answer it, or drop it while the accept queue is full (tcp_conn_request)."""
        if self.full or self.pending >= MAX_SYN_BACKLOG:
            self.ns.count(DropReason.SOCKET_BUFFER_FULL)
            return
        local = SockAddr(data[16:20], self.local.port)
        remote = SockAddr(data[12:16], data[l4] << 8 | data[l4 + 1])
        child = TcpSocket(self.ns)
        if iss is None:
            iss = self.softnet.rng.getrandbits(32)
        try:
            conn = Connection.passive(data, l4, iss=iss, mtu=self.ns.mtu_to(remote.ip), now=self.softnet.now)
        except ValueError:  # its header is longer than the segment
            self.ns.count(DropReason.TCP_INVALID)
            return
        self.pending += 1
        child.start_passive(conn, local, remote, self, trace | REPLY if trace and not trace & REPLY else 0)

    def established(self, child: TcpSocket) -> None:
        self.pending -= 1
        if self.closed:
            child.abort()
            return
        self.queue.append(child)
        self.notify()

    def abandoned(self) -> None:
        self.pending -= 1

    def close(self) -> None:
        """Stop listening; connections that nobody accepted are reset."""
        if self.closed:
            return
        self.closed = True
        self.ns.sockets.listeners.pop(self.local, None)
        self.ns.sockets.release(self)
        for child in self.queue:
            child.abort()
        self.queue.clear()
        self.notify()
