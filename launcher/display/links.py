"""What is broken, as people read it. Pure text from JSON."""

from __future__ import annotations

from typing import Any

import click

from launcher.display.tables import columns


def described(spec: dict[str, Any]) -> str:
    """A fault's spec as the command line would have it: `node-1->node-2 delay 20ms loss 2%`."""
    if "partition" in spec:
        return "partition " + " | ".join(",".join(group) for group in spec["partition"])
    said = [_condition(key, value) for key, value in spec.items() if key != "link"]
    return " ".join([spec["link"], *said])


def _condition(key: str, value: Any) -> str:
    if key == "cut":
        return "cut" if value else "no-cut"
    return f"{key} {value}"


def show(broken: dict[str, Any]) -> None:
    """Every fault with what it has done, and processes that do not run."""
    rows = [
        [item["metadata"]["name"], described(item["spec"]), ", ".join(f"{count} {what}" for what, count in item["status"].items())]
        for item in broken["faults"]
    ]
    if rows:
        click.echo("\n".join(columns(["FAULT", "WHAT", "SEGMENTS"], rows, drop_empty=True)))
    for process in broken["processes"]:
        click.echo(f"{process['name']} {process['state']}")
    if broken["problem"]:
        click.echo(f"controller: {broken['problem']}")
    if not rows and not broken["processes"] and not broken["problem"]:
        click.echo("nothing is broken")
