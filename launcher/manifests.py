"""Manifests from the command line to the API: read, try offline, send as one set, and name the file in every complaint.

The offline trial is the API's own code on a store in memory, so that `up` refuses what the server would refuse before any process is
started. What the server alone can know (a port somebody else holds) it says itself, in the same words.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from emu.errors import ApiError, ConfigError, PodwireError
from emu.model import manifest
from emu.model.cluster import ClusterSpec
from emu.model.manifest import Manifest
from launcher.client import Client

JsonObject = dict[str, Any]


def read(filenames: Iterable[str]) -> list[Manifest]:
    """All objects of files and directories. ConfigError for the first that is no Kubernetes object, or if there is none."""
    found = manifest.read(filenames)
    if not found:
        raise ConfigError("there is no object in it", source=", ".join(filenames))
    return found


def check(spec: ClusterSpec, found: Sequence[Manifest]) -> None:
    """Try the set on an empty cluster of this spec. ConfigError with a line for each thing that is wrong."""
    from emu.api import apply as server
    from emu.api.request import Request
    from emu.registry.bootstrap import bootstrap
    from emu.registry.registry import Registry, RegistryConfig
    from emu.store.store import Store

    registry = Registry(Store(":memory:"), RegistryConfig.of(spec), lambda: "2026-01-01T00:00:00Z")
    try:
        bootstrap(registry)
        server.apply(Request("POST", "/", body=json.dumps({"objects": [each.object for each in found]}).encode()), registry)
    except ApiError as error:
        raise _complaint(error, found) from None
    finally:
        registry.store.close()


def apply(client: Client, found: Sequence[Manifest], namespace: str = "default") -> list[JsonObject]:
    """Send the set; one result an object. ConfigError naming file, object and path of all that was refused; then nothing is applied."""
    try:
        answer = client.podwire("POST", "apply", {"objects": [each.object for each in found], "namespace": namespace})
    except ApiError as error:
        raise _complaint(error, found) from None
    results: list[JsonObject] = answer["results"]
    return results


def _complaint(error: ApiError, found: Sequence[Manifest]) -> PodwireError:
    """The refusal with the file's name in front of each cause."""
    lines = []
    for cause in error.causes:
        if "index" not in cause:
            return error
        path, message = cause.get("field", ""), cause["message"]
        where = cause["object"] + (f": {path}" if path and not message.startswith("unknown field") else "")
        lines.append(str(ConfigError(message, source=found[int(cause["index"])].source, where=where)))
    return ConfigError("\n".join([*lines, "nothing was applied"])) if lines else error


def report(results: Sequence[JsonObject], *, quiet: bool = False) -> None:
    """What became of each object, as kubectl prints it; each warning once, on stderr."""
    warned: set[str] = set()
    for result in results:
        group = result["resource"].partition(".")[2]
        name = f"{result['kind'].lower()}{'.' if group else ''}{group}/{result['name']}"
        if not quiet:
            print(f"{name} {result['action']}")
        for warning in result["warnings"]:
            if warning not in warned:
                warned.add(warning)
                print(f"warning: {name}: {warning}", file=sys.stderr)
