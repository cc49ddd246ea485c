"""Patches: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386), Kubernetes' strategic merge patch, and the three-way merge of `apply`.

Strategic merge treats a list of objects as a map if the published schema gives it a merge key (`x-kubernetes-patch-merge-key`); the
schema is walked alongside. Directives: `$patch: delete|replace`, `$deleteFromPrimitiveList/FIELD`, `$setElementOrder/FIELD`,
`$retainKeys`. Spec: community/contributors/devel/sig-api-machinery/strategic-merge-patch.md. All functions return new values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonpatch

from emu.errors import ApiError
from emu.model import schema
from emu.store.store import Object, copied

Schema = Mapping[str, Any]

_EMPTY: Schema = {}
_MERGE_KEY = "x-kubernetes-patch-merge-key"
_STRATEGY = "x-kubernetes-patch-strategy"


def apply(media_type: str, current: Object, patch: Any) -> Object:
    """`current` with `patch` of this media type applied; ApiError 415 for a type not served, 400 or 422 for a patch that does not fit."""
    match media_type:
        case "application/merge-patch+json":
            made = merge(current, patch)
        case "application/json-patch+json":
            made = _json_patch(current, patch)
        case "application/strategic-merge-patch+json":
            made = strategic(schema.schema_of(current["apiVersion"], current["kind"]) or _EMPTY, current, patch)
        case _:
            served = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
            message = f"the body of the request was in an unknown format ({media_type}) - accepted media types include: {served}"
            raise ApiError(415, "UnsupportedMediaType", message)
    if not isinstance(made, dict):
        raise ApiError(400, "BadRequest", "the patch does not leave an object")
    return made


def merge(current: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copied(patch)
    made = dict(current) if isinstance(current, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merge(made.get(name), value)
    return made


def _json_patch(current: Object, patch: Any) -> Any:
    try:
        return jsonpatch.apply_patch(current, patch)
    except jsonpatch.JsonPatchTestFailed as error:
        raise ApiError(422, "Invalid", f"the server rejected our request due to an error in our request: {error}") from error
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError) as error:
        raise ApiError(422, "Invalid", f"the server cannot apply the JSON patch: {error}") from error


def strategic(of: Schema, current: Any, patch: Any) -> Any:
    """`current` with a strategic merge patch applied; `of` is the schema of the value."""
    if not isinstance(patch, dict):
        return copied(patch)
    directive = patch.get("$patch")
    if directive == "replace":
        return {name: copied(value) for name, value in patch.items() if name != "$patch"}
    if directive == "delete":
        return {}
    made = dict(current) if isinstance(current, dict) else {}
    if "$retainKeys" in patch:
        made = {name: value for name, value in made.items() if name in patch["$retainKeys"]}
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            made[field] = [item for item in made.get(field) or () if item not in value]
        elif name.startswith("$"):
            continue
        elif value is None:
            made.pop(name, None)
        else:
            made[name] = _strategic_field(_property(of, name), made.get(name), value, patch.get(f"$setElementOrder/{name}"))
    for name, order in patch.items():  # an order may come for a list of which nothing changes
        field = name.removeprefix("$setElementOrder/")
        if field != name and field not in patch and isinstance(made.get(field), list):
            made[field] = _ordered(made[field], order, _merge_key(_property(of, field)))
    return made


def _strategic_field(of: Schema, current: Any, value: Any, order: list[Any] | None) -> Any:
    if not isinstance(value, list):
        return strategic(schema.resolve(of) if of else _EMPTY, current, value)
    key = _merge_key(of)
    if key is None:
        if "merge" in of.get(_STRATEGY, ""):  # a list of plain values that behaves as a set
            kept = current if isinstance(current, list) else []
            return _ordered([*kept, *(item for item in value if item not in kept)], order, None)
        return copied(value)
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in value):
        return [copied(item) for item in value if item.get("$patch") != "replace"]
    items: dict[Any, Any] = {item.get(key): item for item in current or ()}
    element = schema.resolve(of["items"])
    for item in value:
        if key not in item:
            raise ApiError(400, "BadRequest", f"map: {item} does not contain declared merge key: {key}")
        if item.get("$patch") == "delete":
            items.pop(item[key], None)
        else:
            items[item[key]] = strategic(element, items.get(item[key]), item)
    return _ordered(list(items.values()), order, key)


def _ordered(items: list[Any], order: list[Any] | None, key: str | None) -> list[Any]:
    """The items that `order` names, in its order; each other one stays behind the item that it stood behind."""
    if not order:
        return items
    rank = {(entry[key] if key else entry): index for index, entry in enumerate(order)}
    named = sorted((item for item in items if _id(item, key) in rank), key=lambda item: rank[_id(item, key)])
    unnamed = [item for item in items if _id(item, key) not in rank]
    return named + unnamed


def _id(item: Any, key: str | None) -> Any:
    return item.get(key) if key else item


def _property(of: Schema, name: str) -> Schema:
    found: Any = (of.get("properties") or {}).get(name) or of.get("additionalProperties")
    return found if isinstance(found, Mapping) else _EMPTY


def _merge_key(of: Schema) -> str | None:
    return of.get(_MERGE_KEY) if "merge" in of.get(_STRATEGY, "") else None


def three_way(of: Schema, original: Any, modified: Any, current: Any) -> Any:
    """What `apply` leaves: all that `modified` says, without what only `original` said, with the rest of `current` as it is."""
    if not isinstance(modified, dict) or not isinstance(current, dict):
        return copied(modified)
    before = original if isinstance(original, dict) else {}
    made = {name: value for name, value in current.items() if name in modified or name not in before}
    for name, value in modified.items():
        field = _property(of, name)
        if isinstance(value, list):
            made[name] = _three_way_list(field, before.get(name), value, current.get(name))
        else:
            made[name] = three_way(schema.resolve(field) if field else _EMPTY, before.get(name), value, current.get(name))
    return made


def _three_way_list(of: Schema, original: Any, modified: list[Any], current: Any) -> list[Any]:
    key = _merge_key(of)
    if key is None or not isinstance(current, list) or any(key not in item for item in modified):
        return list(copied(modified))
    before = {item.get(key): item for item in original or ()}
    now = {item.get(key): item for item in current}
    element = schema.resolve(of["items"])
    said = {item[key]: three_way(element, before.get(item[key]), item, now.get(item[key])) for item in modified}
    return [*said.values(), *(item for name, item in now.items() if name not in said and name not in before)]
