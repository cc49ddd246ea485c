"""A node's data plane: its namespace, underlay device and CNI, joined to a carrier. Decides wiring only.

Used by the node process, by flow tests on the memory carrier and by benchmarks alike; starts no thread and reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from emu.cni.flannel import Flannel
from emu.cni.plugin import Cni, NodeAddress
from emu.overlay.carrier import Carrier
from emu.stack.namespace import NetNamespace
from emu.stack.route import Route
from emu.stack.softnet import Softnet
from emu.stack.underlay import Underlay
from emu.trace import REPLY, Hop
from emu.wire.addr import Network, parse_ip

UNDERLAY_MTU = 1500


class Machine:
    """One node without its threads. Every method is called under the node's lock, with `softnet.now` set."""

    def __init__(
        self, me: NodeAddress, carrier: Carrier, incarnation: int, *, pod_network: Network, seed: int = 0, checks: bool = False,
        same_host: bool = True,
    ) -> None:  # fmt: skip
        self.me, self.carrier = me, carrier
        self.softnet = Softnet(me.name, seed, checks=checks)
        self.node = NetNamespace("node", self.softnet, forwarding=True)
        self.underlay = Underlay(self.node, "eth0", UNDERLAY_MTU, carrier, incarnation, same_host=same_host)
        self.node.add_device(self.underlay)
        # the underlay is one flat network in which every node is on-link
        self.node.add_address("eth0", Network.parse(f"{me.ip[0]}.{me.ip[1]}.0.0/16"), me.ip)
        gateway = bytes((*me.ip[:2], 0, 1))
        self.underlay.gateway = gateway
        self.node.add_route(Route(Network.parse("0.0.0.0/0"), "eth0", gateway=gateway))
        self.cni: Cni = Flannel(self.node, self.softnet, pod_network=pod_network, underlay_mtu=UNDERLAY_MTU)
        self.cni.start(me)
        self._peers: dict[str, tuple[NodeAddress, str, int]] = {}

    def set_peers(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Follow the `nodes` stream: who exists, at which endpoint, in which incarnation, and whether it is Ready.

        A peer that is not Ready keeps its routes, as a kubelet that stops does not take flannel's entries with it, but the pipe
        to it is closed, so that nothing waits there for its next life.
        """
        wanted: dict[str, tuple[NodeAddress, str, int]] = {}
        for node in nodes:
            if node["name"] != self.me.name:
                address = NodeAddress(node["name"], parse_ip(node["ip"]), Network.parse(node["pod_cidr"]))
                wanted[address.name] = (address, node["endpoint"], node["incarnation"])
                if not node.get("ready", True):
                    self.carrier.remove_peer(address.ip)
        for name, (address, endpoint, incarnation) in self._peers.items():
            if wanted.get(name) != (address, endpoint, incarnation):
                self.carrier.remove_peer(address.ip)
                self.underlay.incarnations.pop(address.ip, None)
        for address, endpoint, incarnation in wanted.values():
            self.carrier.add_peer(address.ip, endpoint)
            self.underlay.incarnations[address.ip] = incarnation
        if {peer[0] for peer in wanted.values()} != {peer[0] for peer in self._peers.values()}:
            self.cni.set_peers([address for address, _, _ in wanted.values()])
        self._peers = wanted

    def take_hops(self) -> list[Hop]:
        """The hops recorded since the last call."""
        hops, self.softnet.hops = self.softnet.hops, []
        return hops

    def forget(self, trace: int) -> int:
        """Remove the conntrack entries that a traced probe has made; returns how many."""
        gone: set[int] = set()
        for conn in self.softnet.traced.pop(trace & ~REPLY, ()):
            if id(conn) not in gone:
                gone.add(id(conn))
                self.node.netfilter.conntrack.delete(conn)
        return len(gone)

    def expire(self) -> None:
        """Forget connections whose time is up."""
        self.node.netfilter.conntrack.expire(self.softnet.now)
