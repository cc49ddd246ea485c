"""The Linux bridge that CNIs plug pods into (cni0), with br_netfilter on, as Kubernetes requires (bridge-nf-call-iptables=1).

Decides what is bridged and what is routed. A frame for the bridge's own MAC is routed by the node as if it had come in by the
bridge; a frame from one pod to another on the same bridge is switched without losing TTL, but passes PREROUTING, FORWARD and
POSTROUTING all the same, which is what un-translates replies between pods of one node. There are no Ethernet frames here:
which MAC a pod would have chosen follows from the destination, on-link or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.hooks import Hook
from emu.netfilter.skb import Skb
from emu.stack.device import Device, Veth
from emu.stack.tap import IN, OUT
from emu.wire.addr import Ip

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace


class Bridge(Device):
    """A bridge with veths as ports, which keep the counters.

    `nf_call_iptables` False switches without asking netfilter, as Linux's sysctl does.
    """

    kind = "bridge"

    def __init__(self, ns: NetNamespace, name: str, mtu: int, mac: bytes) -> None:
        super().__init__(ns, name, mtu, mac)
        self.ports: dict[str, Veth] = {}
        self.nf_call_iptables = True

    def attach(self, port: Veth) -> None:
        """`ip link set PORT master BRIDGE`."""
        port.master = self
        self.ports[port.name] = port
        self._changed()

    def detach(self, port: Veth) -> None:
        port.master = None
        self.ports.pop(port.name, None)
        self._changed()

    def _changed(self) -> None:
        """Who answers on this link has changed: neither the node nor the pods may go on as before."""
        self.ns.invalidate()
        for port in self.ports.values():
            if port.peer is not None:
                port.peer.ns.invalidate()

    def port_to(self, ip: Ip) -> Veth | None:
        """The port behind which a namespace owns the address."""
        for port in self.ports.values():
            if port.peer is not None and port.peer.owns(ip):
                return port
        return None

    def answers(self, ip: Ip) -> bool:
        """Would anybody on this link, the bridge itself included, answer an ARP request for the address?"""
        return self.owns(ip) or self.port_to(ip) is not None

    def resolve(self, ip: Ip) -> bool:
        return self.port_to(ip) is not None

    def bridge_rcv(self, port: Device, skb: Skb) -> None:
        """A frame has come in by a port (`br_handle_frame`)."""
        if skb.trace:
            self.ns.hop(skb, port.name, note="in")
        self._show(IN, skb)
        if self._is_for_us(skb.dst):
            self.ns.ip_rcv(skb)
            return
        ns, original = self.ns, skb.dst
        if self.nf_call_iptables:
            if not ns.passes(Hook.PREROUTING, skb):
                return
            if skb.dst != original:  # br_nf_pre_routing_finish: DNAT has changed the destination, so the node routes it
                ns.route_input(skb)
                return
        out = self.port_to(skb.dst)
        if out is None:
            ns.drop(skb, DropReason.HOST_UNREACHABLE, self.name)
            return
        skb.oif = self.name
        if self.nf_call_iptables and not (ns.passes(Hook.FORWARD, skb) and ns.passes(Hook.POSTROUTING, skb)):
            return
        if skb.trace:
            ns.hop(skb, out.name, note="bridged")
        out.xmit(skb, skb.dst)

    def _is_for_us(self, ip: Ip) -> bool:
        """Did the pod address the frame to the bridge's MAC? It does for its gateway and all that is not on-link."""
        return self.owns(ip) or not any(ip in prefix for _, prefix in self.addresses)

    def xmit(self, skb: Skb, next_hop: Ip) -> None:
        port = self.port_to(next_hop)
        if port is None:
            self.ns.drop(skb, DropReason.HOST_UNREACHABLE, self.name)
            return
        if skb.trace:
            self.ns.hop(skb, port.name, note="out")
        self._show(OUT, skb)
        port.xmit(skb, next_hop)

    def stand_ins(self) -> Mapping[str, Callable[..., None]]:
        return {}

    def _show(self, direction: int, skb: Skb) -> None:
        """Show a packet to taps: all that ports bring in, for a tap is promiscuous, and all that the node sends. Flows lead from port
        to port past the bridge, so while it is tapped it has none."""
        if self.taps:
            skb.cacheable = False
            self.seen(direction, bytes(skb.buf), skb.gso_size, skb.trace)
