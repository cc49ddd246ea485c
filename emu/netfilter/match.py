"""What a rule's matches ask of a packet, compiled: a key that most packets fail at once, and tests for the rest.

Most of a node's rules read `-d VIP/32 -p tcp --dport N`; those three matches become one byte string, compared with one that
is made once a walk. Everything else is a closure. Compiled forms are kept on the rule, which outlives the rule set.
Semantics: iptables-extensions(8). A rule set is of one address family; so are the packets that meet it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

from emu.errors import ConfigError
from emu.netfilter.conn import DST_NAT, SRC_NAT, CtState
from emu.netfilter.hooks import Surroundings
from emu.netfilter.ruleset import (
    AddressType,
    Comment,
    ConntrackState,
    Destination,
    DestinationPort,
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
from emu.netfilter.skb import PORT_PROTOCOLS, Skb
from emu.wire.addr import Network

Test = Callable[[Skb, Surroundings], bool]
Keys = tuple[bytes, bytes, bytes, bytes]

ANY, ADDRESS, PORT, FULL = range(4)
"""Kinds of key: none · destination address · protocol and destination port · all three."""

PROBABILITY_BITS = 1 << 31
"""xt_statistic compares 31 random bits with a whole number."""


def packet_keys(skb: Skb) -> Keys:
    """The packet's value for each kind of key, made once a walk."""
    port = b"%c%b" % (skb.proto, skb.dport.to_bytes(2, "big"))
    return b"", skb.dst, port, skb.dst + port


class Step:
    """A rule ready to be asked: it matches if the packet's key of `kind` equals `key` and all `tests` hold."""

    __slots__ = ("key", "kind", "statistic", "tests")

    def __init__(self, kind: int, key: bytes, tests: tuple[Test, ...], statistic: Statistic | None) -> None:
        self.kind, self.key, self.tests = kind, key, tests
        self.statistic = statistic  # for those who branch instead of throwing dice

    def matches(self, skb: Skb, around: Surroundings, keys: Keys) -> bool:
        if self.key != keys[self.kind]:
            return False
        for test in self.tests:  # noqa: SIM110 - all() with a generator costs twice as much
            if not test(skb, around):
                return False
        return True


def step_of(rule: Rule) -> Step:
    """The rule's compiled form, made once."""
    step = rule.step
    if step is None:
        step = _compile(rule)
        object.__setattr__(rule, "step", step)
    return step


def _compile(rule: Rule) -> Step:
    address: Destination | None = None
    protocol: Protocol | None = None
    port: DestinationPort | None = None
    rest: list[Match] = []
    for match in rule.matches:
        match match:
            case Comment():
                continue
            case Destination(network, invert=False) if address is None and _single(network):
                address = match
            case Protocol(number, invert=False) if protocol is None and number in PORT_PROTOCOLS:
                protocol = match
            case DestinationPort(_, first, last, invert=False) if port is None and first == last:
                port = match
            case _:
                rest.append(match)
    if port is not None and (protocol is None or protocol.number != port.proto):
        rest.append(port)
        port = None
    if port is None and protocol is not None:
        rest.insert(0, protocol)
    kind, key = ANY, b""
    if address is not None:
        kind, key = ADDRESS, address.network.address
    if port is not None:
        kind, key = (FULL if kind else PORT), key + b"%c%b" % (port.proto, port.first.to_bytes(2, "big"))
    rest.sort(key=lambda match: isinstance(match, Statistic))  # dice last: they are thrown only for packets that all else matches
    statistics = [match for match in rest if isinstance(match, Statistic)]
    if len(statistics) > 1:
        raise ConfigError("a rule with two statistic matches is not supported")
    return Step(kind, key, tuple(test for match in rest if (test := test_of(match)) is not None), statistics[0] if statistics else None)


def _single(network: Network) -> bool:
    return network.length == 8 * len(network.address)


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
            return _conntrack_state(states, invert)
        case Mark(value, mask, invert):
            return lambda skb, around: (skb.mark & mask == value) is not invert
        case AddressType(side, kind, invert):
            return _address_type(side, kind, invert)
        case Statistic(probability):
            return _statistic(probability)
        case _:
            assert_never(match)


def _address(side: str, network: Network, invert: bool) -> Test | None:
    value, mask, address = network.value, network.mask, network.address
    if network.length == 0 and not invert:
        return None
    if _single(network):
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


def _conntrack_state(states: tuple[str, ...], invert: bool) -> Test:
    """SNAT and DNAT are properties of the connection and join whatever state the packet has."""
    plain = frozenset(CtState(name) for name in states if name not in ("SNAT", "DNAT"))
    bits = (SRC_NAT if "SNAT" in states else 0) | (DST_NAT if "DNAT" in states else 0)

    def test(skb: Skb, around: Surroundings) -> bool:
        ct = skb.ct
        state = skb.ct_state if ct is not None or skb.ct_state is CtState.UNTRACKED else CtState.INVALID
        return (state in plain or (ct is not None and ct.status & bits != 0)) is not invert

    return test


def _address_type(side: str, kind: str, invert: bool) -> Test:
    if kind != "LOCAL":
        raise ConfigError(f"addrtype {kind} is not supported, only LOCAL")
    if side == "src":
        return lambda skb, around: around.is_local(skb.src) is not invert
    return lambda skb, around: around.is_local(skb.dst) is not invert


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
