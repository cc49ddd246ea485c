"""`podwire explain`: what a production node's rules make of a packet, read from its dump. No cluster is needed."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import click

from launcher.commands import options

UNDETERMINED = 3


@click.command(
    epilog="Exit status: 0 determined, 2 a file or flag is wrong, 3 undetermined: the answer hangs on what was not given, and the "
    "rule and the missing option are named. Without --routes a packet may leave by any device, without --addresses any address may be the "
    "node's own; neither matters unless a rule asks for it. FILE may be - for standard input, once."
)
@click.option("--iptables-save", "rules", required=True, metavar="FILE", help="What iptables-save [-c] or ip6tables-save printed.")
@click.option("--from", "source", required=True, metavar="ADDRESS[:PORT]|local", help="Who sends it; `local`: the node itself.")
@click.option("--to", "target", required=True, metavar="ADDRESS[:PORT]", help="[ADDRESS]:PORT for IPv6.")
@click.option("--proto", type=click.Choice(["tcp", "udp", "sctp", "icmp"]), help="TCP by default where there is a port, else ICMP echo.")
@click.option("-i", "--in-interface", metavar="NAME", help="By which device it comes in.")
@click.option("--out", is_flag=True, help="The node itself sends it (as with --from local).")
@click.option("-o", "--out-interface", metavar="NAME", help="By which device it leaves, instead of --routes.")
@click.option("--physdev-in", metavar="NAME", help="By which port of a bridge it comes in.")
@click.option("--mark", default="0", metavar="VALUE", help="Its firewall mark at the beginning.", show_default=True)
@click.option("--ctstate", type=click.Choice(["NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED"]), default="NEW", show_default=True)
@click.option("--addresses", metavar="FILE", help="What `ip -j addr` printed.")
@click.option("--routes", metavar="FILE", help="What `ip -j route` (or `ip -6 -j route`) printed.")
@click.option("--node-ip", "node_ips", multiple=True, metavar="ADDRESS", help="An address of the node. May be repeated.")
@click.option("--ipset", metavar="FILE", help="What `ipset save` printed.")
@click.option(
    "--assume", "assumed", multiple=True, metavar="WHAT=yes|no",
    help="Answer what is open: WHAT is the line of the rule that asks, or local, recent, limit, set, or a match's or target's name.",
)  # fmt: skip
@click.option("--lenient", is_flag=True, help="Warn of matches and targets that are not known, instead of refusing the file.")
@click.option("--all", "every", is_flag=True, help="Print the walk to each end, not only to the likeliest.")
@options.as_json
def explain(rules: str, as_json: bool, every: bool, **given: Any) -> int:
    """Walk one packet through a node's iptables dump, rule by rule, to its verdict and all its backends."""
    from launcher import dumps
    from launcher.display import explanation

    gc.disable()  # rules live as long as the command; looking for garbage among them doubles the time to read them
    question = dumps.question(_text, rules, given)
    found = dumps.answer(question)
    if as_json:
        click.echo(json.dumps(explanation.as_json(question, found), indent=2, ensure_ascii=False))
    else:
        explanation.show(question, found, every=every)
    return UNDETERMINED if found.open or not found.complete else 0


def _text(name: str) -> str:
    """A file's text. ConfigError if it cannot be read."""
    from emu.errors import ConfigError

    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as problem:
        raise ConfigError(problem.strerror or str(problem), source=name) from None
