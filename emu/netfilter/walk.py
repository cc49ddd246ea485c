"""The walk of a packet through a chain, rule by rule in order, as the kernel does it.

That the cost grows with the number of rules is the point of iptables mode and needs no model. A chain is compiled when the
first packet comes by, into runs of rules that are told apart by keys of one kind (`match`); a run is searched by comparing
one key after the other. Every rule up to the one that matches counts as evaluated, in `skb.rules`.

Decides what the rules say. What follows from it (translation, an ICMP error) is `nat`'s and the stack's.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import assert_never

from emu.netfilter.effects import effect_of
from emu.netfilter.hooks import Surroundings, Verdict
from emu.netfilter.match import Step, packet_keys, step_of
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
    Rule,
    SetMark,
    Snat,
    Table,
    TargetExtension,
)
from emu.netfilter.skb import Skb
from emu.netfilter.text import rule_line

Outcome = Accept | Drop | Reject | Dnat | Snat | Masquerade | Redirect | Netmap
"""What ends a walk."""

ACCEPT, DROP = Accept(), Drop()
_POLICIES: dict[Verdict | None, Outcome] = {Verdict.ACCEPT: ACCEPT, Verdict.DROP: DROP, None: ACCEPT}
_SHORT = 4  # a run of fewer rules with one kind of key is not worth its own search
MIXED = 0
"""The kind of a run whose rules are asked one after the other; also of a rule without a key."""

Search = Callable[[bytes, int], int]
"""Where in a run the next equal key stands, from an index on; ValueError if nowhere."""

Run = tuple[Search | None, int, tuple[Step, ...], tuple[Rule, ...]]
"""The search (None: MIXED), the kind of key, and the rules themselves."""

Program = tuple[Run, ...]


def compile_chain(chain: Chain) -> Program:
    """Runs of rules, in order; their concatenation is the chain."""
    steps = [rule.step or step_of(rule) for rule in chain.rules]
    ends = [at for at in range(1, len(steps)) if steps[at].kind != steps[at - 1].kind]
    runs: list[tuple[int, int, int]] = []  # kind, start, stop
    for start, stop in pairwise((0, *ends, len(steps)) if steps else ()):
        kind = steps[start].kind if stop - start >= _SHORT else MIXED
        if runs and runs[-1][0] == kind == MIXED:
            start = runs.pop()[1]
        runs.append((kind, start, stop))
    program = tuple(_run(kind, tuple(steps[start:stop]), chain.rules[start:stop]) for kind, start, stop in runs)
    object.__setattr__(chain, "program", program)
    return program


def _run(kind: int, steps: tuple[Step, ...], rules: tuple[Rule, ...]) -> Run:
    return (None if kind == MIXED else tuple([step.key for step in steps]).index), kind, steps, rules


class Walk:
    """One packet in one table. `keys` are the packet's, `reported` what `hop` has already told of `skb.rules`."""

    __slots__ = ("around", "keys", "reported", "skb", "table")

    def __init__(self, table: Table, skb: Skb, around: Surroundings) -> None:
        self.table, self.skb, self.around = table, skb, around
        self.keys = packet_keys(skb)
        self.reported = skb.rules

    def chain(self, chain: Chain) -> Outcome | None:
        """Walk a chain; None if it was left by RETURN or at its end."""
        skb, around, keys = self.skb, self.around, self.keys
        program = chain.program
        for search, kind, steps, rules in compile_chain(chain) if program is None else program:
            at, end = 0, len(steps)
            while at < end:
                found = self.find(search, keys[kind], steps, at)
                skb.rules += min(found + 1, end) - at
                if found == end:
                    break
                at = found + 1
                rule = rules[found]
                if skb.trace:
                    self.report(chain, rule)
                target = rule.target
                match target:
                    case None:
                        pass
                    case Jump(name, goto):
                        outcome = self.chain(self.table.chains[name])
                        if outcome is not None or goto:
                            return outcome
                    case Return():
                        return None
                    case SetMark(value, mask):
                        skb.mark = (skb.mark & ~mask) ^ value
                    case Accept() | Drop() | Reject() | Dnat() | Snat() | Masquerade() | Redirect() | Netmap():
                        return target
                    case TargetExtension():
                        if (ended := effect_of(target)(skb, around)) is not None:
                            return ended
                    case _:
                        assert_never(target)
        return None

    def find(self, search: Search | None, key: bytes, steps: tuple[Step, ...], at: int) -> int:
        """The index of the next rule of a run that matches, or the run's length."""
        end, skb, around, keys = len(steps), self.skb, self.around, self.keys
        while at < end:
            if search is None:
                step = steps[at]
                if step.key != keys[step.kind]:
                    at += 1
                    continue
            else:
                try:
                    at = search(key, at)
                except ValueError:
                    return end
                step = steps[at]
            for test in step.tests:
                if not test(skb, around):
                    break
            else:
                return at
            at += 1
        return end

    def report(self, chain: Chain, rule: Rule | None, note: str | None = None) -> None:
        """Tell of a rule that matched, or of the end, with the number of rules evaluated since the last report."""
        skb = self.skb
        line = None if rule is None else rule_line(chain.name, rule)
        note = note if rule is None else _note(rule)
        self.around.hop(skb, f"{self.table.name}/{chain.name}", rule=line, note=note, rules=skb.rules - self.reported)
        self.reported = skb.rules


def _note(rule: Rule) -> str | None:
    """What comes of a matching rule, where its text does not say it."""
    match rule.target:
        case SetMark(value, mask):
            return f"mark & ~{mask:#x} ^ {value:#x}"
        case Dnat(to, None):
            return f"destination becomes {to}"
        case None:
            return "counts only"
        case _:
            return None


def walk(table: Table, builtin: str, skb: Skb, around: Surroundings, kind: type[Walk] = Walk) -> Outcome:
    """Take a packet through a built-in chain of a table; a chain that is not there accepts. `kind` may be a walk that tells more."""
    chain = table.chains.get(builtin)
    if chain is None:
        return ACCEPT
    walker = kind(table, skb, around)
    outcome = walker.chain(chain)
    if outcome is None:
        outcome = _POLICIES[chain.policy]
        if skb.trace and (chain.rules or outcome is DROP):
            walker.report(chain, None, f"policy {'DROP' if outcome is DROP else 'ACCEPT'}")
    return outcome
