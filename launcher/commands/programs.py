"""Commands about programs in pods: exec and logs."""

from __future__ import annotations

import sys

import click

from launcher.commands import options

POD_HELP = "POD is a pod's name, pod/NAME, or deployment/NAME, svc/NAME for one of its ready pods."


@click.command("exec", epilog=POD_HELP)
@click.option("-c", "--container", default="", help="Which container; the first by default.")
@click.option("-i", "--stdin", is_flag=True, help="Hand standard input to the program.")
@options.namespace
@options.cluster_name
@click.argument("pod")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- PROGRAM [ARGS...]")
def exec_(pod: str, command: tuple[str, ...], container: str, stdin: bool, namespace: str, name: str) -> int:
    """Run curl, ping, nc and friends inside a pod.

    Ends with the program's exit status.
    """
    from launcher import execution, references

    client = options.client_of(name)
    namespace, found = references.pod(client, pod, namespace)
    return execution.run(client, namespace, found, command, container=container, stdin=stdin)


@click.command(epilog=POD_HELP)
@click.argument("pod")
@click.option("-c", "--container", default="")
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written.")
@click.option("-p", "--previous", is_flag=True, help="Of the container's life before this one.")
@click.option("--tail", type=click.IntRange(min=0), help="Only the last lines.")
@options.namespace
@options.cluster_name
def logs(pod: str, container: str, follow: bool, previous: bool, tail: int | None, namespace: str, name: str) -> None:
    """Print what a container has written."""
    from launcher import references
    from launcher.client import path_of

    client = options.client_of(name)
    namespace, found = references.pod(client, pod, namespace)
    query = {"container": container, "follow": "true" if follow else "", "previous": "true" if previous else "", "tailLines": tail}
    for piece in client.stream(path_of(references.kind("pods"), namespace, found, "log"), query=query):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
