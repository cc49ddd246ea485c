"""Which socket a packet is for, and who may take which port. One table a namespace: containers of a pod share it.

Decides demultiplexing (net/ipv4/inet_hashtables.c, udp.c) and port allocation; what a socket does with a packet is its own.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.skb import ICMP, TCP, UDP, Skb
from emu.stack import icmp
from emu.stack.sockets import Echo
from emu.tcp.segment import reset_for
from emu.trace import REPLY
from emu.wire.addr import ANY, Ip, SockAddr

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace
    from emu.stack.sockets import PingSocket, Socket, UdpSocket
    from emu.stack.tcp_sockets import TcpListener, TcpSocket

EPHEMERAL = range(32_768, 61_000)  # net.ipv4.ip_local_port_range
UNLIMITED = 1 << 20
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


class SocketTable:
    """All sockets of a namespace. `established` is keyed by bytes 9 to 24 of the packets that come in for the socket."""

    def __init__(self, ns: NetNamespace) -> None:
        self.ns = ns
        self.established: dict[bytes, TcpSocket] = {}
        self.listeners: dict[SockAddr, TcpListener] = {}
        self.udp: dict[SockAddr, UdpSocket] = {}
        self.pings: dict[int, PingSocket] = {}
        self.bound: dict[tuple[int, int], dict[Ip, Socket]] = {}

    # ---- ports -----------------------------------------------------------------------------------------------------------------

    def bind(self, sock: Socket, address: SockAddr) -> SockAddr:
        """Reserve a port for a socket; OSError EADDRNOTAVAIL for a foreign address, EADDRINUSE for a taken port."""
        if address.ip != ANY and not self.ns.is_local(address.ip):
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        port = address.port or self._free_port(sock.proto, address.ip)
        if not self._available(sock.proto, address.ip, port):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self.bound.setdefault((sock.proto, port), {})[address.ip] = sock
        bound = SockAddr(address.ip, port)
        if sock.proto == UDP:
            self.udp[bound] = sock  # type: ignore[assignment]
            self.ns.invalidate()
        return bound

    def rebind(self, sock: UdpSocket, local: SockAddr) -> None:
        """Narrow a UDP socket to the source address that its peer is reached from."""
        self.release(sock)
        sock.local = self.bind(sock, local)

    def release(self, sock: Socket) -> None:
        """Give a socket's port back."""
        holders = self.bound.get((sock.proto, sock.local.port))
        if holders is not None and holders.get(sock.local.ip) is sock:
            del holders[sock.local.ip]
            if not holders:
                del self.bound[sock.proto, sock.local.port]
        if sock.proto == UDP and self.udp.get(sock.local) is sock:
            del self.udp[sock.local]
            self.ns.invalidate()

    def _available(self, proto: int, ip: Ip, port: int) -> bool:
        holders = self.bound.get((proto, port))
        return not holders or (ip != ANY and ANY not in holders and ip not in holders)

    def _free_port(self, proto: int, ip: Ip) -> int:
        start = int(self.ns.random() * len(EPHEMERAL))
        for step in range(len(EPHEMERAL)):
            port = EPHEMERAL[(start + step) % len(EPHEMERAL)]
            if self._available(proto, ip, port):
                return port
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    def connection_port(self, src: Ip, dst: SockAddr) -> int:
        """A local port for a new TCP connection: one whose four-tuple is free; OSError EADDRNOTAVAIL if none is."""
        start = int(self.ns.random() * len(EPHEMERAL))
        for step in range(len(EPHEMERAL)):
            port = EPHEMERAL[(start + step) % len(EPHEMERAL)]
            if tcp_key(dst, SockAddr(src, port)) not in self.established and self._available(TCP, src, port):
                return port
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))

    def new_ident(self, sock: PingSocket) -> int:
        """An unused ICMP echo identifier."""
        start = int(self.ns.random() * 65535)
        ident = next(i for step in range(65536) if (i := (start + step) & 0xFFFF) not in self.pings)
        self.pings[ident] = sock
        return ident

    # ---- packets ---------------------------------------------------------------------------------------------------------------

    def deliver(self, skb: Skb) -> None:
        """Hand a packet to its socket, or answer that there is none."""
        if skb.proto == TCP:
            self._deliver_tcp(skb)
        elif skb.proto == UDP:
            self._deliver_udp(skb)
        else:
            self.ns.drop(skb, DropReason.UNSUPPORTED, "socket")
            icmp.error(self.ns, skb, icmp.DEST_UNREACHABLE, icmp.PROTOCOL_UNREACHABLE)

    def _deliver_tcp(self, skb: Skb) -> None:
        ns, data = self.ns, bytes(skb.buf)
        sock = self.established.get(data[9:24])
        flags = data[skb.l4 + 13]
        listener = self.listeners.get(SockAddr(skb.dst, skb.dport)) or self.listeners.get(SockAddr(ANY, skb.dport))
        successor = sock.conn.successor_iss(data, skb.l4) if sock is not None and flags & SYN and listener is not None else None
        if sock is not None and (parent := sock.listener) is not None:
            if parent.closed:  # nobody would ever accept it
                sock.destroy()
                sock = None
            elif parent.full and flags & (ACK | RST) == ACK:  # the handshake completes once there is room (listen_overflow)
                ns.drop(skb, DropReason.SOCKET_BUFFER_FULL, "socket")
                return
        if sock is not None and successor is None:
            if skb.trace:
                ns.hop(skb, "socket", note=f"TCP {sock.conn.state.name}", verdict=_verdict(skb, flags))
            ns.remember(skb, UNLIMITED, sock.flow_input, sock)
            sock.input(data, skb.l4, skb.trace)
            return
        if sock is not None:  # TIME_WAIT gives way to a new incarnation of the connection (RFC 6191)
            sock.destroy()
        if listener is not None and not flags & (ACK | RST):
            if flags & (SYN | FIN) != SYN:
                ns.drop(skb, DropReason.TCP_INVALID, "socket")
                return
            if skb.trace:
                ns.hop(skb, "socket", note="TCP LISTEN", verdict="delivered")
            listener.on_syn(data, skb.l4, skb.trace, successor)
            return
        ns.count(DropReason.NO_SOCKET)
        reset = reset_for(data, skb.l4)
        if skb.trace:
            verdict = _verdict(skb, flags) if skb.trace & REPLY else "rejected"
            ns.hop(skb, "socket", note="no socket: RST" if reset else "no socket", verdict=verdict)
        if reset is not None:
            ns.output(reset, 0, skb.trace | REPLY if skb.trace and not skb.trace & REPLY else 0)

    def _deliver_udp(self, skb: Skb) -> None:
        ns = self.ns
        sock = self.udp.get(SockAddr(skb.dst, skb.dport)) or self.udp.get(SockAddr(ANY, skb.dport))
        if sock is not None and sock.remote is not None and sock.remote != skb.source:
            sock = None
        if sock is None:
            ns.count(DropReason.NO_SOCKET)
            if skb.trace:
                ns.hop(skb, "socket", note="no socket: port unreachable", verdict="rejected")
            icmp.error(ns, skb, icmp.DEST_UNREACHABLE, icmp.PORT_UNREACHABLE)
            return
        if skb.trace:
            ns.hop(skb, "socket", note="UDP", verdict="delivered")
        ns.remember(skb, UNLIMITED, sock.flow_input, sock)
        sock.input(bytes(skb.buf), skb.l4, skb.trace)

    def echo_reply(self, skb: Skb) -> None:
        """An echo reply for whoever asked."""
        ident, seq = struct.unpack_from("!HH", skb.buf, skb.l4 + 4)
        sock = self.pings.get(ident)
        if skb.trace:
            self.ns.hop(skb, "socket", note="echo reply", verdict="delivered")
        if sock is None:
            self.ns.count(DropReason.NO_SOCKET)
        else:
            sock.input(Echo(icmp.ECHO_REPLY, 0, seq, bytes(skb.buf[skb.l4 + 8 :]), skb.src, skb.buf[8]))

    def icmp_error(self, skb: Skb, quote: bytes, number: int, fatal: bool, mtu: int | None) -> None:
        """An ICMP error about one of our packets, `quote`: tell the socket it concerns (`tcp_v4_err`, `__udp4_lib_err`).

        `mtu` is what "fragmentation needed" tells, None of other errors; only where there is a socket is it believed.
        """
        l4 = (quote[0] & 15) << 2
        if len(quote) < l4 + 8:
            self.ns.count(DropReason.MALFORMED)
            return
        proto, src, dst = quote[9], quote[12:16], quote[16:20]
        sport, dport = struct.unpack_from("!HH", quote, l4)
        if proto == TCP:
            sock = self.established.get(tcp_key(SockAddr(dst, dport), SockAddr(src, sport)))
            if sock is not None:
                sock.on_icmp(number, mtu, struct.unpack_from("!I", quote, l4 + 4)[0])
                return
        elif proto == UDP:
            udp = self.udp.get(SockAddr(src, sport)) or self.udp.get(SockAddr(ANY, sport))
            if udp is not None:
                if mtu is not None:
                    self.ns.paths.learn(dst, mtu)
                if udp.remote == SockAddr(dst, dport) and fatal:
                    udp.fail(number)
                return
        elif proto == ICMP and quote[l4] == icmp.ECHO_REQUEST:
            ident, seq = struct.unpack_from("!HH", quote, l4 + 4)
            ping = self.pings.get(ident)
            if ping is not None:
                if mtu is not None:
                    self.ns.paths.learn(dst, mtu)
                ping.input(Echo(skb.buf[skb.l4], skb.buf[skb.l4 + 1], seq, b"", skb.src, skb.buf[8]))
                return
        self.ns.count(DropReason.NO_SOCKET)

    def close_all(self) -> None:
        """The namespace goes away: every socket is reset."""
        for sock in [*self.established.values()]:
            sock.abort()
        for other in [*self.listeners.values(), *self.udp.values(), *self.pings.values()]:
            other.close()


def tcp_key(remote: SockAddr, local: SockAddr) -> bytes:
    """Bytes 9 to 24 of a packet from `remote` to `local`: the key of `established`."""
    return struct.pack("!BH4s4sHH", TCP, 0, remote.ip, local.ip, remote.port, local.port)


def _verdict(skb: Skb, flags: int) -> str:
    """What a traced segment at its socket means to the client: a reset in answer is a rejection."""
    return "rejected" if skb.trace & REPLY and flags & RST else "delivered"
