"""Devices: where packets enter and leave a namespace. Decides carrying only, never where a packet ought to go.

`receive` is the whole fast path: one slice, one dictionary look-up, one rewrite. What it does not know goes to `ingress`,
the slow path, which may teach it. `xmit` ends the slow path of a packet that leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.skb import Skb
from emu.stack.flow import Flow
from emu.stack.tap import IN, OUT, Tap
from emu.wire.addr import Ip, Network, mac_of

if TYPE_CHECKING:
    from emu.stack.bridge import Bridge
    from emu.stack.namespace import NetNamespace


class Device:
    """A network device of one namespace.

    `addresses` are (address, prefix) pairs, the first being the primary one that MASQUERADE takes. Counters count
    what is handed over: a GSO packet is one, as on Linux's veth.
    """

    kind = "device"

    def __init__(self, ns: NetNamespace, name: str, mtu: int, mac: bytes = b"") -> None:
        self.ns, self.name, self.mtu = ns, name, mtu
        self.mac = mac
        self.addresses: list[tuple[Ip, Network]] = []
        self.up = True
        self.master: Bridge | None = None
        self.flows: dict[bytes, Flow] = {}
        self.taps: tuple[Tap, ...] = ()  # changed by `tap` alone
        self.rx_packets = self.rx_bytes = self.tx_packets = self.tx_bytes = 0
        self._softnet = ns.softnet

    def receive(self, data: bytes, gso_size: int, trace: int) -> None:
        """A packet has arrived at this device."""
        size = len(data)
        self.rx_packets += 1
        self.rx_bytes += size
        flow = self.flows.get(data[6:24])
        if flow is None or trace or data[0] != 0x45 or data[2] << 8 | data[3] != size:
            self.ingress(data, gso_size, trace)
            return
        if flow.tcp:  # SYN, FIN and RST move states
            if size < 40 or data[33] & 7 or (gso_size + 20 + (data[32] >> 2) if gso_size else size) > flow.limit:
                self.ingress(data, gso_size, trace)
                return
        elif size > flow.limit or gso_size:
            self.ingress(data, gso_size, trace)
            return
        conn = flow.conn
        if conn is not None:
            now = self._softnet.now
            if conn.epoch != flow.epoch or conn.expires <= now:
                self.ingress(data, gso_size, trace)
                return
            conn.touch(now, size, flow.reply)
        flow.send(data, flow.head, gso_size)

    def ingress(self, data: bytes, gso_size: int, trace: int) -> None:
        """The slow path in: whole headers are read, hooks run."""
        skb = Skb.parse(data)
        if isinstance(skb, DropReason) or data[0] >> 4 != 4:  # wires carry IPv4 (ip_rcv); IPv6 packets meet rules, not devices
            self.ns.count(skb if isinstance(skb, DropReason) else DropReason.MALFORMED)
            return
        skb.gso_size, skb.trace = gso_size, trace
        skb.origin, skb.key = self, data[6:24]
        if self.master is None:
            skb.iif = self.name
            self.ns.ip_rcv(skb)
        else:
            skb.iif, skb.physin = self.master.name, self.name
            self.master.bridge_rcv(self, skb)

    def transmit(self, data: bytes, gso_size: int, trace: int) -> None:
        """Put a finished packet on the wire."""
        raise NotImplementedError

    def forward(self, data: bytes, head: bytes, gso_size: int) -> None:
        """The fast path out: the packet as it came in, with the bytes that the flow's decision changed."""
        self.transmit(data[:6] + head + data[24:], gso_size, 0)

    def xmit(self, skb: Skb, next_hop: Ip) -> None:
        """The slow path out: `next_hop` is an address that `resolve` knows."""
        self.ns.remember(skb, self.mtu, self.forward)
        self.transmit(bytes(skb.buf), skb.gso_size, skb.trace)

    def resolve(self, ip: Ip) -> bool:
        """Does a neighbour on this device's link answer for the address? (What ARP would find out.)"""
        raise NotImplementedError

    def sent(self, size: int) -> None:
        self.tx_packets += 1
        self.tx_bytes += size

    def owns(self, ip: Ip) -> bool:
        return any(ip == address for address, _ in self.addresses)

    # ---- taps ------------------------------------------------------------------------------------------------------------------

    def seen(self, direction: int, data: bytes, gso_size: int, trace: int) -> None:
        """Show a packet to whoever listens."""
        for tap in self.taps:
            tap(direction, data, gso_size, trace)

    def stand_ins(self) -> Mapping[str, Callable[..., None]]:
        """What stands in for methods of the device while it is tapped: the ways by which every packet comes in and leaves."""
        return {"receive": self._hearing(IN, type(self).receive), "transmit": self._hearing(OUT, type(self).transmit)}

    def _hearing(self, direction: int, method: Callable[[Device, bytes, int, int], None]) -> Callable[[bytes, int, int], None]:
        def hear(data: bytes, gso_size: int, trace: int) -> None:
            self.seen(direction, data, gso_size, trace)
            method(self, data, gso_size, trace)

        return hear


class Loopback(Device):
    """`lo`: what is sent comes back in, after whoever is running now."""

    kind = "loopback"

    def __init__(self, ns: NetNamespace) -> None:
        super().__init__(ns, "lo", 65536)

    def transmit(self, data: bytes, gso_size: int, trace: int) -> None:
        self.sent(len(data))
        self._softnet.backlog.append((self.receive, data, gso_size, trace))

    def resolve(self, ip: Ip) -> bool:
        return True

    def stand_ins(self) -> Mapping[str, Callable[..., None]]:
        return {"receive": self._hearing(IN, type(self).receive)}  # libpcap skips what lo sends, for it comes in again


class Veth(Device):
    """One end of a virtual cable; the other end may be in another namespace, with a bridge as master, or gone."""

    kind = "veth"

    def __init__(self, ns: NetNamespace, name: str, mtu: int, mac: bytes = b"") -> None:
        super().__init__(ns, name, mtu, mac)
        self.peer: Veth | None = None

    @staticmethod
    def pair(a: NetNamespace, a_name: str, b: NetNamespace, b_name: str, mtu: int, ip: Ip) -> tuple[Veth, Veth]:
        """`ip link add A type veth peer B`, both up; B gets the MAC that CNI's bridge plugin derives from `ip`."""
        one, other = Veth(a, a_name, mtu), Veth(b, b_name, mtu, mac_of(ip))
        one.peer, other.peer = other, one
        a.add_device(one)
        b.add_device(other)
        return one, other

    def transmit(self, data: bytes, gso_size: int, trace: int) -> None:
        """Put a finished packet on the cable."""
        peer = self.peer
        if peer is None:
            self.ns.count(DropReason.DEVICE_DOWN)
            return
        self.tx_packets += 1
        self.tx_bytes += len(data)
        self._softnet.backlog.append((peer.receive, data, gso_size, trace))

    def resolve(self, ip: Ip) -> bool:
        peer = self.peer
        if peer is None:
            return False
        return peer.owns(ip) if peer.master is None else peer.master.answers(ip)

    def unplug(self) -> None:
        """The cable is gone: both ends drop what is sent from now on."""
        if self.peer is not None:
            self.peer.peer = None
        self.peer = None


class LocalOut(Device):
    """Where the namespace's own packets enter the stack: not a device that one can see, but the same fast path."""

    kind = "local"

    def __init__(self, ns: NetNamespace) -> None:
        super().__init__(ns, "", 65536)

    def ingress(self, data: bytes, gso_size: int, trace: int) -> None:
        skb = Skb.parse(data)
        assert isinstance(skb, Skb), skb  # a packet of our own making
        skb.gso_size, skb.trace = gso_size, trace
        skb.origin, skb.key = self, data[6:24]
        self.ns.local_out(skb)
