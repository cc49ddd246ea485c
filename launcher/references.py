"""Words for objects on the command line: `pods`, `pod NAME`, `deployment/web`, `svc/shop/web:80`, and whom `exec` and `trace` mean.

Words are read as kubectl reads them. FROM and TO of a trace are brought into one full form, so that the server needs no defaults:
pod/NS/NAME, node/NAME, svc/NS/NAME:PORT, IP or IP:PORT.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from emu.errors import ApiError, ConfigError, PodwireError
from emu.model.kinds import BY_GVK, Kind, kind_named
from emu.wire.addr import SockAddr, parse_ip
from launcher.client import Client, path_of

PATIENCE = 30.0  # seconds, beside a pod's own grace period, for a deleted object to be gone
DEFAULT_GRACE = 30.0  # seconds, core/v1 PodSpec.terminationGracePeriodSeconds
WORKLOADS = ("deployments", "replicasets", "services", "statefulsets", "daemonsets")


class Reference(NamedTuple):
    """A kind and maybe one object of it; namespace "" means all of them (or a kind that has none)."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        group = f".{self.kind.group}" if self.kind.group else ""
        return f"{self.kind.singular}{group}/{self.name}"


def kind(word: str) -> Kind:
    """The kind that a word means. ConfigError if there is none."""
    found = kind_named(word)
    if found is None:
        raise ConfigError(f"there is no resource type {word!r}")
    return found


def parse(words: Sequence[str], namespace: str) -> list[Reference]:
    """`pods,svc`, `pod a b`, `pod/a svc/b`: references as kubectl reads them. ConfigError for an unknown type."""

    def made(word: str, name: str) -> Reference:
        found = kind(word)
        return Reference(found, namespace if found.namespaced else "", name)

    if any("/" in word for word in words):
        if not all(word.count("/") == 1 and all(word.split("/")) for word in words):
            raise ConfigError("TYPE/NAME and TYPE NAME do not mix")
        return [made(*word.split("/")) for word in words]
    types = [word for word in words[0].split(",") if word]
    return [made(word, name) for word in types for name in words[1:] or [""]]


def of_object(obj: dict[str, Any], namespace: str) -> Reference:
    """The reference to a manifest's object."""
    found = BY_GVK[obj["apiVersion"], obj["kind"]]
    return Reference(found, (obj["metadata"].get("namespace") or namespace) if found.namespaced else "", obj["metadata"].get("name", ""))


def delete(client: Client, references: Sequence[Reference], *, wait: bool, ignore_not_found: bool = False) -> Iterator[str]:
    """Delete one after the other, telling of each; then wait. Goes on after one that is not there, and raises at the end."""
    grace = 0.0
    missing: list[ApiError] = []
    waiting: list[tuple[Reference, str, str]] = []
    for reference in references:
        path = path_of(reference.kind, reference.namespace, reference.name)
        try:
            found = client.request("GET", path)
            uid = found["metadata"]["uid"]
            grace = max(grace, found.get("spec", {}).get("terminationGracePeriodSeconds") or DEFAULT_GRACE)
            client.request("DELETE", path, {"propagationPolicy": "Background"})
        except ApiError as error:
            if error.code != 404:
                raise
            missing.append(error)
            continue
        waiting.append((reference, path, uid))
        yield f'{str(reference).partition("/")[0]} "{reference.name}" deleted'
    patience = PATIENCE + grace
    deadline = time.monotonic() + patience
    while wait and (waiting := [one for one in waiting if is_there(client, *one[1:])]):
        if time.monotonic() > deadline:
            raise PodwireError(f"{waiting[0][0]} is still there after {patience:.0f} s")
        time.sleep(0.02)
    if missing and not ignore_not_found:
        raise PodwireError("\n".join(str(error) for error in missing))


def is_there(client: Client, path: str, uid: str) -> bool:
    """Is the object at an API path still the one with this uid?"""
    try:
        found = client.request("GET", path)
    except ApiError as error:
        if error.code == 404:
            return False
        raise
    return bool(found["metadata"]["uid"] == uid)


# ---- pods ---------------------------------------------------------------------------------------------------------------


def pod(client: Client, word: str, namespace: str) -> tuple[str, str]:
    """Namespace and name of the pod that NAME, pod/NAME, pod/NS/NAME or deployment/NAME (its first ready pod) means."""
    parts = word.split("/")
    if len(parts) == 1:
        parts = ["pods", word]
    if len(parts) == 3:
        namespace = parts[1]
    if len(parts) > 3 or not all(parts):
        raise ConfigError(f"{word!r} names no pod; write NAME, pod/NAME or pod/NAMESPACE/NAME")
    found, name = kind(parts[0]), parts[-1]
    if found.resource == "pods":
        return namespace, _known_pod(client, namespace, name)
    if found.resource not in WORKLOADS:
        raise ConfigError(f"{word!r}: a {found.singular} has no pods")
    return namespace, _first_ready(client, found, namespace, name)


def _known_pod(client: Client, namespace: str, name: str) -> str:
    """The name if there is such a pod; else the 404, with what may have been meant."""
    try:
        client.get(kind("pods"), namespace, name)
    except ApiError as error:
        if error.code != 404:
            raise
        for word in ("deployments", "services"):
            if any(obj["metadata"]["name"] == name for obj in client.list(kind(word), namespace)):
                raise PodwireError(
                    f"there is no pod {name!r} in namespace {namespace!r}; did you mean {kind(word).singular}/{name}?"
                ) from None
        raise PodwireError(f"there is no pod {name!r} in namespace {namespace!r}") from None
    return name


def _first_ready(client: Client, found: Kind, namespace: str, name: str) -> str:
    spec = client.get(found, namespace, name)["spec"]
    labels = spec.get("selector") or {}
    labels = labels.get("matchLabels") or {} if found.resource != "services" else labels
    if not labels:
        raise PodwireError(f"{found.singular}/{name} has no selector by labels")
    pods = client.list(kind("pods"), namespace, labelSelector=",".join(f"{key}={value}" for key, value in labels.items()))
    ready: list[str] = [p["metadata"]["name"] for p in pods if is_ready(p)]
    if not ready:
        raise PodwireError(f"no pod of {found.singular}/{name} is ready")
    return min(ready)


def is_ready(pod: dict[str, Any]) -> bool:
    """Ready, and not on its way out."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return "deletionTimestamp" not in pod["metadata"] and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


# ---- the ends of a trace ------------------------------------------------------------------------------------------------


def trace_request(client: Client, source: str, target: str, namespace: str, *, port: str | None, proto: str | None) -> dict[str, Any]:
    """The body of a trace request."""
    to = _end(client, target, namespace)
    if port is not None and to.startswith("svc/") and ":" in to:
        raise ConfigError(f"TO names a port already: {target}")
    request: dict[str, Any] = {"from": _end(client, source, namespace), "to": to}
    if port is not None:
        request["port"] = int(port) if port.isdigit() else port
    if proto is not None:
        request["proto"] = proto
    return request


def _end(client: Client, word: str, namespace: str) -> str:
    """FROM or TO in its full form."""
    if word == "outside" or _is_address(word):
        return word
    head, slash, rest = word.partition("/")
    if slash and kind(head).resource == "nodes":
        return f"node/{rest}"
    if slash and kind(head).resource == "services":
        name, colon, port = rest.partition(":")
        return f"svc/{name if '/' in name else f'{namespace}/{name}'}{colon}{port}"
    return "pod/{}/{}".format(*pod(client, word, namespace))


def _is_address(word: str) -> bool:
    try:
        parse_ip(word)
    except ValueError:
        try:
            SockAddr.parse(word)
        except ValueError:
            return False
    return True
