"""Flags that several commands share, and how a command finds its cluster."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from launcher.client import Client

cluster_name = click.option("--name", "name", default="podwire", envvar="PODWIRE_NAME", show_default=True, help="Which cluster.")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
namespace = click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of what is named without one.")
manifests = click.option(
    "-f", "--filename", "filenames", multiple=True, metavar="FILE|DIR", help="Manifests; - is standard input. May be repeated."
)


def client_of(name: str) -> Client:
    """A client of the cluster `name`. PodwireError if it is not up."""
    from launcher import rundir
    from launcher.client import Client

    return Client.of(rundir.find(name))


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
