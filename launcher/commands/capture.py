"""The command `capture`."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command(
    epilog="Without --node, --pod or --link: all devices of all nodes. POD is NAME, NAMESPACE/NAME, deployment/NAME or svc/NAME for one "
    "of its ready pods. EXPR is in tcpdump's language (man pcap-filter), of which hosts, nets, ports, protocols, lengths, bytes such as "
    "tcp[tcpflags], and vxlan are known; it concerns the outer packet, what stands after vxlan the inner one."
)
@click.option("--node", help="All devices of this node.")
@click.option("--pod", metavar="POD", help="The devices of this pod.")
@click.option("--link", metavar="A-B", help="What crosses between these two nodes, at either end.")
@click.option("--device", metavar="NAME", help="Only devices of this name, such as eth0, flannel.1 or 'veth*'.")
@click.option("--filter", "expression", metavar="EXPR", help="Only packets that match.")
@click.option("-c", "--count", type=click.IntRange(min=1), help="Stop after so many packets.")
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Stop after so long.")
@click.option("-s", "--snaplen", type=click.IntRange(min=1), help="Keep only so many bytes of a packet.  [default: 262144]")
@click.option("-w", "--write", "file", metavar="FILE", help="Write pcapng to FILE, - for standard output.")
@options.namespace
@options.cluster_name
@options.as_json
def capture(
    node: str | None, pod: str | None, link: str | None, device: str | None, expression: str | None, count: int | None,
    duration: float | None, snaplen: int | None, file: str | None, namespace: str, name: str, as_json: bool,
) -> None:  # fmt: skip
    """Show packets as devices see them, or write them to a file.

    Ends with Ctrl-C, with as many packets as wanted, or when the time is up.
    """
    from launcher import capture as capturing
    from launcher import references

    if sum(given is not None for given in (node, pod, link)) > 1:
        raise click.UsageError("--node, --pod and --link exclude each other")
    if file is not None and as_json:
        raise click.UsageError("--json and -w exclude each other")
    client = options.client_of(name)
    if pod is not None:
        pod = "pod/" + "/".join(references.pod(client, pod, namespace))
    asked = {
        "node": node, "pod": pod, "link": link, "device": device, "filter": expression, "count": count, "duration": duration,
        "snaplen": snaplen,
    }  # fmt: skip
    capturing.run(client, {key: value for key, value in asked.items() if value is not None}, file=file, as_json=as_json)
