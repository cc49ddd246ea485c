"""What a rule set must be for the kernel to take it."""

from __future__ import annotations

import pytest

from emu.errors import ConfigError
from emu.netfilter.hooks import Verdict
from emu.netfilter.reader import read_rules
from emu.netfilter.ruleset import Chain, Jump, Rule, RuleSet, Table
from tests.kit.netns import missing, namespaces, run
from tests.kit.rulesets import table


def jumping(**targets: str) -> Table:
    """A table whose chains each jump to the ones named."""
    chains = {name: Chain(name, tuple(Rule((), Jump(to)) for to in text.split())) for name, text in targets.items()}
    return Table("filter", {"INPUT": Chain("INPUT", (), Verdict.ACCEPT), **chains})


REFUSED = {
    "which does not exist": jumping(A="B"),
    "jumps to the built-in INPUT": jumping(A="INPUT"),
    "A jumps to A: a circle": jumping(A="A"),
    ": a circle": jumping(A="D B", B="C", C="D A", D=""),
}


@pytest.mark.parametrize(("problem", "wrong"), REFUSED.items(), ids=REFUSED)
def test_what_the_kernel_would_refuse_is_our_bug(problem, wrong):
    with pytest.raises(AssertionError, match=problem):
        RuleSet({"filter": wrong}).check()


def test_a_loop_is_named_in_the_order_of_its_jumps():
    found = jumping(A="D B", B="C", C="D A", D="").loop()
    assert "".join(found * 2).find("ABC") >= 0
    assert len(found) == 3


def test_chains_that_meet_again_are_no_loop():
    met = jumping(A="B C", B="D", C="D", D="")
    assert met.loop() == ()
    RuleSet({"filter": met}).check()


LOOP = table("filter", "INPUT -j A", "A -j B", "B -j A")


def test_a_dump_with_a_loop_is_the_user_s_error():
    with pytest.raises(ConfigError, match="table filter jump in a circle"):
        read_rules(LOOP)


@pytest.mark.kernel
@pytest.mark.skipif(bool(missing("iptables-restore")), reason=missing("iptables-restore") or "available")
def test_the_kernel_refuses_a_loop_too():
    with namespaces("loop") as netns, pytest.raises(AssertionError, match=r"Too many levels|loop|failed"):
        run(f"ip netns exec {netns['loop']} iptables-restore", stdin=LOOP)
