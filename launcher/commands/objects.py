"""Commands about Kubernetes objects, for those without kubectl: apply, delete, get, scale. They print what kubectl prints."""

from __future__ import annotations

import click

from launcher.commands import options


@click.command()
@options.manifests
@options.namespace
@options.cluster_name
@options.as_json
def apply(filenames: tuple[str, ...], namespace: str, name: str, as_json: bool) -> None:
    """Create or change objects, all of them or none."""
    from launcher import manifests

    if not filenames:
        raise click.UsageError("say which manifests: -f FILE")
    results = manifests.apply(options.client_of(name), manifests.read(filenames), namespace)
    if as_json:
        options.print_json({"results": results})
    manifests.report(results, quiet=as_json)


@click.command()
@click.argument("words", nargs=-1, metavar="[TYPE NAME...]")
@options.manifests
@options.namespace
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return only when they are gone.")
@click.option("--ignore-not-found", is_flag=True, help="What is not there counts as deleted.")
@options.cluster_name
def delete(words: tuple[str, ...], filenames: tuple[str, ...], namespace: str, wait: bool, ignore_not_found: bool, name: str) -> None:
    """Delete objects, by manifest or by TYPE NAME."""
    from launcher import manifests, references
    from launcher.display.progress import Progress

    if bool(words) == bool(filenames):
        raise click.UsageError("say what to delete: TYPE NAME or -f FILE")
    client = options.client_of(name)
    found = references.parse(words, namespace) if words else [references.of_object(m.object, namespace) for m in manifests.read(filenames)]
    if any(not reference.name for reference in found):
        raise click.UsageError("say which one to delete: TYPE NAME")
    with Progress("waiting until they are gone"):
        for line in references.delete(client, found[::-1] if filenames else found, wait=wait, ignore_not_found=ignore_not_found):
            click.echo(line)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="TYPE [NAME...]")
@options.namespace
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-l", "--selector", default="", help="Only objects with these labels.")
@click.option("-o", "--output", type=click.Choice(["", "wide", "json", "yaml", "name"]), default="", show_choices=True)
@click.option("--no-headers", is_flag=True)
@options.cluster_name
def get(words: tuple[str, ...], namespace: str, all_namespaces: bool, selector: str, output: str, no_headers: bool, name: str) -> None:
    """Show objects: pods, services, nodes, deployments, events..."""
    from launcher import listing, references

    wanted = references.parse(words, namespace)
    if all_namespaces:
        wanted = [reference._replace(namespace="") for reference in wanted]
        if any(reference.name for reference in wanted):
            raise click.UsageError("a name and --all-namespaces exclude each other")
    listing.show(options.client_of(name), wanted, output=output, selector=selector, headers=not no_headers)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="TYPE NAME")
@click.option("--replicas", type=click.IntRange(min=0), required=True)
@options.namespace
@options.cluster_name
def scale(words: tuple[str, ...], replicas: int, namespace: str, name: str) -> None:
    """Set the replicas of a Deployment or ReplicaSet."""
    from launcher import references
    from launcher.client import MERGE_PATCH, path_of

    client = options.client_of(name)
    for reference in references.parse(words, namespace):
        if not reference.name:
            raise click.UsageError("say which one to scale: TYPE NAME")
        path = path_of(reference.kind, reference.namespace, reference.name, "scale")
        client.request("PATCH", path, {"spec": {"replicas": replicas}}, content_type=MERGE_PATCH)
        click.echo(f"{reference} scaled")
