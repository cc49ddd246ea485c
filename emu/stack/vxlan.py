"""A VXLAN device as flannel makes it: `ip link add flannel.1 type vxlan id 1 local IP dstport 8472 nolearning` (RFC 7348).

Decides encapsulation: inner Ethernet, VXLAN, UDP, outer IPv4, 50 bytes in all. The outer packet is an ordinary local packet of
the node (OUTPUT, POSTROUTING) on its way out and in (PREROUTING, INPUT). Neighbours and forwarding entries are permanent, set
by the CNI; there is no learning and no flooding.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.skb import UDP, Skb
from emu.stack.device import Device
from emu.stack.flow import Send, cacheable
from emu.stack.tap import IN, OUT
from emu.wire.addr import Ip, format_ip
from emu.wire.message import FIRST, RECORD, VERSION

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace
    from emu.stack.underlay import Underlay

OVERHEAD = 50
LONGEST = 65535 - OVERHEAD  # bytes of an inner packet; Linux would have cut a longer datagram into fragments before
UDP_PORT = 8472  # Linux's own, which flannel keeps; IANA's is 4789
FLAGS = 0x08000000  # "the VNI is valid", the only flag
_FIRST_PORT, _PORTS = 32768, 28232  # udp_flow_src_port: a hash of the inner flow into the local port range

# version and length words, then three constant runs of a flow around the two length fields and the IP identification
_OUTER = struct.Struct("!HHH18sH24s")
# a whole message with one packet, up to where the inner packet goes on unchanged: message header, outer headers, inner head
_FRAME = struct.Struct(f"{FIRST.format}{_OUTER.format[1:]}6s18s")
# the same without the message's own header
_LARGE = struct.Struct(f"{RECORD.format}{_OUTER.format[1:]}6s18s")
# and of a datagram in a message of many, with its own UDP header's end: length and a zero checksum
_RECORD = struct.Struct(f"{RECORD.format}{_OUTER.format[1:]}HHH18sHH")
LARGE = 4096  # bytes of a packet from where it is cheaper to queue it in two pieces than to copy it behind its header
_RUN = 1 << 16  # bytes after which a run is queued, so that no message outgrows the carrier
_FIXED = struct.Struct("!HBBH4s4sHH")  # fragment bits .. UDP destination port
_TAIL = struct.Struct("!HII6s6sH")  # UDP checksum .. Ethernet type


class Tunnel:
    """One flow's way through the device: the outer header is constant but for lengths and identification."""

    __slots__ = ("conn", "fixed", "next_hop", "peer", "softnet", "tail", "underlay", "vxlan")

    def __init__(self, vxlan: Vxlan, underlay: Underlay, next_hop: Ip, peer: Ip, outer: Skb, tail: bytes) -> None:
        self.vxlan, self.underlay, self.next_hop, self.peer, self.tail = vxlan, underlay, next_hop, peer, tail
        self.fixed, self.conn, self.softnet = bytes(outer.buf[6:24]), outer.ct, vxlan.ns.softnet

    def send(self, data: bytes, head: bytes, gso_size: int) -> None:
        vxlan = self.vxlan
        size = len(data)
        conn = self.conn
        if conn is not None:  # the tunnel's own connection lives as long as packets go through it
            now = self.softnet.now
            if conn.expires <= now:
                skb = Skb.parse(data[:6] + head + data[24:])
                assert isinstance(skb, Skb), skb
                skb.gso_size = gso_size
                vxlan.xmit(skb, self.next_hop)
                return
            conn.touch(now, size + OVERHEAD, False)
        vxlan.ident = ident = vxlan.ident + 1 & 0xFFFF
        vxlan.tx_packets += 1
        vxlan.tx_bytes += size
        underlay = self.underlay
        underlay.tx_packets += 1
        underlay.tx_bytes += size + 50
        if size > LARGE and not self.softnet.tapped:
            record = _LARGE.pack(size + 50, gso_size, 0, 0x4500, size + 50, ident, self.fixed, size + 30, self.tail, data[:6], head)
            underlay.queue_records(self.peer, [record, memoryview(data)[24:]], _LARGE.size + size - 24)
            return
        header = _FRAME.pack(
            VERSION, 0, 0, underlay.incarnations.get(self.peer, 0), int(self.softnet.now * 1e6), size + 50, gso_size, 0,
            0x4500, size + 50, ident, self.fixed, size + 30, self.tail, data[:6], head,
        )  # fmt: skip
        underlay.queue(self.peer, header + data[24:])

    def datagram(self, payload: bytes, head: bytes, size: int, now: float) -> bool:
        """Send one datagram, `size` being its inner packet's; False if the tunnel's own connection has ended."""
        conn = self.conn
        if conn is not None:
            if conn.expires <= now:
                return False
            conn.expires = now + conn.timeout  # `touch`, without the call
            conn.packets += 1
            conn.bytes += size + 50
        vxlan, underlay = self.vxlan, self.underlay
        vxlan.ident = ident = vxlan.ident + 1 & 0xFFFF
        vxlan.tx_packets += 1
        vxlan.tx_bytes += size
        underlay.tx_packets += 1
        underlay.tx_bytes += size + 50
        underlay.queue_record(
            self.peer,
            _RECORD.pack(
                size + 50, 0, 0, 0x4500, size + 50, ident, self.fixed, size + 30, self.tail, 0x4500, size, 0, head, size - 20, 0,
            ) + payload,
        )  # fmt: skip
        return True

    def send_run(self, payloads: list[bytes], head: bytes, limit: int) -> tuple[int, int]:
        """Send datagrams of one flow, as many as the first that is longer than `limit` lets; packets and bytes of them, inner headers
        included."""
        conn, softnet, underlay, vxlan = self.conn, self.softnet, self.underlay, self.vxlan
        if conn is not None and conn.expires <= softnet.now:
            return 0, 0
        pack, fixed, tail, ident = _RECORD.pack, self.fixed, self.tail, vxlan.ident
        pieces: list[bytes] = []
        packets = total = length = 0
        for payload in payloads:
            size = len(payload) + 28
            if size > limit:
                break
            ident = ident + 1 & 0xFFFF
            pieces.append(
                pack(
                    size + 50, 0, 0, 0x4500, size + 50, ident, fixed, size + 30, tail, 0x4500, size, 0, head, size - 20, 0,
                ) + payload
            )  # fmt: skip
            packets += 1
            total += size
            length += len(pieces[-1])
            if length > _RUN:
                underlay.queue_records(self.peer, pieces, length)
                pieces, length = [], 0
        if pieces:
            underlay.queue_records(self.peer, pieces, length)
        if packets:
            whole = total + packets * OVERHEAD
            if conn is not None:
                conn.touch(softnet.now, whole, False, packets)
            vxlan.ident = ident
            vxlan.tx_packets += packets
            vxlan.tx_bytes += total
            underlay.tx_packets += packets
            underlay.tx_bytes += whole
        return packets, total


class Vxlan(Device):
    """One VXLAN network identifier at one node. `neighbours` is IP to MAC, `fdb` MAC to the peer node's underlay address."""

    kind = "vxlan"

    def __init__(self, ns: NetNamespace, name: str, vni: int, local: Ip, mtu: int, mac: bytes) -> None:
        super().__init__(ns, name, mtu, mac)
        self.vni, self.local = vni, local
        self.neighbours: Mapping[Ip, bytes] = {}
        self.fdb: Mapping[bytes, Ip] = {}
        self.ident = 0
        self._header = struct.pack("!II", FLAGS, vni << 8)

    def resolve(self, ip: Ip) -> bool:
        return True  # entries are permanent: what has none is dropped in xmit, not asked for

    def xmit(self, skb: Skb, next_hop: Ip) -> None:
        ns = self.ns
        mac = self.neighbours.get(next_hop)
        remote = self.fdb.get(mac) if mac is not None else None
        if mac is None or remote is None:
            ns.drop(skb, DropReason.UNKNOWN_PEER, self.name)
            return
        inner = bytes(skb.buf)
        if len(inner) > LONGEST:
            ns.drop(skb, DropReason.TOO_BIG, self.name)
            return
        self.sent(len(inner))
        self.seen(OUT, inner, skb.gso_size, skb.trace)
        sport = _FIRST_PORT + zlib.crc32(inner[9:24]) % _PORTS
        fixed = _FIXED.pack(0, 64, UDP, 0, self.local, remote, sport, UDP_PORT)
        tail = _TAIL.pack(0, FLAGS, self.vni << 8, mac, self.mac, 0x0800)
        self.ident = self.ident + 1 & 0xFFFF
        outer = Skb.parse(_OUTER.pack(0x4500, len(inner) + OVERHEAD, self.ident, fixed, len(inner) + 30, tail) + inner)
        assert isinstance(outer, Skb), outer
        outer.gso_size, outer.trace = skb.gso_size, skb.trace
        if skb.trace:
            ends = f"{format_ip(self.local)}:{sport} > {format_ip(remote)}:{UDP_PORT}"
            ns.hop(skb, self.name, note=f"encapsulated, VXLAN {self.vni}, outer UDP {ends}")
        underlay = ns.output_tunnelled(outer)
        if underlay is not None and cacheable(skb) and outer.cacheable:
            send = Tunnel(self, underlay, next_hop, remote, outer, tail).send
            ns.remember(skb, self.mtu, self._shown(send) if self.taps else send, outer.ct)

    def _shown(self, send: Send) -> Send:
        """The same way, past the taps."""

        def show(data: bytes, head: bytes, gso_size: int) -> None:
            self.seen(OUT, data[:6] + head + data[24:], gso_size, 0)
            send(data, head, gso_size)

        return show

    def stand_ins(self) -> Mapping[str, Callable[..., None]]:
        return {"receive": self._hearing(IN, Vxlan.receive)}

    def decapsulate(self, data: bytes, l4: int, gso_size: int, trace: int) -> None:
        """A packet for our UDP port: the inner packet comes in at this device. Anything else is counted and dropped."""
        at = l4 + 8
        if len(data) < at + 42:
            self.ns.count(DropReason.TRUNCATED)
        elif data[at : at + 8] != self._header:
            self.ns.count(DropReason.UNKNOWN_VNI)
        elif data[at + 8 : at + 14] != self.mac:
            self.ns.count(DropReason.NOT_OURS)
        elif data[at + 20 : at + 22] != b"\x08\x00":
            self.ns.count(DropReason.UNSUPPORTED)
        else:
            self.receive(data[at + 22 :], gso_size, trace)

    def flow_input(self, data: bytes, head: bytes, gso_size: int) -> None:
        """The fast path in, for outer packets with a plain 20-byte header."""
        self.decapsulate(data, 20, gso_size, 0)
