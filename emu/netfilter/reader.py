"""Reads rule sets: what `iptables-save` prints, and what kube-proxy feeds to `iptables-restore`.

Decides what a text's lines are: tables, chains, rules, counters. Whatever is not known, an option, a match, a target, is an error that
names the line: a rule half understood would let the wrong packets through. Leniently it is kept as it stands, with a warning.
Reading what `text` printed gives the same rules; from `save_text`, matches in the kernel's order and MARK as --set-xmark.
One rule is `rule_reader`'s. Spec: iptables-extensions(8), ip(6)tables-restore(8).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from emu.errors import ConfigError
from emu.netfilter.forms import split_words
from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.rule_reader import Memory, RuleReader, Unknown
from emu.netfilter.ruleset import Chain, Jump, Rule, RuleSet, Table, TargetExtension

_CHAIN = re.compile(r":(\S+) (ACCEPT|DROP|-)(?: (\[\d+:\d+\]))?")
_COUNTERS = re.compile(r"(\[\d+:\d+\])\s+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chain's rules stand in their file, and the counters that stood before them, both in the order of the rules.

    `counters` has an entry only for a rule that had some; `policy` are the chain's own.
    """

    line: int = 0
    lines: array[int] = field(default_factory=lambda: array("I"))
    counters: dict[int, str] = field(default_factory=dict)
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Dump:
    """A rule set and where it was read. `places` is by table and chain; `warnings` are line and text, of a lenient reading."""

    ruleset: RuleSet
    places: Mapping[tuple[str, str], Place]
    source: str = "-"
    warnings: tuple[tuple[int, str], ...] = ()


def read_rules(text: str, *, source: str = "-", family: int = 4) -> RuleSet:
    """The rule set that a dump or a restore input describes; ConfigError with `source` and the line's number otherwise.

    `family` (4 or 6) decides what stands for a whole address, and what a bare REJECT answers with.
    """
    return read_dump(text, source=source, family=family).ruleset


def read_dump(text: str, *, source: str = "-", family: int = 4, lenient: bool = False) -> Dump:
    """The same with line numbers and counters; `lenient` keeps unknown matches and targets as they stand, and warns."""
    tables: dict[str, Table] = {}
    places: dict[tuple[str, str], Place] = {}
    warnings: list[tuple[int, str]] = []
    reading: _TableReader | None = None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line[0] == "#":
            continue
        try:
            if line[0] == "*":
                if reading is not None or line[1:] in tables:
                    raise ValueError(f"table {line[1:]} begins twice" if line[1:] in tables else f"no COMMIT before {line}")
                reading = _TableReader(line[1:], family, warnings if lenient else None)
            elif reading is None:
                raise ValueError(f"{line!r} stands in no table; a table begins with a line such as *filter")
            elif line == "COMMIT":
                tables[reading.name] = reading.table()
                places |= {(reading.name, name): place for name, place in reading.places.items()}
                reading = None
            else:
                reading.line(line, number)
        except _At as problem:
            raise ConfigError(problem.problem, source=source, where=f"line {problem.number}") from None
        except ValueError as problem:
            raise ConfigError(str(problem), source=source, where=f"line {number}") from None
    if reading is not None:
        raise ConfigError(f"table {reading.name} has no COMMIT", source=source)
    return Dump(RuleSet(MappingProxyType(tables)), MappingProxyType(places), source, tuple(sorted(warnings)))


class _At(Exception):
    """A fault of an earlier line, found at the table's end."""

    def __init__(self, problem: str, number: int) -> None:
        self.problem, self.number = problem, number


class _TableReader:
    """One table while it is read. `warnings` is None unless the reading is lenient."""

    def __init__(self, name: str, family: int, warnings: list[tuple[int, str]] | None) -> None:
        self.name, self._family, self._warnings = name, family, warnings
        self.places: dict[str, Place] = {}
        self._memory: Memory = {}
        self._policies: dict[str, Verdict | None] = {}
        self._rules: dict[str, list[Rule]] = {}
        self._jumps: list[tuple[str, int, str, int]] = []  # target, line, chain, index

    def line(self, line: str, number: int) -> None:
        first, counters = line[0], ""
        if first == ":" and (chain := _CHAIN.fullmatch(line)):
            self._declare(chain[1], chain[2], chain[3] or "", number)
            return
        if first == "[" and (found := _COUNTERS.match(line)):
            counters, line = found[1], line[found.end() :]
        words = split_words(line)
        if len(words) < 2 or words[0] not in ("-A", "--append"):
            raise ValueError(f"{words[0]} is not supported, only chains, -A and COMMIT")
        name = words[1]
        rules = self._rules.get(name)
        if rules is None:
            raise ValueError(f"chain {name} is not declared in table {self.name}")
        del words[:2]
        rule = self._rule(words, number)
        place = self.places[name]
        if counters:
            place.counters[len(rules)] = counters
        place.lines.append(number)
        if type(rule.target) is Jump:
            self._jumps.append((rule.target.chain, number, name, len(rules)))
        rules.append(rule)

    def _rule(self, words: list[str], number: int) -> Rule:
        try:
            return RuleReader(words, self._family, self._memory).rule()
        except Unknown as problem:
            if self._warnings is None:
                raise
            self._warnings.append((number, str(problem)))
            return RuleReader(words, self._family, self._memory, lenient=True).rule()

    def _declare(self, name: str, policy: str, counters: str, number: int) -> None:
        builtin = name in Hook.__members__
        if builtin is (policy == "-"):
            raise ValueError(f"the built-in chain {name} needs a policy" if builtin else f"chain {name} cannot have a policy")
        if name in self._rules:
            raise ValueError(f"chain {name} is declared twice")
        self._policies[name] = Verdict(policy) if builtin else None
        self._rules[name] = []
        self.places[name] = Place(number, policy=counters)

    def table(self) -> Table:
        for target, number, chain, index in self._jumps:
            if target not in self._rules:
                self._no_chain(target, number, chain, index)
            elif self._policies[target] is not None:
                raise _At(f"nothing may jump to the built-in chain {target}", number)
        chains = {name: Chain(name, tuple(rules), self._policies[name]) for name, rules in self._rules.items()}
        table = Table(self.name, MappingProxyType(chains))
        if loop := table.loop():
            raise ValueError(f"chains of table {self.name} jump in a circle: {' -> '.join(loop)}")
        return table

    def _no_chain(self, target: str, number: int, chain: str, index: int) -> None:
        problem = f"{target} is neither a chain of table {self.name} nor a supported target"
        if self._warnings is None:
            raise _At(problem, number)
        self._warnings.append((number, problem))
        rule = self._rules[chain][index]
        self._rules[chain][index] = Rule(rule.matches, TargetExtension(target, (), known=False))
