"""The Kubernetes API as a function: `Api.handle(request)` gives an answer, or what is to be streamed.

Finds the resource and the verb, decodes, lets the registry decide, and shapes the answer (object, list, Table, Status, watch). Errors
are answers too. Knows no socket; time comes from the registry's clock. Spec: "API concepts".
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Any, NamedTuple

from emu.api import discovery, patch, podwire, tables
from emu.api.fields import predicate
from emu.api.podlinks import exec_in_pod, logs_of_pod
from emu.api.request import Deferred, Exec, Logs, Request, Response, Streamed, refused
from emu.api.watch import WatchStream
from emu.errors import ApiError, ConfigError
from emu.model.kinds import BY_PATH, Kind, Treatment
from emu.registry import deletion
from emu.registry.registry import STRICT, WARN, Registry
from emu.store.store import Object, copied

Reply = Response | WatchStream | Deferred | Streamed | Logs | Exec

_VALIDATIONS = ("Ignore", WARN, STRICT)
# Whose DELETE answers with the object; all others answer with a Status (rest `returnDeletedObject`).
_DELETED_OBJECT = frozenset(
    ("pods", "services", "serviceaccounts", "persistentvolumeclaims", "persistentvolumes", "resourcequotas", "podtemplates", "namespaces")
)


class Target(NamedTuple):
    """What a path means: a kind, all namespaces ("" for none given), and maybe one object and a part of it."""

    kind: Kind
    namespace: str
    name: str
    subresource: str


class _DryRun(Exception):
    """Not an error: carries the answer out of a transaction that must not be kept."""

    def __init__(self, response: Response) -> None:
        self.response = response


class Api:
    """The API over one registry. `now` is the registry's clock: RFC 3339 text."""

    def __init__(self, registry: Registry) -> None:
        self.registry, self.store = registry, registry.store

    def handle(self, request: Request) -> Reply:
        """Answer one request; never raises for what a client sent."""
        try:
            return self._route(request)
        except ApiError as error:
            return refused(error)
        except ConfigError as error:
            return refused(ApiError(400, "BadRequest", str(error)))

    def _route(self, request: Request) -> Reply:
        known = podwire.answer(request, self.registry) or discovery.answer(request)
        if known is not None:
            return known
        target = locate(request.path)
        if target.subresource:
            return self._subresource(request, target)
        if request.method == "GET" and not target.name:
            return self._watch(request, target) if request.flag("watch") else self._list(request, target)
        if request.method == "GET":
            return self._shaped(request, target.kind, self._current(target))
        return self._write(request, target)

    def _write(self, request: Request, target: Target) -> Response:
        """A changing verb in one transaction, which a dry run leaves without a trace."""
        act = {
            ("POST", False): self._create,
            ("PUT", True): self._update,
            ("PATCH", True): self._patch,
            ("DELETE", True): self._delete,
            ("DELETE", False): self._delete_collection,
        }.get((request.method, bool(target.name)))
        if act is None:
            raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        dry = request.first("dryRun")
        if dry not in {"", "All"}:
            raise ApiError(422, "Invalid", f'dryRun: Unsupported value: "{dry}": supported values: "All"')
        try:
            with self.store.transaction():
                response = act(request, target)
                if dry:
                    raise _DryRun(response)
        except _DryRun as dry_run:
            return dry_run.response
        return response

    # --- reading -----------------------------------------------------------------------------------------------------

    def _current(self, target: Target) -> Object:
        kind = target.kind
        found = self.store.get(kind.resource, target.namespace, target.name)
        if found is None:
            details: dict[str, object] = {"name": target.name, **({"group": kind.group} if kind.group else {}), "kind": kind.plural}
            raise ApiError(404, "NotFound", f'{kind.group_resource} "{target.name}" not found', details=details)
        return found

    def _now(self) -> datetime:
        return datetime.fromisoformat(self.registry.now())

    def _shaped(self, request: Request, kind: Kind, obj: Object, status: int = 200, warnings: list[str] | None = None) -> Response:
        body = self._table(request, kind, [obj], {}) if request.wants_table() and request.method == "GET" else obj
        return Response(body, status, warnings=warnings or ())

    def _table(self, request: Request, kind: Kind, objects: list[Object], metadata: dict[str, Any]) -> dict[str, Any]:
        return tables.table(kind.resource, objects, self._now(), metadata=metadata, include=request.first("includeObject", "Metadata"))

    def _list(self, request: Request, target: Target) -> Response:
        chosen = predicate(target.kind.resource, request.first("labelSelector"), request.first("fieldSelector"))
        objects, revision = self.store.list(target.kind.resource, target.namespace or None)
        _check_version(request, revision)
        if chosen:
            objects = [obj for obj in objects if chosen(obj)]
        objects, metadata = _page(request, objects, revision)
        if request.wants_table():
            return Response(self._table(request, target.kind, objects, metadata))
        kind = target.kind
        return Response({"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": objects})

    def _watch(self, request: Request, target: Target) -> WatchStream:
        chosen = predicate(target.kind.resource, request.first("labelSelector"), request.first("fieldSelector"))
        initial = request.flag("sendInitialEvents")
        if initial and request.first("resourceVersionMatch") != "NotOlderThan":
            message = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            raise ApiError(422, "Invalid", message)
        version = request.number("resourceVersion")
        tabular = request.wants_table()
        return WatchStream(
            store=self.store,
            kind=target.kind,
            namespace=target.namespace or None,
            chosen=chosen,
            shape=(lambda obj: self._table(request, target.kind, [obj], {})) if tabular else (lambda obj: obj),
            since=None if initial or not version else version,
            mark_initial_end=initial,
            bookmarks=request.flag("allowWatchBookmarks"),
            timeout=request.number("timeoutSeconds"),
        )

    # --- writing -----------------------------------------------------------------------------------------------------

    def _create(self, request: Request, target: Target) -> Response:
        obj = _object(request.decoded())
        outcome = self.registry.create(target.kind.resource, obj, target.namespace, field_validation=_validation(request))
        return self._shaped(request, target.kind, outcome.object, 201, outcome.warnings)

    def _update(self, request: Request, target: Target) -> Response:
        obj = _named(_object(request.decoded()), target)
        outcome = self.registry.update(target.kind.resource, obj, target.namespace, field_validation=_validation(request))
        return self._shaped(request, target.kind, outcome.object, 200, outcome.warnings)

    def _patch(self, request: Request, target: Target) -> Response:
        made = _named(patch.apply(request.media_type, self._current(target), request.decoded()), target)
        outcome = self.registry.update(target.kind.resource, made, target.namespace, field_validation=_validation(request))
        return self._shaped(request, target.kind, outcome.object, 200, outcome.warnings)

    def _options(self, request: Request) -> dict[str, Any]:
        """DeleteOptions, from the body or the query."""
        options = _object(request.decoded()) if request.body else {}
        propagation = options.get("propagationPolicy") or request.first("propagationPolicy") or deletion.BACKGROUND
        if propagation not in {deletion.BACKGROUND, deletion.FOREGROUND, deletion.ORPHAN}:
            raise ApiError(422, "Invalid", f'propagationPolicy: Unsupported value: "{propagation}"')
        grace = options.get("gracePeriodSeconds")
        grace = request.number("gracePeriodSeconds") if grace is None else grace
        return {"propagation": propagation, "grace": grace, "preconditions": options.get("preconditions")}

    def _delete(self, request: Request, target: Target) -> Response:
        kind = target.kind
        gone = self.registry.delete(kind.resource, target.namespace, target.name, **self._options(request))
        if kind.resource in _DELETED_OBJECT or deletion.is_terminating(gone):
            return Response(gone)
        details = {
            "name": target.name,
            **({"group": kind.group} if kind.group else {}),
            "kind": kind.plural,
            "uid": gone["metadata"]["uid"],
        }
        return Response({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    def _delete_collection(self, request: Request, target: Target) -> Response:
        chosen = predicate(target.kind.resource, request.first("labelSelector"), request.first("fieldSelector"))
        options = self._options(request)
        objects, revision = self.store.list(target.kind.resource, target.namespace or None)
        going = [obj for obj in objects if chosen is None or chosen(obj)]
        for obj in going:
            self.registry.delete(target.kind.resource, obj["metadata"].get("namespace", ""), obj["metadata"]["name"], **options)
        kind, metadata = target.kind, {"resourceVersion": str(revision)}
        return Response({"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": metadata, "items": going})

    # --- parts of an object --------------------------------------------------------------------------------------------

    def _subresource(self, request: Request, target: Target) -> Reply:
        if target.subresource in {name for name, *_ in discovery.subresources(target.kind)}:
            match request.method, target.subresource:
                case "GET", "log":
                    return logs_of_pod(request, self._current(target))
                case (("GET" | "POST"), "exec"):
                    return exec_in_pod(request, self._current(target))
                case "POST", "binding":
                    return self._bind(request, target)
                case _, "status":
                    return self._status(request, target)
                case _, "scale":
                    return self._scale(request, target)
        raise discovery.not_served()

    def _bind(self, request: Request, target: Target) -> Response:
        node = ((_object(request.decoded()).get("target")) or {}).get("name", "")
        self.registry.bind(target.namespace, target.name, node)
        return Response({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}, 201)

    def _changed(self, request: Request, target: Target, current: Object) -> Object:
        """What a PUT or a PATCH on a part makes of `current`."""
        if request.method == "PUT":
            return _object(request.decoded())
        if request.method == "PATCH":
            return patch.apply(request.media_type, current, request.decoded())
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")

    def _status(self, request: Request, target: Target) -> Response:
        with self.store.transaction():
            current = self._current(target)
            if request.method == "GET":
                return self._shaped(request, target.kind, current)
            changed = _named(self._changed(request, target, current), target)
            return Response(self.registry.update_status(target.kind.resource, changed, target.namespace))

    def _scale(self, request: Request, target: Target) -> Response:
        with self.store.transaction():
            scale = _scale_of(self._current(target))
            if request.method == "GET":
                return Response(scale)
            wanted = self._changed(request, target, scale)
            replicas, version = (wanted.get("spec") or {}).get("replicas", 0), (wanted.get("metadata") or {}).get("resourceVersion", "")
            if not isinstance(replicas, int) or isinstance(replicas, bool):
                raise ApiError(400, "BadRequest", "spec.replicas: must be an integer")
            scaled = self.registry.scale(target.kind.resource, target.namespace, target.name, replicas, resource_version=version)
            return Response(_scale_of(scaled))


def locate(path: str) -> Target:
    """The target of an API path; ApiError 404 for a path or a resource that is not served."""
    parts = [part for part in path.split("/") if part]
    match parts:
        case ["api", "v1", *rest]:
            group, number = "", "v1"
        case ["apis", group, number, *rest]:
            pass
        case _:
            raise discovery.not_served()
    namespace = ""
    if len(rest) >= 3 and rest[0] == "namespaces" and (group, number, rest[2]) in BY_PATH:
        namespace, rest = rest[1], rest[2:]
    kind = BY_PATH.get((group, number, rest[0])) if rest else None
    if kind is None or kind.treatment is Treatment.REQUEST or len(rest) > 3 or (namespace and not kind.namespaced):
        raise discovery.not_served()
    name, subresource = [*rest[1:], "", ""][:2]
    if name and kind.namespaced and not namespace:
        raise discovery.not_served()
    return Target(kind, namespace, name, subresource)


def _object(value: Any) -> Object:
    if not isinstance(value, dict):
        raise ApiError(400, "BadRequest", "the object provided is unrecognized: a JSON object is wanted")
    return value


def _named(obj: Object, target: Target) -> Object:
    """The object with the name of its path, which its own must not contradict."""
    made: Object = copied(obj)
    metadata = _object(made.setdefault("metadata", {}))
    if metadata.setdefault("name", target.name) != target.name:
        raise ApiError(400, "BadRequest", f"the name of the object ({metadata['name']}) does not match the name on the URL ({target.name})")
    return made


def _validation(request: Request) -> str:
    wanted = request.first("fieldValidation") or WARN
    if wanted not in _VALIDATIONS:
        raise ApiError(400, "BadRequest", f'fieldValidation: Unsupported value: "{wanted}": supported values: {", ".join(_VALIDATIONS)}')
    return wanted


def _check_version(request: Request, revision: int) -> None:
    """A list at a revision that is not there yet cannot be answered, and an exact old one no longer can."""
    version, match = request.number("resourceVersion") or 0, request.first("resourceVersionMatch")
    if version > revision:
        raise ApiError(504, "Timeout", f"Too large resource version: {version}, current: {revision}")
    if match == "Exact" and version != revision:
        raise ApiError(410, "Expired", f"The resourceVersion for the provided list is too old: {version}")


def _page(request: Request, objects: list[Object], revision: int) -> tuple[list[Object], dict[str, Any]]:
    """One page of a list. A token names the key to go on after; pages of a store that changed meanwhile each show their own moment."""
    metadata: dict[str, Any] = {"resourceVersion": str(revision)}
    token, limit = request.first("continue"), request.number("limit") or 0
    if token:
        try:
            after = tuple(json.loads(base64.urlsafe_b64decode(token)))
        except (ValueError, binascii.Error) as error:
            raise ApiError(400, "BadRequest", "continue key is not valid") from error
        objects = [obj for obj in objects if _key(obj) > after]
    if limit and len(objects) > limit:
        rest = len(objects) - limit
        objects = objects[:limit]
        metadata["continue"] = base64.urlsafe_b64encode(json.dumps(_key(objects[-1])).encode()).decode()
        metadata["remainingItemCount"] = rest
    return objects, metadata


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _scale_of(obj: Object) -> Object:
    wanted = obj["spec"].get("selector") or {}
    text = ",".join(f"{key}={value}" for key, value in sorted((wanted.get("matchLabels") or {}).items()))
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: obj["metadata"][key] for key in kept if key in obj["metadata"]},
        "spec": {"replicas": obj["spec"].get("replicas", 0)},
        "status": {"replicas": (obj.get("status") or {}).get("replicas", 0), "selector": text},
    }
