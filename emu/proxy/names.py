"""Names of chains. Decides how a service port, an endpoint and the fixed chains are called in the iptables and nftables rule sets.

A name must be the same on every node and after every restart, fit iptables' 28 characters, and not clash: hence a hash.
Spec: kubernetes `pkg/proxy/iptables/proxier.go` (`portProtoHash`, `servicePortEndpointChainName`); checked against published dumps.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from emu.netfilter.skb import PROTOCOL_NAMES
from emu.wire.addr import SockAddr, format_ip

KUBE_SERVICES = "KUBE-SERVICES"
KUBE_EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
KUBE_NODEPORTS = "KUBE-NODEPORTS"
KUBE_FORWARD = "KUBE-FORWARD"
KUBE_FIREWALL = "KUBE-FIREWALL"
KUBE_PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
KUBE_POSTROUTING = "KUBE-POSTROUTING"
KUBE_MARK_MASQ = "KUBE-MARK-MASQ"
KUBE_PROXY_CANARY = "KUBE-PROXY-CANARY"


class ServicePortName(NamedTuple):
    """What kube-proxy programs: one port of one Service. Prints as `ns/name:port`, or `ns/name` for an unnamed port."""

    namespace: str
    name: str
    port: str
    protocol: int

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}:{self.port}" if self.port else f"{self.namespace}/{self.name}"


_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"  # RFC 4648
_PAIRS = [first + second for first in _BASE32 for second in _BASE32]  # ten bits at a time: base64.b32encode takes five times as long


def _hash(text: str) -> str:
    """The first 16 characters of base32(SHA-256), 80 bits."""
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:10], "big")
    return "".join([_PAIRS[bits >> shift & 1023] for shift in range(70, -1, -10)])


def port_hash(port: ServicePortName) -> str:
    """The hash that the SVC, SVL, EXT and FW chains of one service port share."""
    return _hash(f"{port}{PROTOCOL_NAMES[port.protocol]}")


def endpoint_chain(port: ServicePortName, endpoint: str) -> str:
    """`KUBE-SEP-…` of an endpoint `ip:port` behind this service port; the same pod behind two Services has two."""
    return f"KUBE-SEP-{_hash(f'{port}{PROTOCOL_NAMES[port.protocol]}{endpoint}')}"


_LONGEST = 240  # nftables' limit is 256, and a prefix such as `endpoint-` comes before


def nft_base(port: ServicePortName) -> str:
    """What `service-`, `local-`, `external-` and `firewall-` of one service port share: a hash, then who it is."""
    return _hashed(f"{port.namespace}/{port.name}/{PROTOCOL_NAMES[port.protocol]}/{port.port}")


def nft_endpoint_base(port: ServicePortName, to: SockAddr) -> str:
    """What `endpoint-` and `affinity-` of one endpoint of a service port share."""
    ip = format_ip(to.ip).replace(":", ".")
    return _hashed(f"{port.namespace}/{port.name}/{PROTOCOL_NAMES[port.protocol]}/{port.port}__{ip}/{to.port}")


def _hashed(text: str) -> str:
    name = f"{_hash(text)[:8]}-{text}"
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
