"""From a file to checked scenarios. Decides how a step is written (a value, fields, or both) and what a scenario's cluster is.

A step is one key of what it does, whose value is its fields or what they stand for (`advance: 5s`, `delete: deployment/web`); `name`,
`expect` and `settle` stand beside it, and so may its fields. Node objects under `manifests` make up the cluster's nodes, where
`cluster.nodes` does not say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.errors import ConfigError
from emu.model import manifest
from emu.model.cluster import API_VERSION, ClusterSpec
from emu.model.manifest import Manifest
from emu.model.quantities import nearest
from emu.proxy.config import ProxyConfig
from launcher.scenarios import shapes

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One step. `where` is its path in the document; `expect` None means that it must just succeed."""

    kind: str
    fields: Any
    where: str
    name: str = ""
    expect: Json | None = None
    settle: bool = True
    steps: tuple[Step, ...] = ()  # of `repeat`

    def __str__(self) -> str:
        return self.name or self.kind


@dataclass(frozen=True, slots=True)
class Scenario:
    """One document. `outside` names hosts beyond the cluster; `cluster` is what a cluster file would say."""

    name: str
    source: str
    description: str
    cluster: Json
    outside: Mapping[str, str]
    manifests: tuple[Manifest, ...]
    steps: tuple[Step, ...]
    spec: ClusterSpec = field(repr=False)

    @property
    def directory(self) -> Path:
        """What its paths are relative to."""
        return Path(self.source).parent if self.source != "-" else Path()


def find(paths: list[str]) -> list[str]:
    """The scenario files that files and directories stand for. ConfigError if a directory has none."""
    found: list[str] = []
    for path in map(Path, paths):
        inside = sorted(str(file) for file in path.rglob("*.yaml") if is_scenario(file)) if path.is_dir() else [str(path)]
        if not inside:
            raise ConfigError("no scenario in it", source=str(path))
        found += inside
    return found


def is_scenario(file: Path) -> bool:
    """Does the file hold a Scenario? Cheap: it is not parsed."""
    try:
        return any(line.strip() == "kind: Scenario" for line in file.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False


def read(path: str, *, run_dir: str = "/") -> list[Scenario]:
    """The scenarios of one file. ConfigError for the first thing that is wrong."""
    try:
        content = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(getattr(error, "strerror", None) or str(error), source=path) from error
    documents = [value for value in manifest.values(content, path) if value is not None]
    if not documents:
        raise ConfigError("there is no scenario in it", source=path)
    return [_scenario(document, path, run_dir) for document in documents]


def _scenario(document: Any, source: str, run_dir: str) -> Scenario:
    shapes.keys(dict.fromkeys(shapes.DOCUMENT, shapes.anything))(document, "", source)
    if (document.get("apiVersion"), document.get("kind")) != (API_VERSION, "Scenario"):
        raise ConfigError(f"a scenario says apiVersion: {API_VERSION} and kind: Scenario", source=source)
    metadata = shapes.keys({"name": shapes.text, "description": shapes.text, "labels": shapes.anything, "annotations": shapes.anything})(
        document.get("metadata") or {}, "metadata", source
    )
    if "name" not in metadata:
        raise ConfigError("name must be given", source=source, where="metadata")
    spec = shapes.keys(dict.fromkeys(shapes.SPEC, shapes.anything), need=("steps",))(document.get("spec"), "spec", source)
    cluster = dict(shapes.mapping_of(shapes.anything)(spec.get("cluster") or {}, "spec.cluster", source))
    outside = shapes.OUTSIDE(cluster.pop("outside", None) or {}, "spec.cluster.outside", source).get("addresses", {})
    found = tuple(_manifests(spec.get("manifests") or [], source))
    nodes = [each.object for each in found if each.object["kind"] == "Node"]
    cluster.setdefault("profile", "kubernetes")
    cluster.setdefault("path", [str(Path(source).parent.resolve())])
    if nodes:
        cluster["nodes"] = _nodes(cluster.get("nodes"), nodes)
    steps = tuple(_steps(spec["steps"], "spec.steps", source))
    return Scenario(
        metadata["name"], source, metadata.get("description", ""), cluster, outside,
        tuple(each for each in found if each.object["kind"] != "Node"), steps, _cluster_spec(cluster, source, run_dir),
    )  # fmt: skip


def _cluster_spec(cluster: Json, source: str, run_dir: str) -> ClusterSpec:
    one_family: Json = {key: _first(cluster[key]) for key in ("podCIDR", "serviceCIDR") if key in cluster}
    try:
        spec = ClusterSpec.from_mapping({"name": "scenario", **cluster, **one_family}, source=source, run_dir=run_dir)
        ProxyConfig.parse(spec.proxy, cluster_cidr=spec.pod_cidr)
    except ConfigError as error:
        where = f"spec.cluster.{error.where}" if error.where else "spec.cluster"
        raise ConfigError(error.problem, source=source, where=where) from None
    return spec


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _manifests(given: Any, source: str) -> Iterator[Manifest]:
    """Objects inline, and those of files and directories, in order."""
    for index, item in enumerate(given if isinstance(given, list) else [given]):
        where = f"spec.manifests[{index}]"
        if isinstance(item, str):
            yield from manifest.read([_beside(source, item)])
        elif isinstance(item, Mapping):
            yield from manifest.objects(dict(item), source, where)
        else:
            raise ConfigError(f"must be a path or an object, not {item!r}", source=source, where=where)


def _beside(source: str, path: str) -> Path:
    return Path(path) if Path(path).is_absolute() else Path(source).parent / path


def _nodes(given: Any, objects: list[Json]) -> Any:
    """The cluster file's nodes: its own list, completed by Node objects of the same name, or what the objects say."""
    told = {obj["metadata"]["name"]: _node(obj) for obj in objects}
    if not isinstance(given, list):
        return list(told.values())
    return [{**told.get(node.get("name", ""), {}), **node} if isinstance(node, dict) else node for node in given]


def _node(obj: Json) -> Json:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    addresses = [each["address"] for each in status.get("addresses") or () if each.get("type") in ("InternalIP", "ExternalIP")]
    made: Json = {"name": obj["metadata"]["name"], "labels": dict(obj["metadata"].get("labels") or {})}
    return {**made, **({"addresses": addresses} if addresses else {}), **({"podCIDR": spec["podCIDR"]} if spec.get("podCIDR") else {})}


# ---- steps -----------------------------------------------------------------------------------------------------------------------


def _steps(given: Any, where: str, source: str) -> Iterator[Step]:
    if not isinstance(given, list):
        raise ConfigError(f"must be a list of steps, not {given!r}", source=source, where=where)
    for index, item in enumerate(given):
        yield _step(item, f"{where}[{index}]", source)


def _step(given: Any, where: str, source: str) -> Step:
    if not isinstance(given, Mapping):
        raise ConfigError(f"a step is a mapping with one key that says what it does, not {given!r}", source=source, where=where)
    kinds = [key for key in given if key in shapes.FIELDS or key in (*shapes.PLANNED, "repeat")]
    if len(kinds) > 1 and "fault" in kinds:  # `dns` and others are also what can be broken
        kinds = ["fault"]
    if not kinds:
        known = (*shapes.FIELDS, *shapes.PLANNED, "repeat")
        strange = next((str(key) for key in given if key not in shapes.STEP_KEYS), "")
        hint = f"; did you mean {nearest(strange, known)}?" if strange else ""
        raise ConfigError(f"no key of it says what the step does{hint}", source=source, where=f"{where}.{strange}" if strange else where)
    if len(kinds) > 1:
        raise ConfigError(f"a step does one thing, not {' and '.join(kinds)}", source=source, where=where)
    kind = kinds[0]
    if kind in shapes.PLANNED:
        raise ConfigError(f"{kind} steps are not emulated yet", source=source, where=f"{where}.{kind}")
    name = shapes.text(given["name"], f"{where}.name", source) if "name" in given else ""
    settle = shapes.flag(given["settle"], f"{where}.settle", source) if "settle" in given else True
    if kind == "repeat":
        return _repeat(given, name, where, source)
    fields, expect = _fields(kind, given, where, source)
    return Step(kind, fields, where, name, _expectation(kind, expect, f"{where}.expect", source), settle)


def _repeat(given: Mapping[str, Any], name: str, where: str, source: str) -> Step:
    table = {"times": shapes.count, "steps": shapes.anything}
    told = shapes.keys(table, need=("times", "steps"))(given["repeat"], f"{where}.repeat", source)
    return Step("repeat", {"times": told["times"]}, where, name, steps=tuple(_steps(told["steps"], f"{where}.repeat.steps", source)))


def _fields(kind: str, given: Mapping[str, Any], where: str, source: str) -> tuple[Any, Any]:
    """The step's fields, wherever they stand, and its raw expectation."""
    value, shape = given[kind], shapes.FIELDS[kind]
    beside = {key: item for key, item in given.items() if key != kind and key not in shapes.STEP_KEYS}
    if kind == "advance":
        if beside:
            raise ConfigError("unknown key beside advance", source=source, where=f"{where}.{next(iter(beside))}")
        return shape(value, f"{where}.advance", source), given.get("expect")
    alias = shapes.ALIASES.get(kind)
    is_fields = isinstance(value, Mapping) and not (alias == "objects" and "apiVersion" in value)
    if not is_fields and alias is None:
        raise ConfigError(f"must be a mapping, not {value!r}", source=source, where=f"{where}.{kind}")
    told = dict(value) if is_fields else {str(alias): value}
    expect = told.pop("expect", given.get("expect"))
    renamed = shapes.OTHER_NAMES.get(kind, {})
    told = {renamed.get(key, key): item for key, item in {**told, **beside}.items()}
    return shape(told, f"{where}.{kind}", source), expect


def _expectation(kind: str, given: Any, where: str, source: str) -> Json | None:
    if given is None:
        return None
    shape = shapes.EXPECTATIONS.get(kind)
    if shape is None:
        raise ConfigError(f"a {kind} step has nothing to expect", source=source, where=where)
    expected: Json = shape(given, where, source)
    return expected
