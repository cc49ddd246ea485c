"""What may become of a first packet: every backend with its probability, read from the rules and not sampled."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.netfilter.backends import Fate, fates
from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import Skb
from emu.wire.addr import format_ip
from tests.kit.rulesets import Around, rules, table
from tests.kit.skbs import tcp, udp

POD, OUTSIDE, VIP, NODE = "10.244.1.9:4000", "203.0.113.7:4000", "10.96.0.10:80", "192.168.0.2:4000"
MASQUERADE = (
    "KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
    "POSTROUTING -j KUBE-POSTROUTING",
    "KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
    "KUBE-POSTROUTING -j MASQUERADE --random-fully",
)


def service(*backends: str) -> str:
    """The nat table of one Service as kube-proxy writes it."""
    lines = [
        "PREROUTING -j KUBE-SERVICES",
        "OUTPUT -j KUBE-SERVICES",
        "KUBE-SERVICES -m tcp -p tcp -d 10.96.0.10 --dport 80 -j KUBE-SVC",
        "KUBE-SVC -m tcp -p tcp -d 10.96.0.10 --dport 80 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ",
    ]
    for number, backend in enumerate(backends):
        left = len(backends) - number
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        lines += [
            f"KUBE-SVC {chance}-j SEP-{number}",
            f"SEP-{number} -s {backend.split(':')[0]} -j KUBE-MARK-MASQ",
            f"SEP-{number} -m tcp -p tcp -j DNAT --to-destination {backend}",
        ]
    return table("nat", *lines, *MASQUERADE)


def around() -> Around:
    """A node; for `lo` Linux takes the address of another device, since 127.0.0.1 is of scope host (inet_select_addr)."""
    return Around("192.168.0.2", masquerade={"eth0": "192.168.0.2", "cni0": "10.244.1.1", "lo": "192.168.0.2"})


def route(skb: Skb) -> str:
    return "cni0" if skb.dst[:3] == bytes((10, 244, 1)) else "eth0"


def ask(ruleset: RuleSet, src: str, dst: str = VIP, *, iif: str = "cni0", make=tcp) -> tuple[Fate, ...]:
    return fates(ruleset, bytes(make(src, dst).buf), around(), route, iif=iif)


def chances(ends: tuple[Fate, ...]) -> dict[str, float]:
    return {str(fate.destination): round(fate.probability, 6) for fate in ends}


BACKENDS = ("10.244.1.2:8080", "10.244.2.2:8080", "10.244.3.2:8080", "10.244.4.2:8080")


@pytest.mark.parametrize("count", range(1, 5))
def test_backends_are_equally_likely_whatever_their_number(count):
    ends = ask(rules(service(*BACKENDS[:count])), POD)
    assert chances(ends) == dict.fromkeys(BACKENDS[:count], pytest.approx(1 / count, abs=1e-6))
    assert all(fate.verdict is Verdict.ACCEPT for fate in ends)


def test_only_who_comes_from_outside_the_pods_is_masqueraded_and_by_the_outgoing_device():
    ruleset = rules(service(*BACKENDS[:2]))
    assert [fate.masqueraded for fate in ask(ruleset, POD)] == [False, False]
    outside = {str(fate.destination): format_ip(fate.source) for fate in ask(ruleset, OUTSIDE, iif="eth0")}
    assert outside == {"10.244.1.2:8080": "10.244.1.1", "10.244.2.2:8080": "192.168.0.2"}


def test_a_pod_that_may_reach_itself_is_masqueraded_in_that_case_only():
    ends = ask(rules(service(*BACKENDS[:2])), "10.244.1.2:4000")
    assert {(str(fate.destination), fate.masqueraded) for fate in ends} == {("10.244.1.2:8080", True), ("10.244.2.2:8080", False)}


def test_the_node_s_own_packets_start_at_output():
    ends = ask(rules(service(*BACKENDS[:2])), NODE, iif="")
    assert chances(ends) == dict.fromkeys(BACKENDS[:2], 0.5)
    assert all(fate.masqueraded for fate in ends), "by eth0 it has the node's address already, but gets another port"


def test_a_backend_on_the_node_itself_is_reached_through_input_on_loopback():
    drop = table("filter", "INPUT -i lo -p tcp --dport 6443 -j DROP")
    (end,) = ask(rules(service("192.168.0.2:6443")), NODE, iif="")
    assert (end.verdict, end.device, str(end.destination)) == (Verdict.ACCEPT, "lo", "192.168.0.2:6443")
    (end,) = ask(rules(service("192.168.0.2:6443"), drop), NODE, iif="")
    assert (end.verdict, end.device) == (Verdict.DROP, "lo")


def test_what_no_rule_names_goes_its_way():
    (end,) = ask(rules(service(*BACKENDS)), POD, "10.96.0.10:81")
    assert (end.probability, str(end.destination), end.device, end.masqueraded) == (1.0, "10.96.0.10:81", "eth0", False)
    (end,) = ask(rules(service(*BACKENDS)), POD, make=udp)
    assert str(end.destination) == VIP


def test_no_route_is_an_end_too():
    (end,) = fates(rules(service(BACKENDS[0])), bytes(tcp(POD, VIP).buf), around(), lambda skb: None, iif="cni0")
    assert (end.device, str(end.destination)) == (None, BACKENDS[0])


def test_an_empty_rule_set_changes_nothing():
    (end,) = ask(RuleSet(), POD)
    assert (end.verdict, str(end.destination), end.device, end.rules) == (Verdict.ACCEPT, VIP, "eth0", 0)


def test_a_rejection_says_with_what():
    (end,) = ask(rules(table("filter", "FORWARD -d 10.96.0.10 -p tcp -j REJECT --reject-with tcp-reset")), POD)
    assert (end.verdict, end.reject_with) == (Verdict.REJECT, "tcp-reset")


def test_dice_in_filter_split_the_verdict():
    ends = ask(rules(service(*BACKENDS[:2]), table("filter", "FORWARD -m statistic --mode random --probability 0.25 -j DROP")), POD)
    found = {(fate.verdict, str(fate.destination)): fate.probability for fate in ends}
    assert found == {
        (verdict, backend): pytest.approx(chance)
        for backend in BACKENDS[:2]
        for verdict, chance in ((Verdict.ACCEPT, 0.375), (Verdict.DROP, 0.125))
    }
    assert [fate.probability for fate in ends] == sorted((fate.probability for fate in ends), reverse=True)


@pytest.mark.parametrize(("probability", "wanted"), [("0.0", {BACKENDS[1]: 1.0}), ("1.0", {BACKENDS[0]: 1.0})])
def test_what_cannot_happen_is_no_fate(probability, wanted):
    lines = (f"PREROUTING -m statistic --mode random --probability {probability} -p tcp -j DNAT --to-destination {BACKENDS[0]}",)
    assert chances(ask(rules(table("nat", *lines, f"PREROUTING -p tcp -j DNAT --to-destination {BACKENDS[1]}")), POD)) == wanted


@given(st.lists(st.floats(0, 1), max_size=6), st.integers(0, 2**32))
def test_packets_that_really_run_end_as_foretold(probabilities, seed):
    """Probabilities sum to 1, and no run of the dice leads elsewhere."""
    lines = [
        f"PREROUTING -m statistic --mode random --probability {chance:.10f} -p tcp -j DNAT --to-destination 10.244.{number}.2:1"
        for number, chance in enumerate(probabilities)
    ]
    ruleset = rules(table("nat", *lines))
    foretold = chances(ask(ruleset, POD))
    assert sum(foretold.values()) == pytest.approx(1.0, abs=1e-5)
    netfilter = Netfilter(Around(seed=seed))
    netfilter.swap(ruleset)
    for number in range(10):
        packet = tcp(f"10.244.1.9:{number + 1}", VIP)
        assert netfilter.run(Hook.PREROUTING, packet, 0.0) is Verdict.ACCEPT
        assert foretold[str(packet.destination)] > 0


def test_many_packets_are_spread_as_foretold():
    ruleset = rules(service(*BACKENDS[:3]))
    world, drawn = Around(seed=7), Counter[str]()
    netfilter = Netfilter(world)
    netfilter.swap(ruleset)
    for number in range(3000):
        packet = tcp(f"10.244.1.9:{number + 1}", VIP)
        netfilter.run(Hook.PREROUTING, packet, 0.0)
        drawn[str(packet.destination)] += 1
    expected = {backend: 3000 * chance for backend, chance in chances(ask(ruleset, POD)).items()}
    assert sum((drawn[backend] - mean) ** 2 / mean for backend, mean in expected.items()) < 13.8, "χ² with 2 degrees of freedom, p > 0.001"


def test_a_rule_walk_is_counted_to_its_longest():
    assert max(fate.rules for fate in ask(rules(service(*BACKENDS)), POD)) == 1 + 1 + 1 + 4 + 2 + 1 + 1
