"""What each kind of step does: a table from its name to a function that acts, looks, and says what did not agree.

Objects are asked of the API as any client does; time and faults are the world's. Decides what a step's words for objects mean (a
path, an object, a reference as kubectl writes it).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emu.errors import ApiError, ConfigError
from emu.model import manifest
from emu.model.kinds import BY_GVK
from launcher import references, startup
from launcher.client import MERGE_PATCH, path_of
from launcher.references import Reference
from launcher.scenarios import judge
from launcher.scenarios.document import Scenario, Step
from launcher.scenarios.flow import Asker, Fact
from launcher.scenarios.world import World

Json = dict[str, Any]
PATCHES = {"strategic": "application/strategic-merge-patch+json", "merge": MERGE_PATCH, "json": "application/json-patch+json"}
DEFAULT_WITHIN = 60.0  # seconds that `wait` waits unless it says for how long
GRACE = 30.0  # seconds, beside a pod's own grace period, for a deleted object to be gone


@dataclass(slots=True)
class Told:
    """What a step came to: its expectation, what is there, and the parts of it that do not agree (none: it passed)."""

    expected: Json = field(default_factory=dict)
    actual: Json = field(default_factory=dict)
    wrong: tuple[str, ...] = ()
    detail: str = ""
    trace: Json | None = None


@dataclass(slots=True)
class Run:
    """A scenario under way. `broken` are nodes that nothing waits for, `facts` the flows so far by the names of their steps."""

    scenario: Scenario
    world: World
    asker: Asker
    broken: set[str] = field(default_factory=set)
    facts: dict[str, Fact] = field(default_factory=dict)


Act = Callable[[Run, Step], Told]


# ---- objects ---------------------------------------------------------------------------------------------------------------------


def _objects(run: Run, step: Step) -> Iterator[Json | Reference]:
    """What a step's `objects` are: objects (inline, or of files), or references."""
    namespace = step.fields.get("namespace", "default")
    for item in step.fields["objects"]:
        if isinstance(item, dict):
            yield from (each.object for each in manifest.objects(item, run.scenario.source, step.where))
            continue
        path = Path(item) if Path(item).is_absolute() else run.scenario.directory / item
        if path.exists() or item.endswith(manifest.SUFFIXES):
            yield from (each.object for each in manifest.read([path]))
        else:
            words = item.split()
            yield from references.parse(words if "/" in item or len(words) > 1 else [item], namespace)


def _whole(run: Run, step: Step) -> list[Json]:
    found = list(_objects(run, step))
    wrong = next((item for item in found if isinstance(item, Reference)), None)
    if wrong is not None:
        raise ConfigError(f"{step.kind} needs objects or files, not the reference {wrong}", where=step.where)
    return [item for item in found if isinstance(item, dict)]


def _named(run: Run, step: Step) -> list[Reference]:
    namespace = step.fields.get("namespace", "default")
    found = [item if isinstance(item, Reference) else references.of_object(item, namespace) for item in _objects(run, step)]
    if any(not reference.name for reference in found):
        raise ConfigError("say which one: TYPE/NAME", where=step.where)
    return found


def _judged(step: Step, requests: Callable[[], object]) -> Told:
    """Make requests that must succeed, or be refused as the step expects."""
    error: ApiError | None = None
    try:
        requests()
    except ApiError as refused:
        error = refused
    if step.expect:
        if step.expect.get("status") in (200, 201) and error is None:
            return Told()
        verdict = judge.refusal(step.expect, error)
        return Told(*verdict, detail=error.message if error and verdict.wrong else "")
    if error is not None:
        return Told({"status": "accepted"}, {"status": error.code, "reason": error.reason, "message": error.message}, ("status",))
    return Told()


def _apply(run: Run, step: Step) -> Told:
    objects, namespace = _whole(run, step), step.fields.get("namespace", "default")
    return _judged(step, lambda: run.world.client.podwire("POST", "apply", {"objects": objects, "namespace": namespace}))


def _replace(run: Run, step: Step) -> Told:
    client, namespace = run.world.client, step.fields.get("namespace", "default")

    def requests() -> None:
        for obj in _whole(run, step):
            kind = BY_GVK[obj["apiVersion"], obj["kind"]]
            where = (obj["metadata"].get("namespace") or namespace) if kind.namespaced else ""
            path = path_of(kind, where, obj["metadata"]["name"])
            current = client.request("GET", path)
            metadata = {**obj["metadata"], "resourceVersion": current["metadata"]["resourceVersion"]}
            client.request("PUT", path, {**obj, "metadata": metadata})

    return _judged(step, requests)


def _delete(run: Run, step: Step) -> Told:
    client = run.world.client
    uids: dict[str, str] = {}
    patience = 0.0

    def requests() -> None:
        nonlocal patience
        for reference in _named(run, step):
            path = path_of(reference.kind, reference.namespace, reference.name)
            found = client.request("GET", path)
            uids[path] = found["metadata"]["uid"]
            grace = step.fields.get("grace", (found.get("spec") or {}).get("terminationGracePeriodSeconds") or 0)
            patience = max(patience, float(grace))
            options = {
                "propagationPolicy": "Background",
                **({"gracePeriodSeconds": step.fields["grace"]} if "grace" in step.fields else {}),
            }
            client.request("DELETE", path, options)

    def gone() -> bool:
        return not any(references.is_there(client, path, uid) for path, uid in uids.items())

    told = _judged(step, requests)
    if not told.wrong and step.fields.get("wait", False) and not run.world.until(gone, patience + GRACE):
        return Told({"deleted": "gone"}, {"deleted": f"still there after {patience + GRACE:g} s"}, ("deleted",))
    return told


def _patch(run: Run, step: Step) -> Told:
    kind = step.fields.get("type") or ("json" if isinstance(step.fields["patch"], list) else "strategic")
    body = manifest.value(step.fields["patch"]) if isinstance(step.fields["patch"], str) else step.fields["patch"]
    return _patched(run, step, body, PATCHES[kind])


def _patched(run: Run, step: Step, body: Any, content_type: str, subresource: str = "") -> Told:
    """The same patch for every object that the step names."""

    def requests() -> None:
        for reference in _named(run, step):
            path = path_of(reference.kind, reference.namespace, reference.name, subresource)
            run.world.client.request("PATCH", path, body, content_type=content_type)

    return _judged(step, requests)


def _scale(run: Run, step: Step) -> Told:
    body = {"spec": {"replicas": step.fields["replicas"]}}
    return _patched(run, step, body, MERGE_PATCH, "scale")


def _label(run: Run, step: Step) -> Told:
    body = {"metadata": {"labels": step.fields["labels"]}}
    return _patched(run, step, body, MERGE_PATCH)


# ---- time and faults -------------------------------------------------------------------------------------------------------------


def _advance(run: Run, step: Step) -> Told:
    run.world.advance(step.fields)
    return Told()


def _wait(run: Run, step: Step) -> Told:
    within = step.fields.get("within", DEFAULT_WITHIN)
    seen = ""

    def met() -> bool:
        nonlocal seen
        holds, seen = _met(run, step)
        return holds

    if run.world.until(met, within):
        return Told()
    wanted = step.fields.get("condition") or (f"{step.fields['ready']} ready" if "ready" in step.fields else "Ready")
    awaited = step.fields["for"]
    return Told({awaited: f"{wanted} within {within:g} s"}, {awaited: seen}, (awaited,))


def _met(run: Run, step: Step) -> tuple[bool, str]:
    """Is what the step waits for so, and what is there instead?"""
    kind, _, rest = step.fields["for"].partition("/")
    namespace, _, name = rest.rpartition("/")
    client = run.world.client
    if kind == "endpoints":
        pieces = client.list(startup.resource("endpointslices"), namespace or "default", labelSelector=f"kubernetes.io/service-name={name}")
        addresses = {
            address
            for piece in pieces
            for endpoint in piece.get("endpoints") or ()
            if (endpoint.get("conditions") or {}).get("ready") is not False
            for address in endpoint["addresses"]
        }
        wanted = step.fields.get("ready", 1)
        return len(addresses) == wanted, f"{len(addresses)} ready"
    (reference,) = references.parse([f"{kind}/{name}"], namespace or "default")
    condition = step.fields.get("condition", "Ready" if kind.startswith(("pod", "node")) else "Available")
    try:
        found = client.request("GET", path_of(reference.kind, reference.namespace, reference.name))
    except ApiError as error:
        if error.code != 404:
            raise
        return condition.lower() in ("deleted", "gone", "delete"), "it does not exist"
    if condition.lower() in ("deleted", "gone", "delete"):
        return False, "it exists"
    if "ready" in step.fields:
        ready = (found.get("status") or {}).get("readyReplicas") or 0
        return ready == step.fields["ready"], f"{ready} ready"
    name, _, value = condition.partition("=")
    now = {each["type"]: each["status"] for each in (found.get("status") or {}).get("conditions") or ()}.get(name, "absent")
    phase = (found.get("status") or {}).get("phase")
    return now == (value or "True") or phase == condition, f"{name} is {now}" + (f", phase {phase}" if phase else "")


def _fault(run: Run, step: Step) -> Told:
    given = step.fields
    state = given.get("state", "")
    if "node" in given:
        run.world.fault_node(given["node"], state)
        (run.broken.discard if state in ("resumed", "started", "restarted") else run.broken.add)(given["node"])
    elif "proxy" in given:
        run.world.client.podwire("POST", f"nodes/{given['proxy']}/proxy", {"state": state})
        (run.broken.add if state == "stopped" else run.broken.discard)(given["proxy"])
    elif "controller" in given:
        run.world.fault_controller(state or str(given["controller"]))
    elif {"link", "partition", "heal"} & given.keys():
        _fault_link(run, given)
    else:
        raise ConfigError(
            "node, link, partition, heal, proxy or controller must be given; cni and dns are not emulated yet", where=step.where
        )
    return Told()


def _fault_link(run: Run, given: Json) -> None:
    """A fault as the step writes it; `heal` ends the faults of a link, or all."""
    if not given.get("heal"):
        run.world.client.podwire("POST", "faults", {key: value for key, value in given.items() if key != "heal"})
        return
    link = given.get("link") or (given["heal"] if isinstance(given["heal"], str) else "")
    run.world.client.podwire("DELETE", "faults", None, **({"link": link} if link else {}))


# ---- looking ---------------------------------------------------------------------------------------------------------------------


def _flow(run: Run, step: Step) -> Told:
    expect = step.expect or {}
    fact = run.asker.ask(step.fields, send=True, where=step.where)
    if step.name:
        run.facts[step.name] = fact
    verdict = judge.flow(expect, fact, run.facts)
    trace = run.asker.trace(step.fields, step.where) if verdict.wrong and fact.trace is None else fact.trace
    return Told(*verdict, detail=fact.detail, trace=trace)


def _exec(run: Run, step: Step) -> Told:
    given = step.fields
    namespace, name = references.pod(
        run.world.client, given["pod"] if given["pod"].count("/") != 1 else _qualified(given["pod"]), "default"
    )
    words = given["command"]
    command = shlex.split(words[0]) if len(words) == 1 and isinstance(words[0], str) else [str(word) for word in words]
    status, stdout, stderr = run.world.execute((namespace, name), given.get("container", ""), command, given.get("stdin", ""))
    verdict = judge.execution(step.expect if step.expect is not None else {"exit": 0}, status, stdout, stderr)
    return Told(verdict.expected, {"exit": status, "stdout": stdout, "stderr": stderr}, verdict.wrong)


def _qualified(text: str) -> str:
    """NS/NAME as pod/NS/NAME; KIND/NAME stays."""
    head = text.partition("/")[0]
    return text if head in ("pod", "pods", "deploy", "deployment", "deployments", "rs", "svc", "service") else f"pod/{text}"


def _rules(run: Run, step: Step) -> Told:
    expect = step.expect or {}
    query = {"format": step.fields["format"]} if "format" in step.fields else {}
    content = run.world.client.podwire("GET", f"nodes/{step.fields['node']}/rules", None, **query)["text"]
    equals = None
    if "equals" in expect:
        try:
            equals = (run.scenario.directory / expect["equals"]).read_text("utf-8")
        except OSError as error:
            raise ConfigError(f"{expect['equals']}: {error.strerror}", where=f"{step.where}.expect.equals") from error
    return Told(*judge.rules(expect, content, equals))


ACTS: dict[str, Act] = {
    "apply": _apply, "replace": _replace, "delete": _delete, "patch": _patch, "scale": _scale, "label": _label,
    "advance": _advance, "wait": _wait, "fault": _fault, "flow": _flow, "exec": _exec, "rules": _rules,
}  # fmt: skip
JUDGING = frozenset(("flow", "exec", "rules"))
"""Before these the cluster settles, unless the step says otherwise."""
