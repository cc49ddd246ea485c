"""Commands about whole clusters: demo, up, down, status, bench."""

from __future__ import annotations

from typing import Any

import click

from launcher.commands import options


@click.command()
@click.option("--nodes", type=int, default=3, show_default=True)
def demo(nodes: int) -> None:
    """The whole story on three nodes, start to finish."""
    from launcher import demo as story

    story.run(nodes)


@click.command()
@options.manifests
@click.option("--nodes", type=int, help="How many nodes.  [default: 3]")
@click.option("--cni", help="flannel.")
@click.option("--proxy", help="iptables or nftables.")
@click.option("--profile", help="fast or kubernetes: whose periods.  [default: fast]")
@click.option("--config", "config", metavar="FILE", help="A cluster file; flags override it.")
@click.option("--seed", type=int, help="Every random choice follows from it.")
@click.option("--api-port", type=int, help="Port of the Kubernetes API on 127.0.0.1.  [default: any]")
@click.option("--debug-assertions", is_flag=True, default=None, envvar="PODWIRE_DEBUG_ASSERTIONS", help="Check every delivery.")
@click.option("--path", "paths", multiple=True, metavar="DIR", help="Where programs of yours are; the manifests' directories by default.")
@click.option("--name", help="Name of the cluster.  [default: podwire]", envvar="PODWIRE_NAME")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Return only when nodes and workloads are ready.")
@click.option("--timeout", type=float, default=120.0, show_default=True, help="Seconds to wait; then everything is taken down again.")
@options.as_json
def up(
    filenames: tuple[str, ...], config: str | None, paths: tuple[str, ...], wait: bool, timeout: float, as_json: bool, **flags: Any
) -> None:
    """Bring up a cluster, with objects in it if you like."""
    from launcher import bringup

    spec = bringup.spec(flags, config, paths, filenames)
    told = bringup.run(spec, filenames, wait=wait, timeout=timeout, quiet=as_json)
    if as_json:
        options.print_json(told)


@click.command()
@options.cluster_name
@click.option("--all", "everything", is_flag=True, help="Every cluster of yours.")
def down(name: str, everything: bool) -> None:
    """End a cluster; nothing of it is left."""
    from launcher import control, rundir
    from launcher.display.progress import Progress

    for run in rundir.all_alive() if everything else [rundir.find(name)]:
        with Progress(f"ending {run.name}"):
            control.stop(run)
        click.echo(f"{run.name} is down")


@click.command()
@options.cluster_name
@options.as_json
@click.option("--memory", is_flag=True, help="Also each process's private memory (USS).")
def status(name: str, as_json: bool, memory: bool) -> None:
    """What is up, ready, standing in, or not emulated."""
    from launcher import health
    from launcher.display import tables

    answer = health.of(name, memory=memory)
    if as_json:
        options.print_json(answer)
    else:
        tables.status(answer)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("bench_name", metavar="NAME", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(bench_name: str | None, arguments: tuple[str, ...]) -> int:
    """Run a benchmark by its name; without one, list them."""
    from launcher import benches

    if bench_name is None or bench_name in ("-h", "--help"):
        click.echo("\n".join(f"{found:10} {what}" for found, what in benches.available()))
        return 0
    return benches.run(bench_name, arguments)
