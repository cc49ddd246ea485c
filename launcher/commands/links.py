"""`podwire fault link|partition|heal|status`: trouble on links, and what is broken at all."""

from __future__ import annotations

from typing import Any

import click

from launcher.commands import options

LINK = "A->B or A<->B; A and B are a node's name, zone/ZONE or *. Quote it, for the shell's sake."


@click.command("link", epilog=f"LINK is {LINK}")
@click.argument("link")
@click.option("--delay", metavar="TIME", help="Each packet arrives so much later, such as 20ms.")
@click.option("--jitter", metavar="TIME", help="The delay is up to so much shorter or longer; reorders, as netem's does.")
@click.option("--loss", metavar="PERCENT", help="So many packets are lost, such as 2%.")
@click.option("--rate", metavar="RATE", help="Bits a second, such as 10mbit; what waits for its turn is bounded.")
@click.option("--duplicate", metavar="PERCENT", help="So many packets arrive twice.")
@click.option("--reorder", metavar="PERCENT", help="So many packets overtake others.")
@click.option("--cut/--no-cut", default=None, help="Nothing passes; --no-cut opens what a more general fault cuts.")
@options.cluster_name
@options.as_json
def fault_link(link: str, name: str, as_json: bool, **conditions: Any) -> None:
    """Put conditions on links; each is that of the most specific fault that sets it.

    podwire fault link 'node-1->node-2' --delay 20ms --jitter 5ms --loss 2%
    """
    _make(name, {"link": link, **{key: value for key, value in conditions.items() if value is not None}}, as_json)


@click.command("partition", epilog="Nodes in no group keep their links to everybody; * in a group means all that no other group names.")
@click.argument("groups", nargs=-1, required=True, metavar="A,B '|' C,D")
@options.cluster_name
@options.as_json
def fault_partition(groups: tuple[str, ...], name: str, as_json: bool) -> None:
    """Cut every link between nodes of different groups, both ways.

    podwire fault partition 'node-1,node-2 | zone/b' ; podwire fault partition 'node-3 | *'
    """
    parts = [[word for word in part.replace(",", " ").split() if word] for part in " ".join(groups).split("|")]
    _make(name, {"partition": parts}, as_json)


@click.command("heal", epilog=f"WHAT is a fault's name as in fault status, or a link: {LINK}")
@click.argument("what", required=False)
@click.option("--all", "everything", is_flag=True, help="End all faults on links.")
@options.cluster_name
@options.as_json
def fault_heal(what: str | None, everything: bool, name: str, as_json: bool) -> None:
    """End a fault on links, those of one link, or all."""
    from launcher import links
    from launcher.display.progress import Progress

    if (what is None) != everything:
        raise click.UsageError("give the fault or link to heal, or --all")
    with Progress("healing"):
        healed = links.heal(name, what)
    if as_json:
        options.print_json(healed)
    else:
        click.echo("\n".join(f"{item['metadata']['name']} is over" for item in healed["items"]) or "nothing was broken")


@click.command("status")
@options.cluster_name
@options.as_json
def fault_status(name: str, as_json: bool) -> None:
    """What is broken: nodes that do not run, and faults on links with what they have done."""
    from launcher import links
    from launcher.display import links as picture

    broken = links.broken(name)
    if as_json:
        options.print_json(broken)
    else:
        picture.show(broken)


def _make(cluster: str, spec: dict[str, Any], as_json: bool) -> None:
    from launcher import links
    from launcher.display import links as picture
    from launcher.display.progress import Progress

    with Progress("waiting for all nodes to heed it"):
        made = links.make(cluster, spec)
    if as_json:
        options.print_json(made)
    else:
        click.echo(f"{made['metadata']['name']}: {picture.described(made['spec'])}")


ON_LINKS = (fault_link, fault_partition, fault_heal, fault_status)
"""The commands of the group `fault` that are here."""
