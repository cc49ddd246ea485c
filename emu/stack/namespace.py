"""`NetNamespace`: the way of a packet between devices, hooks, routes and sockets, for pods and nodes alike.

    device.ingress > ip_rcv: PREROUTING > route_input > local_deliver: INPUT > socket, tunnel, ICMP
                                                     > forward: FORWARD > postroute
    socket > local_out: OUTPUT (> route again) > postroute: POSTROUTING > neighbour > device.xmit

Decides the order of these stations (net/ipv4/ip_input.c, ip_forward.c, ip_output.c) and nothing that a station decides. Packets
here are first packets and oddities; what repeats is answered by `flow` before it comes here. Every end of a packet is either
a delivery or a `drop` with a counted reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.memory import Memory
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import ICMP, PROTOCOL_NAMES, TCP, UDP, Skb
from emu.stack import icmp
from emu.stack.device import Device, LocalOut, Loopback, Veth
from emu.stack.flow import MAX_FLOWS, Flow, Send, cacheable, hold
from emu.stack.neighbour import NeighbourTable
from emu.stack.pmtu import PathMtus
from emu.stack.route import Route, RoutingTable
from emu.stack.socket_table import SocketTable
from emu.stack.softnet import Softnet
from emu.trace import REPLY, Hop, PacketSummary
from emu.wire.addr import LOOPBACK, Ip, Network, format_ip

if TYPE_CHECKING:
    from emu.netfilter.conntrack import Conn
    from emu.stack.sockets import Socket
    from emu.stack.underlay import Underlay

UNROUTED = frozenset((DropReason.NO_ROUTE, DropReason.OUTSIDE))


class NetNamespace:
    """One network namespace. `name` is "node" or "pod/NAMESPACE/NAME"; `forwarding` is net.ipv4.ip_forward.

    It is also the `Surroundings` that its rules ask. All calls happen under the node's lock, with `softnet.now` set.
    """

    def __init__(self, name: str, softnet: Softnet, *, forwarding: bool = False) -> None:
        self.name, self.softnet, self.forwarding = name, softnet, forwarding
        self.route_localnet = forwarding  # kube-proxy sets it on nodes, for node ports on 127.0.0.1
        self.devices: dict[str, Device] = {}
        self.local: set[Ip] = set()
        self.routes = RoutingTable()
        self.neighbours = NeighbourTable(self)
        self.paths = PathMtus(self)
        self.memory = Memory()
        self.netfilter = Netfilter(self)
        self.sockets = SocketTable(self)
        self.drops: Counter[DropReason] = Counter()
        self.tunnels: dict[int, Callable[[bytes, int, int, int], None]] = {}  # UDP port to decapsulation
        self.tunnel_flows: dict[int, Send] = {}
        self.epoch = 0  # moves with whatever a remembered decision may rest on
        self.closed = False
        self.out = LocalOut(self)
        self.lo = Loopback(self)
        self.add_device(self.lo)
        self.add_address("lo", Network.parse("127.0.0.1/8", strict=False), bytes((127, 0, 0, 1)))

    # ---- configuration: `ip link`, `ip addr`, `ip route`, `iptables-restore` --------------------------------------------

    def add_device(self, device: Device) -> None:
        assert device.name not in self.devices, f"{self.name}: device {device.name} exists"
        self.devices[device.name] = device
        self.invalidate()
        for told in self.softnet.device_added:
            told(device)

    def remove_device(self, name: str) -> None:
        """Take a device away with its addresses and routes."""
        device = self.devices.pop(name)
        device.up = False
        self.local -= {ip for ip, _ in device.addresses}
        for route in [route for route in self.routes if route.device == name]:
            self.routes.remove(route.prefix)
        self.invalidate()

    def add_address(self, device: str, prefix: Network, ip: Ip) -> None:
        """`ip addr add IP/LENGTH dev DEVICE`: the address becomes local, and its prefix on-link."""
        self.devices[device].addresses.append((ip, prefix))
        self.local.add(ip)
        if device != "lo" and prefix.length < 8 * len(ip):
            self.routes.add(Route(prefix, device, source=ip))
        self.invalidate()

    def add_route(self, route: Route) -> None:
        self.routes.add(route)
        self.invalidate()

    def remove_route(self, prefix: Network) -> None:
        self.routes.remove(prefix)
        self.invalidate()

    def swap(self, ruleset: RuleSet) -> None:
        """Replace all rules at once; no packet sees half of them."""
        self.netfilter.swap(ruleset)
        self.invalidate()

    def invalidate(self) -> None:
        """Something has moved that a remembered decision may rest on: forget them all."""
        self.epoch += 1
        self.softnet.generation += 1
        self.softnet.shortcuts.clear()
        for device in self.devices.values():
            device.flows.clear()
        self.out.flows.clear()

    def close(self) -> None:
        """End the namespace: sockets are reset, nothing is delivered any more."""
        self.sockets.close_all()
        self.closed = True
        for name in list(self.devices):
            self.remove_device(name)

    # ---- what rules and sockets may ask ----------------------------------------------------------------------------------

    def is_local(self, ip: Ip) -> bool:
        return ip in self.local or (ip[0] == 127 and len(ip) == 4)

    def is_local_on(self, ip: Ip, device: str) -> bool:
        return device in self.devices and any(own == ip for own, _ in self.devices[device].addresses)

    def is_broadcast(self, ip: Ip) -> bool:
        return any(ip == prefix.broadcast for device in self.devices.values() for _, prefix in device.addresses)

    def source_for(self, dst: Ip) -> Ip | None:
        """The source address of a packet of ours towards `dst`; None if there is no route."""
        if self.is_local(dst):
            return dst
        route = self.routes.lookup(dst)
        return None if route is None else self._source(route)

    def _source(self, route: Route) -> Ip | None:
        if route.source is not None:
            return route.source
        addresses = self.devices[route.device].addresses
        if not addresses:  # a device without one borrows another's, but never loopback's
            addresses = [pair for device in self.devices.values() if device is not self.lo for pair in device.addresses]
        return addresses[0][0] if addresses else None

    def masquerade_address(self, oif: str, dst: Ip) -> Ip | None:
        device = self.devices.get(oif)
        if device is None:
            return None
        # inet_select_addr: the address whose subnet holds the destination, else the device's first, else another
        # device's; never 127.0.0.1, which is of scope host
        own = [(ip, prefix) for ip, prefix in device.addresses if ip[0] != LOOPBACK[0]]
        others = (ip for other in self.devices.values() for ip, _ in other.addresses if ip[0] != LOOPBACK[0])
        return next((ip for ip, prefix in own if dst in prefix), own[0][0] if own else next(others, None))

    def random(self) -> float:
        return self.softnet.rng.random()

    def choose(self, count: int) -> int:
        return int(self.softnet.rng.random() * count)

    def direct(self, dst: Ip) -> Callable[[bytes, int, int], None] | None:
        """The device's own `transmit`, where no hook could have a say and the neighbour answers; else None."""
        if self.netfilter.active:
            return None
        if self.is_local(dst):
            return self.lo.transmit
        route = self.routes.lookup(dst)
        if route is None:
            return None
        device = self.devices[route.device]
        return device.transmit if isinstance(device, Veth) and device.resolve(route.gateway or dst) else None

    def mtu_to(self, dst: Ip) -> int:
        if self.is_local(dst):
            return self.lo.mtu
        route = self.routes.lookup(dst)
        return self.devices[route.device].mtu if route is not None else 1500

    def path_mtu(self, dst: Ip) -> int:
        """How long a packet to `dst` may be, by the device and what has been learnt of the way beyond."""
        return self.paths.get(dst) or self.mtu_to(dst)

    # ---- stories and endings -----------------------------------------------------------------------------------------------

    def hop(
        self, skb: Skb, where: str, rule: str | None = None, note: str | None = None, rules: int = 0, verdict: str | None = None
    ) -> None:
        """Record what happened to a traced packet."""
        ports = skb.proto in (TCP, UDP) or skb.proto == 132
        summary = PacketSummary(
            format_ip(skb.src), format_ip(skb.dst), PROTOCOL_NAMES.get(skb.proto, str(skb.proto)),
            skb.sport if ports else None, skb.dport if ports else None,
        )  # fmt: skip
        softnet = self.softnet
        if not softnet.hops:
            softnet.hops_recorded()
        softnet.hops.append(
            Hop(skb.trace, softnet.node, self.name, where, summary, softnet.now, softnet.next_hop_seq(), rule, note, rules, verdict)
        )

    def count(self, reason: DropReason, packets: int = 1) -> None:
        self.drops[reason] += packets

    def drop(self, skb: Skb, reason: DropReason, where: str) -> None:
        """The packet ends here."""
        self.drops[reason] += 1
        if skb.trace:
            self.hop(skb, where, note=reason.value, verdict="unrouted" if reason in UNROUTED else "dropped")

    def passes(self, hook: Hook, skb: Skb) -> bool:
        """Run a hook; False if the packet ended there (a REJECT has been answered)."""
        if not self.netfilter.active:
            return True
        verdict = self.netfilter.run(hook, skb, self.softnet.now)
        if skb.trace and skb.ct is not None:
            self.softnet.traced.setdefault(skb.trace & ~REPLY, []).append(skb.ct)
        if verdict is Verdict.ACCEPT:
            return True
        if verdict is Verdict.REJECT:
            if skb.trace:
                self.hop(skb, hook.name, note=f"rejected with {skb.reject_with}", verdict="rejected")
            self.drops[DropReason.REJECTED] += 1
            icmp.reject(self, skb)
        else:
            self.drop(skb, self.netfilter.drop_reason, hook.name)
        return False

    def unreachable(self, skb: Skb, device: Device, next_hop: Ip) -> None:
        """The neighbour never answered (ipv4_link_failure)."""
        self.drop(skb, DropReason.HOST_UNREACHABLE, device.name)
        icmp.error(self, skb, icmp.DEST_UNREACHABLE, icmp.HOST_UNREACHABLE)

    # ---- the way in ----------------------------------------------------------------------------------------------------------

    def ip_rcv(self, skb: Skb) -> None:
        """A packet has come in by a device and is for this namespace to look at."""
        if self.closed:
            self.count(DropReason.DEVICE_DOWN)
            return
        if skb.trace and not skb.physin:
            self.hop(skb, skb.iif, note="in")
        loopback = skb.iif == "lo"
        if not loopback and (skb.src[0] == 127 or (skb.dst[0] == 127 and not self.route_localnet)):
            self.drop(skb, DropReason.MARTIAN, skb.iif)
            return
        if self.passes(Hook.PREROUTING, skb):
            self.route_input(skb)

    def route_input(self, skb: Skb) -> None:
        """The routing decision for a packet that has come in."""
        if self.is_local(skb.dst):
            if skb.trace:
                self.hop(skb, "route", note="local")
            self.local_deliver(skb)
        elif self.forwarding:
            self.forward(skb)
        else:
            self.drop(skb, DropReason.NOT_OURS, "route")

    def forward(self, skb: Skb) -> None:
        """Carry a packet on for somebody else (ip_forward)."""
        if skb.buf[8] <= 1:
            self.drop(skb, DropReason.TTL_EXCEEDED, "route")
            icmp.error(self, skb, icmp.TIME_EXCEEDED, 0)
            return
        route = self.routes.lookup(skb.dst)
        if route is None:
            self.drop(skb, DropReason.NO_ROUTE, "route")
            icmp.error(self, skb, icmp.DEST_UNREACHABLE, icmp.NET_UNREACHABLE)
            return
        device = self.devices[route.device]
        if self._too_big(skb, device):
            self.drop(skb, DropReason.TOO_BIG, device.name)
            icmp.error(self, skb, icmp.DEST_UNREACHABLE, icmp.FRAGMENTATION_NEEDED, device.mtu)
            return
        skb.buf[8] -= 1
        skb.oif = device.name
        if skb.trace:
            self.hop(skb, "route", note=str(route))
        if self.passes(Hook.FORWARD, skb):
            self._postroute(skb, device, route)

    @staticmethod
    def _too_big(skb: Skb, device: Device) -> bool:
        if skb.gso_size:
            headers = skb.l4 + (skb.buf[skb.l4 + 12] >> 2 if skb.proto == TCP else 8)
            return skb.proto == TCP and skb.gso_size + headers > device.mtu
        return len(skb.buf) > device.mtu

    def local_deliver(self, skb: Skb) -> None:
        """The packet is for this namespace itself (ip_local_deliver)."""
        if self.softnet.checks:
            assert self.is_local(skb.dst), f"{self.name} was handed a packet for {format_ip(skb.dst)}"
        if skb.buf[6] & 0x3F or skb.buf[7]:  # no sender here makes fragments, and nothing puts them together again
            self.drop(skb, DropReason.UNSUPPORTED, "fragment")
            return
        if not self.passes(Hook.INPUT, skb):
            return
        proto = skb.proto
        if proto == UDP and skb.dport in self.tunnels:
            self.remember(skb, self.lo.mtu, self.tunnel_flows[skb.dport])
            self.tunnels[skb.dport](bytes(skb.buf), skb.l4, skb.gso_size, skb.trace)
        elif proto == ICMP:
            icmp.receive(self, skb)
        else:
            self.sockets.deliver(skb)

    # ---- the way out ---------------------------------------------------------------------------------------------------------

    def output(self, data: bytes, gso_size: int = 0, trace: int = 0) -> None:
        """Send a complete packet of this namespace's own (sockets, ICMP)."""
        self.out.receive(data, gso_size, trace)

    def local_out(self, skb: Skb) -> Device | None:
        """Route a packet of our own and run OUTPUT; the device by which it left, None if it went nowhere."""
        device, route = self._way_to(skb)
        if device is None:
            return None
        if skb.trace:
            self.hop(skb, "route", note=str(route) if route is not None else "local")
        before = (skb.dst, skb.mark)
        if not self.passes(Hook.OUTPUT, skb):
            return None
        if (skb.dst, skb.mark) != before:  # ip_route_me_harder: NAT or a mark asks for another decision
            device, route = self._way_to(skb)
            if device is None:
                return None
            if skb.trace:
                self.hop(skb, "route", note=(str(route) if route is not None else "local") + " (again, after OUTPUT)")
        if self._too_big(skb, device) and device is not self.lo:
            self.drop(skb, DropReason.TOO_BIG, device.name)
            icmp.error(self, skb, icmp.DEST_UNREACHABLE, icmp.FRAGMENTATION_NEEDED, device.mtu)
            return None
        return device if self._postroute(skb, device, route) else None

    def _way_to(self, skb: Skb) -> tuple[Device | None, Route | None]:
        """The device for a packet of our own, and the route if the destination is not local; the packet ends here if there is none."""
        if self.is_local(skb.dst):
            skb.oif = self.lo.name
            return self.lo, None
        route = self.routes.lookup(skb.dst)
        if route is None or (skb.src[0] == 127 and not self.route_localnet):
            self.drop(skb, DropReason.NO_ROUTE, "route")
            return None, None
        skb.oif = route.device
        return self.devices[route.device], route

    def _postroute(self, skb: Skb, device: Device, route: Route | None) -> bool:
        if not self.passes(Hook.POSTROUTING, skb):
            return False
        if skb.trace:
            self.hop(skb, device.name, note="out")
        next_hop = skb.dst if route is None or route.gateway is None else route.gateway
        if device.resolve(next_hop):
            device.xmit(skb, next_hop)
        else:
            self.neighbours.output(device, next_hop, skb)
        return True

    def output_tunnelled(self, outer: Skb) -> Underlay | None:
        """Send an outer packet that a tunnel device made; the underlay device it left by, or None."""
        device = self.local_out(outer)
        return device if device is not None and device.kind == "underlay" else None  # type: ignore[return-value]

    # ---- the flow cache ------------------------------------------------------------------------------------------------------

    def remember(self, skb: Skb, limit: int, send: Send, also: Conn | Socket | None = None) -> None:
        """Let the flow's next packets go the way of this one, if they may."""
        if not cacheable(skb):
            return
        origin = skb.origin
        assert isinstance(origin, Device)
        flows = origin.flows
        if len(flows) >= MAX_FLOWS:
            flows.clear()
        flows[skb.key] = Flow(skb, limit, send)
        for holder in (skb.ct, also):
            if holder is not None:  # whose end is the entry's end
                hold(holder.flows, flows, skb.key)
