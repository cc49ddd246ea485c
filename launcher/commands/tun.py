"""TUN devices: what joins a network namespace of this machine's kernel to a node or a pod of a cluster."""

from __future__ import annotations

import os
from typing import Any

import click

from launcher.commands import options

_node = click.option("--node", help="Join this node: the kernel's programs reach pods, Services and node ports through it.")
_pod = click.option("--pod", help="Join this pod alone: NAME, pod/NAMESPACE/NAME, deployment/NAME.")
_device = click.option("--device", default="pw0", show_default=True, help="The device's name at both ends.")


@click.group()
def tun() -> None:
    """Join network namespaces of this machine's kernel to nodes and pods, so that any program is a client or a server.

    Needs root, or a user namespace of one's own in which the cluster and the programs run (unshare -Urn).
    """


@tun.command("add")
@_node
@_pod
@options.namespace
@click.option("--netns", required=True, metavar="NAME|PATH", help="The kernel's namespace: as ip netns names it, or /proc/PID/ns/net.")
@_device
@click.option("--address", metavar="IP/LENGTH", help="The kernel's address; by default a free one of 100.64.0.0/16, alone.")
@click.option("--no-offload", is_flag=True, help="Cross in segments with their checksums filled in, not in packets of up to 64 KiB.")
@click.option("--mtu", type=click.IntRange(68, 65535), default=1500, show_default=True)
@options.cluster_name
@options.as_json
def add(
    node: str | None, pod: str | None, namespace: str, netns: str, device: str, address: str | None, no_offload: bool, mtu: int,
    name: str, as_json: bool,
) -> None:  # fmt: skip
    """Make a device. The kernel's end is up, with an address and routes to all that can be reached through it."""
    client = options.client_of(name)
    node, member = _place(client, node, pod, namespace)
    if netns.startswith("/proc/self/"):  # the node's process opens it, whose own it would be
        netns = netns.replace("self", str(os.getpid()), 1)
    body = {"device": device, "netns": netns, "pod": member, "address": address, "offload": not no_offload, "mtu": mtu}
    made = client.podwire("POST", f"nodes/{node}/tun", body)
    if as_json:
        options.print_json(made)
    else:
        click.echo(f"{made['device']} joins {made['netns']} as {made['address']} to {_whom(made)}")


@tun.command("remove")
@_node
@_pod
@options.namespace
@_device
@options.cluster_name
@options.as_json
def remove(node: str | None, pod: str | None, namespace: str, device: str, name: str, as_json: bool) -> None:
    """Take a device away, at both ends."""
    client = options.client_of(name)
    node, _ = _place(client, node, pod, namespace)
    gone = client.podwire("DELETE", f"nodes/{node}/tun/{device}")
    if as_json:
        options.print_json(gone)
    else:
        click.echo(f"{device} of {_whom({'node': node, **gone})} removed")


@tun.command("list")
@options.cluster_name
@options.as_json
def list_(name: str, as_json: bool) -> None:
    """Show all devices, and how they are."""
    from launcher.display.tables import columns

    answer = options.client_of(name).podwire("GET", "tuns")
    if as_json:
        options.print_json(answer)
        return
    header = ["NODE", "POD", "DEVICE", "NETNS", "ADDRESS", "MTU", "OFFLOAD", "RX", "TX", "STATE"]
    rows = [
        [
            item["node"], item["pod"], item["device"], item["netns"], item["address"], str(item["mtu"]), "on" if item["offload"] else "off",
            str(item.get("rx_packets", "")), str(item.get("tx_packets", "")), item["state"],
        ]
        for item in answer["items"]
    ]  # fmt: skip
    click.echo("\n".join(columns(header, rows, drop_empty=True)) if rows else "no TUN devices")


def _place(client: Any, node: str | None, pod: str | None, namespace: str) -> tuple[str, str]:
    """The node, and the pod as NAMESPACE/NAME ("" if the node itself is meant)."""
    from emu.errors import PodwireError
    from launcher import references

    if (node is None) == (pod is None):
        raise click.UsageError("say what to join: --node or --pod")
    if node is not None:
        return node, ""
    namespace, member = references.pod(client, pod or "", namespace)
    on: str | None = client.get(references.kind("pods"), namespace, member)["spec"].get("nodeName")
    if on is None:
        raise PodwireError(f"pod {namespace}/{member} is on no node yet")
    return on, f"{namespace}/{member}"


def _whom(item: dict[str, Any]) -> str:
    return f"pod {item['pod']} on {item['node']}" if item["pod"] else f"node {item['node']}"
