"""One namespace by itself: a device that keeps what is sent by it, on a link whose neighbours are made up."""

from __future__ import annotations

from emu.netfilter.skb import Skb
from emu.stack.device import Device
from emu.stack.namespace import NetNamespace
from emu.stack.route import Route
from emu.stack.softnet import Softnet
from emu.wire.addr import Ip, Network, parse_ip


class Tap(Device):
    """`sent` are the packets that left, oldest first; everybody on the link answers but those in `silent`."""

    kind = "tap"

    def __init__(self, ns: NetNamespace, name: str = "eth0", mtu: int = 1500) -> None:
        super().__init__(ns, name, mtu)
        self.packets: list[tuple[bytes, Ip]] = []
        self.silent: set[Ip] = set()

    def xmit(self, skb: Skb, next_hop: Ip) -> None:
        self.sent(len(skb.buf))
        self.packets.append((bytes(skb.buf), next_hop))

    def resolve(self, ip: Ip) -> bool:
        return ip not in self.silent

    def take(self) -> list[bytes]:
        """What has been sent since the last call."""
        packets, self.packets = self.packets, []
        return [data for data, _ in packets]


class Host:
    """A namespace with one tap; `gateway` has the default route."""

    def __init__(
        self, address: str = "10.0.0.1/24", gateway: str = "10.0.0.254", *, forwarding: bool = False, tap: type[Tap] = Tap
    ) -> None:
        self.softnet = Softnet("node-1", checks=True)
        self.ns = NetNamespace("pod/default/host", self.softnet, forwarding=forwarding)
        self.tap = tap(self.ns)
        self.ns.add_device(self.tap)
        self.ip = parse_ip(address.partition("/")[0])
        self.ns.add_address("eth0", Network.parse(address, strict=False), self.ip)
        if gateway:
            self.route("0.0.0.0/0", gateway)

    def route(self, prefix: str, gateway: str | None = None, device: str = "eth0", source: str | None = None) -> None:
        via, src = parse_ip(gateway) if gateway else None, parse_ip(source) if source else None
        self.ns.add_route(Route(Network.parse(prefix), device, via, src))

    def receive(self, data: bytes, gso_size: int = 0) -> list[bytes]:
        """A packet comes in; what is sent because of it."""
        self.tap.receive(data, gso_size, 0)
        self.softnet.run()
        return self.tap.take()

    def at(self, now: float) -> list[bytes]:
        """Let time pass up to `now`; what is sent meanwhile."""
        while self.softnet.horizon <= now:
            self.softnet.now = max(self.softnet.now, self.softnet.horizon)
            self.softnet.expire()
            self.softnet.run()
        self.softnet.now = now
        return self.tap.take()
