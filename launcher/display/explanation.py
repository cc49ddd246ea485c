"""What a dump's rules make of a packet, on a terminal and as JSON. Pure: values in, lines out.

The walk stands rule by rule with its line in the file; then the verdict, or every end with its probability; then, if the answer
hangs on something, what that is, which rule asks, and which option would tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from emu.netfilter.explain import End, Explanation, Visit
from emu.netfilter.oracle import Question as Open
from emu.netfilter.ruleset import Dnat, Netmap, Redirect
from emu.netfilter.text import rule_line
from emu.wire.addr import SockAddr, format_ip
from launcher.dumps import Question

TRANSLATING = (Dnat, Redirect, Netmap)
MOST_OPEN = 12  # questions that are shown; each of many backends may raise one
MOST_ENDS = 64
COLOURS = {"ACCEPT": "green", "REJECT": "yellow", "DROP": "red"}


def show(asked: Question, found: Explanation, *, every: bool) -> None:
    for line in lines(asked, found, every=every):
        click.echo(line)


def lines(asked: Question, found: Explanation, *, every: bool) -> Iterator[str]:
    """The whole picture."""
    for line, count in warnings(asked):
        yield click.style(f"warning: {asked.dump.source}: {line}{f' (and {count - 1} more like it)' if count > 1 else ''}", fg="yellow")
    yield click.style(_packet(asked), bold=True)
    for guess in asked.guessed:
        yield f"  {guess}"
    for end in found.ends if every else found.ends[:1]:
        yield ""
        yield from _walk(asked, end)
    yield ""
    yield from _ends(asked, found)
    if found.open or not found.complete:
        yield ""
        yield from _open(asked, found)


def warnings(asked: Question) -> list[tuple[str, int]]:
    """Each kind once, with the line where it came first and how often it came."""
    kinds = Counter(text for _, text in asked.dump.warnings)
    first = {text: line for line, text in reversed(asked.dump.warnings)}
    return [(f"line {first[text]}: {text}", count) for text, count in kinds.items()]


def _packet(asked: Question) -> str:
    source, target = _shown(asked, asked.source), _shown(asked, asked.target)
    how = "sent by the node" if asked.asked.sent else f"in by {asked.asked.iif or 'any device'}"
    return f"{source} -> {target} {asked.proto}, {asked.asked.state.value}, {how}"


def _walk(asked: Question, end: End) -> Iterator[str]:
    for visit in end.walk:
        line, counters, rule = _visited(asked, visit)
        yield f"  {line or '':>6}  {visit.table + ' ' * (8 - len(visit.table))} {counters + ' ' if counters else ''}{rule}"


def _visited(asked: Question, visit: Visit) -> tuple[int | None, str, str]:
    """Line, counters and text of a rule, or of the policy of a built-in chain."""
    place = asked.dump.places[visit.table, visit.chain]
    if visit.index is None:
        return place.line, place.policy, f":{visit.chain} {visit.note or ''}".rstrip()
    rule = asked.dump.ruleset.tables[visit.table].chains[visit.chain].rules[visit.index]
    return place.lines[visit.index], place.counters.get(visit.index, ""), rule_line(visit.chain, rule)


def _ends(asked: Question, found: Explanation) -> Iterator[str]:
    determined = not found.open and found.complete
    if determined:
        verdicts = sorted({end.verdict.value for end in found.ends})
        yield "verdict  " + click.style(" or ".join(verdicts), fg=COLOURS[verdicts[0]] if len(verdicts) == 1 else "yellow", bold=True)
    else:
        yield "verdict  " + click.style("UNDETERMINED", fg="yellow", bold=True) + ", one of:"
    for end in found.ends[:MOST_ENDS]:
        yield f"  {end.probability * 100:6.2f} %  {_end(asked, end)}"
        for question, holds in end.conditions[:4]:
            yield f"            if {'yes' if holds else 'no'}: {question.text}"
    if len(found.ends) > MOST_ENDS:
        yield f"            and {len(found.ends) - MOST_ENDS} more (all of them with --json)"


def _end(asked: Question, end: End) -> str:
    changed = _shown(asked, end.destination) != _shown(asked, asked.target)
    words = [click.style(end.verdict.value, fg=COLOURS[end.verdict.value])]
    if end.reject_with:
        words.append(f"with {end.reject_with}")
    words.append(f"to {_shown(asked, end.destination)}" if changed else "to the destination as it is")
    if end.masqueraded:
        words.append(f"from {format_ip(end.source)}" if end.source is not None else "masqueraded as the outgoing device's address")
    if end.verdict.value == "ACCEPT":
        words.append({"lo": "to the node itself", "?": "", None: "but no route leads there"}.get(end.device, f"by {end.device}"))
    if (line := _decided_by(asked, end)) is not None:
        words.append(f"(line {line})")
    return " ".join(word for word in words if word)


def _decided_by(asked: Question, end: End) -> int | None:
    """The line that refused the packet, or else the one that chose its destination."""
    if end.verdict.value != "ACCEPT":
        return _visited(asked, end.walk[-1])[0] if end.walk else None
    if _shown(asked, end.destination) == _shown(asked, asked.target):
        return None
    chains = asked.dump.ruleset.tables["nat"].chains
    named = [(v, chains[v.chain].rules[v.index]) for v in end.walk if v.table == "nat" and v.index is not None]
    translating = [visit for visit, rule in named if isinstance(rule.target, TRANSLATING)]
    return _visited(asked, translating[0])[0] if translating else None


def _shown(asked: Question, end: SockAddr) -> str:
    """An end with its port, of which ICMP has none."""
    return format_ip(end.ip) if asked.proto == "icmp" else str(end)


def _open(asked: Question, found: Explanation) -> Iterator[str]:
    if not found.complete:
        yield f"there are more than {found.ways} ways to go; tell more of what is open"
    if found.open:
        yield "open:"
    for question in found.open[:MOST_OPEN]:
        yield f"  {question.text}?"
        where = _asks(asked, question)
        yield f"      asked by {where}; tell it by {question.option}"
    if len(found.open) > MOST_OPEN:
        yield f"  and {len(found.open) - MOST_OPEN} more like these"


def _asks(asked: Question, question: Open) -> str:
    if question.asked_by is None:
        return "the routing decision"
    table, chain, index = question.asked_by
    rule = rule_line(chain, asked.dump.ruleset.tables[table].chains[chain].rules[index])
    return f"line {asked.dump.places[table, chain].lines[index]}, table {table}: {rule}"


# ---- JSON --------------------------------------------------------------------------------------------------------------------------------


def as_json(asked: Question, found: Explanation) -> dict[str, Any]:
    """Everything, by names that stay."""
    return {
        "packet": {
            "source": str(asked.source), "destination": str(asked.target), "proto": asked.proto, "ctstate": asked.asked.state.value,
            "sent": asked.asked.sent, "inInterface": asked.asked.iif or None, "mark": asked.asked.mark,
        },
        "determined": not found.open and found.complete,
        "ends": [_end_json(asked, end) for end in found.ends],
        "open": [_open_json(asked, question) for question in found.open],
        "guessed": list(asked.guessed),
        "warnings": [{"line": line, "text": text} for line, text in asked.dump.warnings],
    }  # fmt: skip


def _end_json(asked: Question, end: End) -> dict[str, Any]:
    return {
        "verdict": end.verdict.value, "probability": round(end.probability, 9), "destination": str(end.destination),
        "source": format_ip(end.source) if end.source is not None else None, "masqueraded": end.masqueraded,
        "rejectWith": end.reject_with, "device": None if end.device == "?" else end.device, "routed": end.device is not None,
        "rules": end.rules,
        "conditions": [{"question": question.text, "holds": holds} for question, holds in end.conditions],
        "walk": [_visit_json(asked, visit) for visit in end.walk],
    }  # fmt: skip


def _visit_json(asked: Question, visit: Visit) -> dict[str, Any]:
    line, counters, text = _visited(asked, visit)
    return {
        "table": visit.table, "chain": visit.chain, "line": line, "counters": counters or None, "note": visit.note,
        "rule": text if visit.index is not None else None, "evaluated": visit.rules,
    }  # fmt: skip


def _open_json(asked: Question, question: Open) -> dict[str, Any]:
    place = question.asked_by
    line = None if place is None else asked.dump.places[place[0], place[1]].lines[place[2]]
    return {
        "question": question.text, "option": question.option, "line": line, "table": place and place[0], "chain": place and place[1],
    }  # fmt: skip
