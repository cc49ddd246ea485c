"""Manifests: YAML or JSON files to objects, each remembered with where it came from.

Reads as kubectl does (multi-document files, `List` kinds, directories in name order, YAML 1.1 booleans, JSON keys are strings),
but a key given twice is an error, not a silent loss. Knows names and shapes of documents, not schemas: those are judged where
the objects are sent. Every failure is a ConfigError with file, document and object.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from emu.errors import ConfigError
from emu.model.kinds import BY_GVK, unknown_kind

SUFFIXES = (".yaml", ".yml", ".json")


class Manifest(NamedTuple):
    """One object and its origin: `source` is the file ("-" for standard input), `document` counts its documents from 1."""

    source: str
    document: int
    object: dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """YAML as JSON sees it: string keys, no dates, and no key twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # <<: what it brings may be overridden
            continue
        key = _key(loader.construct_object(key_node, deep=True), key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f'key "{key}" already set in map', key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return {_key(loader.construct_object(k, deep=True), k): loader.construct_object(v, deep=True) for k, v in node.value}


def _key(key: object, node: yaml.Node) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return str(key).lower()
    if isinstance(key, int | float):
        return str(key)
    raise yaml.constructor.ConstructorError(None, None, "a key must be a string", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)
_Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)


def read(paths: Iterable[str | Path]) -> list[Manifest]:
    """All objects of files and directories, in order; "-" is standard input. ConfigError for the first thing that is wrong."""
    return [manifest for path in paths for source, text in _texts(path) for manifest in parse(text, source)]


def _texts(path: str | Path) -> Iterator[tuple[str, str]]:
    if str(path) == "-":
        yield "-", sys.stdin.read()
        return
    path = Path(path)
    files = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ConfigError(f"no manifest in it ({', '.join(SUFFIXES)})", source=str(path))
    for file in files:
        try:
            yield str(file), file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(getattr(error, "strerror", None) or str(error), source=str(file)) from error


def parse(text: str, source: str = "-") -> list[Manifest]:
    """The objects of one file's text. ConfigError for bad YAML, a key given twice, or a document that is no Kubernetes object."""
    made: list[Manifest] = []
    for number, document in enumerate(values(text, source), 1):
        if document is not None:
            made += objects(document, source, f"document {number}", number)
    return made


def values(text: str, source: str = "-") -> list[Any]:
    """The YAML documents of a text as JSON values, under the same rules; ConfigError if it does not parse."""
    try:
        return list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        raise ConfigError(_problem(error), source=source, where=_line(error)) from error


def objects(value: object, source: str, where: str, document: int = 1) -> list[Manifest]:
    """The objects of one JSON value: itself, or a List's items. ConfigError unless they are Kubernetes objects."""
    return [Manifest(source, document, obj) for obj in _objects(value, source, where)]


def _problem(error: yaml.YAMLError) -> str:
    return f"not valid YAML: {getattr(error, 'problem', None) or error}"


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def _objects(document: object, source: str, where: str) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict):
        raise ConfigError("not a Kubernetes object: a map with apiVersion, kind and metadata is wanted", source=source, where=where)
    if isinstance(document.get("items"), list) and str(document.get("kind", "")).endswith("List"):
        for index, item in enumerate(document["items"]):
            yield from _objects(item, source, f"{where}: items[{index}]")
        return
    _check(document, source, where)
    yield document


def _check(obj: dict[str, Any], source: str, where: str) -> None:
    for field in ("apiVersion", "kind"):
        if not isinstance(obj.get(field), str) or not obj[field]:
            raise ConfigError(f"{field}: Required value", source=source, where=f"{where}: {describe(obj)}" if obj.get("kind") else where)
    if (obj["apiVersion"], obj["kind"]) not in BY_GVK:
        raise ConfigError(unknown_kind(obj["apiVersion"], obj["kind"]), source=source, where=describe(obj))
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name") or metadata.get("generateName"), str):
        raise ConfigError("metadata.name: Required value", source=source, where=f"{where}: {obj['kind']}")


def describe(obj: dict[str, Any]) -> str:
    """`Service shop/web`, `Node node-1`: how messages name an object."""
    metadata = obj.get("metadata") if isinstance(obj.get("metadata"), dict) else {}
    assert metadata is not None
    name = metadata.get("name") or metadata.get("generateName") or "?"
    namespace = metadata.get("namespace")
    return f"{obj.get('kind', '?')} {f'{namespace}/' if namespace else ''}{name}"


def value(text: str, source: str = "") -> Any:
    """One YAML or JSON document as a JSON value, under the same rules; ConfigError if it does not parse."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader's subclass
    except yaml.YAMLError as error:
        raise ConfigError(_problem(error), source=source, where=_line(error)) from error
