"""`podwire up`: from flags and files to a cluster whose nodes are Ready and whose objects are as their specs want them.

Everything that can be wrong in a file is found before a process starts. However it fails after that, nothing stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emu.errors import ConfigError, PodwireError
from emu.model.cluster import ClusterSpec
from emu.model.manifest import Manifest
from launcher import manifests, startup
from launcher.client import Client
from launcher.display.progress import Progress

FLAGS = {
    "debug_assertions": "debugAssertions",
    "nodes": "nodes",
    "cni": "cni",
    "proxy": "proxy",
    "profile": "profile",
    "seed": "seed",
    "api_port": "apiPort",
    "name": "name",
}


def spec(flags: Mapping[str, Any], config: str | None, paths: Sequence[str], filenames: Sequence[str]) -> ClusterSpec:
    """The checked spec of a cluster file with flags over it. ConfigError names the file, or the flag's key."""
    from emu.proxy.config import ProxyConfig

    mapping = read_config(config) if config else {}
    body = mapping.setdefault("spec", {}) if "kind" in mapping else mapping
    for flag, value in flags.items():
        if value is not None:
            body[FLAGS[flag]] = value
    if flags.get("name") is not None:
        mapping.pop("metadata", None)
    here = [*body.get("path", []), *paths] or [
        name if os.path.isdir(name) else os.path.dirname(name) or "." for name in filenames if name != "-"
    ]
    body["path"] = [os.path.abspath(path) for path in dict.fromkeys(here)]
    made = ClusterSpec.from_mapping(mapping, source=config or "")
    try:
        ProxyConfig.parse(made.proxy, cluster_cidr=made.pod_cidr)
    except ConfigError as error:
        raise ConfigError(error.problem, source=config or "", where=error.where) from None
    return made


def read_config(path: str) -> dict[str, Any]:
    """A cluster file as a mapping."""
    from emu.model import manifest

    try:
        value = manifest.value(Path(path).read_text("utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(getattr(error, "strerror", None) or str(error), source=path) from error
    if not isinstance(value, dict):
        raise ConfigError("a cluster file is a mapping", source=path)
    return value


def run(spec: ClusterSpec, filenames: Sequence[str], *, wait: bool, timeout: float, quiet: bool = False) -> dict[str, Any]:
    """Bring it up and leave it running; what to tell of it. PodwireError if it does not come about, with nothing left of it."""
    started = time.monotonic()
    found = manifests.read(filenames) if filenames else []
    if found:
        manifests.check(spec, found)
    with Progress() as progress, startup.on_leash(spec) as starting:
        client, results = bring_up(starting, found, progress, wait=wait, deadline=started + timeout)
        starting.release()
    manifests.report(results, quiet=quiet)
    told = {
        "name": spec.name,
        "url": client.url,
        "nodes": len(spec.nodes),
        "profile": spec.profile,
        "run_dir": os.fspath(starting.run.path),
    }
    told["seconds"] = round(time.monotonic() - started, 3)
    if not quiet:
        print(
            f"cluster {spec.name!r} is up: {_nodes(len(spec.nodes))}, profile {spec.profile}, API at {client.url}, {told['seconds']:.1f} s"
        )
    return told


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def bring_up(
    starting: startup.Starting, found: Sequence[Manifest], progress: Progress, *, wait: bool, deadline: float
) -> tuple[Client, list[dict[str, Any]]]:
    """Wait for API, nodes, objects; a client, and what became of the objects."""
    progress.say("starting controller and zygote")
    client = starting.client(deadline)
    if wait:
        wait_nodes(starting, client, progress, deadline)  # before the objects, so that pods spread over all of them
    results = manifests.apply(client, found) if found else []
    if wait:
        wait_workloads(starting, client, progress, deadline)
    return client, results


def wait_nodes(starting: startup.Starting, client: Client, progress: Progress, deadline: float) -> None:
    """Until all nodes are Ready."""
    count = len(starting.spec.nodes)

    def nodes() -> bool:
        ready = startup.ready_nodes(client)
        progress.say(f"{ready} of {count} nodes Ready")
        return ready >= count

    starting.wait(nodes, deadline, f"for {count} nodes to be Ready")


def wait_workloads(starting: startup.Starting, client: Client, progress: Progress, deadline: float) -> None:
    """Until all workloads are as wanted."""
    lacking: list[str] = []

    def workloads() -> bool:
        lacking[:] = startup.unready(client)
        progress.say(lacking[0] if lacking else "all ready")
        return not lacking

    try:
        starting.wait(workloads, deadline, "for workloads")
    except PodwireError as error:
        raise PodwireError(f"{error}: {'; '.join(lacking[:5])}" if lacking else str(error)) from None
