"""Neighbour tables with Linux's failure timing and no ARP packets: who answers is asked of the device.

Decides how long a packet waits for a neighbour and when it is given up. An unanswered address is probed three times, a second
apart (mcast_solicit 3, retrans_time 1 s); then what waits for it is answered with ICMP host unreachable, and the next packet
starts over (net/core/neighbour.c).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.skb import Skb
from emu.stack.softnet import INFINITY
from emu.wire.addr import Ip, format_ip

if TYPE_CHECKING:
    from emu.stack.device import Device
    from emu.stack.namespace import NetNamespace

PROBES = 3
RETRANS_TIME = 1.0
QUEUE_PACKETS = 101  # unres_qlen: about 212,992 bytes of small packets


class Neighbour:
    """An INCOMPLETE entry: an address that has not answered, and the packets that wait for it."""

    def __init__(self, table: NeighbourTable, device: Device, ip: Ip, now: float) -> None:
        self.table, self.device, self.ip = table, device, ip
        self.queue: deque[Skb] = deque()
        self.probes = 1
        self.next_probe = now + RETRANS_TIME
        self.armed = INFINITY

    def poll_at(self) -> float:
        return self.next_probe

    def on_timer(self, now: float) -> None:
        if self.device.resolve(self.ip):
            self.table.resolved(self)
        elif self.probes >= PROBES:
            self.table.failed(self)
        else:
            self.probes += 1
            self.next_probe = now + RETRANS_TIME


class NeighbourTable:
    """The unresolved neighbours of one namespace; resolved ones need no entry, since the device answers at once."""

    def __init__(self, ns: NetNamespace) -> None:
        self.ns = ns
        self.incomplete: dict[tuple[str, Ip], Neighbour] = {}

    def output(self, device: Device, next_hop: Ip, skb: Skb) -> None:
        """Send `skb` to `next_hop` by `device`, now or when it answers."""
        if device.resolve(next_hop):
            device.xmit(skb, next_hop)
            return
        entry = self.incomplete.get((device.name, next_hop))
        if entry is None:
            entry = Neighbour(self, device, next_hop, self.ns.softnet.now)
            self.incomplete[device.name, next_hop] = entry
            self.ns.softnet.arm(entry, entry.next_probe)
        if skb.trace:
            self.ns.hop(skb, "neighbour", note=f"who has {format_ip(next_hop)} on {device.name}? waiting for an answer")
        if len(entry.queue) >= QUEUE_PACKETS:
            self.ns.drop(entry.queue.popleft(), DropReason.NEIGHBOUR_QUEUE_FULL, "neighbour")
        entry.queue.append(skb)

    def resolved(self, entry: Neighbour) -> None:
        self._forget(entry)
        for skb in entry.queue:
            entry.device.xmit(skb, entry.ip)

    def failed(self, entry: Neighbour) -> None:
        self._forget(entry)
        for skb in entry.queue:
            self.ns.unreachable(skb, entry.device, entry.ip)

    def _forget(self, entry: Neighbour) -> None:
        entry.next_probe = INFINITY
        self.incomplete.pop((entry.device.name, entry.ip), None)
