"""Every option of every extension that is known, as a person may write it and as `iptables-save` gives it back."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from emu.errors import ConfigError
from emu.netfilter.effects import EFFECTS
from emu.netfilter.extensions import TESTS
from emu.netfilter.match import step_of
from emu.netfilter.modules import MODULES
from emu.netfilter.reader import read_dump, read_rules
from emu.netfilter.ruleset import Extension, Rule, TargetExtension
from emu.netfilter.targets import TARGET_EXTENSIONS
from emu.netfilter.text import rule_line, save_text


class Spoken(NamedTuple):
    family: int
    table: str
    chain: str
    written: str
    saved: str


def _spoken(line: str) -> Spoken:
    place, written, *saved = line.split("\t")
    family, table, chain = place.split()
    return Spoken(int(family), table, chain, written, (saved or [written])[0])


DIALECT = [_spoken(line) for line in (Path(__file__).parent / "dialect.txt").read_text().splitlines() if not line.startswith("#")]
ELSEWHERE = [  # what 1.8.9 knows but this kernel did not take
    Spoken(4, "filter", "FORWARD", line, line) for line in (
        "-m socket --transparent", "-m socket --nowildcard --restore-skmark", "-m rpfilter", "-m rpfilter --loose --validmark --invert",
        "-m nfacct --nfacct-name  ct_state_invalid_dropped_pkts", "-m cgroup --path a", "-m cgroup --cgroup 5",
        "-m physdev ! --physdev-is-in -j DROP", "-m ipvs --ipvs --vaddr 10.0.0.1",
    )
]  # fmt: skip


def text_of(family: int, table: str, chain: str, rule: str) -> str:
    return f"*{table}\n:{chain} ACCEPT [0:0]\n-A {chain} {rule}\nCOMMIT\n"


def read(spoken: Spoken, line: str) -> Rule:
    rules = read_rules(text_of(spoken.family, spoken.table, spoken.chain, line), family=spoken.family)
    return rules.tables[spoken.table].chains[spoken.chain].rules[0]


@pytest.mark.parametrize("spoken", DIALECT + ELSEWHERE, ids=[f"{s.table} {s.written}" for s in DIALECT + ELSEWHERE])
def test_what_is_written_and_what_is_saved_are_one_rule(spoken: Spoken):
    written, saved = read(spoken, spoken.written), read(spoken, spoken.saved)
    assert rule_line("X", written) == f"-A X {spoken.saved}"
    assert rule_line("X", saved) == f"-A X {spoken.saved}"
    assert step_of(written).tests is not None


def test_every_extension_is_in_the_dialect():
    rules = [read(spoken, spoken.written) for spoken in DIALECT + ELSEWHERE]
    modules = {match.module for rule in rules for match in rule.matches if isinstance(match, Extension)}
    assert modules | {"comment", "mark"} == set(MODULES), "the two are kinds of match of their own"
    targets = {rule.target.name for rule in rules if isinstance(rule.target, TargetExtension)}
    assert targets | {"HL", "SECMARK", "IDLETIMER", "SYNPROXY"} == set(TARGET_EXTENSIONS)
    assert set(TESTS) <= set(MODULES)
    assert set(EFFECTS) <= set(TARGET_EXTENSIONS)


FAULTS = [
    ("-m recent --name X", "-m recent needs --set, --rcheck, --update or --remove"),
    ("-m statistic --mode nth --every 2", "-m statistic needs --packet"),
    ("-m statistic --mode nth --every 2 --packet 2", "--packet 2 must be less than --every 2"),
    ("-m statistic --mode random", "-m statistic needs --probability"),
    ("-p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", "15 ports at most"),
    ("-m set --match-set hosts", "--match-set needs an argument"),
    ("-m iprange --src-range 10.0.0.9-10.0.0.1", "is not FIRST-LAST of one family"),
    ("-m limit --limit 5/fortnight", "is not NUMBER/second, minute, hour or day"),
    ("-p tcp --tcp-flags SYN,FOO SYN", "--tcp-flags 'FOO' is not one of FIN, SYN"),
    ("--chunk-types any INIT", "--chunk-types needs -p sctp before it"),
    ("-p icmp --icmp-type ping-pong", "is neither TYPE[/CODE] nor one of"),
    ("-m conntrack --ctdir BOTH", "--ctdir 'BOTH' is not one of ORIGINAL, REPLY"),
    ("-m mark --mark 1 --mark 2", "-m mark has an option twice"),
    ("-m hashlimit --hashlimit-upto 5/sec", "--hashlimit-name"),
    ("-m addrtype --dst-type NEAR", "--dst-type 'NEAR' is not one of UNSPEC, UNICAST, LOCAL"),
    ("-j SET --exist", "SET needs --add-set or --del-set"),
    ("-j CONNMARK", "CONNMARK needs --set-xmark"),
    ("-j TCPMSS", "TCPMSS needs --clamp-mss-to-pmtu or --set-mss"),
    ("-j SNAT --to-source 1.2.3.4:1-2/3", "only DNAT shifts ports"),
    ("-j DNAT --to-destination 1.2.3.9-1.2.3.4", "is not FIRST-LAST of one family"),
    ("-j LOG --log-level loud", "'loud' is not a number from 0 to 7"),
    ("-j NETMAP", "NETMAP needs its argument --to"),
]


@pytest.mark.parametrize(("line", "problem"), FAULTS)
def test_what_is_wrong_with_an_option_is_said(line, problem):
    with pytest.raises(ConfigError) as told:
        read_rules(text_of(4, "filter", "FORWARD", line), source="dump")
    assert (told.value.source, told.value.where) == ("dump", "line 3")
    assert problem in told.value.problem


LENIENT = [
    ("-s 10.0.0.1/32 -m psd --psd-weight-threshold 21 -m comment --comment x -j DROP", "-m psd is not supported"),
    ("-m mark --mark 0x1 --shade 5 -j DROP", "--shade is not supported"),
    ("-p tcp -j TARPIT --tarpit", "--tarpit is not supported"),
    ("-j cali-missing", "cali-missing is neither a chain"),
    ("-j LOG --log-colour red", "--log-colour is not supported"),
]


@pytest.mark.parametrize(("line", "problem"), LENIENT)
def test_what_is_not_known_is_kept_as_it_stands_if_one_asks_for_it(line, problem):
    text = text_of(4, "filter", "FORWARD", line)
    with pytest.raises(ConfigError, match="line 3"):
        read_dump(text)
    dump = read_dump(text, lenient=True)
    assert [(number, problem in warning) for number, warning in dump.warnings] == [(3, True)]
    if "TARPIT" not in line:
        assert save_text(dump.ruleset) == text


def test_a_fault_is_a_fault_leniently_too():
    with pytest.raises(ConfigError, match=r"line 3.*not a number"):
        read_dump(text_of(4, "filter", "FORWARD", "-m mark --mark red -j DROP"), lenient=True)


def test_lines_and_counters_are_kept():
    dump = read_dump("# x\n*filter\n:INPUT DROP [3:4]\n:A - [0:0]\n[1:2] -A INPUT -j A\n-A INPUT -j DROP\n[5:6] -A A -j RETURN\nCOMMIT\n")
    place = dump.places["filter", "INPUT"]
    assert (place.line, place.policy, list(place.lines), place.counters) == (3, "[3:4]", [5, 6], {0: "[1:2]"})
    assert dump.places["filter", "A"].counters == {0: "[5:6]"}
