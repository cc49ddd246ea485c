"""Faults on links, as the API has them: made, listed, ended. Objects of the store, so that no restart of the controller loses one.

GET    faults            all of them, with what each has done so far (`status`: segments lost, cut, delayed …, summed over nodes)
POST   faults {…}        a fault as a Scenario's step writes it: {"link": "A->B", "delay": "20ms", …} or {"partition": [[A, …], [B, …]]}
DELETE faults/ID         end one
DELETE faults            end all; `?link=A->B` those of one link

What a fault means and which one decides is told in `emu.model.links`. A new fault takes the place of those of the same link that it
leaves nothing of. Refusals are 422 with the path and what would be right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from emu.api.calls import NodeCalls
from emu.api.request import Deferred, Request, Response
from emu.bus.views import FAULTS
from emu.errors import ApiError, ConfigError
from emu.model.links import Fault, Link, Place, check_words, read_fault
from emu.model.objects import ZONE_LABEL
from emu.registry.registry import Registry
from emu.store.store import Object

Read = TypeVar("Read")
API_VERSION, KIND = "podwire.dev/v1alpha1", "Fault"


def answer(request: Request, registry: Registry, rest: tuple[str, ...]) -> Response | Deferred:
    """The answer to a path below `faults`."""
    match request.method, *rest:
        case ("GET",):
            return Deferred(lambda calls: _list(registry, calls))
        case ("POST",):
            return Response(_make(registry, request.decoded()), 201)
        case ("DELETE",):
            link = request.first("link")
            return Response(_ended(_end(registry, _of_link(link) if link else lambda fault: True)))
        case "DELETE", name:
            ended = _end(registry, lambda fault: fault.name == name)
            if not ended:
                raise ApiError(404, "NotFound", f'faults "{name}" not found', details={"name": name, "kind": FAULTS})
            return Response(_ended(ended))
    raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


async def _list(registry: Registry, calls: NodeCalls) -> Response:
    done = calls.fault_counters()
    items = [{**item, "status": done.get(item["metadata"]["name"], {})} for item in _in_order(registry)]
    return Response({"kind": "FaultList", "apiVersion": API_VERSION, "metadata": {}, "items": items})


def _in_order(registry: Registry) -> list[Object]:
    return sorted(registry.store.list(FAULTS)[0], key=lambda item: int(item["metadata"]["resourceVersion"]))


def _ended(items: list[Object]) -> dict[str, Any]:
    return {"kind": "FaultList", "apiVersion": API_VERSION, "metadata": {}, "items": items}


def _make(registry: Registry, spec: Any) -> Object:
    store = registry.store
    made = _checked(lambda: read_fault(spec))
    nodes = store.list("nodes")[0]
    places = [Place(node["metadata"]["name"], (node["metadata"].get("labels") or {}).get(ZONE_LABEL, "")) for node in nodes]
    _checked(lambda: check_words(made, places))
    with store.transaction():
        _end(registry, lambda fault: fault.link is not None and fault.link == made.link and fault.sets.keys() <= made.sets.keys())
        metadata = {"name": f"fault-{store.revision + 1}", "uid": registry.new_uid(), "creationTimestamp": registry.now()}
        return store.create(FAULTS, {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec})


def _end(registry: Registry, chosen: Callable[[Fault], bool]) -> list[Object]:
    """Remove the faults that are chosen; what they were."""
    with registry.store.transaction():
        return [
            registry.store.delete(FAULTS, "", item["metadata"]["name"])
            for item in _in_order(registry)
            if chosen(read_fault(item["spec"], item["metadata"]["name"]))
        ]


def _of_link(text: str) -> Callable[[Fault], bool]:
    """Is a fault on this link? A<->B means both directions' own faults too, and A->B not half of a fault on A<->B."""
    link = _checked(lambda: Link.parse(text))
    ends = {link.source, link.target}

    def chosen(fault: Fault) -> bool:
        if fault.link is None:
            return False
        return {fault.link.source, fault.link.target} == ends if link.both else fault.link == link

    return chosen


def _checked(read: Callable[[], Read]) -> Read:
    """What is read; 422 for what is wrong in it."""
    try:
        return read()
    except ConfigError as error:
        message = f"{KIND} is invalid: {error}"
        cause = {"reason": "FieldValueInvalid", "message": error.problem, "field": error.where}
        raise ApiError(422, "Invalid", message, causes=(cause,), details={"kind": KIND}) from None
