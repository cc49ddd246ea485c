"""The seam between a node and its CNI.

A plugin changes the node's namespace (devices, routes, neighbour and forwarding entries) and makes pod namespaces; it is
called under the node's lock and must not touch carriers, threads or the control plane.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from emu.netfilter.ruleset import RuleSet
from emu.stack.namespace import NetNamespace
from emu.wire.addr import Ip, Network


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """What a CNI knows of a node: its name, its address on the underlay, and its pods' subnet."""

    name: str
    ip: Ip
    pod_cidr: Network


class PeerChange(NamedTuple):
    """A peer's pod network (address and length) is at the node with this address; None: not any more."""

    network: Ip
    length: int
    ip: Ip | None


class Cni(Protocol):
    """One node's CNI daemon and plugin in one."""

    def start(self, me: NodeAddress) -> None:
        """Make the devices and routes of a node that has no pods and no peers yet."""

    def set_peers(self, peers: Sequence[NodeAddress]) -> None:
        """Make the forwarding state equal to exactly these peers (level, not edge)."""

    def update_peers(self, changes: Iterable[PeerChange]) -> None:
        """Change the forwarding state by these changes alone: a big cluster's other nodes are not to be looked at for it."""

    def rules(self, ruleset: RuleSet) -> RuleSet:
        """What kube-proxy wants, with the plugin's own rules beside it. They are in force from kube-proxy's first rule set on."""

    def add_pod(self, name: str, address: Ip | None = None) -> NetNamespace:
        """Make the namespace `name` with an address of the node's subnet (`address` if given); ValueError if none is free."""

    def remove_pod(self, name: str) -> None:
        """Take the pod's namespace away and free its address; no error if there is none."""
