"""A node's data plane: its namespace, underlay device and CNI, joined to a carrier. Decides wiring only.

Used by the node process, by flow tests on the memory carrier and by benchmarks alike; starts no thread and reads no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emu.cni.flannel import Flannel
from emu.cni.plugin import Cni, NodeAddress
from emu.errors import DropReason
from emu.model.links import Fault, Place, between
from emu.model.objects import ZONE_LABEL
from emu.netfilter.conntrack import KUBE_PROXY_TIMEOUTS
from emu.netfilter.skb import Skb
from emu.overlay.carrier import Carrier
from emu.overlay.links import Leg, Links
from emu.stack.namespace import NetNamespace
from emu.stack.route import Route
from emu.stack.softnet import Softnet
from emu.stack.underlay import Underlay
from emu.trace import REPLY, Hop
from emu.wire.addr import Ip, Network, format_ip, parse_ip

UNDERLAY_MTU = 1500
NODE_NETWORK = Network.parse("192.168.0.0/16")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node, as this one must know it to send to it."""

    address: NodeAddress
    ips: tuple[Ip, ...]  # the first is the tunnel's
    endpoint: str
    incarnation: int
    ready: bool
    zone: str

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Peer:
        """A value of the `nodes` stream."""
        address = NodeAddress(value["name"], parse_ip(value["ip"]), Network.parse(value["pod_cidr"]))
        ips = (address.ip, *map(parse_ip, (value.get("addresses") or ())[1:]))
        return cls(address, ips, value["endpoint"], value["incarnation"], value.get("ready", True), zone_of(value))

    def same_pipe(self, before: Peer) -> bool:
        """May what is queued for the peer stay queued? Not for another life of it, and not when it has just stopped answering."""
        moved = (self.address, self.ips, self.endpoint, self.incarnation) != (
            before.address, before.ips, before.endpoint, before.incarnation,
        )  # fmt: skip
        return not moved and (self.ready or not before.ready)


class Machine:
    """One node without its threads. Every method is called under the node's lock, with `softnet.now` set."""

    def __init__(
        self, me: NodeAddress, carrier: Carrier, incarnation: int, *, pod_network: Network, seed: int = 0, checks: bool = False,
        same_host: bool = True, node_network: Network = NODE_NETWORK, zone: str = "",
    ) -> None:  # fmt: skip
        self.me = me
        self.softnet = Softnet(me.name, seed, checks=checks)
        self.node = NetNamespace("node", self.softnet, forwarding=True)
        self.node.netfilter.conntrack.timeouts = KUBE_PROXY_TIMEOUTS
        self.underlay = Underlay(self.node, "eth0", UNDERLAY_MTU, carrier, incarnation, same_host=same_host)
        self.node.add_device(self.underlay)
        self._wire = carrier
        self.carrier = Links(carrier, self.softnet.arm, self.underlay.incarnations, self._lost_on_link, seed=seed)
        self._place = Place(me.name, zone)
        self._faults: Sequence[Fault] = ()
        # the underlay is one flat network in which every node is on-link, also one whose address is not of the network (`_reach`)
        self._node_network = node_network
        self.node.add_address("eth0", node_network if me.ip in node_network else _only(me.ip), me.ip)
        if me.ip not in node_network:
            self.node.add_route(Route(node_network, "eth0"))
        self.underlay.gateway = node_network.host(1)
        self.node.add_route(Route(Network.parse("0.0.0.0/0"), "eth0", gateway=self.underlay.gateway))
        self.cni: Cni = Flannel(self.node, self.softnet, pod_network=pod_network, underlay_mtu=UNDERLAY_MTU)
        self.cni.start(me)
        self._peers: dict[str, Peer] = {}

    def set_peers(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """These are all the nodes there are, as values of the `nodes` stream."""
        wanted = {node["name"]: node for node in nodes}
        self.update_peers([*((name, None) for name in self._peers if name not in wanted), *wanted.items()])

    def update_peers(self, changes: Iterable[tuple[str, Mapping[str, Any] | None]]) -> None:
        """Changed nodes (None: gone): who exists, at which endpoint, in which incarnation, and whether it is Ready.

        A peer that is not Ready keeps its routes, as a kubelet that stops does not take flannel's entries with it, but the pipe
        to it is closed, so that nothing waits there for its next life.
        """
        moved = False
        for name, value in changes:
            if name == self.me.name:
                self._place = Place(name, zone_of(value or {}))
                continue
            known = self._peers.pop(name, None)
            peer = None if value is None else Peer.of(value)
            moved |= (known and known.address) != (peer and peer.address)
            if known is not None and (peer is None or not peer.same_pipe(known)):
                self._lose(known)
            if peer is not None:
                self._peers[name] = peer
                self._reach(peer)
        if moved:
            self.cni.set_peers([peer.address for peer in self._peers.values()])
        if self._faults:
            self._set_legs()

    def _lose(self, peer: Peer) -> None:
        for ip in peer.ips:
            self.carrier.remove_peer(ip)
            self.underlay.incarnations.pop(ip, None)
            if ip not in self._node_network:
                self.node.remove_route(_only(ip))

    def _reach(self, peer: Peer) -> None:
        for ip in peer.ips:
            self.underlay.incarnations[ip] = peer.incarnation
            self.carrier.add_peer(ip, peer.endpoint)
            if ip not in self._node_network:
                self.node.add_route(Route(_only(ip), "eth0"))

    # ---- trouble on links -----------------------------------------------------------------------------------------------------------

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """These are all the faults on links that there are in the cluster."""
        self._faults = faults
        self._set_legs()

    def _set_legs(self) -> None:
        """Tell the links to peers what is wrong with them; the wire is the bare carrier while nothing is."""
        legs: dict[Ip, Leg] = {}
        for name, peer in self._peers.items() if self._faults else ():
            trouble = between(self._faults, self._place, Place(name, peer.zone))
            if not trouble.conditions.fair:
                legs.update(dict.fromkeys(peer.ips, Leg(f"{self.me.name}->{name}", trouble)))
        self.carrier.set(legs, self.softnet.now)
        self.underlay.wire = self.carrier if legs else self._wire

    def _lost_on_link(self, reason: DropReason, segments: int, packet: bytes, trace: int) -> None:
        self.node.count(reason, segments)
        if trace and isinstance(skb := Skb.parse(packet), Skb):
            skb.trace = trace
            self.node.hop(skb, self.underlay.name, note=reason.value, verdict="dropped")

    # ---- traces ------------------------------------------------------------------------------------------------------------------------

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

    def drops(self, pods: Iterable[NetNamespace]) -> dict[str, int]:
        """How many packets ended where they should not, by reason, in the node's namespace and these."""
        total: Counter[DropReason] = Counter()
        for ns in (self.node, *pods):
            total.update(ns.drops)
        return {reason.value: count for reason, count in total.items()}

    def expire(self) -> None:
        """Forget connections whose time is up."""
        self.node.netfilter.conntrack.expire(self.softnet.now)


def zone_of(value: Mapping[str, Any]) -> str:
    """The zone of a value of the `nodes` stream, "" if it has none."""
    return str((value.get("labels") or {}).get(ZONE_LABEL, ""))


def _only(ip: Ip) -> Network:
    """The network of one address."""
    return Network.parse(format_ip(ip))
