"""The node of `crossroads` in this machine's kernel: a namespace whose far ends are all in another one, where nobody answers.

Packets are sent raw, many at once, and each bears a number: as a SYN's sequence number, an INIT's tag, a datagram's payload. Where a
number turns up, there its packet has ended: at a far end (one packet socket sees them all), in the node itself (raw sockets), or in an
ICMP error's quotation. Nothing waits for silence: all happens on one CPU, whose backlog is a queue, and once a packet that was sent
after all others has come out, so have they.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from emu.wire import checksum
from emu.wire.addr import SockAddr, format_ip
from tests.kit.crossroads import ADDRESSES, GATEWAY, NEIGHBOURS, NODE_IPS, PODS, SOURCES, TUNNELS, End, Question
from tests.kit.netns import configure, inside, namespaces, run, socket_in, sysctl

ETH_P_IP, NETLINK_NETFILTER, CT_DELETE = 0x0800, 12, 1 << 8 | 2
TCP, UDP, ICMP, SCTP = 6, 17, 1, 132
ECHO_REPLY, ECHO_REQUEST = 0, 8
FAR = (*PODS, "eth0", "flannel.1")
OUR_MACS = {"cni0": "02:00:00:00:01:01", "eth0": "02:00:00:00:01:02", "flannel.1": "02:00:00:00:01:03"}
PEER_MACS = {name: f"02:00:00:00:02:{number:02x}" for number, name in enumerate(FAR)}
UNREACHABLE = {
    (3, 3): "icmp-port-unreachable",
    (3, 10): "icmp-host-prohibited",
    (3, 13): "icmp-admin-prohibited",
    (3, 1): "icmp-host-unreachable",
}
BUFFER, PATIENCE = 8 << 20, 5.0
# Without bridge-nf-call-iptables what goes between pods of one node would pass the bridge untranslated; icmp_ratelimit=0 lets every
# REJECT be answered; rp_filter=0 lets anybody speak under any address; a redirect is the
# router's word, not a rule's; checksums are not what is tested.
SYSCTLS = {
    "net.ipv4.ip_forward": 1,
    "net.ipv4.icmp_ratelimit": 0,
    "net.ipv4.conf.all.route_localnet": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv4.conf.default.send_redirects": 0,
    "net.bridge.bridge-nf-call-iptables": 1,
    "net.netfilter.nf_conntrack_checksum": 0,
}
_FENCE = 0xFFFFFF00
_FROM, _TO = "203.0.113.9", "10.244.2.254"  # where the last packet goes, which no rule is about


class Attempt(NamedTuple):
    """One packet: what it asks, and from which of its source's addresses."""

    question: Question
    address: str


class KernelNode:
    """One node; `load` puts rules into it and `send` asks. Made by `kernel_node`."""

    def __init__(self, node: str, wires: str, load: Sequence[str]) -> None:
        self.node, self.wires, self._load = node, wires, load
        self._wire = socket_in(wires, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self._out = socket_in(node, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._in = [socket_in(node, socket.AF_INET, socket.SOCK_RAW, number) for number in (TCP, UDP, SCTP, ICMP)]
        self._netlink = socket_in(node, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        for sock in (self._wire, *self._in):
            sock.setsockopt(socket.SOL_SOCKET, 33, BUFFER)  # SO_RCVBUFFORCE
            sock.setblocking(False)
        self._macs = {far: bytes.fromhex(OUR_MACS["cni0" if far in PODS else far].replace(":", "")) for far in FAR}
        self._number, self._fences = 1, 0

    def close(self) -> None:
        for sock in (self._wire, self._out, self._netlink, *self._in):
            sock.close()

    def load(self, text: str) -> None:
        """Put these rules in the place of all others; AssertionError with the tool's words if it refuses them."""
        done = inside(self.node, lambda: subprocess.run(self._load, input=text, capture_output=True, text=True, check=False, timeout=20))
        assert done.returncode == 0, f"{' '.join(self._load)}: {done.stderr.strip()}"
        self.forget()

    def forget(self) -> None:
        """`conntrack -F`."""
        self._netlink.send(struct.pack("=IHHIIBBH", 20, CT_DELETE, 5, 0, 0, socket.AF_INET, 0, 0))  # request, and an answer to it
        (error,) = struct.unpack_from("=i", self._netlink.recv(4096), 16)
        assert error == 0, os.strerror(-error)

    def send(self, attempts: Sequence[Attempt]) -> list[End]:
        """Send a packet for each, in this order, and say where each has ended."""
        first = self._number
        for number, (question, address) in enumerate(attempts, first):
            self._send(number, question, address)
        self._number += len(attempts)
        sightings = _Sightings(first, attempts)
        for _ in range(2):  # an answer may be a stage behind the last packet
            self._settle(sightings)
        return [sightings.end(number) for number in range(len(attempts))]

    def _send(self, number: int, question: Question, address: str) -> None:
        place = SOURCES[question.source].place if question.source else "eth0"
        packet = _packet(number, question, address)
        if place:
            self._wire.sendto(packet, (place, ETH_P_IP, 0, 0, self._macs[place]))
            return
        with contextlib.suppress(PermissionError):  # how Linux tells a program that its packet was dropped on the way out
            self._out.sendto(packet, (question.to, 0))

    def _settle(self, sightings: _Sightings) -> None:
        """Send one more, and take in everything until it has come."""
        self._fences += 1
        fence = _FENCE | self._fences & 0xFF
        self._send(fence, Question("", _TO, 9, "udp"), _FROM)
        self._wire.settimeout(PATIENCE)
        try:
            while True:
                packet, (device, *_) = self._wire.recvfrom(2048)
                if packet[9] == UDP and _number(packet) == fence:
                    break
                sightings.add(packet, device)
        finally:
            self._wire.setblocking(False)
        for sock in self._in:
            with contextlib.suppress(BlockingIOError):
                while True:
                    sightings.add(sock.recv(2048), "")


def _packet(number: int, question: Question, address: str) -> bytes:
    """`number` in the place where `_number` finds it; the source port is new each time, so that every packet is a first one."""
    packet = question.packet(address, 1024 + number % 60000)
    mark = number.to_bytes(4, "big")
    if question.transport == "tcp":
        packet[24:28] = mark
    elif question.transport == "sctp":
        packet[36:40] = mark  # the initiate tag; streams must not be 0
        packet[40:52] = struct.pack("!IHHI", 65536, 10, 10, number)
    else:
        packet += mark
        packet[2:4] = len(packet).to_bytes(2, "big")
        if question.transport == "udp":
            packet[24:26] = (len(packet) - 20).to_bytes(2, "big")
    return checksum.fill(bytes(packet))


_MARK_AT = {TCP: 4, SCTP: 16, UDP: 8, ICMP: 8}


def _number(packet: bytes, at: int = 0) -> int | None:
    """The number that a packet bears, itself or quoted; None for a foreign one."""
    where = at + ((packet[at] & 15) << 2) + _MARK_AT.get(packet[at + 9], 1 << 16)
    return int.from_bytes(packet[where : where + 4], "big") if len(packet) >= where + 4 else None


class _Sightings:
    """Where the packets of one batch were seen."""

    def __init__(self, first: int, attempts: Sequence[Attempt]) -> None:
        self._first, self._attempts = first, attempts
        self._seen: dict[int, list[End]] = {}
        self._errors: dict[int, list[End]] = {}

    def add(self, packet: bytes, device: str) -> None:
        l4 = (packet[0] & 15) << 2
        if packet[9] == ICMP and packet[l4] != ECHO_REQUEST:
            number = _number(packet, l4 + 8) if len(packet) >= l4 + 28 and packet[l4] != ECHO_REPLY else None
            words = UNREACHABLE.get((packet[l4], packet[l4 + 1]), f"icmp {packet[l4]}/{packet[l4 + 1]}")
            self._note(self._errors, number, End("rejected", device, words, format_ip(packet[16:20])))
        else:  # a RST of the node's own has number 0
            to = SockAddr(packet[16:20], 0 if packet[9] == ICMP else packet[l4 + 2] << 8 | packet[l4 + 3])
            self._note(self._seen, _number(packet), End("sent" if device else "local", device, str(to), format_ip(packet[12:16])))

    def _note(self, where: dict[int, list[End]], number: int | None, end: End) -> None:
        if number is not None and 0 <= number - self._first < len(self._attempts):
            where.setdefault(number - self._first, []).append(end)

    def end(self, number: int) -> End:
        """Its one end. A listener's absence is answered too, but then the packet itself has been seen."""
        seen, errors = self._seen.get(number, []), self._errors.get(number, [])
        if len(seen) == 1:
            return seen[0]
        question, address = self._attempts[number]
        if not seen and not errors:
            return End("dropped")
        if not seen and len(errors) == 1 and (errors[0].place, errors[0].seen_from) == (_home(question, address), address):
            return End("rejected", to=errors[0].to)
        return End("confused", to=repr([*seen, *errors]))


def _home(question: Question, address: str) -> str:
    """Where an answer to the sender goes: to itself, or if it is the node under an address that is not its own, out."""
    place = SOURCES[question.source].place
    return place or ("" if address in NODE_IPS or address.startswith("127.") else "eth0")


@contextlib.contextmanager
def kernel_node(name: str, load: Sequence[str]) -> Iterator[KernelNode]:
    """The drawing of `crossroads`; `load` is the command that takes rules. The thread stays on one CPU while it exists."""
    cpus = os.sched_getaffinity(0)
    with namespaces(name, f"{name}-w") as netns:
        node, wires = netns[name], netns[f"{name}-w"]
        _lay_out(node, wires)
        made = KernelNode(node, wires, load)
        os.sched_setaffinity(0, {min(cpus)})
        try:
            yield made
        finally:
            os.sched_setaffinity(0, cpus)
            made.close()


def _lay_out(node: str, wires: str) -> None:
    for netns in (node, wires):
        sysctl(netns, {"net.ipv6.conf.all.disable_ipv6": 1, "net.ipv6.conf.default.disable_ipv6": 1})
    sysctl(node, SYSCTLS)
    commands = [f"link add cni0 address {OUR_MACS['cni0']} type bridge", "link set cni0 up"]
    for number, far in enumerate(FAR):
        near = f"veth{number}" if far in PODS else far
        mac = "" if far in PODS else f"address {OUR_MACS[far]} "
        commands += [f"link add {near} {mac}type veth peer name {far} address {PEER_MACS[far]} netns {wires}", f"link set {near} up"]
        if far in PODS:  # hairpin as CNI's bridge plugin has it
            commands += [f"link set {near} master cni0", f"link set {near} type bridge_slave hairpin on"]
    commands += [f"addr add {address} dev {device}" for device, addresses in ADDRESSES for address in addresses]
    commands += [f"route add {network} via {gateway} dev flannel.1 onlink" for network, gateway in TUNNELS.items()]
    commands += [f"route add default via {GATEWAY} dev eth0"]
    neighbours = {"cni0": {address: PEER_MACS[pod] for pod, address in PODS.items()}}
    neighbours |= {device: dict.fromkeys(ips, PEER_MACS[device]) for device, ips in NEIGHBOURS.items()}
    commands += [
        f"neigh add {ip} lladdr {mac} dev {device} nud permanent" for device, known in neighbours.items() for ip, mac in known.items()
    ]
    configure(node, commands)
    configure(wires, [f"link set {far} up" for far in FAR])
    for number, pod in enumerate(PODS):
        run(f"bridge -n {node} fdb replace {PEER_MACS[pod]} dev veth{number} master static")
