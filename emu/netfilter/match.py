"""What a rule's matches ask of a packet, compiled: a key that most packets fail at once, and tests for the rest.

Most of a node's rules read `-d VIP/32 -p tcp --dport N`; such exact matches become one byte string, compared with one that is
made once a walk. Everything else is a closure. Compiled forms are kept on the rule, which outlives the rule set.
Semantics: iptables-extensions(8). A rule set is of one address family; so are the packets that meet it.
"""

from __future__ import annotations

from typing import Any, assert_never

from emu.errors import ConfigError
from emu.netfilter.extensions import address_test, state_test, test_of_extension
from emu.netfilter.headers import Test, header_test
from emu.netfilter.hooks import Surroundings
from emu.netfilter.ruleset import (
    AddressType,
    Comment,
    ConntrackState,
    Destination,
    DestinationPort,
    Extension,
    Fragment,
    HeaderOption,
    InInterface,
    Mark,
    Match,
    OutInterface,
    Protocol,
    Rule,
    Source,
    SourcePort,
    Statistic,
)
from emu.netfilter.skb import Skb
from emu.wire.addr import Network

SRC, DST, PROTO, DPORT = 1, 2, 4, 8
"""What a key may hold, in this order; a kind of key is a sum of these. A port comes with its protocol."""

PROBABILITY_BITS = 1 << 31
"""xt_statistic compares 31 random bits with a whole number."""


class Keys(dict[int, bytes]):
    """A packet's own key of each kind, made when a rule first asks for it."""

    def __init__(self, fields: tuple[tuple[int, bytes], ...]) -> None:
        self._fields = fields

    def __missing__(self, kind: int) -> bytes:
        key = self[kind] = b"".join([value for bit, value in self._fields if kind & bit])
        return key


def packet_keys(skb: Skb) -> Keys:
    """The packet's keys, made once a walk."""
    return Keys(((SRC, skb.src), (DST, skb.dst), (PROTO, bytes((skb.proto,))), (DPORT, skb.dport.to_bytes(2, "big"))))


class Step:
    """A rule ready to be asked: it matches if the packet's key of `kind` equals `key` and all `tests` hold.

    Tests are made when a packet first has the key: of ten thousand rules, few ever come so far.
    """

    __slots__ = ("_rest", "_tests", "key", "kind")

    def __init__(self, kind: int, key: bytes, rest: list[Match]) -> None:
        self.kind, self.key = kind, key
        self._rest = rest
        self._tests: tuple[Test, ...] | None = None if rest else ()

    @property
    def tests(self) -> tuple[Test, ...]:
        tests = self._tests
        if tests is None:
            rest = sorted(self._rest, key=_remembers)  # what changes with asking is asked only if all else matches
            tests = self._tests = tuple(test for match in rest if (test := test_of(match)) is not None)
        return tests

    def matches(self, skb: Skb, around: Surroundings, keys: Keys) -> bool:
        """Ask the one rule; a walk does the same in line."""
        return self.key == keys[self.kind] and all(test(skb, around) for test in self.tests)


def step_of(rule: Rule) -> Step:
    """The rule's compiled form, made once."""
    step = rule.step
    if step is None:
        step = _compile(rule.matches)
        object.__setattr__(rule, "step", step)
    return step


def _compile(matches: tuple[Match, ...]) -> Step:
    """Sort a rule's matches into its key and the rest. By types, since a whole table waits for this at a sync's first packet."""
    src = dst = proto = dport = b""
    rest: list[Match] = []
    for match in matches:
        kind = type(match)
        if kind is Comment:
            continue
        if kind is Destination and not dst and _single(match):
            dst = match.network.address  # type: ignore[union-attr]
        elif kind is Source and not src and _single(match):
            src = match.network.address  # type: ignore[union-attr]
        elif kind is Protocol and not proto and not match.invert and match.number:  # type: ignore[union-attr]
            proto = bytes((match.number,))  # type: ignore[union-attr]
        else:
            rest.append(match)
    for match in rest:
        if type(match) is DestinationPort and not match.invert and match.first == match.last and proto == bytes((match.proto,)):
            dport = match.first.to_bytes(2, "big")
            rest.remove(match)
            break
    if len(rest) > 1 and sum(type(match) is Statistic for match in rest) > 1:
        raise ConfigError("a rule with two statistic matches is not supported")
    kind_of_key = (SRC if src else 0) + (DST if dst else 0) + (PROTO if proto else 0) + (DPORT if dport else 0)
    return Step(kind_of_key, src + dst + proto + dport, rest)


def _remembers(match: Match) -> bool:
    """Does it throw dice? Of the others that remember something, the rule's own order decides, as in Linux."""
    return isinstance(match, Statistic)


def _single(match: Match) -> bool:
    """Does it ask for one address only, and for nothing but it?"""
    assert isinstance(match, Source | Destination)
    return not match.invert and match.network.length == 8 * len(match.network.address)


# ---- one function for each match; None: it holds for every packet ----------------------------------------------------------------


def test_of(match: Match) -> Test | None:
    """The test that a match stands for."""
    match match:
        case Comment():
            return None
        case Source(network, invert):
            return _address("src", network, invert)
        case Destination(network, invert):
            return _address("dst", network, invert)
        case InInterface(name, invert):
            return _interface("iif", name, invert)
        case OutInterface(name, invert):
            return _interface("oif", name, invert)
        case Protocol(number, invert):
            return None if number == 0 else lambda skb, around: (skb.proto == number) is not invert
        case DestinationPort(proto, first, last, invert):
            return lambda skb, around: skb.proto == proto and (first <= skb.dport <= last) is not invert
        case SourcePort(proto, first, last, invert):
            return lambda skb, around: skb.proto == proto and (first <= skb.sport <= last) is not invert
        case ConntrackState(states, invert):
            return state_test(states, invert=invert)
        case Mark(value, mask, invert):
            return lambda skb, around: (skb.mark & mask == value) is not invert
        case AddressType(side, kind, invert):
            return address_test(side, frozenset((kind,)), invert=invert)
        case Statistic(probability):
            return _statistic(probability)
        case Fragment(invert):
            return lambda skb, around: skb.fragment is not invert
        case HeaderOption():
            return header_test(match)
        case Extension():
            return test_of_extension(match)
        case _:
            assert_never(match)


def _address(side: str, network: Network, invert: bool) -> Test | None:
    value, mask, address = network.value, network.mask, network.address
    if network.length == 0 and not invert:
        return None
    if network.length == 8 * len(address):
        if side == "src":
            return lambda skb, around: (skb.src == address) is not invert
        return lambda skb, around: (skb.dst == address) is not invert
    if side == "src":
        return lambda skb, around: (int.from_bytes(skb.src, "big") & mask == value) is not invert
    return lambda skb, around: (int.from_bytes(skb.dst, "big") & mask == value) is not invert


def _interface(side: str, name: str, invert: bool) -> Test:
    """At hooks where the packet has no such device the name is empty, and only `+` and inverted names match."""
    if name.endswith("+"):
        prefix = name[:-1]
        return lambda skb, around: getattr(skb, side).startswith(prefix) is not invert
    return lambda skb, around: (getattr(skb, side) == name) is not invert


def threshold(probability: float) -> float:
    """The probability as the kernel has it, in steps of 2^-31."""
    return min(round(probability * PROBABILITY_BITS), PROBABILITY_BITS) / PROBABILITY_BITS


def _statistic(probability: float) -> Test:
    bound = threshold(probability)

    def test(skb: Skb, around: Surroundings) -> bool:
        skb.cacheable = False  # thrown anew for each packet; in nat this costs nothing, since nat is decided before a flow is cached
        return around.random() < bound

    return test


MATCHES: tuple[Any, ...] = Match.__args__
"""Every kind of match, for tests of completeness."""
