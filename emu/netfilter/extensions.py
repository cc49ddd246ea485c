"""What match modules ask of a packet: the meaning of every `Extension` that `modules` can spell.

A table from module to a function that compiles its options into a test. Modules that ask what no packet here carries (a socket's
owner, a cgroup, a program in BPF) are asked of the namespace's memory by name, which is an error in an emulated one and an open
question to whoever explains a dump. Spec: iptables-extensions(8), net/netfilter/xt_*.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emu.netfilter import headers
from emu.netfilter.conn import ASSURED, CONFIRMED, DST_NAT, SEEN_REPLY, SRC_NAT, Conn, CtState, parts
from emu.netfilter.forms import parse_address_range, parse_masked, parse_span
from emu.netfilter.headers import Given, Test, conjunction, unknown
from emu.netfilter.hooks import Surroundings
from emu.netfilter.memory import Token
from emu.netfilter.modules import parse_rate
from emu.netfilter.ruleset import Extension, Option
from emu.netfilter.skb import ICMP, ICMPV6, Skb
from emu.wire.addr import Network, parse_ip

if TYPE_CHECKING:
    from emu.netfilter.memory import Recall


def test_of_extension(match: Extension) -> Test:
    """The test that a module's options stand for."""
    make = TESTS.get(match.module) if match.known else None
    if make is None:
        return unknown(f"-m {match.module}")
    return make({option.name: option for option in match.options})


# ---- connections ---------------------------------------------------------------------------------------------------------------------


def state_test(states: tuple[str, ...], *, invert: bool) -> Test:
    """SNAT and DNAT are properties of the connection and join whatever state the packet has."""
    plain = frozenset(CtState(name) for name in states if name not in ("SNAT", "DNAT"))
    bits = (SRC_NAT if "SNAT" in states else 0) | (DST_NAT if "DNAT" in states else 0)

    def test(skb: Skb, around: Surroundings) -> bool:
        ct = skb.ct
        state = skb.ct_state if ct is not None or skb.ct_state is CtState.UNTRACKED else CtState.INVALID
        return (state in plain or (ct is not None and ct.status & bits != 0)) is not invert

    return test


def _state(given: Given) -> Test:
    option = given["--state"]
    return state_test(tuple(option.values[0].split(",")), invert=option.invert)


_SIDES: Mapping[str, tuple[bool, int]] = {  # is it in the reply's key, and where in `parts`
    "--ctorigsrc": (False, 0), "--ctorigdst": (False, 2), "--ctreplsrc": (True, 0), "--ctrepldst": (True, 2),
    "--ctorigsrcport": (False, 1), "--ctorigdstport": (False, 3), "--ctreplsrcport": (True, 1), "--ctrepldstport": (True, 3),
}  # fmt: skip
_STATUS = {"EXPECTED": 1, "SEEN_REPLY": SEEN_REPLY, "ASSURED": ASSURED, "CONFIRMED": CONFIRMED}
ConnTest = Callable[[Skb, Conn], bool]


def _conn_test(option: Option) -> ConnTest:
    """One option of `-m conntrack` about the connection itself."""
    name, value = option.name, option.values[0]
    if name == "--ctproto":
        number = int(value)
        return lambda skb, ct: ct.proto == number
    if name == "--ctdir":
        reply = value == "REPLY"
        return lambda skb, ct: skb.ct_reply is reply
    if name == "--ctstatus":
        bits = sum(_STATUS.get(word, 0) for word in value.split(","))
        return lambda skb, ct: ct.status & bits != 0 if bits else ct.status & sum(_STATUS.values()) == 0
    in_reply, part = _SIDES[name]
    if name.endswith("port"):
        first, last = parse_span(value)
        return lambda skb, ct: first <= parts(ct.reply if in_reply else ct.original)[part] <= last  # type: ignore[operator]
    network = Network.parse(value)
    return lambda skb, ct: parts(ct.reply if in_reply else ct.original)[part] in network  # type: ignore[operator]


def _conntrack(given: Given) -> Test:
    states = given.get("--ctstate")
    state = None if states is None else state_test(tuple(states.values[0].split(",")), invert=states.invert)
    expires = given.get("--ctexpire")
    span = parse_span(expires.values[0], 0xFFFFFFFF) if expires is not None else None
    asked = [(_conn_test(option), option.invert) for name, option in given.items() if name not in ("--ctstate", "--ctexpire")]

    def test(skb: Skb, around: Surroundings) -> bool:
        if state is not None and not state(skb, around):
            return False
        ct = skb.ct
        if ct is None:
            return not asked and expires is None
        if span is not None and expires is not None:
            skb.cacheable = False
            left = max(0.0, ct.expires - around.memory.now) if ct.confirmed else 0.0
            if (span[0] <= int(left) <= span[1]) is expires.invert:
                return False
        return all(holds(skb, ct) is not invert for holds, invert in asked)

    return test


def _connmark(given: Given) -> Test:
    option = given["--mark"]
    (value, mask), invert = parse_masked(option.values[0]), option.invert
    return lambda skb, around: skb.ct is not None and (skb.ct.mark & mask == value) is not invert


# ---- addresses and devices ---------------------------------------------------------------------------------------------------------------


def address_test(side: str, kinds: frozenset[str], *, invert: bool, limit: str = "") -> Test:
    """`limit` is "in" or "out": what only the packet's incoming or outgoing device has counts as local."""

    def test(skb: Skb, around: Surroundings) -> bool:
        ip = skb.src if side == "src" else skb.dst
        device = "" if not limit else skb.iif if limit == "in" else skb.oif
        return (address_type(ip, kinds, around, device) in kinds) is not invert

    return test


def address_type(ip: bytes, kinds: frozenset[str], around: Surroundings, device: str = "") -> str:
    """inet_addr_type, ipv6_addr_type: what an address is to this namespace. Only what `kinds` ask for is asked of it."""
    if not any(ip):
        return "UNSPEC" if len(ip) == 16 else "BROADCAST"
    if ip[0] == 255 if len(ip) == 16 else ip[0] >> 4 == 14:
        return "MULTICAST"
    if ip == b"\xff\xff\xff\xff" or (len(ip) == 4 and ip[0] == 0):
        return "BROADCAST"
    if {"LOCAL", "UNICAST"} & kinds and (around.is_local_on(ip, device) if device else around.is_local(ip)):
        return "LOCAL"
    if {"BROADCAST", "UNICAST"} & kinds and around.is_broadcast(ip):
        return "BROADCAST"
    return "UNICAST"


def _addrtype(given: Given) -> Test:
    limit = "in" if "--limit-iface-in" in given else "out" if "--limit-iface-out" in given else ""
    return conjunction([
        address_test(name[2:5], frozenset(option.values[0].split(",")), invert=option.invert, limit=limit)
        for name, option in given.items() if name in ("--src-type", "--dst-type")
    ])  # fmt: skip


def _iprange(given: Given) -> Test:
    def one(option: Option) -> Test:
        (low, high), source, invert = parse_address_range(option.values[0]), option.name == "--src-range", option.invert
        return lambda skb, around: (low <= (skb.src if source else skb.dst) <= high) is not invert

    return conjunction([one(option) for option in given.values()])


def _physdev(given: Given) -> Test:
    """Only the incoming port of a bridge is known here, and only of packets that a bridge carries."""

    def one(option: Option) -> Test:
        name, invert = option.name, option.invert
        if name == "--physdev-in":
            wanted = option.values[0]
            prefix = wanted[:-1] if wanted.endswith("+") else None
            if prefix is not None:
                return lambda skb, around: skb.physin.startswith(prefix) is not invert
            return lambda skb, around: (skb.physin == wanted) is not invert
        if name == "--physdev-is-in":
            return lambda skb, around: (skb.physin != "") is not invert
        return lambda skb, around: around.memory.unknown(f"-m physdev {name}") if skb.physin != "" else invert

    return conjunction([one(option) for option in given.values()])


def _set(given: Given) -> Test:
    option = given["--match-set"]
    name, sides, invert = option.values[0], tuple(option.values[1].split(",")), option.invert
    nomatch = "--return-nomatch" in given
    if given.keys() - {"--match-set", "--return-nomatch", "--update-counters", "--update-subcounters"}:
        return unknown("-m set with counters")

    def test(skb: Skb, around: Surroundings) -> bool:
        skb.cacheable = False
        return around.memory.in_set(name, sides, skb, nomatch=nomatch) is not invert

    return test


def _pkttype(given: Given) -> Test:
    (option,) = given.values()
    kind, invert = option.values[0], option.invert

    def test(skb: Skb, around: Surroundings) -> bool:
        """By the IP address: frames here are sent to one neighbour (xt_pkttype does the same on loopback)."""
        found = address_type(skb.dst, frozenset(("BROADCAST",)), around)
        return ((found.lower() if found in ("MULTICAST", "BROADCAST") else "unicast") == kind) is not invert

    return test


# ---- memory -----------------------------------------------------------------------------------------------------------------------------


def _statistic(given: Given) -> Test:
    if "--probability" in given:  # the plain form is a match of its own
        option = given["--probability"]
        bound, invert = float(option.values[0]), option.invert

        def chance(skb: Skb, around: Surroundings) -> bool:
            skb.cacheable = False
            return (around.random() < bound) is not invert

        return chance
    every, packet, invert, token = int(given["--every"].values[0]), int(given["--packet"].values[0]), given["--every"].invert, Token()

    def test(skb: Skb, around: Surroundings) -> bool:
        skb.cacheable = False
        return around.memory.nth(token, every, packet) is not invert

    return test


@dataclass(frozen=True, slots=True)
class _Recall:
    name: str
    action: str
    seconds: int
    hits: int
    reap: bool
    invert: bool


def _recent(given: Given) -> Test:
    action = next(option for name, option in given.items() if name in ("--set", "--rcheck", "--update", "--remove"))
    seconds, hits = (int(given[name].values[0]) if name in given else 0 for name in ("--seconds", "--hitcount"))
    asked: Recall = _Recall(given["--name"].values[0], action.name[2:], seconds, hits, "--reap" in given, action.invert)
    mask, source = int.from_bytes(parse_ip(given["--mask"].values[0]), "big"), "--rsource" in given
    if "--rttl" in given:
        return unknown("-m recent --rttl")

    def test(skb: Skb, around: Surroundings) -> bool:
        skb.cacheable = False
        ip = skb.src if source else skb.dst
        return around.memory.recall((int.from_bytes(ip, "big") & mask).to_bytes(len(ip), "big"), asked)

    return test


def _limit(given: Given) -> Test:
    rate, token = 10000 / parse_rate(given["--limit"].values[0]), Token()
    burst = int(given["--limit-burst"].values[0]) if "--limit-burst" in given else 5

    def test(skb: Skb, around: Surroundings) -> bool:
        skb.cacheable = False
        return around.memory.within(token, b"", rate, burst)

    return test


def _hashlimit(given: Given) -> Test:
    above = "--hashlimit-above" in given
    word = given["--hashlimit-above" if above else "--hashlimit-upto"].values[0]
    if word.endswith("b/s") or "--hashlimit-rate-match" in given:
        return unknown("-m hashlimit of bytes")
    rate, burst, token = 1000000 / parse_rate(word, 1000000), int(given["--hashlimit-burst"].values[0]), Token()
    modes = given["--hashlimit-mode"].values[0].split(",") if "--hashlimit-mode" in given else []
    masks = (("src", "--hashlimit-srcmask"), ("dst", "--hashlimit-dstmask"))
    lengths = {side: int(given[name].values[0]) for side, name in masks if name in given}

    def part(mode: str, skb: Skb) -> bytes:
        if mode.endswith("port"):
            return (skb.sport if mode == "srcport" else skb.dport).to_bytes(2, "big")
        ip = skb.src if mode == "srcip" else skb.dst
        cut = 8 * len(ip) - lengths.get(mode[:3], 8 * len(ip))
        return (int.from_bytes(ip, "big") >> cut).to_bytes(len(ip), "big")

    def test(skb: Skb, around: Surroundings) -> bool:
        skb.cacheable = False
        return around.memory.within(token, b"".join(part(mode, skb) for mode in modes), rate, burst) is not above

    return test


def _counts_only(given: Given) -> Test:
    return lambda skb, around: True


TESTS: Mapping[str, Callable[[Given], Test]] = {
    "addrtype": _addrtype,
    "connmark": _connmark,
    "conntrack": _conntrack,
    "dscp": headers.field("dscp", lambda skb: headers.tos_byte(skb) >> 2),
    "hashlimit": _hashlimit,
    "hl": headers.field("hl", headers.ttl),
    "icmp": headers.icmp(ICMP),
    "icmp6": headers.icmp(ICMPV6),
    "iprange": _iprange,
    "length": headers.field("length", lambda skb: len(skb.buf)),
    "limit": _limit,
    "multiport": headers.multiport,
    "nfacct": _counts_only,
    "physdev": _physdev,
    "pkttype": _pkttype,
    "recent": _recent,
    "set": _set,
    "state": _state,
    "statistic": _statistic,
    "tos": headers.tos,
    "ttl": headers.field("ttl", headers.ttl),
}
"""Modules that are evaluated; any other is asked of the memory."""
