"""What the API says it serves: versions, groups, resources, and OpenAPI v3 documents of the published schemas.

kubectl asks for all of it once and caches it. Both forms of discovery are answered (plain lists, and the aggregated list of KEP-3352);
the OpenAPI documents are the published types as they are, with a `patch` path a kind, which is how kubectl finds out that
this server validates fields itself. Spec: apidiscovery/v2, kubectl's openapi3 client.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from emu.api.request import JSON, Request, Response
from emu.errors import ApiError
from emu.model import schema
from emu.model.kinds import KINDS, KUBERNETES_VERSION, Kind, Treatment

VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
IN_ALL = frozenset(  # what `kubectl get all` lists
    "pods services deployments replicasets statefulsets daemonsets jobs cronjobs replicationcontrollers horizontalpodautoscalers".split()
)
SCALED = frozenset(("deployments", "replicasets", "statefulsets", "replicationcontrollers"))
PODWIRE_GROUP, PODWIRE_VERSION = "podwire.dev", "v1alpha1"
SERVED = tuple(kind for kind in KINDS if kind.treatment is not Treatment.REQUEST)

_SUBRESOURCES: dict[str, dict[str, tuple[str, list[str]]]] = {  # plural -> name -> (kind, verbs)
    "pods": {
        "log": ("Pod", ["get"]),
        "exec": ("PodExecOptions", ["create", "get"]),
        "binding": ("Binding", ["create"]),
    },
}


def answer(request: Request) -> Response | None:
    """The answer to a discovery path, or None if the path is another's. They are there to be read: 405 for any other verb."""
    known = _known(request)
    if known is not None and request.method not in ("GET", "HEAD"):
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    return known


def _known(request: Request) -> Response | None:
    parts = [part for part in request.path.split("/") if part]
    match parts:
        case ["version"]:
            return Response(version())
        case ["healthz" | "readyz" | "livez", *_]:
            return Response(b"ok", content_type="text/plain")
        case ["api" | "apis"]:
            return _aggregated(request, parts[0]) or Response(_groups(parts[0]))
        case ["api", "v1"]:
            return Response(_resources("", "v1"))
        case ["apis", group]:
            return Response(_group(group))
        case ["apis", group, number]:
            return Response(_resources(group, number))
        case ["openapi", "v3", *path]:
            return Response(_openapi("/".join(path)))
        case []:
            return Response({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/openapi/v3", "/version"]})
    return None


def version() -> dict[str, str]:
    major, minor, _ = KUBERNETES_VERSION.split(".")
    return {"major": major, "minor": minor, "gitVersion": f"v{KUBERNETES_VERSION}", "goVersion": "", "platform": "linux/amd64"}


def _versions(group: str) -> list[str]:
    return list(dict.fromkeys(kind.version for kind in SERVED if kind.group == group)) or (
        [PODWIRE_VERSION] if group == PODWIRE_GROUP else []
    )


def _groups(root: str) -> dict[str, Any]:
    if root == "api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    names = [*dict.fromkeys(kind.group for kind in SERVED if kind.group), PODWIRE_GROUP]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(name) for name in names]}


def _group(group: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{group}/{number}", "version": number} for number in _versions(group)]
    if not versions:
        raise not_served()
    return {"kind": "APIGroup", "apiVersion": "v1", "name": group, "versions": versions, "preferredVersion": versions[0]}


def not_served() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def subresources(kind: Kind) -> Iterator[tuple[str, str, list[str]]]:
    """(name, kind, verbs) of what lies below one object of a kind."""
    if "status" in (schema.schema_of(kind.api_version, kind.kind) or {}).get("properties", {}):
        yield "status", kind.kind, ["get", "patch", "update"]
    if kind.resource in SCALED:
        yield "scale", "Scale", ["get", "patch", "update"]
    for name, (kind_name, verbs) in _SUBRESOURCES.get(kind.plural, {}).items():
        yield name, kind_name, verbs


def _resources(group: str, number: str) -> dict[str, Any]:
    if number not in _versions(group):
        raise not_served()
    listed: list[dict[str, Any]] = []
    for kind in SERVED:
        if (kind.group, kind.version) != (group, number):
            continue
        entry = {"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind, "verbs": VERBS}
        listed.append({**entry, **_also_known_as(kind)})
        for name, kind_name, verbs in subresources(kind):
            scale = {"group": "autoscaling", "version": "v1"} if name == "scale" else {}
            below = {"name": f"{kind.plural}/{name}", "singularName": "", "namespaced": kind.namespaced, "kind": kind_name, "verbs": verbs}
            listed.append({**below, **scale})
    group_version = f"{group}/{number}" if group else number
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}


def _also_known_as(kind: Kind) -> dict[str, Any]:
    short = {"shortNames": list(kind.short_names)} if kind.short_names else {}
    return {**short, **({"categories": ["all"]} if kind.resource in IN_ALL else {})}


def _aggregated(request: Request, root: str) -> Response | None:
    """The aggregated form, if the client asked for a version of it."""
    accept = request.headers.get("accept", "")
    wanted = next((number for number in ("v2", "v2beta1") if f"v={number};as=APIGroupDiscoveryList" in accept), None)
    if wanted is None:
        return None
    groups = [""] if root == "api" else list(dict.fromkeys(kind.group for kind in SERVED if kind.group))
    items = [
        {
            "metadata": {"name": group, "creationTimestamp": None},
            "versions": [_aggregated_version(group, number) for number in _versions(group)],
        }
        for group in groups
    ]
    body = {"kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{wanted}", "metadata": {}, "items": items}
    return Response(body, content_type=f"{JSON};g=apidiscovery.k8s.io;v={wanted};as=APIGroupDiscoveryList")


def _aggregated_version(group: str, number: str) -> dict[str, Any]:
    return {
        "version": number,
        "freshness": "Current",
        "resources": [
            {
                "resource": kind.plural,
                "responseKind": {"group": group, "version": number, "kind": kind.kind},
                "scope": "Namespaced" if kind.namespaced else "Cluster",
                "singularResource": kind.singular,
                "verbs": VERBS,
                **_also_known_as(kind),
                "subresources": [
                    {"subresource": name, "responseKind": {**_scale_or(group, number, name), "kind": kind_name}, "verbs": verbs}
                    for name, kind_name, verbs in subresources(kind)
                ],
            }
            for kind in SERVED
            if (kind.group, kind.version) == (group, number)
        ],
    }


def _scale_or(group: str, number: str, name: str) -> dict[str, str]:
    return {"group": "autoscaling", "version": "v1"} if name == "scale" else {"group": group, "version": number}


@lru_cache(maxsize=8)  # a document is megabytes, and kubectl asks for one at each apply
def _openapi(path: str) -> bytes:
    import json

    group_versions = list(dict.fromkeys((kind.group, kind.version) for kind in SERVED))
    prefixes = {(f"apis/{group}/{number}" if group else f"api/{number}"): (group, number) for group, number in group_versions}
    if not path:
        urls = {prefix: {"serverRelativeURL": f"/openapi/v3/{prefix}?hash={KUBERNETES_VERSION}"} for prefix in prefixes}
        return json.dumps({"paths": urls}).encode()
    if path not in prefixes:
        raise not_served()
    kinds = [kind for kind in SERVED if (kind.group, kind.version) == prefixes[path]]
    paths = {f"/{path}/{'namespaces/{namespace}/' if kind.namespaced else ''}{kind.plural}/{{name}}": _operations(kind) for kind in kinds}
    info = {"title": "Kubernetes", "version": f"v{KUBERNETES_VERSION}"}
    return json.dumps({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": _schemas(kinds)}}).encode()


def _operations(kind: Kind) -> dict[str, Any]:
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldManager", "fieldValidation")]
    gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    return {
        verb: {"parameters": parameters, "responses": {}, "x-kubernetes-action": verb, "x-kubernetes-group-version-kind": gvk}
        for verb in ("get", "patch", "put")
    }


def _schemas(kinds: list[Kind]) -> dict[str, Any]:
    """The kinds' types and all that they refer to, in OpenAPI's dialect: one type each, no nulls, references below components."""
    wanted = [name for kind in kinds for name in (schema.name_of(kind.api_version, kind.kind),) if name]
    made: dict[str, Any] = {}
    while wanted:
        name = wanted.pop()
        if name not in made:
            made[name] = _openapi_schema(schema.definitions()[name], wanted)
    return made


def _openapi_schema(value: Any, wanted: list[str]) -> Any:
    if isinstance(value, list):
        return [_openapi_schema(item, wanted) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("$ref"), str):
        name = value["$ref"].rsplit("/", 1)[1]
        wanted.append(name)
        rest = {key: item for key, item in value.items() if key != "$ref"}
        return {**rest, "allOf": [{"$ref": f"#/components/schemas/{name}"}]}
    made = {key: _openapi_schema(item, wanted) for key, item in value.items()}
    if isinstance(made.get("type"), list):
        made["type"] = next(name for name in made["type"] if name != "null")
    return made
