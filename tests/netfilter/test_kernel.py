"""Random rule sets in this machine's kernel and in ours: real first packets and their answers end in the same places.

Left to unit tests: chance (`statistic`), local output, and which port is chosen where one must be.
"""

from __future__ import annotations

import errno
from random import Random

import pytest

from emu.netfilter.conn import CtState
from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import TCP, Skb
from emu.netfilter.text import restore_text
from emu.stack.icmp import ERRNO, REJECT_CODES
from emu.wire.addr import SockAddr, format_ip
from tests.kit.netns import missing
from tests.kit.router import PORTS, Probe, Router, Seen, router
from tests.kit.rulesets import Around, rules, table
from tests.kit.skbs import ACK, answer_to, tcp, udp

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(bool(missing("iptables-restore")), reason=missing("iptables-restore"))]

SETS, PROBES = 40, 16
FIRST_PORT, FIXED_PORT = 20000, 600  # of the first set; each has its own, lest it meet what the last one has left in the kernel's table

MATCHES = [
    "-s 10.1.0.1/32", "-s 10.1.0.2/31", "! -s 10.1.0.3/32", "-s 10.2.0.0/16", "-d 10.9.0.1/32", "-d 10.9.0.2/31", "! -d 10.9.0.1/32",
    "-d 10.2.0.1/32", "-d 10.1.0.0/16", "-p tcp", "-p udp", "! -p udp", "-p tcp -m tcp --dport 80", "-p tcp -m tcp ! --dport 80",
    "-p udp -m udp --dport 53:80", "-p udp -m udp ! --dport 53", "-p udp -m udp --sport 20000:50000", "-p tcp -m tcp --sport 80",
    "-m mark --mark 0x1/0x1", "-m mark --mark 0x2/0x2", "-m mark ! --mark 0x1/0x3",
    "-m addrtype --dst-type LOCAL", "-m addrtype ! --dst-type LOCAL",
    "-m addrtype --src-type LOCAL", "-m conntrack --ctstate NEW", "-m conntrack ! --ctstate NEW",
    "-m conntrack --ctstate ESTABLISHED,RELATED",
    "-m conntrack --ctstate DNAT", "-m conntrack ! --ctstate DNAT", "-m conntrack --ctstate SNAT", "-m conntrack --ctstate INVALID",
    "-m comment --comment x",
    "-p tcp -m multiport --dports 53,80", "-p udp -m multiport ! --sports 20000:20100", "-m iprange --src-range 10.1.0.2-10.1.0.3",
    "-m addrtype --dst-type UNICAST", "-m addrtype --src-type LOCAL,UNICAST --dst-type LOCAL", "-p tcp -m tcp --tcp-flags SYN,ACK SYN",
    "-m connmark --mark 0x1/0x1", "-m connmark ! --mark 0x0", "-m conntrack --ctproto 6 --ctdir ORIGINAL",
    "-m conntrack --ctorigdst 10.9.0.1", "-m conntrack --ctreplsrc 10.2.0.1 --ctreplsrcport 8080", "-m length --length 0:200",
]  # fmt: skip
COMING, LEAVING = ["-i c0", "! -i c+", "-i s+"], ["-o s0", "! -o s0", "-o c+"]
MARKS = ["-j MARK --set-xmark 0x1/0x1", "-j MARK --set-xmark 0x6/0x6", "-j MARK --xor-mark 0x1",
         "-j CONNMARK --set-xmark 0x1/0x1", "-j CONNMARK --save-mark --nfmask 0x3 --ctmask 0x3",
         "-j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x1"]  # fmt: skip
ENDS = ["-j ACCEPT", "-j DROP", "-j RETURN", "-j REJECT", "-j REJECT --reject-with icmp-host-prohibited",
        "-p tcp -j REJECT --reject-with tcp-reset", ""]  # fmt: skip
RAW = ["-j NOTRACK", "-j CT --notrack", *MARKS[:3]]
DNATS = [f"-p {p} -j DNAT --to-destination {to}" for p in ("tcp", "udp") for to in
         ("10.2.0.1:8080", "10.2.0.1:53", "10.9.0.9:80", "10.2.0.1", "10.1.0.254:80")]  # fmt: skip
DNATS += ["-p tcp -j REDIRECT --to-ports 8080", "-p udp -j REDIRECT", "-d 10.9.0.0/24 -j NETMAP --to 10.9.1.0/24"]
SNATS = ["-j MASQUERADE", "-j MASQUERADE", "-j MASQUERADE --random-fully", "-j SNAT --to-source 10.8.0.7",
         "-p udp -j SNAT --to-source 10.8.0.7:FIXED"]  # fmt: skip
NO_MORE = ["-j ACCEPT", "-j RETURN"]

CHAINS = {  # table: (chain, most rules, further matches, targets)
    "raw": [("PREROUTING", 1, COMING, RAW)],
    "mangle": [("PREROUTING", 2, COMING, MARKS), ("FORWARD", 1, [*COMING, *LEAVING], MARKS)],
    "nat": [
        ("PREROUTING", 4, COMING, [*DNATS, *DNATS, *MARKS, *NO_MORE, "-j N", "-j N", "-g N"]),
        ("N", 3, [], [*DNATS, *MARKS, "-j RETURN"]),
        ("POSTROUTING", 3, LEAVING, [*SNATS, *MARKS, *NO_MORE, "-j P", "-g P"]),
        ("P", 2, [], [*SNATS, "-j RETURN"]),
    ],
    "filter": [
        ("INPUT", 2, COMING, [*ENDS, "-j A"]),
        ("FORWARD", 4, [*COMING, *LEAVING], [*ENDS, "-j A", "-j A", "-g A", "-j B"]),
        ("A", 3, [], [*ENDS, "-j B", "-g B"]),
        ("B", 3, [], ENDS),
    ],
}


def random_line(random: Random, chain: str, more: list[str], targets: list[str]) -> str:
    """A rule in which no option stands twice."""
    target = random.choice(targets)
    words = [target] if target else []
    for piece in random.sample([*MATCHES, *more], random.choice((0, 1, 1, 1, 2))):
        option = piece.removeprefix("! ").split()
        if not any(option[0] in word.split() and (option[0] != "-m" or option[1] in word.split()) for word in words):
            words.insert(0, piece)
    return " ".join((chain, *words))


def random_rules(random: Random, round_: int) -> RuleSet:
    return rules(
        *(
            table(
                name,
                *(
                    random_line(random, chain, more, targets)
                    for chain, most, more, targets in chains
                    for _ in range(random.randint(0, most))
                ),
                *(f"{chain} -m mark --mark 0x99" for chain, *_ in chains if len(chain) == 1),
                policies={"FORWARD": random.choice(("ACCEPT", "ACCEPT", "DROP"))} if name == "filter" else None,
            ).replace("FIXED", str(FIXED_PORT + round_))
            for name, chains in CHAINS.items()
        )
    )


def random_probes(random: Random, round_: int) -> list[Probe]:
    """Each has its own port, or shares one with clients at other addresses."""
    probes = []
    for number in range(PROBES):
        sport = FIRST_PORT + round_ * PROBES + number // 2
        src = f"10.1.0.{1 + (number & 1)}" if random.random() < 0.7 else f"10.1.0.{1 + 2 * (number & 1)}"
        dst = random.choice(("10.9.0.1", "10.9.0.1", "10.9.0.2", "10.9.0.3", "10.2.0.1", "10.1.0.254"))
        probes.append(Probe(random.choice(("tcp", "udp")), src, sport, dst, random.choice(PORTS)))
    return probes


class Ours:
    """Our netfilter at the router's place."""

    def __init__(self, ruleset: RuleSet, seed: int) -> None:
        self.netfilter = Netfilter(Around("10.1.0.254", "10.2.0.254", masquerade={"c0": "10.1.0.254", "s0": "10.2.0.254"}, seed=seed))
        self.netfilter.swap(ruleset)

    def passes(self, packet: Skb, iif: str) -> Verdict:
        """Take a packet that came in by `iif` ("": the router's own) as far as it gets."""
        local = self.netfilter.around.is_local
        packet.iif = iif
        first = Hook.PREROUTING if iif else Hook.OUTPUT
        if not iif:
            packet.oif = "c0"
        if (verdict := self.netfilter.run(first, packet, 0.0)) is not Verdict.ACCEPT:
            return verdict
        if iif and local(packet.dst):
            return self.netfilter.run(Hook.INPUT, packet, 0.0)
        packet.oif = "c0" if format_ip(packet.dst).startswith("10.1.") else "s0"
        for hook in (Hook.FORWARD, Hook.POSTROUTING) if iif else (Hook.POSTROUTING,):
            if (verdict := self.netfilter.run(hook, packet, 0.0)) is not Verdict.ACCEPT:
                return verdict
        return Verdict.ACCEPT

    def ask(self, probe: Probe) -> Seen:
        make = tcp if probe.protocol == "tcp" else udp
        source, destination = f"{probe.src}:{probe.sport}", f"{probe.dst}:{probe.dport}"
        packet = make(source, destination)
        verdict = self.passes(packet, "c0")
        if verdict is not Verdict.ACCEPT:
            return Seen(told=refusal(packet) if verdict is Verdict.REJECT else "")
        where = "router" if self.netfilter.around.is_local(packet.dst) else "server"
        seen = Seen(where, name(packet.destination), name(packet.source))
        back = answer_to(packet)
        came_back = self.passes(back, "" if where == "router" else "s0") is Verdict.ACCEPT
        if came_back:
            came_back = (str(back.source), str(back.destination)) == (destination, source)
            assert came_back or back.ct_state is CtState.UNTRACKED, "whatever was tracked is translated back"
        if packet.proto != TCP:
            return seen._replace(told="answered" if came_back else "")
        if not came_back:
            return Seen()  # nobody can tell where a SYN has been
        acknowledgement = tcp(source, destination, ACK)
        if self.passes(acknowledgement, "c0") is Verdict.ACCEPT:
            followed = (acknowledgement.source, acknowledgement.destination) == (packet.source, packet.destination)
            assert followed or acknowledgement.ct_state is CtState.UNTRACKED, "whatever was tracked goes the same way"
            if followed:
                return seen._replace(told="answered")
        return Seen(told="any")


def refusal(packet: Skb) -> str:
    how = packet.reject_with or ""
    number = errno.ECONNREFUSED if how == "tcp-reset" else ERRNO[REJECT_CODES[how]][0]
    return errno.errorcode[number]


def name(end: SockAddr) -> tuple[str, int]:
    return format_ip(end.ip), end.port


def comparable(seen: Seen, probe: Probe) -> Seen:
    """Of a source port: is it the client's own, a rule's, or one that had to be chosen?"""
    address, port = seen.src
    return seen._replace(src=(address, port if port < 1024 or port == probe.sport else -1))


def compare(kernel: Router, seed: int) -> set[tuple[bool, str]]:
    """One random rule set; returns what happened: was a port kept, what was the client told?"""
    random = Random(seed)
    ruleset, probes = random_rules(random, seed), random_probes(random, seed)
    kernel.load(restore_text(ruleset))
    ours = Ours(ruleset, seed)
    expected = [ours.ask(probe) for probe in probes]
    found = kernel.ask(probes)
    ours.netfilter.conntrack.check()
    for probe, wanted, got in zip(probes, expected, found, strict=True):
        told = got.told if wanted.told == "any" else wanted.told
        assert comparable(got, probe) == comparable(wanted, probe)._replace(told=told), f"seed {seed}, {probe}\n{restore_text(ruleset)}"
    return {(seen.src[1] == probe.sport, seen.told) for seen, probe in zip(expected, probes, strict=True)}


def test_the_kernel_does_as_we_do():
    """That it had something to say, lest all of this compared nothing with nothing: ports kept and not, refusals, silence."""
    with router() as kernel:
        outcomes = set().union(*(compare(kernel, seed) for seed in range(SETS)))
    assert {"answered", "", "ECONNREFUSED", "EHOSTUNREACH"} <= {told for _, told in outcomes}
    assert {kept for kept, told in outcomes if told == "answered"} == {True, False}
