"""What Kubernetes has no verb for: the group podwire.dev/v1alpha1 on the same server.

GET  status                                 the cluster as the controller sees it, and what is stored but not emulated
GET  publications                           the last updates that were broadcast to nodes, and when
GET  nodes/N/{rules,conntrack,routes}       what node N's kernel holds now
GET  nodes/N/swaps                          when its rules followed which update
POST nodes/N/fault  {"state": ...}          killed, paused, resumed, started, restarted
ANY  faults[/NAME]                          faults on links (see `emu.api.faults`)
GET  tuns, nodes/N/tun                      TUN devices; POST and DELETE: see `tuns`
POST traces         {...}                   send one packet that tells its way
POST nodes/N/flow   {"src", "dst", ...}     what may become of a first packet there, every end with its probability
POST nodes/N/proxy  {"state": ...}          its kube-proxy: stopped (rules stay, updates stop), restarted
POST captures       {...}                   packets as devices see them, as a pcapng stream
POST apply          {"objects": [...]}      create or update all of them in one transaction, or none
POST state          {"objects": [...]}      take them over as they stand, status included
"""

from __future__ import annotations

from typing import Any

from emu.api import apply, faults, state, tuns
from emu.api.calls import NodeCalls
from emu.api.discovery import PODWIRE_GROUP, PODWIRE_VERSION, not_served
from emu.api.request import Deferred, Request, Response, Streamed
from emu.errors import ApiError
from emu.observe.pcapng import MEDIA_TYPE
from emu.registry import emulation
from emu.registry.registry import Registry

ROOT = ("apis", PODWIRE_GROUP, PODWIRE_VERSION)
FAULTS = ("killed", "paused", "resumed", "started", "restarted")
_ASKED_OF_NODES = ("rules", "conntrack", "routes", "swaps")
_TOLD_TO_NODES = ("fault", "flow", "proxy")
_CREATED = ("captures", "traces", "apply", "state", *(f"nodes/{what}" for what in _TOLD_TO_NODES))
_VERBS = {
    "faults": ["create", "delete", "deletecollection", "list"],
    "nodes/tun": ["get", "create", "delete"],
    **{name: ["create"] for name in _CREATED},
}
_PATIENCE = 10.0  # seconds for a node to print its tables: a million rules take it about five


def answer(request: Request, registry: Registry) -> Response | Deferred | Streamed | None:
    """The answer to a path of this group, or None if the path is another's."""
    parts = tuple(part for part in request.path.split("/") if part)
    if parts[:3] != ROOT:
        return None
    if len(parts) == 3:
        return Response(_resources()) if request.method == "GET" else None
    match request.method, *parts[3:]:
        case "GET", "status":
            return Deferred(lambda calls: _status(calls, registry))
        case "GET", "publications":
            return Deferred(_publications)
        case "GET", "nodes", node, what if what in _ASKED_OF_NODES:
            return _of_node(registry, node, what, dict(request.query))
        case "POST", "nodes", node, "fault":
            return _fault(registry, node, request.decoded())
        case _, "faults", *rest:
            return faults.answer(request, registry, tuple(rest))
        case "POST", "nodes", node, ("flow" | "proxy") as what:
            return _of_node(registry, node, what, _mapping(request.decoded()))
        case "GET", "tuns":
            return tuns.listing(registry)
        case ("GET" | "POST" | "DELETE") as method, "nodes", node, "tun", *device if len(device) == (method == "DELETE"):
            _known_node(registry, node)
            if method == "GET":
                return tuns.listing(registry, node)
            return tuns.remove(registry, node, device[0]) if device else tuns.add(registry, node, request.decoded())
        case "POST", "traces":
            return _trace(request.decoded())
        case "POST", "captures":
            return _capture(request.decoded())
        case "POST", "apply":
            return apply.apply(request, registry)
        case "POST", "state":
            return state.adopt(request, registry)
    raise not_served()


def _resources() -> dict[str, Any]:
    names = (
        "status",
        "publications",
        "traces",
        "captures",
        "apply",
        "state",
        "faults",
        "tuns",
        "nodes/tun",
        *(f"nodes/{what}" for what in (*_ASKED_OF_NODES, *_TOLD_TO_NODES)),
    )
    listed = [
        {
            "name": name,
            "singularName": "",
            "namespaced": False,
            "kind": "PodwireRequest",
            "verbs": _VERBS.get(name, ["get"]),
        }
        for name in names
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{PODWIRE_GROUP}/{PODWIRE_VERSION}", "resources": listed}


async def _status(calls: NodeCalls, registry: Registry) -> Response:
    idle = [entry._asdict() for entry in emulation.summary(registry.store)]
    return Response({**calls.status(), "revision": registry.store.revision, "notEmulated": idle})


async def _publications(calls: NodeCalls) -> Response:
    return Response({"items": calls.publications()})


def _mapping(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ApiError(400, "BadRequest", "a JSON object is wanted")
    return body


def _known_node(registry: Registry, node: str) -> None:
    if registry.store.get("nodes", "", node) is None:
        raise ApiError(404, "NotFound", f'nodes "{node}" not found', details={"name": node, "kind": "nodes"})


def _of_node(registry: Registry, node: str, what: str, params: dict[str, str]) -> Deferred:
    _known_node(registry, node)

    async def run(calls: NodeCalls) -> Response:
        return Response(await calls.call(node, what, params, _PATIENCE))

    return Deferred(run)


def _fault(registry: Registry, node: str, body: Any) -> Deferred:
    _known_node(registry, node)
    state = body.get("state") if isinstance(body, dict) else None
    if state not in FAULTS:
        raise ApiError(422, "Invalid", f"state: Unsupported value: {state!r}: supported values: {', '.join(FAULTS)}")

    async def run(calls: NodeCalls) -> Response:
        return Response(await calls.fault(node, state))

    return Deferred(run)


def _trace(body: Any) -> Deferred:
    described = _mapping(body)

    async def run(calls: NodeCalls) -> Response:
        return Response(await calls.trace(described))

    return Deferred(run)


def _capture(body: Any) -> Streamed:
    described = _mapping(body)
    return Streamed(lambda calls: calls.capture(described), MEDIA_TYPE)
