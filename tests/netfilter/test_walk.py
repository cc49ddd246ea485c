"""The walk: jumps, returns, policies, marks, and that every rule a packet had to pass is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.netfilter.match import packet_keys, step_of
from emu.netfilter.ruleset import (
    Accept,
    Chain,
    Dnat,
    Drop,
    Jump,
    Masquerade,
    Netmap,
    Redirect,
    Reject,
    Return,
    RuleSet,
    SetMark,
    Snat,
    Target,
    TargetExtension,
)
from emu.netfilter.skb import Skb
from emu.netfilter.walk import Outcome, walk
from tests.kit.rulesets import Around, rules, table
from tests.kit.skbs import tcp, udp

VIP = "10.96.0.1:80"


def walked(ruleset: RuleSet, packet: Skb | None = None, chain: str = "INPUT", around: Around | None = None) -> tuple[Outcome, Skb]:
    packet = packet or tcp("10.0.0.1:4000", VIP)
    (only,) = ruleset.tables.values()
    return walk(only, chain, packet, around or Around()), packet


# rules, policy, outcome, rules evaluated
WALKS = {
    "an empty chain: its policy": ([], "DROP", Drop(), 0),
    "the first that matches decides": (["INPUT -j DROP", "INPUT -j ACCEPT"], "ACCEPT", Drop(), 1),
    "none matches: the policy": (["INPUT -p udp -j ACCEPT", "INPUT -p icmp -j ACCEPT"], "DROP", Drop(), 2),
    "a rule without a target only counts": (["INPUT -p tcp", "INPUT -j DROP"], "ACCEPT", Drop(), 2),
    "RETURN in a built-in chain: the policy": (["INPUT -j RETURN", "INPUT -j ACCEPT"], "DROP", Drop(), 1),
    "a chain that ends: back behind the jump": (["INPUT -j A", "INPUT -j DROP", "A -p udp -j ACCEPT"], "ACCEPT", Drop(), 3),
    "RETURN: back behind the jump": (["INPUT -j A", "INPUT -j DROP", "A -j RETURN", "A -j ACCEPT"], "ACCEPT", Drop(), 3),
    "a verdict in a chain ends the walk": (["INPUT -j A", "INPUT -j DROP", "A -j ACCEPT"], "DROP", Accept(), 2),
    "after goto: back behind the jump before": (["INPUT -j A", "INPUT -j DROP", "A -g B", "A -j ACCEPT", "B -p udp -j ACCEPT"],
                                                "ACCEPT", Drop(), 4),
    "goto from a built-in chain: its policy": (["INPUT -g A", "INPUT -j ACCEPT", "A -p udp -j ACCEPT"], "DROP", Drop(), 2),
    "goto and RETURN likewise": (["INPUT -g A", "INPUT -j ACCEPT", "A -j RETURN"], "DROP", Drop(), 2),
    "REJECT says how": (["INPUT -p tcp -j REJECT --reject-with tcp-reset"], "ACCEPT", Reject("tcp-reset"), 1),
    "a chain walked twice counts twice": (["INPUT -j A", "INPUT -j A", "INPUT -j DROP", "A -p udp", "A -p icmp"], "ACCEPT", Drop(), 7),
    "a mark set is seen by the next rule": (["INPUT -j MARK --set-xmark 0x4000/0x4000", "INPUT -m mark --mark 0x4000/0x4000 -j DROP"],
                                            "ACCEPT", Drop(), 2),
    "a long run of addresses": ([f"INPUT -d 10.96.0.{n}/32 -j A{n}" for n in (7, 8, 9, 1, 2)] + [f"A{n} -j DROP" for n in (7, 8, 9, 1, 2)],
                                "ACCEPT", Drop(), 5),
    "a long run that nothing of matches": ([f"INPUT -p tcp -m tcp --dport {n} -j DROP" for n in range(1000, 1020)], "ACCEPT", Accept(), 20),
    "a key twice in a run: the second after the first has returned": (
        [f"INPUT -d 10.96.0.{n}/32 -p tcp -m tcp --dport 80 -j {'A' if k == 1 else 'B'}" for k, n in enumerate((5, 1, 6, 7, 1, 8))]
        + ["A -j RETURN", "B -j DROP"], "ACCEPT", Drop(), 7),
    "a key that matches and another test that does not": (
        ["INPUT -s 9.9.9.9/32 -d 10.96.0.1/32 -j ACCEPT"] * 3 + ["INPUT -d 10.96.0.1/32 -j DROP"] * 3, "ACCEPT", Drop(), 4),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "policy", "outcome", "count"), WALKS.values(), ids=WALKS)
def test_a_walk(lines, policy, outcome, count):
    found, packet = walked(rules(table("filter", *lines, policies={"INPUT": policy})))
    assert found == outcome
    assert packet.rules == count


@pytest.mark.parametrize(
    ("argument", "before", "after"),
    [
        ("--set-xmark 0x4000/0x4000", 0x0001, 0x4001),
        ("--set-xmark 0x4000/0x0", 0x4001, 0x0001),
        ("--or-mark 0x4000", 0x0003, 0x4003),
        ("--and-mark 0xff", 0x4003, 0x0003),
        ("--xor-mark 0x4000", 0x4003, 0x0003),
        ("--set-mark 0x10/0xf0", 0x00F3, 0x0013),
        ("--set-mark 0x7", 0x4003, 0x0007),
    ],
)
def test_how_a_mark_changes(argument, before, after):
    packet = tcp("10.0.0.1:4000", VIP)
    packet.mark = before
    walked(rules(table("mangle", f"INPUT -j MARK {argument}")), packet)
    assert packet.mark == after


def test_a_table_without_the_chain_accepts():
    assert walked(rules(table("filter")), chain="PREROUTING")[0] == Accept()


TARGETS: list[tuple[str, Target]] = [
    ("-j ACCEPT", Accept()), ("-j DROP", Drop()), ("-j RETURN", Return()), ("-j REJECT", Reject()), ("-j A", Jump("A")),
    ("-g A", Jump("A", goto=True)), ("-j MARK --set-xmark 0x1/0x1", SetMark(1, 1)), ("-j MASQUERADE", Masquerade()),
    ("-j DNAT --to-destination 1.2.3.4:5", None), ("-j REDIRECT", None), ("-j NETMAP --to 10.0.0.0/24", None), ("-j LOG", None),
    ("-j SNAT --to-source 1.2.3.4", None),
]  # fmt: skip


def test_every_target_is_walked():
    """Completeness: each ends the walk, or does what lets it go on."""
    every = {Accept, Drop, Return, Reject, Jump, SetMark, Masquerade, Dnat, Snat, Redirect, Netmap, TargetExtension}
    assert every == set(Target.__args__)
    for text, target in TARGETS:
        outcome, _ = walked(rules(table("nat", f"INPUT {text}", "INPUT -j DROP", "A -j DROP")))
        kind = text.split()[1]
        assert type(outcome).__name__.upper() == {"A": "DROP", "RETURN": "ACCEPT", "MARK": "DROP", "LOG": "DROP"}.get(kind, kind), target


# ---- the search is only a faster walk ---------------------------------------------------------------------------------------------------

PIECES = [
    "-d 10.96.0.1/32", "-d 10.96.0.2/32", "-d 10.96.0.0/24", "-p tcp", "-p udp", "-p tcp -m tcp --dport 80", "-p tcp -m tcp --dport 81",
    "-d 10.96.0.1/32 -p tcp -m tcp --dport 80", "-d 10.96.0.2/32 -p tcp -m tcp --dport 80", "-d 10.96.0.1/32 -p udp -m udp --dport 80",
    "! -d 10.96.0.1/32", "-p tcp -m tcp ! --dport 80", "-m mark --mark 0x1/0x1", "-s 10.0.0.0/24 -d 10.96.0.1/32", "",
]  # fmt: skip
GOING = ["-j ACCEPT", "-j DROP", "-j RETURN", "-j A", "-g A", "-j B", "", "", "-j MARK --set-xmark 0x1/0x1"]


def lines(chain: str, going: list[str]):
    rule = st.builds(lambda piece, target: " ".join(f"{chain} {piece} {target}".split()), st.sampled_from(PIECES), st.sampled_from(going))
    return st.lists(st.tuples(rule, st.integers(1, 5)), max_size=8).map(lambda rows: [line for line, times in rows for _ in range(times)])


PACKETS = st.builds(
    lambda make, dst, port: make("10.0.0.1:4000", f"{dst}:{port}"),
    st.sampled_from([tcp, udp]), st.sampled_from(["10.96.0.1", "10.96.0.2", "8.8.8.8"]), st.sampled_from([80, 81]),
)  # fmt: skip


def plainly(chains: dict[str, Chain], chain: Chain, packet: Skb, around: Around) -> Outcome | None:
    """The walk as one would write it down from iptables(8), a rule at a time."""
    for rule in chain.rules:
        packet.rules += 1
        if not step_of(rule).matches(packet, around, packet_keys(packet)):
            continue
        match rule.target:
            case None:
                continue
            case Return():
                return None
            case Jump(name, goto):
                outcome = plainly(chains, chains[name], packet, around)
                if goto or outcome is not None:
                    return outcome
            case SetMark(value, mask):
                packet.mark = (packet.mark & ~mask) ^ value
            case target:
                return target
    return None


@given(
    lines("INPUT", GOING),
    lines("A", GOING[:3] + GOING[5:]),
    lines("B", GOING[:3] + GOING[6:]),
    PACKETS,
    st.sampled_from(["ACCEPT", "DROP"]),
)
def test_any_rules_are_walked_as_if_one_by_one(input_, a, b, packet, policy):
    ruleset = rules(table("filter", *input_, *a, *b, "A -m mark --mark 0x77", "B -m mark --mark 0x77", policies={"INPUT": policy}))
    around, again = Around(), Skb.parse(bytes(packet.buf))
    assert isinstance(again, Skb)
    chains = ruleset.tables["filter"].chains
    wanted = plainly(chains, chains["INPUT"], packet, around) or {"ACCEPT": Accept(), "DROP": Drop()}[policy]
    for _ in range(2):
        again.mark = again.rules = 0
        outcome, _ = walked(ruleset, again, around=around)
        assert (outcome, again.rules, again.mark) == (wanted, packet.rules, packet.mark)


# ---- traces -----------------------------------------------------------------------------------------------------------------------------


def test_a_trace_tells_each_rule_that_matched_and_how_many_were_asked_on_the_way():
    around, packet = Around(), tcp("10.0.0.1:4000", VIP)
    packet.trace = 1
    missed = [f"INPUT -d 10.96.0.{n}/32 -j DROP" for n in range(10, 20)]
    lines = [*missed, "INPUT -p tcp -j A", "A -p udp -j DROP", "A -j MARK --set-xmark 0x1/0x1"]
    walked(rules(table("filter", *lines, policies={"INPUT": "DROP"})), packet, around=around)
    assert around.hops == [
        ("filter/INPUT", "-A INPUT -p tcp -j A", None, 11),
        ("filter/A", "-A A -j MARK --set-xmark 0x1/0x1", "mark & ~0x1 ^ 0x1", 2),
        ("filter/INPUT", None, "policy DROP", 0),
    ]
    assert sum(hop[3] for hop in around.hops) == packet.rules == 13
