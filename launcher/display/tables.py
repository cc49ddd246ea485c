"""Tables: those of `get` laid out as kubectl lays them out, status and routes as people read them. Pure text from JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

GAP = "   "  # kubectl's


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], *, drop_empty: bool = False) -> list[str]:
    """Lines of left-aligned columns; no header line if all its cells are empty, with `drop_empty` no columns without a cell."""
    lines = [header, *rows] if any(header) else [*rows]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(header))]
    used = [i for i in range(len(header)) if not drop_empty or any(row[i] for row in rows)]
    return [GAP.join(line[i].ljust(widths[i]) for i in used).rstrip() for line in lines]


def kubectl(definitions: Sequence[Any], rows: Sequence[Any], *, wide: bool, namespaces: bool, headers: bool = True) -> str:
    """A meta.k8s.io Table as kubectl prints it; `namespaces` puts a column NAMESPACE in front."""
    shown = [i for i, definition in enumerate(definitions) if wide or not definition.get("priority")]
    header = [definitions[i]["name"].upper() for i in shown]
    body = [[str(row["cells"][i]) for i in shown] for row in rows]
    if namespaces:
        header = ["NAMESPACE", *header]
        body = [[row["object"]["metadata"].get("namespace", ""), *cells] for row, cells in zip(rows, body, strict=True)]
    return "".join(f"{line}\n" for line in columns(header if headers else [""] * len(header), body))


def routes(answer: dict[str, Any]) -> None:
    """A node's routes as `ip route` prints them, its devices, and who is behind each forwarding entry."""
    for route in answer["routes"]:
        click.echo(route)
    click.echo()
    rows = [
        [
            d["name"],
            d["kind"],
            str(d["mtu"]),
            d["mac"] or "",
            d["master"] or "",
            " ".join(d["addresses"]),
            str(d["rx_packets"]),
            str(d["tx_packets"]),
        ]
        for d in answer["devices"]
    ]
    click.echo("\n".join(columns(["DEVICE", "KIND", "MTU", "MAC", "MASTER", "ADDRESSES", "RX", "TX"], rows)))
    for device in answer["devices"]:
        for mac, ip in sorted((device.get("fdb") or {}).items(), key=lambda entry: entry[1]):
            click.echo(f"{mac} dev {device['name']} dst {ip} self permanent")


def status(answer: dict[str, Any]) -> None:
    """The cluster at a glance."""
    click.echo(f"cluster {answer['name']}, profile {answer['profile']}, API {answer['url'] or 'not answering'}")
    if answer["problem"]:
        click.echo(f"controller: {answer['problem']}")
    processes = answer["processes"]
    rows = [[name, _state(p), str(p.get("pid") or ""), str(p.get("deaths", "")), _memory(p)] for name, p in processes.items()]
    told = answer["controller"]
    click.echo("\n".join(columns(["PROCESS", "STATE", "PID", "DEATHS", "USS"], rows, drop_empty=True)))
    click.echo()
    nodes = [
        [
            n["name"], _ready(n), n["state"], str(n.get("pid") or ""), str(n["incarnation"]), str(n["deaths"]), n.get("ip") or "",
            n.get("pod_cidr") or "", "" if n.get("pods") is None else str(n["pods"]), _memory(n),
        ]
        for n in answer["nodes"]
    ]  # fmt: skip
    click.echo(
        "\n".join(columns(["NODE", "READY", "PROCESS", "PID", "LIFE", "DEATHS", "IP", "POD-CIDR", "PODS", "USS"], nodes, drop_empty=True))
    )
    for process in (*processes.values(), *answer["nodes"]):
        if process.get("last_words"):
            click.echo(f"{process['name']} died ({process['last_exit']}): {process['last_words']}")
    for line in notes(told):
        click.echo(line)


def notes(told: dict[str, Any]) -> list[str]:
    """What stands in for something, is stored and not emulated, dropped, or broken on purpose."""
    lines = []
    stand_ins = told.get("standIns") or []
    if stand_ins:
        lines.append("stand-ins for images we do not know: " + ", ".join(str(item) for item in stand_ins))
    for entry in told.get("notEmulated") or []:
        what = f"{entry['kind']}{' ' if entry['field'] else ''}{entry['field']}"
        lines.append(
            f"stored, not emulated: {what} ({entry['objects']} object{'s' if entry['objects'] != 1 else ''}, as {entry['example']})"
        )
    lines += [f"dropped, {reason}: {count}" for reason, count in sorted((told.get("drops") or {}).items(), key=lambda item: -item[1])]
    if told.get("faults"):
        lines.append(f"faults on links: {told['faults']} (podwire fault status tells them)")
    abandoned = sum(node["abandoned"] for node in told.get("nodes") or [])
    if abandoned:
        lines.append(f"threads that did not heed their end: {abandoned}")
    return ["", *lines] if lines else []


def _state(process: dict[str, Any]) -> str:
    return str(process.get("state", "running"))


def _ready(node: dict[str, Any]) -> str:
    return {True: "Ready", False: "NotReady", None: "-"}[node.get("ready")]


def _memory(process: dict[str, Any]) -> str:
    return f"{process['uss_mib']:.1f} MiB" if "uss_mib" in process else ""
