"""What match modules ask of a packet's own headers: ports, ICMP types, TCP flags, its length, TTL and TOS.

Values that a made-up packet does not really have go through the namespace's memory, whose answer may be that they are not known.
Spec: iptables-extensions(8), net/netfilter/xt_{tcpudp,multiport,sctp,length,hl,dscp}.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import ge, gt, le, lt

from emu.netfilter.forms import parse_masked, parse_number, parse_span
from emu.netfilter.hooks import Surroundings
from emu.netfilter.modules import CHUNKS, TCP_FLAGS
from emu.netfilter.ruleset import HeaderOption, Option
from emu.netfilter.skb import PORT_PROTOCOLS, SCTP, TCP, Skb

Test = Callable[[Skb, Surroundings], bool]
Given = Mapping[str, Option]


def unknown(what: str) -> Test:
    def test(skb: Skb, around: Surroundings) -> bool:
        skb.cacheable = False
        return around.memory.unknown(what)

    return test


def conjunction(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda skb, around: all(test(skb, around) for test in tests)


def multiport(given: Given) -> Test:
    (option,) = given.values()
    spans = [parse_span(port) for port in option.values[0].split(",")]
    name, invert = option.name, option.invert

    def test(skb: Skb, around: Surroundings) -> bool:
        if skb.fragment or skb.proto not in PORT_PROTOCOLS:
            return False
        ports = (skb.sport,) if name == "--sports" else (skb.dport,) if name == "--dports" else (skb.sport, skb.dport)
        return any(first <= port <= last for first, last in spans for port in ports) is not invert

    return test


def icmp(proto: int) -> Callable[[Given], Test]:
    def make(given: Given) -> Test:
        (option,) = given.values()
        invert = option.invert
        if option.values[0] == "any":
            return lambda skb, around: skb.proto == proto and not skb.fragment and not invert
        kind, slash, word = option.values[0].partition("/")
        number, code = int(kind), int(word) if slash else -1

        def test(skb: Skb, around: Surroundings) -> bool:
            if skb.proto != proto or skb.fragment:
                return False
            return (skb.buf[skb.l4] == number and code in (-1, skb.buf[skb.l4 + 1])) is not invert

        return test

    return make


def header_test(match: HeaderOption) -> Test:
    """What the module of TCP or SCTP asks beside ports; False for packets of another protocol and for fragments."""
    option, invert = match.option, match.option.invert
    if option.name == "--tcp-flags":
        mask, wanted = (sum(1 << TCP_FLAGS.index(flag) for flag in value.split(",") if flag != "NONE") for value in option.values)
        return lambda skb, around: (
            skb.proto == TCP and not skb.fragment and (skb.buf[skb.l4 + 13] & mask == wanted) is not invert
        )  # fmt: skip
    if option.name == "--tcp-option":
        number = int(option.values[0])
        return lambda skb, around: (
            skb.proto == TCP and not skb.fragment and around.memory.header("tcp-option", holds=(number in _tcp_options(skb)) is not invert)
        )
    how, listed = option.values
    names = {chunk.partition(":")[0] for chunk in listed.split(",")}
    if ":" in listed or len(CHUNKS) > 22:
        return unknown("-m sctp --chunk-types with flags")

    def test(skb: Skb, around: Surroundings) -> bool:
        """A packet's first chunk stands for all: what begins an association is alone in its packet (RFC 9260)."""
        if skb.proto != SCTP or skb.fragment or len(skb.buf) < skb.l4 + 16:
            return False
        kind = skb.buf[skb.l4 + 12]
        found = CHUNKS[kind] if kind < 15 else ""
        wanted = {*CHUNKS} if "ALL" in names else set[str]() if "NONE" in names else names
        return (found in wanted if how == "any" else {found} == wanted if how == "only" else wanted <= {found}) is not invert

    return test


def _tcp_options(skb: Skb) -> list[int]:
    at, end = skb.l4 + 20, skb.l4 + (skb.buf[skb.l4 + 12] >> 4) * 4
    found: list[int] = []
    while at < min(end, len(skb.buf)) and skb.buf[at] != 0:
        found.append(skb.buf[at])
        at += 1 if skb.buf[at] == 1 else max(2, skb.buf[at + 1]) if at + 1 < len(skb.buf) else end
    return found


def field(module: str, value: Callable[[Skb], int]) -> Callable[[Given], Test]:
    """A number of the real packet's own: its length, TTL or TOS."""
    order = {"eq": (ge, le), "lt": (lt,), "gt": (gt,)}

    def make(given: Given) -> Test:
        tests: list[Test] = []
        for option in given.values():
            how, invert = option.name.rpartition("-")[2], option.invert
            if how in order:
                number, compare = parse_number(option.values[0]), order[how]
                tests.append(lambda skb, around, n=number, c=compare, i=invert: around.memory.header(  # type: ignore[misc]
                    module, holds=all(op(value(skb), n) for op in c) is not i))  # fmt: skip
            else:
                first, last = parse_span(option.values[0]) if ":" in option.values[0] else (int(option.values[0], 0),) * 2
                tests.append(lambda skb, around, f=first, e=last, i=invert: around.memory.header(  # type: ignore[misc]
                    module, holds=(f <= value(skb) <= e) is not i))  # fmt: skip
        return conjunction(tests)

    return make


def ttl(skb: Skb) -> int:
    return skb.buf[8] if skb.buf[0] >> 4 == 4 else skb.buf[7]


def tos_byte(skb: Skb) -> int:
    return skb.buf[1] if skb.buf[0] >> 4 == 4 else (skb.buf[0] & 15) << 4 | skb.buf[1] >> 4


def tos(given: Given) -> Test:
    (option,) = given.values()
    (value, mask), invert = parse_masked(option.values[0], 255), option.invert
    return lambda skb, around: around.memory.header("tos", holds=(tos_byte(skb) & mask == value) is not invert)
