"""TUN devices as the API has them: asked of a node at once, remembered on its Node object for the node's next life.

GET    tuns                          all of them, as their nodes see them now
GET    nodes/N/tun                   those of one node
POST   nodes/N/tun  {"netns", ...}   make one (`model.tun.TunSpec`); nothing is left of what fails
DELETE nodes/N/tun/DEVICE            take one away
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from emu.api.calls import NodeCalls
from emu.api.request import Deferred, Response
from emu.errors import ApiError
from emu.model.tun import ANNOTATION, TunSpec, annotation, specs_of
from emu.registry.registry import Registry

PATIENCE = 5.0  # seconds for a node to open a device, a matter of milliseconds

Specs = list[TunSpec]


def listing(registry: Registry, node: str = "") -> Deferred:
    """What there is, of one node or of all that have any."""
    wanted = {name: specs for name, specs in _all(registry).items() if specs and name == (node or name)}

    async def run(calls: NodeCalls) -> Response:
        parts = await asyncio.gather(*(_of_node(calls, name, specs) for name, specs in wanted.items()))
        return Response({"items": [item for part in parts for item in part]})

    return Deferred(run)


def add(registry: Registry, node: str, body: Any) -> Deferred:
    everybody = _all(registry)
    spec = TunSpec.from_mapping(body, [known.address for specs in everybody.values() for known in specs])
    _check_place(registry, node, spec, everybody)

    async def run(calls: NodeCalls) -> Response:
        made = await calls.call(node, "tun-add", spec.to_mapping(), PATIENCE)
        _remember(registry, node, lambda specs: [*specs, spec])
        return Response(made, 201)

    return Deferred(run)


def remove(registry: Registry, node: str, device: str) -> Deferred:
    """A node that cannot be asked keeps it: removing is sure, or it is an error."""

    async def run(calls: NodeCalls) -> Response:
        try:
            gone = await calls.call(node, "tun-remove", {"device": device}, PATIENCE)
        except ApiError as error:
            known = next((spec for spec in _all(registry).get(node, ()) if spec.device == device), None)
            if error.code != 404 or known is None:
                raise
            gone = known.to_mapping()  # remembered, but its node could not have it
        _remember(registry, node, lambda specs: [spec for spec in specs if spec.device != device])
        return Response(gone)

    return Deferred(run)


def _all(registry: Registry) -> dict[str, Specs]:
    return {node["metadata"]["name"]: specs_of(node["metadata"].get("annotations")) for node in registry.store.list("nodes")[0]}


async def _of_node(calls: NodeCalls, node: str, specs: Specs) -> list[dict[str, Any]]:
    try:
        answer = await calls.call(node, "tun-list", {}, PATIENCE)
    except ApiError as error:
        return [{"node": node, **spec.to_mapping(), "state": f"unknown: {error}"} for spec in specs]
    items: list[dict[str, Any]] = answer["items"]
    return items


def _check_place(registry: Registry, node: str, spec: TunSpec, everybody: dict[str, Specs]) -> None:
    """The pod is that node's, and nobody else is the way to the kernel's network."""
    if spec.pod:
        namespace, _, name = spec.pod.partition("/")
        pod = registry.store.get("pods", namespace, name)
        if pod is None:
            raise ApiError(404, "NotFound", f'pods "{name}" not found', details={"name": name, "kind": "pods"})
        if pod["spec"].get("nodeName") != node:
            raise ApiError(409, "Conflict", f"pod {spec.pod} is on node {pod['spec'].get('nodeName') or 'none yet'}, not on {node}")
        return
    for other, specs in everybody.items():
        for known in specs:
            if not known.pod and (known.ip in spec.network or spec.ip in known.network):
                raise ApiError(409, "Conflict", f"node {other} has a TUN device {known.device} to {known.network} already")


def _remember(registry: Registry, node: str, change: Callable[[Specs], Specs]) -> None:
    """Write on the Node what it has been asked for; one that was deleted meanwhile is asked for nothing."""
    found = registry.store.get("nodes", "", node)
    if found is not None:
        annotations = found["metadata"].get("annotations") or {}
        told = {**annotations, ANNOTATION: annotation(change(specs_of(annotations)))}
        registry.update("nodes", {**found, "metadata": {**found["metadata"], "annotations": told}})
