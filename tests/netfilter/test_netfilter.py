"""The hooks of one namespace: which table sees a packet when, and that rules are swapped at once."""

from __future__ import annotations

import pytest

from emu.errors import ConfigError, DropReason
from emu.netfilter.conntrack import Conntrack
from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.ruleset import EMPTY, RuleSet, Table
from emu.netfilter.skb import Skb
from tests.kit.rulesets import HOOKS, Around, rules, table
from tests.kit.skbs import tcp

CLIENT, VIP = "10.0.0.1:4000", "10.96.0.1:80"
HELLO = [f"{hook} -m comment --comment here" for hook in "PREROUTING INPUT FORWARD OUTPUT POSTROUTING".split()]


def every_table() -> RuleSet:
    """Each built-in chain has a rule that counts."""
    return rules(*(table(name, *(line for line in HELLO if line.split()[0] in hooks.split())) for name, hooks in HOOKS.items()))


def netfilter(ruleset: RuleSet, **kwargs) -> tuple[Netfilter, Around]:
    around = Around("192.168.0.2", masquerade={"eth0": "192.168.0.2"})
    made = Netfilter(around, Conntrack(**kwargs) if kwargs else None)
    made.swap(ruleset)
    return made, around


def through(nf: Netfilter, packet: Skb, *hooks: Hook) -> Verdict:
    verdict = Verdict.ACCEPT
    for hook in hooks:
        packet.oif = "eth0"
        verdict = nf.run(hook, packet, 0.0)
        if verdict is not Verdict.ACCEPT:
            break
    return verdict


FORWARDED = (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING)

# the order of stations at each hook, by priority: raw -300, conntrack -200, mangle -150, nat -100 (destination), filter 0,
# security 50, nat 100 (source)
STATIONS = {
    FORWARDED: ["raw/PREROUTING", "conntrack", "mangle/PREROUTING", "nat/PREROUTING", "mangle/FORWARD", "filter/FORWARD",
                "security/FORWARD", "mangle/POSTROUTING", "nat/POSTROUTING"],
    (Hook.PREROUTING, Hook.INPUT): ["raw/PREROUTING", "conntrack", "mangle/PREROUTING", "nat/PREROUTING", "mangle/INPUT", "filter/INPUT",
                                    "security/INPUT", "nat/INPUT"],
    (Hook.OUTPUT, Hook.POSTROUTING): ["raw/OUTPUT", "conntrack", "mangle/OUTPUT", "nat/OUTPUT", "filter/OUTPUT", "security/OUTPUT",
                                      "mangle/POSTROUTING", "nat/POSTROUTING"],
}  # fmt: skip


@pytest.mark.parametrize(("hooks", "wanted"), STATIONS.items(), ids=["forwarded", "arriving", "leaving"])
def test_tables_see_a_packet_in_the_order_of_linux_s_priorities(hooks, wanted):
    nf, around = netfilter(every_table())
    packet = tcp(CLIENT, VIP)
    packet.trace = 1
    assert through(nf, packet, *hooks) is Verdict.ACCEPT
    stations = [where for where, rule, _, _ in around.hops if rule is not None or where == "conntrack"]
    assert stations == wanted


def test_a_second_packet_meets_no_nat_table():
    nf, around = netfilter(every_table())
    through(nf, tcp(CLIENT, VIP), *FORWARDED)
    packet = tcp(CLIENT, VIP)
    packet.trace = 1
    through(nf, packet, *FORWARDED)
    assert not [where for where, *_ in around.hops if where.startswith("nat/")]


def test_an_empty_rule_set_has_no_conntrack_either():
    nf, _ = netfilter(EMPTY)
    packet = tcp(CLIENT, VIP)
    assert not nf.active
    assert through(nf, packet, *FORWARDED) is Verdict.ACCEPT
    assert packet.ct_state is None
    assert len(nf.conntrack) == 0


def test_a_connection_exists_only_once_its_packet_has_left():
    nf, _ = netfilter(rules(table("filter", "FORWARD -j DROP")))
    assert through(nf, tcp(CLIENT, VIP), *FORWARDED) is Verdict.DROP
    assert nf.drop_reason is DropReason.NETFILTER_DROP
    assert len(nf.conntrack) == 0


def test_a_full_table_is_its_own_reason():
    nf, _ = netfilter(every_table(), max_entries=0)
    assert through(nf, tcp(CLIENT, VIP), *FORWARDED) is Verdict.DROP
    assert nf.drop_reason is DropReason.CONNTRACK_FULL


def test_reject_leaves_word_of_how_to_answer():
    nf, _ = netfilter(rules(table("filter", "FORWARD -p tcp -j REJECT --reject-with tcp-reset")))
    packet = tcp(CLIENT, VIP)
    assert through(nf, packet, *FORWARDED) is Verdict.REJECT
    assert packet.reject_with == "tcp-reset"


def test_filter_cannot_translate():
    nf, _ = netfilter(rules(table("filter", "FORWARD -j MASQUERADE")))
    with pytest.raises(ConfigError, match="only nat translates"):
        through(nf, tcp(CLIENT, VIP), *FORWARDED)


@pytest.mark.parametrize("name", ["broute", "Filter"])
def test_a_table_that_is_not_there_is_refused_and_changes_nothing(name):
    nf, _ = netfilter(before := every_table())
    with pytest.raises(ConfigError, match=f"table {name} is not supported"):
        nf.swap(RuleSet({**before.tables, name: Table(name, {})}))
    assert nf.ruleset is before


# ---- swapping -------------------------------------------------------------------------------------------------------------------------

OLD = rules(table("nat", "PREROUTING -j DNAT --to-destination 10.244.1.1:1"), table("filter", "FORWARD -d 10.244.1.1/32 -j ACCEPT",
            policies={"FORWARD": "DROP"}))  # fmt: skip
NEW = rules(table("nat", "PREROUTING -j DNAT --to-destination 10.244.1.2:2"), table("filter", "FORWARD -d 10.244.1.2/32 -j ACCEPT",
            policies={"FORWARD": "DROP"}))  # fmt: skip


def test_a_swap_replaces_all_tables_between_two_packets():
    nf, _ = netfilter(OLD)
    for number, ruleset in enumerate((NEW, OLD, NEW, EMPTY, OLD)):
        nf.swap(ruleset)
        packet = tcp(f"10.0.0.1:{number + 1}", VIP)
        assert through(nf, packet, *FORWARDED) is Verdict.ACCEPT
        assert packet.dport == {id(OLD): 1, id(NEW): 2, id(EMPTY): 80}[id(ruleset)]
        nf.conntrack.check()


def test_a_swap_keeps_connections_and_what_was_decided_for_them():
    nf, _ = netfilter(OLD)
    through(nf, tcp(CLIENT, VIP), *FORWARDED)
    nf.swap(rules(table("nat", "PREROUTING -j DNAT --to-destination 10.244.1.2:2"), table("filter")))
    again = tcp(CLIENT, VIP)
    through(nf, again, *FORWARDED)
    assert again.dport == 1
    assert len(nf.conntrack) == 1


def test_rule_sets_share_what_was_compiled_of_a_chain():
    """A sync that changed one chain must not pay for the others."""
    nf, _ = netfilter(OLD)
    through(nf, tcp(CLIENT, VIP), *FORWARDED)
    chain = OLD.tables["filter"].chains["FORWARD"]
    program = chain.program
    assert program is not None
    nf.swap(RuleSet({"filter": Table("filter", {**NEW.tables["filter"].chains, "FORWARD": chain})}))
    through(nf, tcp("10.0.0.1:9", VIP), *FORWARDED)
    assert chain.program is program
