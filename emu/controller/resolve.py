"""FROM and TO of a trace as a person writes them, to a place and an address. Pure; ApiError says what was not found or not clear.

    FROM  pod/NAME, pod/NS/NAME, node/NAME
    TO    svc/NAME, svc/NS/NAME, pod/…, node/NAME, IP; each with :PORT if wanted (a number, or the name of a port)

Without a port: a Service's only port, else ICMP echo.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, NoReturn

from emu.errors import ApiError
from emu.store.store import Object, Store

KINDS = {"pod": "pods", "pods": "pods", "node": "nodes", "nodes": "nodes", "svc": "services", "service": "services", "services": "services"}
PROTOCOLS = ("tcp", "udp", "icmp")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a probe is sent: a node, and a namespace on it (`node` or `pod/NS/NAME`)."""

    node: str
    netns: str


@dataclass(frozen=True, slots=True)
class Target:
    """Where to: an address, `port` None for icmp."""

    ip: str
    port: int | None
    proto: str


def _unclear(message: str) -> NoReturn:
    raise ApiError(400, "BadRequest", message)


def source(store: Store, text: str, namespace: str) -> Source:
    """The place that FROM names."""
    kind, _, _ = text.partition("/")
    if KINDS.get(kind) not in ("pods", "nodes"):
        _unclear(f"from: {text!r} is not pod/NAME, pod/NAMESPACE/NAME or node/NAME")
    obj = _find(store, text, namespace)
    if KINDS[kind] == "nodes":
        return Source(obj["metadata"]["name"], "node")
    node = obj["spec"].get("nodeName")
    if not node:
        _unclear(f"from: {text} is on no node yet")
    return Source(node, f"pod/{obj['metadata']['namespace']}/{obj['metadata']['name']}")


def target(store: Store, text: str, namespace: str, port: Any = None, proto: str | None = None) -> Target:
    """The address that TO names. `port` (a number or a name) and `proto` are the flags, None for not given."""
    if proto is not None and proto not in PROTOCOLS:
        _unclear(f"proto: {proto!r} is not one of {', '.join(PROTOCOLS)}")
    place, own_port = _split_port(text)
    if own_port and port not in (None, ""):
        _unclear(f"to: {text} has a port already; do not give another")
    wanted = str(own_port or (port if port is not None else ""))
    kind = KINDS.get(place.partition("/")[0])
    if kind is None:
        return _plain(_ip(place), wanted, proto)
    obj = _find(store, place, namespace)
    if kind == "services":
        return _service(obj, wanted, proto)
    if kind == "pods":
        ip = (obj.get("status") or {}).get("podIP")
        if not ip:
            _unclear(f"to: {place} has no address yet")
        return _plain(ip, _pod_port(obj, wanted), proto)
    addresses = (obj.get("status") or {}).get("addresses") or ()
    return _plain(next(a["address"] for a in addresses if a["type"] == "InternalIP"), wanted, proto)


def _split_port(text: str) -> tuple[str, str]:
    """`IP:PORT`, `[IPv6]:PORT` or `kind/…:PORT` in two; the port "" if there is none."""
    if text.startswith("["):
        place, _, rest = text[1:].partition("]")
        return place, rest.removeprefix(":")
    place, colon, port = text.rpartition(":")
    return (place, port) if colon and ":" not in place else (text, "")


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        _unclear(f"to: {text!r} is not svc/…, pod/…, node/NAME or an IP address")


def _find(store: Store, text: str, namespace: str) -> Object:
    kind, *names = text.split("/")
    resource = KINDS[kind]
    if resource == "nodes":
        namespace, name = "", "/".join(names)
    elif len(names) == 2:
        namespace, name = names
    elif len(names) == 1:
        namespace, name = namespace or "default", names[0]
    else:
        _unclear(f"{text!r} is not {kind}/NAME or {kind}/NAMESPACE/NAME")
    found = store.get(resource, namespace, name)
    if found is None:
        where = f" in namespace {namespace}" if namespace else ""
        raise ApiError(404, "NotFound", f'{resource} "{name}" not found{where}', details={"name": name, "kind": resource})
    return found


def _service(service: Object, wanted: str, proto: str | None) -> Target:
    meta, spec = service["metadata"], service["spec"]
    ip, ports = spec.get("clusterIP"), spec.get("ports") or []
    name = f"svc/{meta['namespace']}/{meta['name']}"
    if not ip or ip == "None":
        _unclear(f"to: {name} has no cluster IP; trace to one of its pods")
    if proto == "icmp":
        return Target(ip, None, "icmp")
    fitting = [p for p in ports if proto is None or p.get("protocol", "TCP").lower() == proto]
    if not wanted:
        if len(fitting) != 1 and proto is None:
            return Target(ip, None, "icmp")  # no port stands out, so the address itself is asked
        if len(fitting) != 1:
            _unclear(f"to: {name} has {len(fitting)} ports; say which: {_listed(ports)}")
        return Target(ip, fitting[0]["port"], fitting[0].get("protocol", "TCP").lower())
    for port in fitting:
        if wanted in (str(port["port"]), port.get("name")):
            return Target(ip, port["port"], port.get("protocol", "TCP").lower())
    if not wanted.isdigit():
        _unclear(f"to: {name} has no port named {wanted!r}; it has {_listed(ports)}")
    return _plain(ip, wanted, proto)  # a port that the Service does not have is worth a trace


def _listed(ports: list[Object]) -> str:
    return ", ".join(f"{port['port']}" + (f" ({port['name']})" if port.get("name") else "") for port in ports)


def _pod_port(pod: Object, wanted: str) -> str:
    """A named container port as its number."""
    if not wanted or wanted.isdigit():
        return wanted
    for container in pod["spec"].get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("name") == wanted:
                return str(port["containerPort"])
    _unclear(f"to: the pod has no port named {wanted!r}")


def _plain(ip: str, wanted: str, proto: str | None) -> Target:
    if proto == "icmp" or (proto is None and not wanted):
        return Target(ip, None, "icmp")
    if not wanted:
        _unclear(f"port: {proto} needs one")
    if not wanted.isdigit() or not 0 < int(wanted) < 65536:
        _unclear(f"port: {wanted!r} is not a port number")
    return Target(ip, int(wanted), proto or "tcp")
