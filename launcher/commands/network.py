"""Commands about the network itself: trace, rules, conntrack, routes, fault; and the way in for kubectl."""

from __future__ import annotations

import click

from launcher.commands import options

STATES = {"kill": "killed", "pause": "paused", "resume": "resumed", "restart": "restarted", "start": "started"}


@click.command(
    epilog="FROM is a pod (NAME, pod/NAME, pod/NAMESPACE/NAME, deployment/NAME) or node/NAME; TO is one of these, svc/NAME[:PORT], "
    "svc/NAMESPACE/NAME[:PORT], or an address IP[:PORT]."
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--port", help="Destination port; the Service's only one by default, else an ICMP echo is sent.")
@click.option("--brief", is_flag=True, help="Leave out what decided nothing.")
@click.option("--proto", type=click.Choice(["tcp", "udp", "icmp"]), help="TCP by default where there is a port.")
@options.namespace
@options.cluster_name
@options.as_json
def trace(source: str, target: str, port: str | None, proto: str | None, namespace: str, name: str, as_json: bool, brief: bool) -> None:
    """Follow one real packet and its reply, hop by hop and rule by rule."""
    from launcher import references
    from launcher.display import trace as picture
    from launcher.display.progress import Progress

    client = options.client_of(name)
    request = references.trace_request(client, source, target, namespace, port=port, proto=proto)
    with Progress(f"waiting for what becomes of a packet from {source} to {target}"):
        result = client.podwire("POST", "traces", request)
    if as_json:
        options.print_json(result)
    else:
        picture.show(request, result, brief=brief)


def _of_node(what: str, node: str, name: str, **query: str) -> dict[str, object]:
    return options.client_of(name).podwire("GET", f"nodes/{node}/{what}", None, **query)


@click.command()
@click.argument("node")
@click.option(
    "--format", "form", type=click.Choice(["iptables-save", "iptables-restore", "nft"]), help="By default that of the proxy's mode."
)
@options.cluster_name
def rules(node: str, form: str | None, name: str) -> None:
    """Print a node's rule set, as Linux would."""
    click.echo(_of_node("rules", node, name, **({"format": form} if form else {}))["text"], nl=False)


@click.command()
@click.argument("node")
@options.cluster_name
def conntrack(node: str, name: str) -> None:
    """Print a node's connections, as conntrack -L would."""
    click.echo(_of_node("conntrack", node, name)["text"], nl=False)


@click.command()
@click.argument("node")
@options.cluster_name
@options.as_json
def routes(node: str, name: str, as_json: bool) -> None:
    """Print a node's routes, devices and forwarding entries."""
    from launcher.display import tables

    answer = _of_node("routes", node, name)
    if as_json:
        options.print_json(answer)
    else:
        tables.routes(answer)


@click.group()
def fault() -> None:
    """Break nodes, links or the controller, and mend them."""


def _state(ctx: click.Context, param: click.Parameter, value: str) -> str:
    return STATES.get(value, value)


_states = click.argument(
    "state", type=click.Choice([*STATES, *STATES.values()]), metavar="kill|pause|resume|restart|start", callback=_state
)


def _told(who: str, state: str, life: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        options.print_json(life)
    else:
        running = f" (pid {life['pid']}, life {life['incarnation']})" if life["pid"] else ""
        click.echo(f"{who} {state}{running}")


@fault.command("node")
@click.argument("node")
@_states
@options.cluster_name
@options.as_json
def fault_node(node: str, state: str, name: str, as_json: bool) -> None:
    """Kill (SIGKILL), pause (SIGSTOP), resume, restart or start a node's process.

    Each life is the next incarnation. Returns when it has come about: gone, standing still, or Ready again.
    """
    from launcher import faults
    from launcher.display.progress import Progress

    with Progress(f"waiting until {node} is {state}"):
        life = faults.node(name, node, state)
    _told(node, state, life, as_json=as_json)


@fault.command("controller")
@_states
@options.cluster_name
@options.as_json
def fault_controller(state: str, name: str, as_json: bool) -> None:
    """Kill, pause, resume, restart or start the controller.

    Nodes go on forwarding without it; nothing that it has acknowledged is lost. Returns when it has come about.
    """
    from launcher import faults
    from launcher.display.progress import Progress

    with Progress(f"waiting until the controller is {state}"):
        life = faults.controller(name, state)
    _told("controller", state, life, as_json=as_json)


@fault.command("proxy")
@click.argument("node")
@click.argument("state", type=click.Choice(["stop", "restart"]))
@options.cluster_name
@options.as_json
def fault_proxy(node: str, state: str, name: str, as_json: bool) -> None:
    """Stop a node's kube-proxy (its rules stay, updates stop), or begin it anew."""
    told = options.client_of(name).podwire("POST", f"nodes/{node}/proxy", {"state": {"stop": "stopped", "restart": "restarted"}[state]})
    if as_json:
        options.print_json(told)
    else:
        click.echo(f"proxy of {node} {told['proxy']}")


@click.command()
@options.cluster_name
def kubeconfig(name: str) -> None:
    """Print a kubeconfig for kubectl.

    podwire kubeconfig > FILE; KUBECONFIG=FILE kubectl get pods
    """
    import yaml

    client = options.client_of(name)
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": name, "preferences": {},
        "clusters": [{"name": name, "cluster": {"server": client.url}}],
        "users": [{"name": name, "user": {}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
    }  # fmt: skip
    click.echo(yaml.safe_dump(config, sort_keys=False), nl=False)
