"""Rules as text: every match and target in kube-proxy's form and in the kernel's."""

from __future__ import annotations

import pytest

from emu.netfilter.forms import quote
from emu.netfilter.hooks import Verdict
from emu.netfilter.match import MATCHES, step_of
from emu.netfilter.ruleset import Chain, Comment, Destination, Protocol, Reject, Rule, RuleSet, SetMark, Source, Table, Target
from emu.netfilter.text import restore_line, restore_text, rule_line, save_text
from emu.wire.addr import Network
from tests.kit.rulesets import VOCABULARY, Line, vocabulary

IDS = [line.restore for line in VOCABULARY]


@pytest.mark.parametrize("line", VOCABULARY, ids=IDS)
def test_a_rule_as_kube_proxy_writes_it(line: Line):
    assert restore_line("X", line.rule) == f"-A X {line.restore}".strip()


@pytest.mark.parametrize("line", VOCABULARY, ids=IDS)
def test_a_rule_as_the_kernel_gives_it_back(line: Line):
    assert rule_line("X", line.rule) == f"-A X {(line.save or line.restore).strip()}".strip()


def test_every_match_and_target_is_printed_and_compiled():
    assert {type(match) for line in VOCABULARY for match in line.rule.matches} == set(MATCHES)
    assert {type(line.rule.target) for line in VOCABULARY} - {type(None)} == set(Target.__args__)
    for line in VOCABULARY:
        step_of(line.rule)
    vocabulary().check()


def test_ipv6_has_its_own_words():
    rule = Rule((Source(Network.parse("fd00::1")), Destination(Network.parse("fd00::/64")), Protocol(58)), Reject("icmp6-port-unreachable"))
    assert restore_line("X", rule) == "-A X -s fd00::1 -d fd00::/64 -p ipv6-icmp -j REJECT"
    assert rule_line("X", rule) == "-A X -s fd00::1/128 -d fd00::/64 -p ipv6-icmp -j REJECT --reject-with icmp6-port-unreachable"


@pytest.mark.parametrize(("text", "quoted"), [("a-b_C9", "a-b_C9"), ("a.b", '"a.b"'), ("", '""'), ("a b", '"a b"'), ('"', r'"\""')])
def test_quotes_are_where_iptables_save_has_them(text, quoted):
    assert quote(text) == quoted


def test_marks_may_be_written_shorter():
    assert restore_line("X", Rule((), SetMark(0x4000, 0x4000, "--or-mark")), 1) == "-A X -j MARK --or-mark 0x4000"


@pytest.mark.parametrize(
    "target",
    [
        SetMark(1, 2, "--or-mark"),
        SetMark(1, 1, "--xor-mark"),
        SetMark(1, 1, "--and-mark"),
        SetMark(2, 1, "--set-mark"),
        SetMark(1, 1, "--x"),
    ],
)
def test_a_spelling_that_does_not_mean_the_mark_is_a_bug(target):
    with pytest.raises(AssertionError):
        restore_line("X", Rule((), target))


CHAINS = {
    "B": Chain("B"), "FORWARD": Chain("FORWARD", (Rule((Comment("x"),)),), Verdict.ACCEPT),
    "A": Chain("A", (Rule(()),)), "INPUT": Chain("INPUT", (), Verdict.DROP),
}  # fmt: skip
SET = RuleSet({"nat": Table("nat", {}), "filter": Table("filter", CHAINS)})


def test_the_input_of_restore_keeps_the_order_of_chains():
    assert restore_text(SET).splitlines() == [
        "*nat", "COMMIT",
        "*filter", ":B - [0:0]", ":FORWARD ACCEPT [0:0]", ":A - [0:0]", ":INPUT DROP [0:0]",
        "-A FORWARD -m comment --comment x", "-A A", "COMMIT",
    ]  # fmt: skip


def test_a_dump_has_built_in_chains_first_and_the_others_by_name():
    assert save_text(SET).splitlines() == [
        "*nat", "COMMIT",
        "*filter", ":INPUT DROP [0:0]", ":FORWARD ACCEPT [0:0]", ":A - [0:0]", ":B - [0:0]",
        "-A FORWARD -m comment --comment x", "-A A", "COMMIT",
    ]  # fmt: skip
