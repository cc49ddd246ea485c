"""This machine's conntrack and ours, packet by packet: what each is to its connection, and how connections stand in the end.

Packets go into a TUN device of a namespace that forwards them back out of it, with the state that its rules saw as their TTL.
Windows are not tracked here, so neither there (nf_conntrack_tcp_be_liberal), and sequence numbers are as they should be.
"""

from __future__ import annotations

import contextlib
import os
import re
from random import Random

import pytest

from emu.netfilter.conntrack import Conntrack
from emu.netfilter.skb import ICMP, TCP, UDP, Skb
from emu.wire.checksum import fill
from tests.kit.netns import missing, namespaces, run, sysctl
from tests.kit.skbs import ACK, ECHO_REPLY, FIN, RST, SYN, echo, error, skb, tcp, udp
from tests.kit.tun import DEVICE, Tun

NEEDED = ("iptables-restore", "conntrack")
pytestmark = [pytest.mark.kernel, pytest.mark.skipif(bool(missing(*NEEDED)), reason=missing(*NEEDED))]

STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID")
RULES = "\n".join(
    [
        "*mangle",
        ":FORWARD ACCEPT",
        *(f"-A FORWARD -m conntrack --ctstate {state} -j TTL --ttl-set {ttl}" for ttl, state in enumerate(STATES, 100)),
        "COMMIT",
        "",
    ]
)
STORIES, LENGTH = 150, 9
SEGMENTS = [SYN, SYN, SYN | ACK, SYN | ACK, ACK, ACK, ACK, FIN | ACK, FIN | ACK, RST, RST | ACK, 0]


class Tracker:
    """The kernel's conntrack."""

    def __init__(self, netns: str) -> None:
        self._netns, self._tun = netns, Tun(netns, "10.7.255.254/16", mtu=1500, offload=False)
        sysctl(netns, {"net.ipv4.ip_forward": 1, "net.netfilter.nf_conntrack_tcp_be_liberal": 1,
                       "net.ipv4.conf.all.send_redirects": 0, f"net.ipv4.conf.{DEVICE}.send_redirects": 0,
                       "net.ipv4.conf.all.rp_filter": 0, f"net.ipv4.conf.{DEVICE}.rp_filter": 0})  # fmt: skip
        run(f"ip netns exec {netns} iptables-restore", stdin=RULES)

    def state(self, packet: Skb) -> str:
        """What the kernel says the packet is."""
        os.write(self._tun.fd, fill(bytes(packet.buf)))
        while True:
            back = os.read(self._tun.fd, 2048)
            if back[0] >> 4 == 4 and back[12:20] == packet.buf[12:20]:
                return STATES[back[8] - 100]

    def listing(self) -> list[str]:
        return run(f"ip netns exec {self._netns} conntrack -L").splitlines()

    def close(self) -> None:
        os.close(self._tun.fd)


def bare(line: str) -> str:
    """A listing's line without its seconds."""
    return re.sub(r"^(\S+ +\d+) \d+", r"\1", line).strip()


def numbered(segment: Skb) -> Skb:
    """A SYN is number 0 and acknowledges 1; what follows is number 1."""
    flags, at = segment.buf[segment.l4 + 13], segment.l4
    segment.buf[at + 7] = 0 if flags & SYN else 1
    segment.buf[at + 11] = 1 if flags & ACK else 0
    return segment


def story(random: Random, number: int) -> list[Skb]:
    """Packets of one connection both ways, in no good order but often enough a handshake first, and errors about them."""
    kind = random.choice(("tcp", "tcp", "tcp", "udp", "echo"))
    here, there = f"10.7.0.1:{2000 + number}", "10.7.0.2:80"
    start = random.choice(([], [], [(0, SYN), (1, SYN | ACK), (0, ACK)], [(0, SYN), (1, SYN | ACK), (0, ACK), (0, FIN | ACK)]))
    made: list[Skb] = []
    steps = [*start, *((random.randint(0, 1), random.choice(SEGMENTS)) for _ in range(LENGTH))]
    for way, flags in steps:
        src, dst = (there, here) if way else (here, there)
        if made and made[-1].proto != 1 and random.random() < 0.1:
            made.append(error(made[-1], "10.7.0.9"))
        elif kind == "tcp":
            made.append(numbered(tcp(src, dst, flags)))
        elif kind == "udp":
            made.append(udp(src, dst))
        else:
            src, dst = src.partition(":")[0], dst.partition(":")[0]
            made.append(echo(src, dst, 2000 + number, ECHO_REPLY if way else 8))
    return made


def test_every_packet_of_random_stories_is_to_the_kernel_what_it_is_to_us():
    """And afterwards both list the same connections, answered and assured alike."""
    random, ours = Random(1), Conntrack()
    told = set()
    with namespaces("tracker") as netns, contextlib.closing(Tracker(netns["tracker"])) as kernel:
        for number in range(STORIES):
            for packet in story(random, number):
                copy = skb(bytes(packet.buf))
                assert ours.ingress(packet, 0.0)
                assert ours.confirm(packet, 0.0)
                assert packet.ct_state is not None
                assert kernel.state(copy) == packet.ct_state.value, f"story {number}"
                told.add((packet.proto, packet.ct_state.value))
        listed = kernel.listing()
    assert sorted(map(bare, listed)) == sorted(map(bare, ours.listing(0.0).splitlines()))
    assert {(TCP, state) for state in ("NEW", "ESTABLISHED", "INVALID")} | {(ICMP, "RELATED"), (UDP, "NEW")} <= told
