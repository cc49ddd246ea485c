"""A node's data plane: its namespace, underlay device and CNI, joined to a carrier. Decides wiring only.

Used by the node process, by flow tests on the memory carrier and by benchmarks alike; starts no thread and reads no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from emu.bus.messages import pack
from emu.bus.views import NodeRecord
from emu.cni.flannel import Flannel
from emu.cni.plugin import Cni, NodeAddress, PeerChange
from emu.errors import DropReason
from emu.model.links import Fault, Place, between
from emu.netfilter.conntrack import KUBE_PROXY_TIMEOUTS
from emu.netfilter.ruleset import EMPTY, RuleSet
from emu.netfilter.skb import Skb
from emu.overlay.carrier import Carrier
from emu.overlay.links import Leg, Links
from emu.stack.namespace import NetNamespace
from emu.stack.route import Route
from emu.stack.softnet import Softnet
from emu.stack.underlay import Underlay
from emu.trace import LINK, REPLY, Hop
from emu.wire.addr import Ip, Network, format_ip

UNDERLAY_MTU = 1500
NODE_NETWORK = Network.parse("192.168.0.0/16")


def same_pipe(peer: NodeRecord, before: NodeRecord) -> bool:
    """May what is queued for the peer stay queued? Not for another life of it, and not when it has just stopped answering."""
    return peer._replace(ready=before.ready, zone=before.zone, routes=before.routes) == before and (peer.ready or not before.ready)


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
        self._concerning: Sequence[Fault] = ()  # those that may be on a link from this node
        # the underlay is one flat network in which every node is on-link, also one whose address is not of the network (`_reach`)
        self._node_network = node_network
        self.node.add_address("eth0", node_network if me.ip in node_network else _only(me.ip), me.ip)
        if me.ip not in node_network:
            self.node.add_route(Route(node_network, "eth0"))
        self.underlay.gateway = node_network.host(1)
        self.node.add_route(Route(Network.parse("0.0.0.0/0"), "eth0", gateway=self.underlay.gateway))
        self.cni: Cni = Flannel(self.node, self.softnet, pod_network=pod_network, underlay_mtu=UNDERLAY_MTU, life=incarnation)
        self.cni.start(me)
        self.proxy_rules = EMPTY
        self._peers: dict[str, bytes] = {}  # by name, packed: most are never talked to
        self._names: dict[Ip, str] = {}
        self.underlay.introduce = self._introduce

    def set_peers(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """These are all the nodes there are, as `bus.views.node_value` has them."""
        wanted = {node["name"]: pack(NodeRecord.of(node)) for node in nodes}
        self.update_peers([*((name, None) for name in self._peers if name not in wanted), *wanted.items()])

    def update_peers(self, changes: Iterable[tuple[str, bytes | None]]) -> None:
        """Changed nodes, packed as the `nodes` stream has them (None: gone): who exists, at which endpoint, in which incarnation.

        A peer that is not Ready keeps its routes, as a kubelet that stops does not take flannel's entries with it, but the pipe
        to it is closed, so that nothing waits there for its next life.
        """
        gone: list[PeerChange] = []
        there: list[PeerChange] = []
        for name, packed in changes:
            known = self._peers.get(name)
            if packed is not None and packed == known:
                continue
            peer = None if packed is None else NodeRecord.read(packed)
            if name == self.me.name:
                self._place = Place(name, peer.zone if peer else "")
                continue
            if packed is not None and peer is None:
                self.node.count(DropReason.BAD_MESSAGE)
                continue
            before = None if known is None else NodeRecord.read(known)
            talked = before is not None and any(ip in self.underlay.incarnations for ip in before.ips)
            if before is not None:
                del self._peers[name]
                gone += self._lose(name, before, peer)
            if packed is not None and peer is not None:
                self._peers[name] = packed
                there += self._reach(name, peer, before)
                if talked:  # flows that go on by themselves never ask
                    for ip in peer.ips:
                        self._introduce(ip)
        if gone or there:
            self.cni.update_peers([*gone, *there])  # in this order: a network may have moved from one to the other
        if self._faults:
            self._review_links()

    def _lose(self, name: str, before: NodeRecord, peer: NodeRecord | None) -> list[PeerChange]:
        """Take back what does not hold any more of what was known of a peer."""
        for ip in before.ips:
            if peer is None or not same_pipe(peer, before):
                self.carrier.remove_peer(ip)
                self.underlay.incarnations.pop(ip, None)
            if (peer is None or ip not in peer.ips) and self._names.get(ip) == name:
                del self._names[ip]
                if ip not in self._node_network:
                    self.node.remove_route(_only(ip))
        for network in before.routes.split():
            self.node.remove_route(Network.parse(network))
        moved = peer is None or (peer.ips[0], peer.network, peer.length) != (before.ips[0], before.network, before.length)
        return [PeerChange(before.network, before.length, None)] if moved else []

    def _reach(self, name: str, peer: NodeRecord, before: NodeRecord | None) -> list[PeerChange]:
        """Know how to reach a peer; the carrier and the underlay hear of it with the first packet for it."""
        for ip in peer.ips:
            self._names[ip] = name
            if (before is None or ip not in before.ips) and ip not in self._node_network:
                self.node.add_route(Route(_only(ip), "eth0"))
        for network in peer.routes.split():  # as an administrator would tell every node, or the router that all of them use
            self.node.add_route(Route(Network.parse(network), "eth0", gateway=peer.ips[0]))
        moved = before is None or (peer.ips[0], peer.network, peer.length) != (before.ips[0], before.network, before.length)
        return [PeerChange(peer.network, peer.length, peer.ips[0])] if moved else []

    def _introduce(self, ip: Ip) -> None:
        """There is a first packet for an address, or another truth about one that there have been packets for."""
        packed = self._peers.get(self._names.get(ip, ""))
        peer = NodeRecord.read(packed) if packed is not None else None
        if peer is not None:
            self.underlay.incarnations[ip] = peer.incarnation
            self.carrier.add_peer(ip, peer.endpoint)

    def swap(self, ruleset: RuleSet) -> None:
        """Put in force what kube-proxy wants, and what the CNI has beside it."""
        self.proxy_rules = ruleset
        self.node.swap(self.cni.rules(ruleset))

    # ---- trouble on links -----------------------------------------------------------------------------------------------------------

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """These are all the faults on links that there are in the cluster."""
        self._faults = faults
        self._review_links()

    def _review_links(self) -> None:
        """Faults or nodes have changed. The wire is the bare carrier while no fault can be on a link of this node."""
        self._concerning = [fault for fault in self._faults if fault.concerns(self._place)]
        self.carrier.set(self._leg_to, self.softnet.now)
        self.underlay.wire = self.carrier if self._concerning else self._wire

    def _leg_to(self, ip: Ip) -> Leg | None:
        """What is wrong with the link to an address."""
        name = self._names.get(ip, "")
        packed = self._peers.get(name) if self._concerning else None
        peer = NodeRecord.read(packed) if packed is not None else None
        if peer is None:
            return None
        trouble = between(self._concerning, self._place, Place(name, peer.zone))
        return None if trouble.conditions.fair else Leg(f"{self.me.name}->{name}", trouble)

    def _lost_on_link(self, reason: DropReason, segments: int, packet: bytes, trace: int) -> None:
        self.node.count(reason, segments)
        if trace and isinstance(skb := Skb.parse(packet), Skb):
            skb.trace = trace
            self.node.hop(skb, LINK, note=reason.value, verdict="dropped")

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


def _only(ip: Ip) -> Network:
    """The network of one address."""
    return Network.parse(format_ip(ip))
