"""Shortcuts: what several flow-cache entries in a row decide, taken in one step between a socket and the underlay.

    Exit                       socket > pod's eth0 > node's veth > tunnel                  one Flow and the tunnel's send
    Entry (shortcut_entry)     eth0 > tunnel > node's veth > pod's eth0 > socket           three Flows

Decides nothing of its own: a shortcut is joined from entries that packets have already taken, checks all that they check,
credits the devices that it passes over, and stands aside (False, None) for whatever they would send the slow way: traced
packets, SYN, FIN and RST, fragments, options, lengths that do not agree, packets over the MTU, connections that have changed.
It is forgotten with the first of its entries, and all of a node's are when a namespace of it is reconfigured
(`Softnet.generation`). Same-node traffic has none: it must go through the backlog, lest one socket's work nest in another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emu.stack.device import Device, Veth
from emu.stack.flow import Flow
from emu.stack.vxlan import Tunnel

if TYPE_CHECKING:
    from emu.netfilter.conn import Conn
    from emu.stack.softnet import Softnet


class Exit:
    """A socket's way to a tunnel. `flow` is the entry at the node's end of the pod's cable."""

    __slots__ = ("conn", "epoch", "flow", "generation", "limit", "pod_device", "port", "softnet", "tcp", "tunnel")

    def __init__(self, pod_device: Veth, port: Veth, flow: Flow, conn: Conn, tunnel: Tunnel, softnet: Softnet) -> None:
        self.pod_device, self.port, self.flow, self.conn, self.tunnel, self.softnet = pod_device, port, flow, conn, tunnel, softnet
        self.epoch, self.limit, self.tcp = flow.epoch, flow.limit, flow.tcp
        self.generation = softnet.generation

    def send(self, packet: bytes, gso_size: int) -> bool:
        """Send a packet of the socket this was made for; False if it must go the long way."""
        conn, softnet, size = self.conn, self.softnet, len(packet)
        now = softnet.now
        if self.generation != softnet.generation or conn.epoch != self.epoch or conn.expires <= now:
            return False
        if softnet.backlog:  # what went the long way before must not be overtaken
            return False
        if self.tcp:
            if packet[33] & 7 or (gso_size + 20 + (packet[32] >> 2) if gso_size else size) > self.limit:
                return False
        elif gso_size or size > self.limit:
            return False
        conn.touch(now, size, self.flow.reply)
        device = self.pod_device
        device.tx_packets += 1
        device.tx_bytes += size
        device = self.port
        device.rx_packets += 1
        device.rx_bytes += size
        self.tunnel.send(packet, self.flow.head, gso_size)
        return True

    def datagram(self, payload: bytes) -> bool:
        """As `send`, for the payload of a UDP socket's datagram; written out, as a packet costs little more than its calls do."""
        conn, softnet, size = self.conn, self.softnet, len(payload) + 28
        now = softnet.now
        if self.generation != softnet.generation or conn.epoch != self.epoch or conn.expires <= now or softnet.backlog:
            return False
        if size > self.limit or not self.tunnel.datagram(payload, self.flow.head, size, now):
            return False
        conn.expires = now + conn.timeout
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
        return True

    def send_run(self, payloads: list[bytes]) -> int:
        """Send datagrams of the UDP socket this was made for, as many as may go this way before one that may not; how many."""
        conn, softnet = self.conn, self.softnet
        now = softnet.now
        if self.tcp or self.generation != softnet.generation or conn.epoch != self.epoch or conn.expires <= now or softnet.backlog:
            return 0
        packets, size = self.tunnel.send_run(payloads, self.flow.head, self.limit)
        if packets:
            conn.touch(now, size, self.flow.reply, packets)
            device = self.pod_device
            device.tx_packets += packets
            device.tx_bytes += size
            device = self.port
            device.rx_packets += packets
            device.rx_bytes += size
        return packets


def exit_for(pod_device: Device, packet: bytes) -> Exit | None:
    """The shortcut for packets like this one of a pod's socket, if its way has been taken before and leads into a tunnel."""
    if not isinstance(pod_device, Veth) or pod_device.peer is None or pod_device.ns.softnet.tapped:
        return None
    port = pod_device.peer
    flow = port.flows.get(packet[6:24])
    if flow is None or flow.conn is None:
        return None
    tunnel = getattr(flow.send, "__self__", None)
    if not isinstance(tunnel, Tunnel):
        return None
    return Exit(pod_device, port, flow, flow.conn, tunnel, port.ns.softnet)
