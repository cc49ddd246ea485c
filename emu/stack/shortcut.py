"""Shortcuts: what several flow-cache entries in a row decide, taken in one step between a socket and the underlay.

    Exit     socket > pod's eth0 > node's veth > tunnel           one Flow (the node's) and the tunnel's send
    Entry    underlay's eth0 > tunnel > node's veth > pod's eth0 > socket     three Flows

Decides nothing of its own: a shortcut is joined from entries that packets have already taken, checks all that they check,
credits the devices that it passes over, and stands aside (False, None) for whatever they would send the slow way: traced
packets, SYN, FIN and RST, fragments, options, lengths that do not agree, packets over the MTU, connections that have changed.
It is forgotten with the first of its entries, and all of a node's are when a namespace of it is reconfigured
(`Softnet.generation`). Same-node traffic has none: it must go through the backlog, lest one socket's work nest in another's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from emu.stack.device import Device, Veth
from emu.stack.flow import MAX_FLOWS, Flow
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import TcpSocket
from emu.stack.vxlan import OVERHEAD, Tunnel, Vxlan
from emu.wire.addr import SockAddr

if TYPE_CHECKING:
    from emu.netfilter.conn import Conn
    from emu.stack.softnet import Softnet

INNER_TCP = OVERHEAD + 20
_LENGTHS = struct.Struct("!2xH20xH26xH")  # outer IPv4's, outer UDP's, inner IPv4's
_SMALLEST = OVERHEAD + 28


class Exit:
    """A socket's way to a tunnel. `flow` is the entry at the node's end of the pod's cable."""

    __slots__ = ("conn", "epoch", "flow", "generation", "limit", "pod_device", "port", "softnet", "tcp", "timeout", "tunnel")

    def __init__(self, pod_device: Veth, port: Veth, flow: Flow, conn: Conn, tunnel: Tunnel, softnet: Softnet) -> None:
        self.pod_device, self.port, self.flow, self.conn, self.tunnel, self.softnet = pod_device, port, flow, conn, tunnel, softnet
        self.epoch, self.timeout, self.limit, self.tcp = flow.epoch, flow.timeout, flow.limit, flow.tcp
        self.generation = softnet.generation

    def send(self, packet: bytes, gso_size: int) -> bool:
        """Send a packet of the socket this was made for; False if it must go the long way."""
        conn, softnet, size = self.conn, self.softnet, len(packet)
        now = softnet.now
        if self.generation != softnet.generation or conn.epoch != self.epoch or conn.expires <= now:
            return False
        if self.tcp:
            if packet[33] & 7 or (gso_size + 20 + (packet[32] >> 2) if gso_size else size) > self.limit:
                return False
        elif gso_size or size > self.limit:
            return False
        conn.expires = now + self.timeout
        if self.flow.reply:
            conn.reply_packets += 1
            conn.reply_bytes += size
        else:
            conn.packets += 1
            conn.bytes += size
        device = self.pod_device
        device.tx_packets += 1
        device.tx_bytes += size
        device = self.port
        device.rx_packets += 1
        device.rx_bytes += size
        self.tunnel.send(packet, self.flow.head, gso_size)
        return True


def exit_for(pod_device: Device, packet: bytes) -> Exit | None:
    """The shortcut for packets like this one of a pod's socket, if its way has been taken before and leads into a tunnel."""
    if not isinstance(pod_device, Veth) or pod_device.peer is None:
        return None
    port = pod_device.peer
    flow = port.flows.get(packet[6:24])
    if flow is None or flow.conn is None:
        return None
    tunnel = getattr(flow.send, "__self__", None)
    if not isinstance(tunnel, Tunnel):
        return None
    return Exit(pod_device, port, flow, flow.conn, tunnel, port.ns.softnet)


class Entry:
    """The way from the underlay to a socket. `outer` and `inner` are the connections of tunnel and payload."""

    __slots__ = ("devices", "inner", "inner_flow", "limit", "outer", "outer_flow", "owned", "sender", "sock", "tcp", "udp")

    def __init__(self, devices: tuple[Device, Device, Veth, Veth], outer: Flow, inner: Flow, sock: TcpSocket | UdpSocket) -> None:
        assert outer.conn is not None
        assert inner.conn is not None
        self.devices, self.outer_flow, self.inner_flow, self.sock = devices, outer, inner, sock
        self.outer, self.inner, self.limit = outer.conn, inner.conn, inner.limit
        self.tcp: TcpSocket | None = sock if isinstance(sock, TcpSocket) else None
        self.udp: UdpSocket | None = sock if isinstance(sock, UdpSocket) else None
        head = inner.head
        self.sender = SockAddr(head[6:10], head[14] << 8 | head[15])
        self.owned = head[10:14] in sock.ns.local

    def take(self, message: bytes, at: int, length: int, gso_size: int) -> bool:
        """Deliver the frame at `message[at:at + length]`, which ends the message; False if it must go the long way."""
        if length < _SMALLEST or message[at] != 0x45:
            return False
        whole, udp_length, inner_length = _LENGTHS.unpack_from(message, at)
        size = length - OVERHEAD
        if whole != length or udp_length != length - 20 or inner_length != size:
            return False
        outer, inner, outer_flow, inner_flow, sock = self.outer, self.inner, self.outer_flow, self.inner_flow, self.sock
        now = sock.softnet.now
        if outer.epoch != outer_flow.epoch or inner.epoch != inner_flow.epoch or outer.expires <= now or inner.expires <= now:
            return False
        l4 = at + INNER_TCP
        tcp = self.tcp
        if tcp is not None:
            if size < 40 or message[l4 + 13] & 7 or (gso_size + 20 + (message[l4 + 12] >> 2) if gso_size else size) > self.limit:
                return False
        elif gso_size or size > self.limit or message[l4 + 4] << 8 | message[l4 + 5] != size - 20:
            return False
        outer.expires, inner.expires = now + outer_flow.timeout, now + inner_flow.timeout
        self._credit(length, size)
        if sock.softnet.checks:
            assert self.owned, f"{sock.ns.name} was handed a packet that is not its own"
        if tcp is not None:
            tcp.segment(message, l4)
        elif self.udp is not None:
            self.udp.datagram(message[l4 + 8 :], self.sender)
        return True

    def _credit(self, length: int, size: int) -> None:
        """Count the packet wherever it would have passed."""
        outer, inner = self.outer, self.inner
        outer.packets += 1
        outer.bytes += length
        if self.inner_flow.reply:
            inner.reply_packets += 1
            inner.reply_bytes += size
        else:
            inner.packets += 1
            inner.bytes += size
        underlay, vxlan, port, eth0 = self.devices
        underlay.rx_packets += 1
        underlay.rx_bytes += length
        vxlan.rx_packets += 1
        vxlan.rx_bytes += size
        port.tx_packets += 1
        port.tx_bytes += size
        eth0.rx_packets += 1
        eth0.rx_bytes += size


def entry_key(message: bytes, at: int) -> bytes:
    """All bytes of a VXLAN frame that a flow never changes: both headers but for lengths, identifications and what follows."""
    return message[at + 6 : at + 24] + message[at + 26 : at + 52] + message[at + 56 : at + 74]


def join_entry(softnet: Softnet, underlay: Device, message: bytes, at: int, key: bytes) -> None:
    """Remember a shortcut for frames like this one, if packets before it have left the entries that it consists of."""
    outer = underlay.flows.get(message[at + 6 : at + 24])
    vxlan = getattr(outer.send, "__self__", None) if outer is not None and outer.conn is not None else None
    if outer is None or not isinstance(vxlan, Vxlan):
        return
    inner = vxlan.flows.get(message[at + 56 : at + 74])
    port = getattr(inner.send, "__self__", None) if inner is not None and inner.conn is not None else None
    if inner is None or not isinstance(port, Veth) or port.peer is None:
        return
    last = port.peer.flows.get(inner.head)
    sock = getattr(last.send, "__self__", None) if last is not None and last.conn is None else None
    if not isinstance(sock, TcpSocket | UdpSocket):
        return
    shortcuts = softnet.shortcuts
    if len(shortcuts) >= MAX_FLOWS:
        shortcuts.clear()
    shortcuts[key] = Entry((underlay, vxlan, port, port.peer), outer, inner, sock)
    for holder in (outer.conn, inner.conn, sock):  # with whose end the shortcut ends
        assert holder is not None
        holder.flows.append((shortcuts, key))
