"""Is an object of the shape that Kubernetes publishes? The strict OpenAPI schema of one version, walked directly.

The schemas come from the `kubernetes-validate` package and are read once, at the first question (1.5 MB: never in a node). They
use so little of JSON Schema (types, properties, items, enum, required, $ref, one oneOf of types) that walking them ourselves
costs a tenth of a general validator, finds every fault in one pass, and words each as the API server does; a test holds the
verdicts to the `jsonschema` library's. Absent and null are one, as in Kubernetes. Meaning is not judged here: see `emu/registry`.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

from emu.model.kinds import KUBERNETES_VERSION

Schema = Mapping[str, Any]

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}
_INTEGER_RANGE = {"int32": 1 << 31, "int64": 1 << 63}
_QUANTITY = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_QUANTITY_NAME = "io.k8s.apimachinery.pkg.api.resource.Quantity"


class Fault(NamedTuple):
    """One thing wrong with an object: `reason` is `unknown`, `type`, `required` or `value`; `path` is `spec.ports[0].port`."""

    reason: str
    path: str
    message: str


@lru_cache(maxsize=1)
def definitions() -> dict[str, Any]:
    """Every published type by its full name (`io.k8s.api.core.v1.Pod`): our version's, or the nearest older one that is shipped."""
    root = resources.files("kubernetes_validate").joinpath("kubernetes-json-schema")
    wanted = _minor(KUBERNETES_VERSION)
    shipped = [entry for entry in root.iterdir() if entry.name.endswith("-local-strict")]
    best = max((e for e in shipped if _minor(e.name[1:]) <= wanted), key=lambda e: _minor(e.name[1:]))
    loaded: dict[str, Any] = json.loads(best.joinpath("_definitions.json").read_bytes())["$defs"]
    return loaded


def _minor(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


@lru_cache(maxsize=1)
def _names_by_kind() -> dict[tuple[str, str], str]:
    found = {}
    for name, schema in definitions().items():
        for gvk in schema.get("x-kubernetes-group-version-kind", ()):
            api_version = f"{gvk['group']}/{gvk['version']}" if gvk["group"] else gvk["version"]
            found[api_version, gvk["kind"]] = name
    return found


def published_kinds() -> set[tuple[str, str]]:
    """(apiVersion, kind) of every published top-level object; lists and options are not objects."""
    return {
        gvk
        for gvk, name in _names_by_kind().items()
        if "metadata" in definitions()[name].get("properties", {})
        and not gvk[1].endswith("List")
        and len(definitions()[name]["x-kubernetes-group-version-kind"]) == 1
    }


def schema_of(api_version: str, kind: str) -> Schema | None:
    """The schema of a kind, or None if it is not published."""
    name = name_of(api_version, kind)
    return definitions()[name] if name else None


def name_of(api_version: str, kind: str) -> str | None:
    """The full name of a kind's type, or None if it is not published."""
    return _names_by_kind().get((api_version, kind))


def resolve(schema: Schema) -> Schema:
    """What a property's schema refers to, or itself."""
    return definitions()[_reference(schema)] if "$ref" in schema else schema


def _reference(schema: Schema) -> str:
    return str(schema["$ref"]).rsplit("/", 1)[1]


def faults(obj: Mapping[str, Any]) -> list[Fault]:
    """Everything wrong with the shape of `obj`, in the order of its fields; its kind must be a published one."""
    schema = schema_of(obj["apiVersion"], obj["kind"])
    assert schema is not None, "ask kinds.BY_GVK first"
    found: list[Fault] = []
    _check(schema, obj, "", found)
    return found


def _check(schema: Schema, value: Any, path: str, found: list[Fault]) -> None:
    if value is None:
        return
    if "$ref" in schema:
        name = _reference(schema)
        if name == _QUANTITY_NAME:
            _check_quantity(value, path, found)
            return
        schema = definitions()[name]
    # The only oneOf published is a choice between plain types: IntOrString.
    types = [name for choice in schema["oneOf"] for name in _types(choice)] if "oneOf" in schema else _types(schema)
    if types and not _is(value, types):
        found.append(Fault("type", path, f"Invalid value: {shown(value)}: must be {_article(types)}, not {_article([_type_name(value)])}"))
    elif isinstance(value, dict):
        _check_object(schema, value, path, found)
    elif isinstance(value, list):
        items = schema.get("items")
        if items is not None:
            for index, item in enumerate(value):
                _check(items, item, f"{path}[{index}]", found)
    else:
        _check_scalar(schema, value, path, found)


def _check_object(schema: Schema, value: dict[str, Any], path: str, found: list[Fault]) -> None:
    properties, additional = schema.get("properties"), schema.get("additionalProperties", True)
    prefix = f"{path}." if path else ""
    for name, item in value.items():
        known = properties.get(name) if properties else None
        if known is not None:
            _check(known, item, prefix + name, found)
        elif isinstance(additional, Mapping):
            _check(additional, item, f"{path}[{name}]", found)
        elif not additional:
            near = difflib.get_close_matches(name, list(properties or ()), n=1)
            hint = f' (did you mean "{near[0]}"?)' if near else ""
            found.append(Fault("unknown", prefix + name, f'unknown field "{prefix}{name}"{hint}'))
    for name in schema.get("required", ()):
        if value.get(name) is None:
            found.append(Fault("required", prefix + name, "Required value"))


def _check_scalar(schema: Schema, value: Any, path: str, found: list[Fault]) -> None:
    allowed = schema.get("enum")
    if allowed is not None and value not in allowed:
        found.append(Fault("value", path, f"Unsupported value: {shown(value)}: supported values: {', '.join(shown(a) for a in allowed)}"))
    form = schema.get("format")
    if form in _INTEGER_RANGE and not -_INTEGER_RANGE[form] <= value < _INTEGER_RANGE[form]:
        found.append(Fault("type", path, f"Invalid value: {value}: does not fit {form}"))
    elif form == "date-time" and not _DATE_TIME.fullmatch(value):
        found.append(Fault("type", path, f'Invalid value: {shown(value)}: must be a time such as "2026-01-02T15:04:05Z"'))
    elif form == "byte" and not _is_base64(value):
        found.append(Fault("type", path, "Invalid value: illegal base64 data"))


def _check_quantity(value: Any, path: str, found: list[Fault]) -> None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found.append(Fault("type", path, f"Invalid value: {shown(value)}: must be a quantity such as 500m or 64Mi"))
    elif isinstance(value, str) and not _QUANTITY.fullmatch(value):
        found.append(Fault("type", path, f"Invalid value: {shown(value)}: quantities are a number with a suffix, such as 500m or 64Mi"))


def _types(schema: Schema) -> list[str]:
    types = schema.get("type", [])
    return [types] if isinstance(types, str) else types


def _is(value: Any, types: list[str]) -> bool:
    if isinstance(value, bool):  # Python's booleans are integers, JSON's are not
        return "boolean" in types
    return any(isinstance(value, _JSON_TYPES[name]) for name in types)


def _type_name(value: Any) -> str:
    return next(name for name in ("boolean", "string", "integer", "number", "object", "array", "null") if _is(value, [name]))


def _article(types: list[str]) -> str:
    names = [name for name in dict.fromkeys(types) if name != "null"] or ["null"]
    return " or ".join(f"{'an' if name[0] in 'aoi' else 'a'} {name}" for name in names)


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return True


def shown(value: Any) -> str:
    """A value as the API server quotes it in messages: JSON, cut after 80 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
