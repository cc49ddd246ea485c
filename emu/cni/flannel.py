"""flannel with the VXLAN backend: bridge cni0 with the pods, flannel.1 to the other nodes.

Decides devices, routes, neighbour and forwarding entries as flanneld and its CNI delegate (bridge plugin, host-local IPAM) make
them: MTU 1450, one /24 a node, `10.244.M.0/24 via 10.244.M.0 dev flannel.1 onlink` for every peer, whose permanent neighbour
and FDB entries name its VTEP. flanneld's own masquerade rules (FLANNEL-POSTRTG) concern traffic that leaves the cluster, which has
nowhere to go yet.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from emu.cni.ipam import HostLocal
from emu.cni.plugin import NodeAddress
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
    return b"\x1a\x2b" + node_ip[-4:]


class Flannel:
    """One node's flannel (see `plugin.Cni`)."""

    def __init__(self, node: NetNamespace, softnet: Softnet, *, pod_network: Network, underlay_mtu: int = 1500) -> None:
        self._node, self._softnet, self._pod_network = node, softnet, pod_network
        self.mtu = underlay_mtu - OVERHEAD
        self._pods: dict[str, tuple[NetNamespace, Veth]] = {}
        self._peers: dict[str, NodeAddress] = {}

    def start(self, me: NodeAddress) -> None:
        self._me = me
        self._ipam = HostLocal(me.pod_cidr)
        node = self._node
        self._vxlan = Vxlan(node, "flannel.1", VNI, me.ip, self.mtu, vtep_mac(me.ip))
        node.add_device(self._vxlan)
        node.add_address("flannel.1", _host(me.pod_cidr.address), me.pod_cidr.address)
        node.tunnels[UDP_PORT] = self._vxlan.decapsulate
        node.tunnel_flows[UDP_PORT] = self._vxlan.flow_input
        self._bridge = Bridge(node, "cni0", self.mtu, mac_of(self._ipam.gateway))
        node.add_device(self._bridge)
        node.add_address("cni0", me.pod_cidr, self._ipam.gateway)

    def set_peers(self, peers: Sequence[NodeAddress]) -> None:
        wanted = {peer.name: peer for peer in peers if peer.name != self._me.name}
        for name, peer in list(self._peers.items()):
            now = wanted.get(name)
            if now is not peer and now != peer:  # most are the very same value
                self._remove_peer(self._peers.pop(name))
        for name, peer in wanted.items():
            if name not in self._peers:
                self._add_peer(peer)
        self._peers = wanted

    def _add_peer(self, peer: NodeAddress) -> None:
        gateway = peer.pod_cidr.address
        self._vxlan.neighbours[gateway] = vtep_mac(peer.ip)
        self._vxlan.fdb[vtep_mac(peer.ip)] = peer.ip
        self._node.add_route(Route(peer.pod_cidr, "flannel.1", gateway=gateway, onlink=True))

    def _remove_peer(self, peer: NodeAddress) -> None:
        self._node.remove_route(peer.pod_cidr)
        self._vxlan.neighbours.pop(peer.pod_cidr.address, None)
        self._vxlan.fdb.pop(vtep_mac(peer.ip), None)

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
