"""`podwire demo`: the shop on a few real nodes, told in six steps, every claim of which is checked, not just printed.

A step prints what it does and what came of it; `Stage.claim` judges. The command fails if one claim did not hold. The cluster
is on a leash throughout, so however the story ends, nothing of it is left.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from emu.errors import ConfigError, PodwireError
from emu.model.cluster import ClusterSpec
from launcher import bringup, control, execution, manifests, references, rundir, startup
from launcher.client import MERGE_PATCH, Client, path_of
from launcher.display import tables
from launcher.display import trace as picture
from launcher.display.progress import Progress

SHOP = Path(__file__).resolve().parent.parent / "configs" / "shop"
VIP = "10.96.0.10"
SETTLE = 15.0  # seconds for anything to come about
CALM = 10  # requests in a row that must be answered once the loss is known
ENOUGH = 12  # requests that show who answers

Pod = dict[str, Any]


class Stage:
    """The cluster in the making and what is said about it. `failed` are the claims that did not hold."""

    def __init__(self, starting: startup.Starting, client: Client) -> None:
        self.starting, self.client = starting, client
        self.failed: list[str] = []

    def heading(self, text: str) -> None:
        click.echo("\n" + click.style(text, bold=True))

    def command(self, text: str) -> None:
        """The command a user would type for what follows."""
        click.echo(click.style(f"  $ podwire {text}", dim=True))

    def say(self, text: str) -> None:
        for line in text.splitlines():
            click.echo(f"  {line}")

    def claim(self, text: str, holds: object, otherwise: str = "") -> None:
        mark = click.style("✓", fg="green") if holds else click.style("✗", fg="red")
        click.echo(f"  {mark} {text}" + ("" if holds or not otherwise else f": {otherwise}"))
        if not holds:
            self.failed.append(text)

    # ---- the cluster ----

    def pods(self, app: str) -> list[Pod]:
        """The ready pods of an app, by name."""
        pods = self.client.list(startup.resource("pods"), "default", labelSelector=f"app={app}")
        return sorted((pod for pod in pods if references.is_ready(pod)), key=lambda pod: str(pod["metadata"]["name"]))

    def curl(self, pod: Pod, url: str, *flags: str) -> str:
        """What the pod's curl printed; "" if it failed."""
        status, out, _ = execution.output(self.client, "default", pod["metadata"]["name"], ["curl", "-s", *flags, url])
        return out.strip() if status == 0 else ""

    def ask_until(self, pod: Pod, url: str, everybody: set[str], limit: int = 60) -> Counter[str]:
        """Request until everybody has answered at least once, or `limit` requests were made: who answered how often."""
        answers: Counter[str] = Counter()
        while answers.total() < limit and (not everybody <= answers.keys() or answers.total() < ENOUGH):
            answers[self.curl(pod, url, "--max-time", "2")] += 1
        return answers

    def routes(self, node: str) -> Any:
        return self.client.podwire("GET", f"nodes/{node}/routes")["routes"]


def run(nodes: int) -> None:
    """Tell the whole story. PodwireError if a claim did not hold."""
    if not SHOP.is_dir():
        raise ConfigError("the demo runs from a checkout: its manifests are not here", source=str(SHOP))
    if nodes < 3:
        raise ConfigError("the demo kills a node and goes on with the others: it takes at least 3", where="--nodes")
    spec = ClusterSpec.from_mapping({"name": f"demo-{os.getpid()}", "nodes": nodes, "debugAssertions": True}, source="demo")
    began = time.monotonic()
    found = manifests.read([str(SHOP)])
    manifests.check(spec, found)
    with startup.on_leash(spec) as starting:
        with Progress() as progress:
            client, _ = bringup.bring_up(starting, found, progress, wait=True, deadline=began + 60)
        stage = Stage(starting, client)
        introduce(stage, time.monotonic() - began)
        shopper, server = request(stage)
        follow(stage, shopper, server)
        grow(stage, shopper)
        lose_a_node(stage, shopper)
        processes = pids(stage)
    take_leave(stage, processes)
    click.echo(f"\n{time.monotonic() - began:.1f} s in all")
    if stage.failed:
        raise PodwireError("\n".join(f"did not hold: {claim}" for claim in stage.failed))


def introduce(stage: Stage, seconds: float) -> None:
    count = len(stage.starting.spec.nodes)
    stage.heading(f"1. {count} nodes and a shop, from manifests: {seconds:.1f} s")
    stage.command(f"up --nodes {count} -f configs/shop")
    rows, spread = [], {}
    for app in ("web", "order-service", "catalog-service"):
        pods = stage.pods(app)
        spread[app] = [pod["spec"]["nodeName"] for pod in pods]
        rows += [[pod["metadata"]["name"], pod["status"]["podIP"], pod["spec"]["nodeName"]] for pod in pods]
    stage.say("\n".join(tables.columns(["POD", "IP", "NODE"], rows)))
    services = [service for service in stage.client.list(startup.resource("services"), "default") if service["spec"].get("selector")]
    stage.say("\n".join(tables.columns(["SERVICE", "CLUSTER-IP", "PORT"], [_service_row(service) for service in services])))
    stage.claim("every app has two ready pods, on two nodes", all(len(on) == 2 == len(set(on)) for on in spread.values()), str(spread))


def _service_row(service: dict[str, Any]) -> list[str]:
    port = service["spec"]["ports"][0]
    return [service["metadata"]["name"], service["spec"]["clusterIP"], f"{port['port']} -> {port['targetPort']}"]


def request(stage: Stage) -> tuple[Pod, Pod]:
    """To the VIP and to a pod elsewhere. The client pod, and that other pod."""
    shopper = stage.pods("web")[0]
    name, home = shopper["metadata"]["name"], shopper["spec"]["nodeName"]
    orders = {pod["metadata"]["name"]: pod for pod in stage.pods("order-service")}
    stage.heading(f"2. Requests from {name} on {home}")
    stage.command(f"exec {name} -- curl -s http://{VIP}/hostname")
    answers = stage.ask_until(shopper, f"http://{VIP}/hostname", set(orders))
    for answer, times in sorted(answers.items()):
        where = orders[answer]["spec"]["nodeName"] if answer in orders else "?"
        stage.say(f"{answer or 'nobody'} on {where} answered {times} of {answers.total()} requests")
    stage.claim("both pods of order-service answer for its ClusterIP, and nobody else", set(answers) == set(orders), str(dict(answers)))
    server = next((pod for pod in orders.values() if pod["spec"]["nodeName"] != home), None)
    if server is None:
        raise PodwireError(f"no pod of order-service is on another node than {home}")
    url = f"http://{server['status']['podIP']}:8080/clientip"
    stage.command(f"exec {name} -- curl -s {url}")
    seen = stage.curl(shopper, url)
    stage.say(f"{server['metadata']['name']} on {server['spec']['nodeName']} saw the client {seen or '(no answer)'}")
    stage.claim("between pods on two nodes there is no NAT", seen.rpartition(":")[0] == shopper["status"]["podIP"], seen)
    return shopper, server


def follow(stage: Stage, shopper: Pod, server: Pod) -> None:
    name = shopper["metadata"]["name"]
    stage.heading("3. One packet of them, followed through the Service")
    stage.command(f"trace {name} svc/order-service --brief")
    ends = {pod["status"]["podIP"]: pod for pod in stage.pods("order-service")}
    for _ in range(20):  # a pod is picked at random; show one that is on another node
        asked = references.trace_request(stage.client, name, "svc/order-service", "default", port=None, proto=None)
        result = stage.client.podwire("POST", "traces", asked)
        backend = ends.get((result.get("backend") or "").rpartition(":")[0])
        if backend is not None and backend["spec"]["nodeName"] == server["spec"]["nodeName"]:
            break
    picture.show(asked, result, brief=True, indent="  ")
    stage.claim(
        "it is delivered to a pod of order-service", result["outcome"] == "delivered" and backend is not None, str(result.get("backend"))
    )
    direct = references.trace_request(stage.client, name, f"pod/{server['metadata']['name']}", "default", port="8080", proto=None)
    to_pod = stage.client.podwire("POST", "traces", direct)
    crossed = [len({hop["node"] for hop in each["request"]}) for each in (result, to_pod)]
    stage.claim(
        f"it crosses {crossed[0]} nodes, as a packet straight to the pod does: no proxy on the way", crossed[0] == crossed[1], str(crossed)
    )


def grow(stage: Stage, shopper: Pod) -> None:
    stage.heading("4. order-service from two pods to four")
    stage.command("scale deployment/order-service --replicas 4")
    home = shopper["spec"]["nodeName"]
    before, old = stage.routes(home), {pod["metadata"]["name"] for pod in stage.pods("order-service")}
    path = path_of(startup.resource("deployments"), "default", "order-service", "scale")
    began = time.monotonic()
    stage.client.request("PATCH", path, {"spec": {"replicas": 4}}, content_type=MERGE_PATCH)
    stage.starting.wait(lambda: len(stage.pods("order-service")) == 4, began + SETTLE, "for four pods of order-service")
    seconds = time.monotonic() - began
    pods = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in stage.pods("order-service")}
    answers = stage.ask_until(shopper, f"http://{VIP}/hostname", set(pods), limit=100)
    for pod, node in pods.items():
        stage.say(f"{pod} on {node} answered {answers[pod]} of {answers.total()} requests" + ("" if pod in old else "  (new)"))
    stage.claim(
        f"all four were Ready {seconds:.2f} s after the command, and all four answer", set(answers) == set(pods), str(dict(answers))
    )
    stage.claim(f"no route of {home} has changed", before == stage.routes(home))


def lose_a_node(stage: Stage, shopper: Pod) -> None:
    orders = stage.pods("order-service")
    home = shopper["spec"]["nodeName"]
    victim = next(pod["spec"]["nodeName"] for pod in orders if pod["spec"]["nodeName"] != home)
    doomed = {pod["metadata"]["name"] for pod in orders if pod["spec"]["nodeName"] == victim}
    stage.heading(f"5. {victim} dies (SIGKILL), with {len(doomed)} of 4 pods of order-service; traffic goes on")
    stage.command(f"fault node {victim} kill")
    stage.client.podwire("POST", f"nodes/{victim}/fault", {"state": "killed"})
    killed = time.monotonic()
    traffic, noticed = Traffic(), None
    with Progress("requests go on"):
        while time.monotonic() - killed < SETTLE and (noticed is None or traffic.in_a_row < CALM):
            if noticed is None and not startup.condition(stage.client.get(startup.resource("nodes"), "", victim), "Ready"):
                noticed = time.monotonic() - killed
                traffic.in_a_row = 0  # from here on all must be answered
            traffic.note(stage.curl(shopper, f"http://{VIP}/hostname", "--max-time", "0.4"))
    total = traffic.by.total() + traffic.unanswered
    stage.say(f"{traffic.by.total()} of {total} requests were answered, by {len(traffic.by)} pods; {traffic.unanswered} timed out")
    grace = stage.starting.spec.timings.node_grace
    stage.claim(f"it is NotReady {noticed or 0:.1f} s later, when its lease of {grace:g} s has run out", noticed)
    stage.claim("its pods answered none of the requests, the others' did throughout", traffic.by and not doomed & traffic.by.keys())
    stage.claim(f"since then every request is answered ({traffic.in_a_row} in a row)", traffic.in_a_row >= CALM)


class Traffic:
    """What became of requests: how many each pod answered, how many nobody did, how many were answered in a row."""

    def __init__(self) -> None:
        self.by: Counter[str] = Counter()
        self.unanswered = self.in_a_row = 0

    def note(self, answer: str) -> None:
        if answer:
            self.by[answer] += 1
            self.in_a_row += 1
        else:
            self.unanswered += 1
            self.in_a_row = 0


def pids(stage: Stage) -> list[int]:
    """All processes of the cluster."""
    seen = control.ask(stage.starting.run, {"status": True})
    lives = [seen["controller"], seen["zygote"], *seen["nodes"]]
    return [seen["pid"], *(life["pid"] for life in lives if life["pid"])]


def take_leave(stage: Stage, processes: list[int]) -> None:
    stage.heading("6. Everything is taken down")
    stage.command("down")
    left = [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    stage.claim(f"none of {len(processes)} processes is left", not left, str(left))
    stage.claim("no socket and no file is left", not rundir.of(stage.starting.spec.name).path.exists())
