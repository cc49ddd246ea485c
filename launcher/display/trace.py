"""A trace on a terminal: where the packet was, hop by hop, and what each place did to it. Pure: JSON in, lines out.

Hops of one namespace stand together under its name; a rule stands whole, in iptables syntax, wrapped under its chain; what
changed the packet (NAT, encapsulation) stands out. The last lines are the outcome and the counts. The brief picture leaves out
what decided nothing: rules that jumped to a chain where none matched, policies that accept, and the walk of the tunnel's outside.
"""

from __future__ import annotations

import itertools
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

PLACE = 30  # columns of a hop's place: the longest is nat/KUBE-SVC- and 16 characters
VXLAN_PORT = 8472
OUTCOME_COLOURS = {"delivered": "green", "local": "green", "rejected": "yellow", "dropped": "red", "unrouted": "red"}

Hop = dict[str, Any]


def show(request: dict[str, Any], result: dict[str, Any], *, brief: bool = False, indent: str = "") -> None:
    """Print to stdout, as wide as the terminal but not wider than reads well."""
    width = max(80, min(120, shutil.get_terminal_size((100, 24)).columns))
    for line in lines(request, result, width - len(indent), brief=brief):
        click.echo(indent + line if line else "")


def lines(request: dict[str, Any], result: dict[str, Any], width: int, *, brief: bool = False) -> Iterator[str]:
    """The whole picture, at most `width` columns wide."""
    yield click.style(f"{request['from']} to {request['to']}", bold=True)
    for title in ("request", "reply"):
        hops = result.get(title) or []
        yield ""
        yield click.style(title.upper() + (f"  {flow(hops[0]['packet'])}" if hops else "  none"), bold=True)
        yield from direction(decisive(hops) if brief else hops, width)
    yield ""
    yield from verdict(result, width)


def decisive(hops: Sequence[Hop]) -> list[Hop]:
    """The hops that decided something, their rules without comments and the name of their chain."""
    kept = []
    for hop, after in zip(hops, [*hops[1:], None], strict=True):
        rule, note = hop.get("rule") or "", hop.get("note") or ""
        outside = hop["packet"]["proto"] == "udp" and hop["packet"].get("dport") == VXLAN_PORT
        jump = re.search(r" -j (KUBE-[A-Z0-9-]+)", rule)
        fruitless = jump and not (after and after["where"].partition("/")[2] == jump[1])
        if (outside and hop["where"] != "wire") or fruitless or note == "policy ACCEPT":
            continue
        shown = re.sub(r'^-A \S+ | ?-m comment --comment ("[^"]*"|\S+)', "", rule).strip()
        kept.append({**hop, "rule": shown} if rule else hop)
    return kept


def flow(packet: dict[str, Any]) -> str:
    """`10.244.1.2:40001 > 10.96.0.10:80 tcp`."""

    def end(ip: str, port: int | None) -> str:
        return ip if port is None else f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    return f"{end(packet['src'], packet.get('sport'))} > {end(packet['dst'], packet.get('dport'))} {packet['proto']}"


def direction(hops: Sequence[Hop], width: int) -> Iterator[str]:
    """One way of the packet: a heading where it enters a namespace, then a line or more a hop."""
    packet = hops[0]["packet"] if hops else None
    for (node, netns), group in itertools.groupby(hops, key=lambda hop: (hop["node"], hop["netns"])):
        yield click.style(f"  {node}" + ("" if netns == "node" else f"  {netns}"), fg="cyan")
        for hop in group:
            yield from one_hop(hop, width)
            if hop["packet"] != packet:
                packet = hop["packet"]
                yield "    " + " " * PLACE + click.style(f"= {flow(packet)}", fg="magenta")


def one_hop(hop: Hop, width: int) -> Iterator[str]:
    """The place, then the rule or the note, wrapped under itself."""
    text = hop.get("rule") or hop.get("note") or ""
    if hop.get("rule") and hop.get("note"):
        text += f"  ({hop['note']})"
    place = hop["where"]
    room = width - 4 - PLACE
    first, *rest = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    if len(place) >= PLACE and first:
        yield f"    {place}"
        place = ""
    yield f"    {place:<{PLACE}}{first}".rstrip()
    for line in rest:
        yield " " * (4 + PLACE) + line


def verdict(result: dict[str, Any], width: int) -> Iterator[str]:
    """What the client experienced, and the counts."""
    outcome = result["outcome"]
    parts = [click.style(outcome, fg=OUTCOME_COLOURS.get(outcome), bold=True)]
    if result.get("backend"):
        parts[0] += f" by {result['backend']}" if outcome == "rejected" else f" to {result['backend']}"
    parts.append("source masqueraded" if result.get("masquerade") else "source kept")
    parts.append(f"{result['rules_evaluated']} rules evaluated")
    hops = [*(result.get("request") or []), *(result.get("reply") or [])]
    crossed = list(dict.fromkeys(hop["node"] for hop in hops))
    if crossed:
        parts.append(f"{len(crossed)} node{'s' if len(crossed) != 1 else ''}: {', '.join(crossed)}")
    parts.append(f"{len(result.get('request') or [])} + {len(result.get('reply') or [])} hops")
    line = ""
    for part in parts:
        longer = f"{line} · {part}" if line else part
        if len(click.unstyle(longer)) > width:
            yield line
            longer = part
        line = longer
    yield line
