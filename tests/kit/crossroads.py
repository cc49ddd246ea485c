"""One node and all who may speak to it, as the kernel and the emulator are both to build it; and how what becomes of a packet is told.

pod2 … pod6  10.244.1.2 … 6 --- cni0 10.244.1.1           eth0 192.168.0.2, 192.168.1.2 --- eth0: other nodes, the outside
                                          one node
pods of node-2 and node-3 --- flannel.1 10.244.1.0
"""

from __future__ import annotations

from typing import NamedTuple

from emu.netfilter.first_packet import first_packet
from emu.netfilter.skb import PROTOCOL_NAMES
from emu.wire.addr import parse_ip

PODS = {f"pod{number}": f"10.244.1.{number}" for number in range(2, 7)}
NODE, NODE_IPS = "node-1", ("192.168.0.2", "192.168.1.2", "10.244.1.1", "10.244.1.0")
ADDRESSES = (  # device, its addresses in order
    ("cni0", ("10.244.1.1/24",)),
    ("eth0", ("192.168.0.2/24", "192.168.1.2/24")),
    ("flannel.1", ("10.244.1.0/32",)),
)
GATEWAY = "192.168.0.1"
TUNNELS = {"10.244.2.0/24": "10.244.2.0", "10.244.3.0/24": "10.244.3.0"}
NEIGHBOURS = {"eth0": (GATEWAY, *(f"192.168.{net}.{host}" for net in (0, 1) for host in (3, 4, 9))), "flannel.1": tuple(TUNNELS.values())}
NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
STRAY = {"tcp-ack": 0x10, "tcp-rst": 0x04, "tcp-synack": 0x12}
"""Segments of a connection that nobody has seen begin, by their flags: conntrack takes the first up, and calls the others INVALID."""


class Source(NamedTuple):
    """Somebody who sends: from where ("": the node itself), and by which addresses, any of which will do."""

    place: str
    addresses: tuple[str, ...]

    @property
    def iif(self) -> str:
        return "cni0" if self.place in PODS else self.place


SOURCES = {
    **{name: Source(name, (address,)) for name, address in PODS.items()},  # pod6 is nobody's endpoint
    "a pod of node-2": Source("flannel.1", tuple(f"10.244.2.{host}" for host in range(100, 200))),
    "another node": Source("eth0", ("192.168.0.3",)),
    "a client outside": Source("eth0", tuple(f"203.0.113.{host}" for host in range(9, 109))),
    "a client outside the ranges": Source("eth0", tuple(f"203.0.113.{host}" for host in range(140, 240))),
    "a client under the load balancer's address": Source("eth0", ("198.51.100.1",)),
    "the node": Source("", ("192.168.0.2",)),
    "the node by its other address": Source("", ("192.168.1.2",)),
    "the node by its bridge's address": Source("", ("10.244.1.1",)),
    "the node by localhost": Source("", ("127.0.0.1",)),
    "the node under the load balancer's address": Source("", ("198.51.100.1",)),
}


class Question(NamedTuple):
    """What becomes of the first packet from `source` to an address and port? `protocol` may be a STRAY; by icmp it is an echo request."""

    source: str
    to: str
    port: int
    protocol: str

    @property
    def transport(self) -> str:
        return self.protocol.partition("-")[0]

    def packet(self, address: str, port: int) -> bytearray:
        """What is sent from that address and port, checksums 0."""
        packet = bytearray(first_packet(NUMBERS[self.transport], parse_ip(address), parse_ip(self.to), port, self.port))
        if self.protocol in STRAY:
            packet[33] = STRAY[self.protocol]
        return packet

    def __str__(self) -> str:
        return f"{self.source} -> {self.to}:{self.port}/{self.protocol}"


class End(NamedTuple):
    """Where a packet is seen last.

    `outcome` is sent (left the node at `place`), local (reached the node itself), rejected or dropped. `to` is its destination
    there, `seen_from` its source; of a rejection, `to` is what it says (`iptables`' words).
    """

    outcome: str
    place: str = ""
    to: str = ""
    seen_from: str = ""
