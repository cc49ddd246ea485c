"""What the proxy knows of its node, and how rules tell a pod's traffic from all other traffic.

Decides which match stands for "comes from a local pod" under each `detectLocalMode`. Without a detector kube-proxy
leaves every rule out that would need one: nothing is masqueraded for coming from outside, and nothing short-circuits.
Spec: kubernetes `pkg/proxy/util/localdetector.go`.
"""

from __future__ import annotations

from dataclasses import dataclass

from emu.netfilter import nft
from emu.netfilter.ruleset import InInterface, Match, Source
from emu.proxy.config import ProxyConfig
from emu.wire.addr import Ip, Network


@dataclass(frozen=True, slots=True)
class NodeView:
    """The node the rules are for. The first of `ips` (of a family) is its primary address."""

    name: str
    ips: tuple[Ip, ...]
    zone: str = ""
    pod_cidrs: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Detector:
    """A match for traffic of local pods, and its opposite."""

    local: Match
    not_local: Match


def detector(config: ProxyConfig, node: NodeView, family: int) -> Detector | None:
    """The detector of the configured mode; None for the no-op one (no CIDR of this family is known)."""
    if config.detect_local_mode == "BridgeInterface":
        return Detector(InInterface(config.bridge_interface), InInterface(config.bridge_interface, invert=True))
    if config.detect_local_mode == "InterfaceNamePrefix":
        name = config.interface_name_prefix + "+"
        return Detector(InInterface(name), InInterface(name, invert=True))
    cidrs = node.pod_cidrs if config.detect_local_mode == "NodeCIDR" else config.cluster_cidrs
    for cidr in cidrs:
        if (len(cidr.address) == 4) == (family == 4):
            return Detector(Source(cidr), Source(cidr, invert=True))
    return None


def nft_detector(config: ProxyConfig, node: NodeView, family: int) -> tuple[nft.Condition, nft.Condition] | None:
    """The same as conditions of nftables: local, and not local."""
    found = detector(config, node, family)
    if found is None:
        return None
    match found.local:
        case InInterface(name):
            device = name[:-1] + "*" if name.endswith("+") else name
            return nft.InputInterface(device), nft.InputInterface(device, invert=True)
        case Source(network):
            return nft.Address("saddr", network), nft.Address("saddr", network, invert=True)
        case _:
            raise AssertionError(found)
