"""Names of chains. Decides how a service port, an endpoint and the fixed chains are called in the iptables rule set.

A name must be the same on every node and after every restart, fit iptables' 28 characters, and not clash: hence a hash.
Spec: kubernetes `pkg/proxy/iptables/proxier.go` (`portProtoHash`, `servicePortEndpointChainName`); checked against published dumps.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from emu.netfilter.skb import PROTOCOL_NAMES

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
