"""flannel with the VXLAN backend: bridge cni0 with the pods, flannel.1 to the other nodes.

Decides devices, routes, neighbour and forwarding entries as flanneld and its CNI delegate (bridge plugin, host-local IPAM) make
them: MTU 1450, one /24 a node, `10.244.M.0/24 via 10.244.M.0 dev flannel.1 onlink` for every peer, whose permanent neighbour
and FDB entries name its VTEP. flanneld's own rules are `flannel_rules`'.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from emu.cni.flannel_rules import FlannelRules
from emu.cni.ipam import HostLocal
from emu.cni.plugin import NodeAddress, PeerChange
from emu.netfilter.ruleset import RuleSet
from emu.stack.bridge import Bridge
from emu.stack.device import Veth
from emu.stack.namespace import NetNamespace
from emu.stack.route import Route
from emu.stack.vxlan import OVERHEAD, UDP_PORT, Vxlan
from emu.wire.addr import Ip, Network, mac_of

if TYPE_CHECKING:
    from emu.stack.softnet import Softnet

VNI = 1


def vtep_mac(node_ip: Ip) -> bytes:
    """The MAC of a node's flannel.1; flanneld draws one at random and publishes it, here it follows from the node's address."""
    return _VTEP + node_ip[-4:]


_VTEP = b"\x1a\x2b"


class Peers:
    """The other nodes by the address of their pods' network, and what flannel makes of them: routes, neighbours, forwarding entries.

    All of it follows from two addresses a peer, so nothing else is kept: a thousand nodes have a million pairs.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, dict[Ip, Ip]] = {}  # prefix length -> network address -> node
        self.networks: dict[Ip, Ip] = {}  # and back

    def change(self, change: PeerChange) -> None:
        nodes = self.nodes.setdefault(change.length, {})
        before = nodes.pop(change.network, None)
        if before is not None and self.networks.get(before) == change.network:
            del self.networks[before]
        if change.ip is not None:
            nodes[change.network], self.networks[change.ip] = change.ip, change.network


class _Routes:
    """`NETWORK via NETWORK dev flannel.1 onlink` for each peer; a `RouteSource`."""

    def __init__(self, nodes: Mapping[Ip, Ip], length: int) -> None:
        self._nodes, self._length = nodes, length

    def route(self, value: int) -> Route | None:
        network = value.to_bytes(4, "big")
        return self._write(network) if network in self._nodes else None

    def _write(self, network: Ip) -> Route:
        bits = 8 * len(network)
        prefix = Network(network, self._length, int.from_bytes(network, "big"), (1 << bits) - (1 << bits - self._length))
        return Route(prefix, "flannel.1", gateway=network, onlink=True)

    def __iter__(self) -> Iterator[Route]:
        return map(self._write, self._nodes)


class _Neighbours(Mapping[Ip, bytes]):
    """`NETWORK lladdr VTEP`, permanent."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def __getitem__(self, network: Ip) -> bytes:
        return next(vtep_mac(nodes[network]) for nodes in self._peers.nodes.values() if network in nodes)

    def __iter__(self) -> Iterator[Ip]:
        return (network for nodes in self._peers.nodes.values() for network in nodes)

    def __len__(self) -> int:
        return sum(map(len, self._peers.nodes.values()))


class _Fdb(Mapping[bytes, Ip]):
    """`VTEP dst NODE`, permanent."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def __getitem__(self, mac: bytes) -> Ip:
        if mac[:2] != _VTEP or mac[2:] not in self._peers.networks:
            raise KeyError(mac)
        return mac[2:]

    def __iter__(self) -> Iterator[bytes]:
        return map(vtep_mac, self._peers.networks)

    def __len__(self) -> int:
        return len(self._peers.networks)


class Flannel:
    """One node's flannel (see `plugin.Cni`)."""

    def __init__(self, node: NetNamespace, softnet: Softnet, *, pod_network: Network, underlay_mtu: int = 1500, life: int = 1) -> None:
        self._node, self._softnet, self._pod_network, self._life = node, softnet, pod_network, life
        self.mtu = underlay_mtu - OVERHEAD
        self._pods: dict[str, tuple[NetNamespace, Veth]] = {}
        self._peers = Peers()

    def start(self, me: NodeAddress) -> None:
        self._me = me
        self._ipam = HostLocal(me.pod_cidr, self._life)
        self._rules = FlannelRules(self._pod_network, me.pod_cidr)
        node = self._node
        self._vxlan = Vxlan(node, "flannel.1", VNI, me.ip, self.mtu, vtep_mac(me.ip))
        self._vxlan.neighbours, self._vxlan.fdb = _Neighbours(self._peers), _Fdb(self._peers)
        node.add_device(self._vxlan)
        node.add_address("flannel.1", _host(me.pod_cidr.address), me.pod_cidr.address)
        node.tunnels[UDP_PORT] = self._vxlan.decapsulate
        node.tunnel_flows[UDP_PORT] = self._vxlan.flow_input
        self._bridge = Bridge(node, "cni0", self.mtu, mac_of(self._ipam.gateway))
        node.add_device(self._bridge)
        node.add_address("cni0", me.pod_cidr, self._ipam.gateway)

    def set_peers(self, peers: Sequence[NodeAddress]) -> None:
        gone = [PeerChange(network, length, None) for length, nodes in self._peers.nodes.items() for network in nodes]
        there = [PeerChange(peer.pod_cidr.address, peer.pod_cidr.length, peer.ip) for peer in peers if peer.name != self._me.name]
        self.update_peers([*gone, *there])

    def update_peers(self, changes: Iterable[PeerChange]) -> None:
        for change in changes:
            if change.length not in self._peers.nodes:
                self._peers.nodes[change.length] = {}
                self._node.routes.derive(change.length, _Routes(self._peers.nodes[change.length], change.length))
            self._peers.change(change)
        self._node.invalidate()

    def rules(self, ruleset: RuleSet) -> RuleSet:
        return self._rules.beside(ruleset)

    def add_pod(self, name: str, address: Ip | None = None) -> NetNamespace:
        assert name not in self._pods, name
        ip = self._ipam.reserve(name, address)
        pod = NetNamespace(name, self._softnet)
        veth_name = f"veth{zlib.crc32(name.encode()):08x}"
        outer, _ = Veth.pair(self._node, veth_name, pod, "eth0", self.mtu, ip)
        pod.add_address("eth0", self._me.pod_cidr, ip)
        pod.add_route(Route(Network.parse("0.0.0.0/0"), "eth0", gateway=self._ipam.gateway))
        pod.add_route(Route(self._pod_network, "eth0", gateway=self._ipam.gateway))
        self._bridge.attach(outer)
        self._pods[name] = (pod, outer)
        return pod

    def remove_pod(self, name: str) -> None:
        held = self._pods.pop(name, None)
        if held is None:
            return
        pod, outer = held
        self._bridge.detach(outer)
        self._node.remove_device(outer.name)
        pod.close()
        outer.unplug()
        self._ipam.release(name)


def _host(ip: Ip) -> Network:
    bits = 8 * len(ip)
    return Network(ip, bits, int.from_bytes(ip, "big"), (1 << bits) - 1)
