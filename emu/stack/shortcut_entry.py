"""The other shortcut: from the underlay to a socket, over tunnel, bridge port and cable in one step. Its rules are `shortcut`'s."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from emu.stack.device import Device, Veth
from emu.stack.flow import MAX_FLOWS, Flow, hold
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import TcpSocket
from emu.stack.vxlan import LARGE, OVERHEAD, Vxlan
from emu.wire.addr import SockAddr
from emu.wire.message import RECORD

if TYPE_CHECKING:
    from emu.stack.softnet import Softnet

INNER_TCP = OVERHEAD + 20
_LENGTHS = struct.Struct("!2xH20xH26xH")  # outer IPv4's, outer UDP's, inner IPv4's
_SMALLEST = OVERHEAD + 28
# A record with a datagram, around the three runs of bytes that its flow never changes (see `entry_key`): record's length, gso_size
# and trace; outer version, length, run, outer UDP length, run, inner length, run, inner UDP length
_DATAGRAM = struct.Struct("!HHIBxH2x18sH26sH2x18sH2x")
_BEFORE = RECORD.size + _SMALLEST  # what stands before a datagram's payload


class Entry:
    """The way from the underlay to a socket. `outer` and `inner` are the connections of tunnel and payload."""

    __slots__ = ("devices", "inner", "inner_flow", "limit", "outer", "outer_flow", "runs", "sender", "sock", "tcp", "udp")

    def __init__(
        self, devices: tuple[Device, Device, Veth, Veth], outer: Flow, inner: Flow, sock: TcpSocket | UdpSocket, key: bytes
    ) -> None:
        assert outer.conn is not None
        assert inner.conn is not None
        self.devices, self.outer_flow, self.inner_flow, self.sock = devices, outer, inner, sock
        self.outer, self.inner, self.limit = outer.conn, inner.conn, inner.limit
        self.tcp: TcpSocket | None = sock if isinstance(sock, TcpSocket) else None
        self.udp: UdpSocket | None = sock if isinstance(sock, UdpSocket) else None
        head = inner.head
        self.sender = SockAddr(head[6:10], head[14] << 8 | head[15])
        self.runs = key[:18], key[18:44], key[44:]

    def take(self, message: bytes | memoryview, at: int, length: int, gso_size: int) -> bool:
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
        outer.touch(now, length, outer_flow.reply)
        inner.touch(now, size, inner_flow.reply)
        self._credit(length, size)
        if sock.softnet.checks:
            assert inner_flow.head[10:14] in sock.ns.local, f"{sock.ns.name} was handed a packet that is not its own"
        if tcp is not None:
            tcp.segment(message if size < LARGE else memoryview(message), l4)  # a large payload is not copied before it is read
        elif self.udp is not None:
            self.udp.datagram(bytes(message[l4 + 8 :]), self.sender)
        return True

    def take_run(self, message: bytes, at: int, size: int) -> int:
        """Deliver the record at `at` and those after it that are the same flow's, in a message of `size` bytes.

        Where the first record stands that must go another way: `at` itself if none was taken.
        """
        udp = self.udp
        if udp is None:
            length, gso_size, _ = RECORD.unpack_from(message, at)
            end = at + RECORD.size + length
            view = memoryview(message)[:end] if end < size else message
            return end if self.take(view, at + RECORD.size, length, gso_size) else at
        now = udp.softnet.now
        if self.outdated or self.outer.expires <= now or self.inner.expires <= now:
            return at
        outer, middle, inner = self.runs
        limit, start, payloads = self.limit, at, []
        while at + _BEFORE <= size:
            length, gso_size, trace, version, whole, run, udp_length, other_run, inner_size, third_run, inner_udp = _DATAGRAM.unpack_from(
                message, at
            )
            end = at + RECORD.size + length
            if (
                run != outer or other_run != middle or third_run != inner or version != 0x45 or trace or gso_size or end > size
                or whole != length or udp_length != length - 20 or inner_size != length - OVERHEAD or inner_udp != inner_size - 20
                or inner_size > limit or length < _SMALLEST
            ):  # fmt: skip
                break
            payloads.append(message[at + _BEFORE : end])
            at = end
        if payloads:
            self._deliver(payloads, at - start - len(payloads) * RECORD.size, now)
        return at

    def _deliver(self, payloads: list[bytes], whole: int, now: float) -> None:
        """Hand datagrams to their socket, `whole` being the bytes of all outer packets."""
        udp, packets = self.udp, len(payloads)
        assert udp is not None
        size = whole - packets * OVERHEAD
        self.outer.touch(now, whole, self.outer_flow.reply, packets)
        self.inner.touch(now, size, self.inner_flow.reply, packets)
        self._credit(whole, size, packets)
        if udp.softnet.checks:
            assert self.inner_flow.head[10:14] in udp.ns.local, f"{udp.ns.name} was handed packets that are not its own"
        udp.datagrams(payloads, self.sender)

    @property
    def outdated(self) -> bool:
        """Has a connection changed its state since? What this was joined from will never agree with it again."""
        return self.outer.epoch != self.outer_flow.epoch or self.inner.epoch != self.inner_flow.epoch

    def _credit(self, length: int, size: int, packets: int = 1) -> None:
        """Count packets of so many bytes, outer and inner, at every device that they would have passed."""
        underlay, vxlan, port, eth0 = self.devices
        underlay.rx_packets += packets
        underlay.rx_bytes += length
        vxlan.rx_packets += packets
        vxlan.rx_bytes += size
        port.tx_packets += packets
        port.tx_bytes += size
        eth0.rx_packets += packets
        eth0.rx_bytes += size


def entry_key(message: bytes, at: int) -> bytes:
    """All bytes of a VXLAN frame that a flow never changes: both headers but for lengths, identifications and what follows."""
    return message[at + 6 : at + 24] + message[at + 26 : at + 52] + message[at + 56 : at + 74]


def join_entry(softnet: Softnet, underlay: Device, message: bytes, at: int, key: bytes) -> None:
    """Remember a shortcut for frames like this one, if packets before it have left the entries that it consists of."""
    if softnet.tapped:
        return
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
    shortcuts[key] = Entry((underlay, vxlan, port, port.peer), outer, inner, sock, key)
    for holder in (outer.conn, inner.conn, sock):  # with whose end the shortcut ends
        assert holder is not None
        hold(holder.flows, shortcuts, key)
