"""Every match, as it is and inverted, against packets that it is true and false of (iptables-extensions(8))."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import ConfigError
from emu.netfilter.conn import DST_NAT, SRC_NAT, Conn, CtState
from emu.netfilter.match import MATCHES, packet_keys, step_of, threshold
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
    Option,
    OutInterface,
    Protocol,
    Rule,
    Source,
    SourcePort,
    Statistic,
)
from emu.netfilter.skb import Skb
from emu.wire.addr import Network
from tests.kit.rulesets import Around
from tests.kit.skbs import ACK, echo, ipv4, skb, tcp, udp

AROUND = Around("192.168.0.2")
N = Network.parse


def packet(make=tcp, src="10.0.0.1:4000", dst="10.96.0.1:80", **fields) -> Skb:
    made = make(src, dst)
    for name, value in {"iif": "eth0", "oif": "cni0", **fields}.items():
        setattr(made, name, value)
    return made


def fragment() -> Skb:
    return skb(ipv4(bytes((10, 0, 0, 1)), bytes((10, 96, 0, 1)), 6, bytes(24), flags=0x0010))


def syn(option: int) -> Skb:
    """A SYN with one option of four bytes."""
    plain = packet()
    body = bytearray(plain.buf[20:]) + bytes((option, 4, 5, 0xB4))
    body[12] = 0x60
    return skb(ipv4(plain.src, plain.dst, 6, bytes(body)))


def tracked(state: CtState, status: int = 0) -> dict[str, object]:
    conn = Conn(packet().tuple_key)
    conn.status = status
    return {"ct": None if state is CtState.INVALID else conn, "ct_state": state}


def holds(match: Match, what: Skb) -> bool:
    return step_of(Rule((match,))).matches(what, AROUND, packet_keys(what))


PING = echo("10.0.0.1", "10.96.0.1", 80)
# match, packets that it holds for, packets that it does not
TABLE = [
    (Comment("anything"), [packet()], []),
    (Source(N("10.0.0.1")), [packet()], [packet(src="10.0.0.2:1")]),
    (Source(N("10.0.0.0/24")), [packet(), packet(src="10.0.0.255:1")], [packet(src="10.0.1.0:1")]),
    (Source(N("0.0.0.0/0")), [packet()], []),
    (Destination(N("10.96.0.1")), [packet()], [packet(dst="10.96.0.2:80")]),
    (Destination(N("10.96.0.0/12")), [packet(), packet(dst="10.111.255.255:1")], [packet(dst="10.112.0.0:1")]),
    (Destination(N("0.0.0.0/0")), [packet()], []),
    (InInterface("eth0"), [packet()], [packet(iif="eth01"), packet(iif="")]),
    (InInterface("eth+"), [packet(), packet(iif="eth01"), packet(iif="eth")], [packet(iif="et"), packet(iif="")]),
    (InInterface("+"), [packet(), packet(iif="")], []),
    (OutInterface("cni0"), [packet()], [packet(oif="cni1"), packet(oif="")]),
    (OutInterface("cni+"), [packet()], [packet(oif="eth0")]),
    (Protocol(6), [packet()], [packet(udp), PING]),
    (Protocol(1), [PING], [packet()]),
    (Protocol(0), [packet(), PING], []),
    (DestinationPort(6, 80, 80), [packet()], [packet(dst="10.96.0.1:81"), packet(udp), PING]),
    (DestinationPort(6, 80, 90), [packet(), packet(dst="10.96.0.1:90")], [packet(dst="10.96.0.1:79"), packet(dst="10.96.0.1:91")]),
    (SourcePort(17, 4000, 4000), [packet(udp)], [packet(), packet(udp, src="10.0.0.1:1")]),
    (SourcePort(6, 0, 4000), [packet()], [packet(src="10.0.0.1:4001")]),
    (ConntrackState(("NEW",)), [packet(**tracked(CtState.NEW))], [packet(**tracked(CtState.ESTABLISHED)), packet()]),
    (ConntrackState(("RELATED", "ESTABLISHED")), [packet(**tracked(CtState.RELATED)), packet(**tracked(CtState.ESTABLISHED))],
     [packet(**tracked(CtState.NEW))]),
    (ConntrackState(("INVALID",)), [packet(**tracked(CtState.INVALID)), packet()], [packet(**tracked(CtState.NEW))]),
    (ConntrackState(("DNAT",)), [packet(**tracked(CtState.NEW, DST_NAT))], [packet(**tracked(CtState.NEW, SRC_NAT)), packet()]),
    (ConntrackState(("SNAT", "INVALID")), [packet(**tracked(CtState.NEW, SRC_NAT)), packet()], [packet(**tracked(CtState.NEW, DST_NAT))]),
    (ConntrackState(("UNTRACKED",)), [packet(ct_state=CtState.UNTRACKED)], [packet(), packet(**tracked(CtState.NEW))]),
    (Mark(0x4000, 0x4000), [packet(mark=0x4000), packet(mark=0xFFFF)], [packet(), packet(mark=0x3FFF)]),
    (Mark(5), [packet(mark=5)], [packet(mark=0x4005)]),
    (Mark(0, 0x4000), [packet(), packet(mark=1)], [packet(mark=0x4000)]),
    (AddressType("dst", "MULTICAST"), [packet(dst="224.0.0.1:1")], [packet(), packet(dst="192.168.0.2:1")]),
    (AddressType("dst", "UNICAST"), [packet()], [packet(dst="192.168.0.2:1"), packet(dst="255.255.255.255:1")]),
    (Fragment(), [fragment()], [packet(), PING]),
    (HeaderOption(6, Option("--tcp-flags", ("FIN,SYN,RST,ACK", "SYN"))), [packet()],
     [tcp("10.0.0.1:4000", "10.96.0.1:80", ACK), packet(udp), PING, fragment()]),
    (HeaderOption(6, Option("--tcp-option", ("2",))), [syn(2)], [packet(), syn(3), packet(udp)]),
    (Extension("multiport", (Option("--dports", ("80,443",)),)), [packet(), packet(udp)], [packet(dst="10.96.0.1:81"), PING, fragment()]),
    (AddressType("dst"), [packet(dst="192.168.0.2:1"), packet(dst="127.0.0.9:1")], [packet()]),
    (AddressType("src"), [packet(src="192.168.0.2:1")], [packet(dst="192.168.0.2:1")]),
]  # fmt: skip
ROWS = [(match, what, True) for match, yes, _ in TABLE for what in yes] + [(match, what, False) for match, _, no in TABLE for what in no]


def inverted(match: Match) -> Match:
    """The same with a `!`."""
    return type(match)(**{name: getattr(match, name) for name in match.__slots__ if name != "invert"}, invert=True)


@pytest.mark.parametrize(("match", "what", "wanted"), ROWS, ids=[f"{match} {wanted}" for match, _, wanted in ROWS])
def test_a_match_holds_or_not(match, what, wanted):
    assert holds(match, what) is wanted
    assert holds(match, what) is wanted, "asking changes nothing"


INVERTIBLE = [row for row in ROWS if "invert" in row[0].__slots__]


@pytest.mark.parametrize(("match", "what", "wanted"), INVERTIBLE, ids=[f"! {match} {wanted}" for match, _, wanted in INVERTIBLE])
def test_inverted_it_says_the_opposite(match, what, wanted):
    """Of a port match only the port is inverted, not the protocol: a packet of another protocol never matches."""
    if isinstance(match, SourcePort | DestinationPort) and what.proto != match.proto:
        wanted = True
    if match in (Source(N("0.0.0.0/0")), Destination(N("0.0.0.0/0")), Protocol(0)):
        return  # iptables refuses a rule that no packet matches
    assert holds(inverted(match), what) is not wanted


def test_every_match_is_in_the_table():
    assert {type(match) for match, _, _ in TABLE} | {Statistic} == set(MATCHES)


def test_several_matches_hold_together():
    common = Rule((Protocol(6), Destination(N("10.96.0.1")), DestinationPort(6, 80, 80), ConntrackState(("NEW",)), Source(N("10.0.0.0/8"))))
    new = packet(**tracked(CtState.NEW))
    step = step_of(common)
    assert step.matches(new, AROUND, packet_keys(new))
    for other in (
        packet(udp, **tracked(CtState.NEW)),
        packet(dst="10.96.0.2:80", **tracked(CtState.NEW)),
        packet(dst="10.96.0.1:81", **tracked(CtState.NEW)),
        packet(src="11.0.0.1:4000", **tracked(CtState.NEW)),
        packet(**tracked(CtState.ESTABLISHED)),
    ):
        assert not step.matches(other, AROUND, packet_keys(other))


PLAIN = [match for match, _, _ in TABLE if not isinstance(match, Comment)]


@given(st.lists(st.sampled_from(PLAIN + [inverted(m) for m in PLAIN if m.__slots__[-1] == "invert"]), max_size=5), st.sampled_from(ROWS))
def test_a_compiled_rule_is_the_conjunction_of_its_matches(matches, row):
    """The key that most packets fail at once is nothing but a faster way to ask."""
    what = row[1]
    assert step_of(Rule(tuple(matches))).matches(what, AROUND, packet_keys(what)) is all(holds(match, what) for match in matches)


# ---- chance ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probability", "draw", "wanted"), [(0.5, 0.499, True), (0.5, 0.5, False), (0.0, 0.0, False), (1.0, 0.999999, True)]
)
def test_a_draw_below_the_probability_matches(probability, draw, wanted):
    around, what = Around(), packet()
    around.chance = lambda: draw
    assert step_of(Rule((Statistic(probability),))).matches(what, around, packet_keys(what)) is wanted
    assert not what.cacheable, "the next packet must throw again"


def test_the_dice_are_thrown_only_for_what_all_else_matches():
    around, other = Around(), packet(udp)
    around.chance = lambda: pytest.fail("nobody asked for chance")
    assert not step_of(Rule((Statistic(0.5), Protocol(6)))).matches(other, around, packet_keys(other))
    assert other.cacheable


@pytest.mark.parametrize(("probability", "kernel"), [(1 / 3, 715827883), (0.5, 1 << 30), (1.0, 1 << 31), (1e-12, 0)])
def test_probabilities_are_whole_numbers_of_31_bits(probability, kernel):
    assert threshold(probability) * (1 << 31) == kernel


# ---- what is not supported ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matches", [(Statistic(0.5), Statistic(0.5))])
def test_what_cannot_be_evaluated_is_an_error(matches):
    with pytest.raises(ConfigError, match="not supported"):
        step_of(Rule(matches))
