"""`podwire get`: asks for a Table or for objects, and prints them as kubectl does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from launcher.client import TABLE, Client, path_of
from launcher.display import tables
from launcher.references import Reference


def show(client: Client, wanted: Sequence[Reference], *, output: str, selector: str = "", headers: bool = True) -> None:
    """Print what the references mean. ApiError 404 for a name that is not there."""
    if output in ("json", "yaml", "name"):
        objects = [obj for reference in wanted for obj in _objects(client, reference, selector)]
        single = len(wanted) == 1 and wanted[0].name
        _print_objects(objects, wanted, output, single=bool(single))
        return
    found = False
    for group in _by_kind(wanted):
        rows, columns = _table(client, group, selector)
        if not rows:
            continue
        if found:
            click.echo()
        found = True
        spaces = any(reference.kind.namespaced and not reference.namespace for reference in group)
        click.echo(tables.kubectl(columns, rows, wide=output == "wide", namespaces=spaces, headers=headers), nl=False)
    if not found:
        place = f" in {wanted[0].namespace} namespace" if wanted[0].namespace else ""
        click.echo(f"No resources found{place}.", err=True)


def _by_kind(wanted: Sequence[Reference]) -> list[list[Reference]]:
    """References of one kind stand in one table."""
    groups: dict[str, list[Reference]] = {}
    for reference in wanted:
        groups.setdefault(reference.kind.resource, []).append(reference)
    return list(groups.values())


def _table(client: Client, references: Sequence[Reference], selector: str) -> tuple[list[Any], list[Any]]:
    rows: list[Any] = []
    columns: list[Any] = []
    for reference in references:
        query = {} if reference.name else {"labelSelector": selector}
        table = client.request("GET", path_of(reference.kind, reference.namespace, reference.name), query=query, accept=TABLE)
        columns = table["columnDefinitions"]
        rows += table["rows"]
    return rows, columns


def _objects(client: Client, reference: Reference, selector: str) -> list[Any]:
    if reference.name:
        return [client.get(reference.kind, reference.namespace, reference.name)]
    return client.list(reference.kind, reference.namespace, labelSelector=selector)


def _print_objects(objects: list[Any], wanted: Sequence[Reference], output: str, *, single: bool) -> None:
    if output == "name":
        kinds = {(reference.kind.api_version, reference.kind.kind): reference.kind for reference in wanted}
        for obj in objects:
            click.echo(str(Reference(kinds[obj["apiVersion"], obj["kind"]], "", obj["metadata"]["name"])))
        return
    value = objects[0] if single else {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": objects}
    if output == "json":
        click.echo(json.dumps(value, indent=4, ensure_ascii=False))
        return
    import yaml

    click.echo(yaml.safe_dump(value, sort_keys=True, allow_unicode=True, width=1 << 16), nl=False)
