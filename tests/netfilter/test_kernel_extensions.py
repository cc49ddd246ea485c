"""Matches and targets that remember something, or look into sets: the same datagrams one after the other, in the kernel and in ours.

Everything happens on loopback, where each source address of 127.0.0.0/8 is somebody else; what the receiver gets is compared.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.ipset import read_sets
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.reader import read_rules
from tests.kit.netns import missing, namespaces, run, socket_in
from tests.kit.rulesets import Around, table
from tests.kit.skbs import udp

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(missing("iptables-restore", "ipset")), reason=missing("iptables-restore", "ipset")),
]

A, B, C = (f"127.0.0.{n}" for n in (11, 12, 13))
FIRST, SECOND = 7001, 7002  # the receiver's ports
SETS = f"""\
create hosts hash:ip family inet
add hosts {A}
create nets hash:net family inet
add nets 127.0.0.8/29
add nets {B} nomatch
create pairs hash:ip,port family inet
add pairs {A},udp:{FIRST}
add pairs {B},udp:{SECOND}
add pairs {C},tcp:{FIRST}
create triples hash:ip,port,ip family inet
add triples 127.0.0.1,udp:{FIRST},{B}
create ports bitmap:port range 7000-7010
add ports {SECOND}
create narrow hash:ip,port,net family inet
add narrow 127.0.0.1,udp:{SECOND},127.0.0.12/30
create masked hash:ip family inet netmask 30
add masked {A}
create either list:set size 8
add either hosts
add either nets
create learnt hash:ip family inet
"""

EACH = "-m hashlimit --hashlimit-mode srcip"
ONE_EACH = [(who, port, 1) for port in (FIRST, SECOND) for who in (A, B, C)]
MANY = [(who, FIRST, 1) for who in (A, A, B, A, A, B, C, A, B, A, C, A)]
CASES = {  # what: rules by table, packets (source, port, payload bytes)
    "every third": ({"filter": ["INPUT -m statistic --mode nth --every 3 --packet 0 -j DROP"]}, MANY),
    "every fourth, from the third": ({"filter": ["INPUT -m statistic --mode nth --every 4 --packet 2 -j DROP"]}, MANY),
    "all but every third": ({"filter": ["INPUT -m statistic --mode nth ! --every 3 --packet 1 -j DROP"]}, MANY),
    "two in turn": ({"filter": ["INPUT -m statistic --mode nth --every 3 --packet 0 -j ACCEPT",
                                "INPUT -m statistic --mode nth --every 2 --packet 0 -j DROP"]}, MANY),
    "seen before": ({"filter": ["INPUT -m recent --rcheck -j DROP", "INPUT -m recent --set"]}, MANY),
    "not seen before": ({"filter": ["INPUT -m recent ! --rcheck --name x -m recent --set --name x -j DROP"]}, MANY),
    "seen three times": ({"filter": ["INPUT -m recent --update --seconds 60 --hitcount 3 --name y -j DROP",
                                     "INPUT -m recent --set --name y"]}, MANY),
    "seen in the neighbourhood": ({"filter": ["INPUT -m recent --rcheck --mask 255.255.255.252 -j DROP",
                                              "INPUT -m recent --set --mask 255.255.255.252"]}, MANY),
    "seen as a destination": ({"filter": ["INPUT -m recent --rcheck --rdest --name z -j DROP", "INPUT -m recent --set --rdest --name z"]},
                              MANY),
    "seen and forgotten": ({"filter": ["INPUT -m recent --remove --name f -j DROP", "INPUT -m recent --set --name f"]}, MANY),
    "a burst": ({"filter": ["INPUT -m limit --limit 1/hour --limit-burst 4 -j ACCEPT", "INPUT -j DROP"]}, MANY),
    "a burst each": ({"filter": [
        f"INPUT {EACH} --hashlimit-upto 1/hour --hashlimit-burst 2 --hashlimit-name h -j ACCEPT", "INPUT -j DROP"]}, MANY),
    "above a burst each": ({"filter": [f"INPUT {EACH} --hashlimit-above 1/hour --hashlimit-burst 3 --hashlimit-name i -j DROP"]}, MANY),
    "a burst for each four": ({"filter": [
        f"INPUT {EACH} --hashlimit-srcmask 30 --hashlimit-above 1/hour --hashlimit-burst 3 --hashlimit-name j -j DROP"]}, MANY),
    "hash:ip": ({"filter": ["INPUT -m set --match-set hosts src -j DROP"]}, ONE_EACH),
    "not hash:ip": ({"filter": ["INPUT -m set ! --match-set hosts src -j DROP"]}, ONE_EACH),
    "hash:ip of destinations": ({"filter": ["INPUT -m set --match-set hosts dst -j DROP"]}, ONE_EACH),
    "hash:net with an exception": ({"filter": ["INPUT -m set --match-set nets src -j DROP"]}, ONE_EACH),
    "the exception itself": ({"filter": ["INPUT -m set --match-set nets src --return-nomatch -j DROP"]}, ONE_EACH),
    "hash:ip,port": ({"filter": ["INPUT -m set --match-set pairs src,dst -j DROP"]}, ONE_EACH),
    "hash:ip,port,ip": ({"filter": ["INPUT -m set --match-set triples dst,dst,src -j DROP"]}, ONE_EACH),
    "bitmap:port": ({"filter": ["INPUT -m set --match-set ports dst -j DROP"]}, ONE_EACH),
    "hash:ip,port,net": ({"filter": ["INPUT -m set --match-set narrow dst,dst,src -j DROP"]}, ONE_EACH),
    "hash:ip with a netmask": ({"filter": ["INPUT -m set --match-set masked src -j DROP"]}, ONE_EACH),
    "list:set": ({"filter": ["INPUT -m set --match-set either src -j DROP"]}, ONE_EACH),
    "learning": ({"filter": ["INPUT -m set --match-set learnt src -j DROP", f"INPUT -s {A} -j SET --add-set learnt src",
                             f"INPUT -s {C} -j SET --del-set learnt src"]}, MANY),
    "multiport": ({"filter": [f"INPUT -p udp -m multiport --dports 1,{SECOND}:7005 -j DROP"]}, ONE_EACH),
    "not multiport": ({"filter": [f"INPUT -p udp -m multiport ! --dports {FIRST} -j DROP"]}, ONE_EACH),
    "either port": ({"filter": [f"INPUT -p udp -m multiport --ports {SECOND} -j DROP"]}, ONE_EACH),
    "iprange": ({"filter": [f"INPUT -m iprange --src-range {B}-{C} -j DROP"]}, ONE_EACH),
    "not iprange": ({"filter": [f"INPUT -m iprange ! --src-range {A}-{B} --dst-range 127.0.0.0-127.0.0.9 -j DROP"]}, ONE_EACH),
    "length": ({"filter": ["INPUT -m length --length 30:34 -j DROP"]}, [(A, FIRST, size) for size in (1, 2, 3, 6, 7, 40)]),
    "not length": ({"filter": ["INPUT -m length ! --length 29 -j DROP"]}, [(A, FIRST, size) for size in (1, 2)]),
    "addrtype": ({"filter": ["INPUT -m addrtype --src-type LOCAL --dst-type LOCAL -j DROP"]}, ONE_EACH),
    "addrtype of none": ({"filter": ["INPUT -m addrtype --dst-type UNICAST,BROADCAST,MULTICAST -j DROP"]}, ONE_EACH),
    "ttl": ({"filter": ["INPUT -m ttl --ttl-gt 64 -j DROP", f"INPUT -s {B} -m ttl --ttl-eq 64 -j DROP"]}, ONE_EACH),
    "untracked": ({"raw": [f"OUTPUT -s {A} -j CT --notrack", f"PREROUTING -s {A} -j CT --notrack"],
                   "filter": ["INPUT -m conntrack --ctstate UNTRACKED -j DROP"]}, ONE_EACH),
    "tracked": ({"raw": [f"OUTPUT -s {A} -j CT --notrack", f"PREROUTING -s {A} -j CT --notrack"],
                 "filter": ["INPUT -m conntrack --ctstate NEW,ESTABLISHED -j DROP"]}, ONE_EACH),
    "connection marks": ({"mangle": [f"OUTPUT -s {A} -j MARK --set-xmark 0x13/0xff",
                                     "OUTPUT -j CONNMARK --save-mark --nfmask 0xf --ctmask 0xff",
                                     f"OUTPUT -s {C} -j CONNMARK --set-xmark 0x4/0x4"],
                          "filter": ["INPUT -m connmark --mark 0x3 -j DROP", "INPUT -m connmark --mark 0x4/0x4 -j DROP"]}, ONE_EACH),
    "marks given back": ({"mangle": [f"OUTPUT -s {B} -j CONNMARK --set-xmark 0x77/0xff",
                                     "INPUT -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf0"],
                          "filter": ["INPUT -m mark --mark 0x70/0xf0 -j DROP"]}, ONE_EACH),
    "where a connection began": ({"filter": [
        f"INPUT -m conntrack --ctproto udp --ctorigsrc {A} --ctorigdstport {FIRST} --ctdir ORIGINAL -j DROP",
        f"INPUT -m conntrack --ctreplsrcport {SECOND} ! --ctorigsrc {B} -j DROP"]}, ONE_EACH),
    "redirected": ({"nat": [f"OUTPUT -p udp -m udp --dport {FIRST} -j REDIRECT --to-ports {SECOND}"],
                    "filter": [f"INPUT -p udp -m udp --dport {SECOND} -m conntrack --ctstate DNAT --ctorigdstport {FIRST} -j DROP"]},
                   ONE_EACH),
    "mapped": ({"nat": ["POSTROUTING -s 127.0.0.8/29 -j NETMAP --to 127.0.1.0/29"],
                "filter": ["INPUT -s 127.0.1.4/32 -j DROP", "INPUT -m conntrack ! --ctstate SNAT -j DROP"]}, ONE_EACH),
    "one of three sources": ({"nat": ["POSTROUTING -j SNAT --to-source 127.0.2.1-127.0.2.3"],
                              "filter": ["INPUT -m iprange ! --src-range 127.0.2.1-127.0.2.3 -j DROP"]}, ONE_EACH),
    "a port of a few": ({"nat": ["POSTROUTING -p udp -j SNAT --to-source 127.0.2.1:9000-9009"],
                         "filter": ["INPUT -p udp -m udp ! --sport 9000:9009 -j DROP"]}, ONE_EACH),
}  # fmt: skip


ALIKE = {"hash:ip of destinations", "addrtype", "addrtype of none", "one of three sources", "a port of a few"}
"""Cases in which all packets fare alike."""


@pytest.fixture(scope="module")
def netns() -> Iterator[str]:
    with namespaces("ext") as found:
        run(f"ip netns exec {found['ext']} ipset restore", stdin=SETS)
        yield found["ext"]


def text_of(rules: dict[str, list[str]]) -> str:
    """All tables of every case, so that none is left from the case before."""
    return "".join(table(name, *rules.get(name, [])) for name in ("raw", "mangle", "nat", "filter"))


def in_the_kernel(netns: str, backend: str, rules: str, packets: list[tuple[str, int, int]]) -> list[int]:
    """The numbers of the packets that arrive. Each has its own source port, lest connections of earlier cases be taken for these."""
    run(f"ip netns exec {netns} ipset flush learnt")
    run(f"ip netns exec {netns} {backend}-restore", stdin=rules)
    arrived = []
    with ExitStack() as stack:
        receivers = [stack.enter_context(socket_in(netns, kind=socket.SOCK_DGRAM)) for _ in (FIRST, SECOND)]
        for receiver, port in zip(receivers, (FIRST, SECOND), strict=True):
            receiver.bind(("127.0.0.1", port))
            receiver.setblocking(False)
        for number, (source, port, size) in enumerate(packets):
            sender = stack.enter_context(socket_in(netns, kind=socket.SOCK_DGRAM))
            sender.bind((source, 0))
            try:
                sender.sendto(bytes(size), ("127.0.0.1", port))
            except PermissionError:  # dropped at OUTPUT
                continue
            for receiver in receivers:  # loopback delivers before sendto returns
                try:
                    receiver.recv(64)
                    arrived.append(number)
                except BlockingIOError:
                    continue
    run(f"ip netns exec {netns} {backend}-restore", stdin=text_of({}))
    return arrived


def in_ours(rules: str, packets: list[tuple[str, int, int]]) -> list[int]:
    around = Around("127.0.0.1", masquerade={"lo": "127.0.0.1"})
    around.memory.sets = read_sets(SETS)
    netfilter = Netfilter(around)
    netfilter.swap(read_rules(rules))
    arrived = []
    for number, (source, port, size) in enumerate(packets):
        skb = udp(f"{source}:{30000 + number}", f"127.0.0.1:{port}", bytes(size), iif="")
        skb.oif = "lo"
        if any(netfilter.run(hook, skb, 0.0) is not Verdict.ACCEPT for hook in (Hook.OUTPUT, Hook.POSTROUTING)):
            continue
        skb.iif, skb.oif = "lo", ""
        if all(netfilter.run(hook, skb, 0.0) is Verdict.ACCEPT for hook in (Hook.PREROUTING, Hook.INPUT)):
            arrived.append(number)
    return arrived


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize("what", CASES)
def test_the_kernel_lets_the_same_datagrams_through(netns, backend, what):
    rules, packets = CASES[what]
    text = text_of(rules)
    expected = in_ours(text, packets)
    assert in_the_kernel(netns, backend, text, packets) == expected
    assert what in ALIKE or 0 < len(expected) < len(packets), "some pass and some do not, or nothing is compared"
