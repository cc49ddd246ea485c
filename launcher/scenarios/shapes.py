"""The keys of a Scenario and what their values must be: tables, and the one reader that applies them.

Every complaint names file and path, and for an unknown key the nearest valid one. Decides shapes only; what a cluster's settings
mean is `emu.model.cluster`'s, what objects must look like is the API's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from emu.errors import ConfigError
from emu.model.quantities import duration, nearest

Shape = Callable[[Any, str, str], Any]
"""Takes a value, its path and the file's name; gives the value as the runner uses it. ConfigError if it is no such value."""


def _fail(problem: str, where: str, source: str) -> ConfigError:
    return ConfigError(problem, source=source, where=where)


def text(value: Any, where: str, source: str) -> str:
    if not isinstance(value, str) or not value:
        raise _fail(f"must be a text, not {value!r}", where, source)
    return value


def flag(value: Any, where: str, source: str) -> bool:
    if not isinstance(value, bool):
        raise _fail(f"must be true or false, not {value!r}", where, source)
    return value


def count(value: Any, where: str, source: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _fail(f"must be a number, not {value!r}", where, source)
    return value


def seconds(value: Any, where: str, source: str) -> float:
    return duration(value, where, source)


def anything(value: Any, where: str, source: str) -> Any:
    return value


def word(*allowed: str) -> Shape:
    def read(value: Any, where: str, source: str) -> str:
        if value not in allowed:
            raise _fail(f"{value!r} is not one of {', '.join(allowed)}", where, source)
        return str(value)

    return read


def upper(*allowed: str) -> Shape:
    """One of these words, in any case."""

    def read(value: Any, where: str, source: str) -> str:
        return str(word(*allowed)(value.upper() if isinstance(value, str) else value, where, source))

    return read


def several(inner: Shape) -> Shape:
    """A list, or one value that stands for a list of one."""

    def read(value: Any, where: str, source: str) -> list[Any]:
        if not isinstance(value, list):
            return [inner(value, where, source)]
        return [inner(item, f"{where}[{index}]", source) for index, item in enumerate(value)]

    return read


def either(*shapes: Shape) -> Shape:
    """The first shape that fits; the complaint is the first one's."""

    def read(value: Any, where: str, source: str) -> Any:
        first: ConfigError | None = None
        for shape in shapes:
            try:
                return shape(value, where, source)
            except ConfigError as error:
                first = first or error
        assert first is not None
        raise first

    return read


def keys(table: Mapping[str, Shape], *, need: tuple[str, ...] = ()) -> Shape:
    """A mapping with these keys, of which `need` must be there."""

    def read(value: Any, where: str, source: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _fail(f"must be a mapping with {', '.join(table)}, not {value!r}", where, source)
        for key in value:
            if key not in table:
                path = f"{where}.{key}" if where else str(key)
                raise _fail(f"unknown key; did you mean {nearest(str(key), table)}?", path, source)
        for key in need:
            if key not in value:
                raise _fail(f"{key} must be given", where, source)
        return {key: table[key](item, f"{where}.{key}" if where else str(key), source) for key, item in value.items()}

    return read


def mapping_of(inner: Shape) -> Shape:
    def read(value: Any, where: str, source: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise _fail(f"must be a mapping, not {value!r}", where, source)
        return {str(key): inner(item, f"{where}.{key}", source) for key, item in value.items()}

    return read


def address(value: Any, where: str, source: str) -> str:
    try:
        return str(ipaddress.IPv4Address(value))
    except ValueError as error:
        raise _fail(f"{value!r} is not an IPv4 address: {error}", where, source) from None


def fraction(value: Any, where: str, source: str) -> float:
    """A share of a whole: 0.5, or "1/3"."""
    try:
        top, slash, bottom = str(value).partition("/")
        share = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        share = -1.0
    if isinstance(value, bool) or not 0.0 <= share <= 1.0:
        raise _fail(f"{value!r} is not a probability such as 0.5 or 1/3", where, source)
    return share


# ---- the tables ------------------------------------------------------------------------------------------------------------------

OUTCOMES = ("delivered", "local", "rejected", "dropped", "unrouted")
PROTOCOL = upper("TCP", "UDP", "SCTP", "ICMP")
OBJECTS = several(either(text, mapping_of(anything)))
REFUSAL = keys({"status": count, "reason": text, "field": text, "message": text})
CONTENT = either(text, word(""), keys({"contains": several(text), "matches": several(text)}))
BACKENDS = either(mapping_of(fraction), several(text))

EXPECTATIONS: dict[str, Shape] = {
    **dict.fromkeys(("apply", "delete", "patch", "replace", "scale", "label"), REFUSAL),
    "wait": keys({}),
    "flow": keys({
        "outcome": word(*OUTCOMES), "backends": BACKENDS, "backend": text, "masquerade": flag, "same_backend_as": text,
        "source_seen": several(text), "rules_evaluated": either(count, keys({"min": count, "max": count})),
        "hops": either(count, several(text)), "policy": anything,
    }),
    "exec": keys({"exit": count, "stdout": CONTENT, "stderr": CONTENT}),
    "rules": keys({
        "contains": several(text), "equals": text,
        "chain": keys({"name": text, "rules": either(count, several(text))}, need=("name",)),
    }),
}  # fmt: skip

ON_OBJECTS: dict[str, Shape] = {"objects": OBJECTS, "namespace": text}

FIELDS: dict[str, Shape] = {
    **dict.fromkeys(("apply", "replace"), keys(ON_OBJECTS, need=("objects",))),
    "delete": keys({**ON_OBJECTS, "wait": flag, "grace": count}, need=("objects",)),
    "patch": keys(
        {**ON_OBJECTS, "patch": anything, "type": word("strategic", "merge", "json")}, need=("objects", "patch")
    ),
    "scale": keys({**ON_OBJECTS, "replicas": count}, need=("objects", "replicas")),
    "label": keys({**ON_OBJECTS, "labels": mapping_of(anything)}, need=("objects", "labels")),
    "wait": keys({"for": text, "condition": text, "ready": count, "within": seconds}, need=("for",)),
    "advance": seconds,
    "flow": keys({"from": text, "to": text, "protocol": PROTOCOL, "at": text, "in_interface": text}, need=("from", "to")),
    "exec": keys({"pod": text, "container": text, "command": several(either(text, anything)), "stdin": text}, need=("pod", "command")),
    "fault": keys({
        "node": text, "controller": anything, "proxy": text, "cni": text, "dns": anything, "link": text, "partition": anything,
        "heal": anything, "state": word("killed", "paused", "resumed", "started", "restarted", "stopped", "crashed"),
        "delay": anything, "jitter": anything, "loss": anything, "rate": anything, "duplicate": anything, "reorder": anything, "cut": flag,
    }),
    "rules": keys({"node": text, "format": text}, need=("node",)),
}  # fmt: skip

PLANNED = ("reach", "http", "dns", "load", "finish")
"""Steps of the format whose subject is not emulated yet."""

ALIASES = {
    "apply": "objects", "replace": "objects", "delete": "objects", "patch": "objects", "scale": "objects", "label": "objects",
    "wait": "for", "rules": "node",
}  # fmt: skip
"""What a step's value is when it is no mapping of fields."""

OTHER_NAMES = {
    kind: dict.fromkeys(("object", "reference", "ref", "target", "path", "paths", "file", "resource", "references"), "objects")
    for kind in ("apply", "replace", "delete", "patch", "scale", "label")
}
"""Other words for a field, which people use where the field is called `objects`."""

STEP_KEYS = ("name", "expect", "settle")

OUTSIDE = keys({"addresses": mapping_of(address)})
SPEC = ("cluster", "manifests", "steps")
DOCUMENT = ("apiVersion", "kind", "metadata", "spec")
