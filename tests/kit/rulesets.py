"""Rule sets for tests, written as one writes them for `iptables-restore`, and a node's surroundings for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from emu.netfilter.hooks import Verdict
from emu.netfilter.memory import Memory
from emu.netfilter.reader import read_rules
from emu.netfilter.ruleset import (
    Accept,
    AddressType,
    Chain,
    Comment,
    ConntrackState,
    Destination,
    DestinationPort,
    Dnat,
    Drop,
    Extension,
    Fragment,
    HeaderOption,
    InInterface,
    Jump,
    Mark,
    Masquerade,
    Netmap,
    Option,
    OutInterface,
    Protocol,
    Redirect,
    Reject,
    Return,
    Rule,
    RuleSet,
    SetMark,
    Snat,
    Source,
    SourcePort,
    Spread,
    Statistic,
    Table,
    TargetExtension,
)
from emu.netfilter.skb import Skb
from emu.wire.addr import Network, SockAddr, parse_ip

HOOKS = {
    "filter": "INPUT FORWARD OUTPUT",
    "nat": "PREROUTING INPUT OUTPUT POSTROUTING",
    "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
    "raw": "PREROUTING OUTPUT",
    "security": "INPUT FORWARD OUTPUT",
}


def table(name: str, *rules: str, policies: dict[str, str] | None = None) -> str:
    """One table's text: its built-in chains, a chain for every other name after `-A`, and the rules (each without `-A`)."""
    builtins = HOOKS[name].split()
    chains = {chain: (policies or {}).get(chain, "ACCEPT") for chain in builtins}
    chains |= {rule.split()[0]: "-" for rule in rules if rule.split()[0] not in builtins}
    lines = [f":{chain} {policy} [0:0]" for chain, policy in chains.items()] + [f"-A {rule}" for rule in rules]
    return "\n".join((f"*{name}", *lines, "COMMIT", ""))


def rules(*tables: str) -> RuleSet:
    return read_rules("".join(tables))


class Around:
    """What rules may ask: local addresses, the masquerade address of each device, and chance."""

    def __init__(self, *local: str, masquerade: dict[str, str] | None = None, seed: int = 0) -> None:
        self.local = set(map(parse_ip, local))
        self.memory = Memory()
        self.masquerade = {name: parse_ip(address) for name, address in (masquerade or {}).items()}
        self.chance: Callable[[], float] = random.Random(seed).random
        self.hops: list[tuple[str, str | None, str | None, int]] = []

    def is_local(self, ip: bytes) -> bool:
        return ip in self.local or ip[0] == 127

    def is_local_on(self, ip: bytes, device: str) -> bool:
        return self.masquerade.get(device) == ip

    def is_broadcast(self, ip: bytes) -> bool:
        return False

    def masquerade_address(self, oif: str, dst: bytes) -> bytes | None:
        return self.masquerade.get(oif)

    def random(self) -> float:
        return self.chance()

    def choose(self, count: int) -> int:
        return next((number for number in range(count - 1) if self.chance() < 1 / (count - number)), count - 1)

    def hop(self, skb: Skb, where: str, rule: str | None = None, note: str | None = None, rules: int = 0) -> None:
        self.hops.append((where, rule, note, rules))


class Line(NamedTuple):
    """A rule of a table, as kube-proxy would write it, and as the kernel gives it back ("": as it was written)."""

    table: str
    rule: Rule
    restore: str
    save: str = ""


N, P, TCP = Network.parse, Protocol, Protocol(6)
VOCABULARY = [
    Line("filter", Rule((Comment("plain"),)), "-m comment --comment plain"),
    Line("filter", Rule((Comment("ns/svc:http cluster IP"),)), '-m comment --comment "ns/svc:http cluster IP"'),
    Line("filter", Rule((Comment("ns1/svc1"),)), "-m comment --comment ns1/svc1", '-m comment --comment "ns1/svc1"'),
    Line("filter", Rule((Comment('the "quick" \\ way'),)), r'-m comment --comment "the \"quick\" \\ way"'),
    Line("filter", Rule((Comment("it's"),)), '-m comment --comment "it\'s"', r'-m comment --comment "it\'s"'),
    Line("filter", Rule((Source(N("10.0.0.1")),)), "-s 10.0.0.1", "-s 10.0.0.1/32"),
    Line("filter", Rule((Source(N("10.0.0.0/8"), invert=True),)), "! -s 10.0.0.0/8"),
    Line("filter", Rule((Source(N("0.0.0.0/0")),)), "-s 0.0.0.0/0", " "),
    Line("filter", Rule((Destination(N("10.96.0.1")),)), "-d 10.96.0.1", "-d 10.96.0.1/32"),
    Line("filter", Rule((Destination(N("127.0.0.0/8"), invert=True), Source(N("127.0.0.0/8")))), "! -d 127.0.0.0/8 -s 127.0.0.0/8",
         "-s 127.0.0.0/8 ! -d 127.0.0.0/8"),
    Line("filter", Rule((InInterface("eth0"),)), "-i eth0"),
    Line("filter", Rule((InInterface("veth+", invert=True),)), "! -i veth+"),
    Line("filter", Rule((OutInterface("cni0"),)), "-o cni0"),
    Line("filter", Rule((OutInterface("cni0", invert=True),)), "! -o cni0"),
    Line("filter", Rule((P(6, module=False),)), "-p tcp"),
    Line("filter", Rule((TCP,)), "-m tcp -p tcp", "-p tcp -m tcp"),
    Line("filter", Rule((P(17, invert=True),)), "! -p udp"),
    Line("filter", Rule((P(1),)), "-p icmp"),
    Line("filter", Rule((P(47),)), "-p gre"),
    Line("filter", Rule((P(200),)), "-p 200"),
    Line("filter", Rule((P(0),)), "-p 0", " "),
    Line("filter", Rule((TCP, DestinationPort(6, 80, 80))), "-m tcp -p tcp --dport 80", "-p tcp -m tcp --dport 80"),
    Line("filter", Rule((P(17), DestinationPort(17, 53, 53, invert=True))), "-m udp -p udp ! --dport 53", "-p udp -m udp ! --dport 53"),
    Line("filter", Rule((P(132), SourcePort(132, 1024, 65535))), "-m sctp -p sctp --sport 1024:65535",
         "-p sctp -m sctp --sport 1024:65535"),
    Line("filter", Rule((P(6, module=False), Comment("x"), DestinationPort(6, 80, 90), SourcePort(6, 7, 7))),
         "-p tcp -m comment --comment x --dport 80:90 --sport 7", "-p tcp -m comment --comment x -m tcp --sport 7 --dport 80:90"),
    Line("filter", Rule((TCP, DestinationPort(6, 0, 65535))), "-m tcp -p tcp --dport 0:65535", "-p tcp -m tcp"),
    Line("filter", Rule((ConntrackState(("NEW",)),)), "-m conntrack --ctstate NEW"),
    Line("filter", Rule((ConntrackState(("ESTABLISHED", "RELATED", "DNAT"), invert=True),)),
         "-m conntrack ! --ctstate ESTABLISHED,RELATED,DNAT", "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT"),
    Line("filter", Rule((ConntrackState(("SNAT", "UNTRACKED", "INVALID")),)), "-m conntrack --ctstate SNAT,UNTRACKED,INVALID",
         "-m conntrack --ctstate INVALID,UNTRACKED,SNAT"),
    Line("filter", Rule((Mark(0x4000, 0x4000),)), "-m mark --mark 0x00004000/0x00004000", "-m mark --mark 0x4000/0x4000"),
    Line("filter", Rule((Mark(7, invert=True),)), "-m mark ! --mark 0x00000007", "-m mark ! --mark 0x7"),
    Line("filter", Rule((AddressType("dst"),)), "-m addrtype --dst-type LOCAL"),
    Line("filter", Rule((AddressType("src", invert=True),)), "-m addrtype ! --src-type LOCAL"),
    Line("filter", Rule((Statistic(1 / 3),)), "-m statistic --mode random --probability 0.3333333333",
         "-m statistic --mode random --probability 0.33333333349"),
    Line("filter", Rule((Statistic(0.5),)), "-m statistic --mode random --probability 0.5000000000",
         "-m statistic --mode random --probability 0.50000000000"),
    Line("filter", Rule((Fragment(invert=True), Source(N("10.0.0.0/8")))), "! -f -s 10.0.0.0/8", "-s 10.0.0.0/8 ! -f"),
    Line("filter", Rule((TCP, HeaderOption(6, Option("--tcp-flags", ("FIN,SYN,RST,ACK", "SYN"))))),
         "-m tcp -p tcp --tcp-flags FIN,SYN,RST,ACK SYN", "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN"),
    Line("filter", Rule((Extension("recent", (Option("--rcheck"), Option("--seconds", ("10800",)), Option("--reap"),
                                              Option("--name", ("KUBE-SEP-X",)), Option("--mask", ("255.255.255.255",)),
                                              Option("--rsource"))),)),
         "-m recent --name KUBE-SEP-X --rcheck --seconds 10800 --reap",
         "-m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-X --mask 255.255.255.255 --rsource"),
    Line("filter", Rule((Extension("connmark", (Option("--mark", ("0x1/0x1",), invert=True),)),)), "-m connmark ! --mark 0x1/0x1"),
    Line("filter", Rule((), TargetExtension("LOG", (Option("--log-prefix", ("a b: ",)),))), '-j LOG --log-prefix "a b: "'),
    Line("filter", Rule((), Accept()), "-j ACCEPT"),
    Line("filter", Rule((), Drop()), "-j DROP"),
    Line("filter", Rule((), Return()), "-j RETURN"),
    Line("filter", Rule((), Jump("OTHER")), "-j OTHER"),
    Line("filter", Rule((), Jump("OTHER", goto=True)), "-g OTHER"),
    Line("filter", Rule((), Reject()), "-j REJECT", "-j REJECT --reject-with icmp-port-unreachable"),
    Line("filter", Rule((P(6, module=False),), Reject("tcp-reset")), "-p tcp -j REJECT --reject-with tcp-reset"),
    Line("filter", Rule((), Reject("icmp-admin-prohibited")), "-j REJECT --reject-with icmp-admin-prohibited"),
    Line("nat", Rule((TCP,), Dnat(SockAddr.parse("10.244.1.2:8080"))), "-m tcp -p tcp -j DNAT --to-destination 10.244.1.2:8080",
         "-p tcp -m tcp -j DNAT --to-destination 10.244.1.2:8080"),
    Line("nat", Rule((), Dnat(SockAddr.parse("10.244.1.2:0"))), "-j DNAT --to-destination 10.244.1.2"),
    Line("nat", Rule((P(17, module=False),), Snat(SockAddr.parse("192.168.0.2:99"))), "-p udp -j SNAT --to-source 192.168.0.2:99"),
    Line("nat", Rule((), Snat(SockAddr.parse("192.168.0.2:0"), random_fully=True)), "-j SNAT --to-source 192.168.0.2 --random-fully"),
    Line("nat", Rule((), Masquerade()), "-j MASQUERADE"),
    Line("nat", Rule((), Masquerade(random_fully=True)), "-j MASQUERADE --random-fully"),
    Line("nat", Rule((TCP,), Dnat(SockAddr.parse("10.0.0.1:80"), Spread(SockAddr.parse("10.0.0.9:90"), persistent=True))),
         "-m tcp -p tcp -j DNAT --to-destination 10.0.0.1-10.0.0.9:80-90 --persistent",
         "-p tcp -m tcp -j DNAT --to-destination 10.0.0.1-10.0.0.9:80-90 --persistent"),
    Line("nat", Rule((P(6, module=False),), Masquerade(ports=(1000, 2000))), "-p tcp -j MASQUERADE --to-ports 1000-2000"),
    Line("nat", Rule((P(6, module=False),), Redirect((8080, 8080))), "-p tcp -j REDIRECT --to-ports 8080"),
    Line("nat", Rule((Destination(N("10.1.0.0/24")),), Netmap(N("10.2.0.0/24"))), "-d 10.1.0.0/24 -j NETMAP --to 10.2.0.0/24"),
    Line("mangle", Rule((), SetMark(0x4000, 0x4000)), "-j MARK --set-xmark 0x4000/0x4000"),
    Line("mangle", Rule((), SetMark(0x4000, 0x4000, "--or-mark")), "-j MARK --or-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x4000"),
    Line("mangle", Rule((), SetMark(0x4000, 0, "--xor-mark")), "-j MARK --xor-mark 0x00004000", "-j MARK --set-xmark 0x4000/0x0"),
    Line("mangle", Rule((), SetMark(0, 0xFFFF0000, "--and-mark")), "-j MARK --and-mark 0x0000ffff", "-j MARK --set-xmark 0x0/0xffff0000"),
    Line("mangle", Rule((), SetMark(1, 0xFF, "--set-mark")), "-j MARK --set-mark 0x00000001/0x000000ff", "-j MARK --set-xmark 0x1/0xff"),
]  # fmt: skip
"""Every match and target, and what is special about its text."""


def vocabulary() -> RuleSet:
    """All of it in one rule set that a kernel takes: each table's rules in a chain where they are allowed."""
    tables = {}
    for name, hooks in HOOKS.items():
        chains: dict[str, Chain] = {hook: Chain(hook, (), Verdict.ACCEPT) for hook in hooks.split()}
        found = [line.rule for line in VOCABULARY if line.table == name]
        if name == "nat":
            kinds = {"PREROUTING": Dnat | Redirect | Netmap, "POSTROUTING": Snat | Masquerade}
            chains |= {
                hook: Chain(hook, tuple(r for r in found if isinstance(r.target, kind)), Verdict.ACCEPT) for hook, kind in kinds.items()
            }
        elif "FORWARD" in chains:
            chains |= {"FORWARD": Chain("FORWARD", tuple(found), Verdict.ACCEPT), "OTHER": Chain("OTHER")}
        tables[name] = Table(name, chains)
    return RuleSet(tables)
