"""The registry: one request, one transaction.

What kube-apiserver does between the wire and the store: decode strictly, default, name, validate, allocate, keep what may not
change, count generations, carry out deletion. Controllers go through it as users do. Knows resources only by their rows
(`strategies`, `defaults`, `services`, `emulation`), and nothing of HTTP, clocks or sockets: the time comes from `now`, chance
from a seeded source. Refusals are ApiErrors and leave the store untouched. Spec: apiserver's registry/rest and
registry/generic/registry/store.go, "API concepts".
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from emu.errors import ApiError
from emu.model import schema
from emu.model.cluster import ClusterSpec
from emu.model.kinds import BY_RESOURCE, Kind, Treatment
from emu.registry import defaults, deletion, emulation, services
from emu.registry.allocation import Allocator
from emu.registry.invalid import FieldError, forbidden, invalid, of_schema, refusal, required, undecodable
from emu.registry.names import check_annotations, check_labels
from emu.registry.strategies import strategy_of
from emu.store.store import Object, Store, copied

STRICT, WARN, IGNORE = "Strict", "Warn", "Ignore"  # the values of the query parameter fieldValidation

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # apimachinery's rand.String: no vowels, no 0, 1 or 3
_NOT_SPEC = {"metadata", "status", "apiVersion", "kind"}
_FROM_CREATION = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "generateName")
DEFAULT_TOLERATIONS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """What the registry needs to know of the cluster. `toleration_seconds` is how long a pod bears a dead node unless it says so."""

    service_cidr: str = "10.96.0.0/16"
    node_port_range: tuple[int, int] = (30000, 32767)
    toleration_seconds: int = 300
    seed: int = 0
    protected_namespaces: frozenset[str] = field(default=frozenset(("default", "kube-system", "kube-public", "kube-node-lease")))

    @classmethod
    def of(cls, spec: ClusterSpec) -> RegistryConfig:
        """What a cluster file says of it."""
        return cls(spec.service_cidr, spec.node_port_range, round(spec.timings.toleration), spec.seed)


class Outcome(NamedTuple):
    """A request that went through: the object as stored, and what its sender should be told."""

    object: Object
    warnings: list[str]


class Registry:
    """The only way objects get into the store. `now` gives the time as RFC 3339 text, such as 2026-01-02T15:04:05Z."""

    def __init__(self, store: Store, config: RegistryConfig, now: Callable[[], str]) -> None:
        self.store, self.config, self.now = store, config, now
        self._chance = random.Random(f"{config.seed} {store.revision}")  # a reopened store must not repeat its first uids
        self.allocator = Allocator(store, config.service_cidr, config.node_port_range, self._chance)

    # --- create ------------------------------------------------------------------------------------------------------

    def create(self, resource: str, obj: Object, namespace: str = "", *, field_validation: str = STRICT) -> Outcome:
        """Add an object. 400 if it does not decode, 404 for no such namespace, 409 if it exists, 422 if invalid."""
        kind = self._kind(resource)
        made, told = self._decode(kind, obj, field_validation)
        metadata = made["metadata"]
        self._place(kind, made, namespace)
        if metadata.get("resourceVersion"):
            raise ApiError(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"][:58] + "".join(self._chance.choices(_SUFFIX_LETTERS, k=5))
        strategy = strategy_of(resource)
        metadata.update(uid=self.new_uid(), creationTimestamp=self.now())
        for absent in ("deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"):
            metadata.pop(absent, None)
        if strategy.counts_generation:
            metadata["generation"] = 1
        if not strategy.keeps_status:
            made.pop("status", None)
        strategy.begin(made)
        defaults.apply(resource, made)
        self._admit(resource, made)
        with self.store.transaction():
            self._require_namespace(kind, made)
            self._refuse(kind, made, [*self._check_metadata(kind, made), *strategy.check(made)])
            if self.store.get(resource, metadata.get("namespace", ""), metadata["name"]) is None and resource == "services":
                self._finish_service(kind, made, None)
            return Outcome(self.store.create(resource, made), [*told, *emulation.warnings(resource, made)])

    def adopt(self, resource: str, obj: Object, namespace: str = "") -> Outcome:
        """Put an object in as it was seen somewhere: its shape is checked and defaults are filled in, a missing namespace is made, a
        Service without one gets a cluster IP; nothing else is judged, allocated or dropped, its status and its uid included."""
        kind = self._kind(resource)
        made, told = self._decode(kind, obj, STRICT)
        self._place(kind, made, namespace)
        metadata = made["metadata"]
        for absent in ("resourceVersion", "managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"):
            metadata.pop(absent, None)
        metadata.setdefault("uid", self.new_uid())
        metadata.setdefault("creationTimestamp", self.now())
        defaults.apply(resource, made)
        if not made.get("status"):
            strategy_of(resource).begin(made)
        with self.store.transaction():
            if kind.namespaced and self.store.get("namespaces", "", metadata["namespace"]) is None:
                self.create("namespaces", {"metadata": {"name": metadata["namespace"]}})
            if resource == "services":
                services.normalise(made, None)
                self.allocator.adopt(made)
            self._refuse(kind, made, self._check_metadata(kind, made))
            old = self.store.get(resource, metadata.get("namespace", ""), metadata["name"])
            if old is not None:
                metadata.update(uid=old["metadata"]["uid"], resourceVersion=old["metadata"]["resourceVersion"])
            stored = self.store.create(resource, made) if old is None else self.store.update(resource, made)
            return Outcome(stored, [*told, *emulation.warnings(resource, made)])

    def _admit(self, resource: str, obj: Object) -> None:
        """DefaultTolerationSeconds: a pod bears a dead node for a while, unless it says for how long."""
        if resource != "pods" or not obj.get("spec"):
            return
        tolerations = list(obj["spec"].get("tolerations") or ())
        borne = {toleration.get("key") for toleration in tolerations}
        if None in borne or "" in borne:  # an empty key tolerates everything
            return
        for key in DEFAULT_TOLERATIONS:
            if key not in borne:
                seconds = self.config.toleration_seconds
                tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds})
        obj["spec"]["tolerations"] = tolerations

    # --- update ------------------------------------------------------------------------------------------------------

    def update(self, resource: str, obj: Object, namespace: str = "", *, field_validation: str = STRICT) -> Outcome:
        """Replace an object but for its status. 404 if absent, 409 if `obj` is stale, 422 if invalid or immutable."""
        kind = self._kind(resource)
        made, told = self._decode(kind, obj, field_validation)
        self._place(kind, made, namespace)
        with self.store.transaction():
            old = self._current(kind, made["metadata"].get("namespace", ""), made["metadata"].get("name", ""))
            self._keep(kind, made, old)
            defaults.apply(resource, made)
            if resource == "services":
                self._finish_service(kind, made, old)
            strategy = strategy_of(resource)
            errors = strategy.check_update(made, old) if strategy.check_update else strategy.check(made)
            self._refuse(kind, made, [*self._check_metadata(kind, made), *errors])
            self._count_generation(resource, made, old)
            stored = self.store.update(resource, made)
            if deletion.is_over(stored):
                stored = deletion.remove(self.store, resource, stored)
            return Outcome(stored, [*told, *emulation.warnings(resource, made)])

    def _keep(self, kind: Kind, made: Object, old: Object) -> None:
        """What an update cannot touch: identity, times, and the status, which has its own way in."""
        metadata, before = made["metadata"], old["metadata"]
        if metadata.get("uid") and metadata["uid"] != before["uid"]:
            raise _conflict(
                kind, before["name"], f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {before['uid']}"
            )
        for name in _FROM_CREATION:
            metadata.pop(name, None)
            if name in before:
                metadata[name] = before[name]
        if not strategy_of(kind.resource).keeps_status or "status" not in made:
            made.pop("status", None)
            if "status" in old:
                made["status"] = old["status"]

    def _count_generation(self, resource: str, made: Object, old: Object) -> None:
        if strategy_of(resource).counts_generation and any(made.get(k) != old.get(k) for k in (made.keys() | old.keys()) - _NOT_SPEC):
            made["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1

    def update_status(self, resource: str, obj: Object, namespace: str = "") -> Object:
        """Replace an object's status alone; 409 if `obj` carries a stale resourceVersion."""
        kind = self._kind(resource)
        made, _ = self._decode(kind, obj, STRICT)
        self._place(kind, made, namespace)
        with self.store.transaction():
            old = self._current(kind, made["metadata"].get("namespace", ""), made["metadata"].get("name", ""))
            version = made["metadata"].get("resourceVersion") or old["metadata"]["resourceVersion"]
            status = {"status": made["status"]} if made.get("status") is not None else {}
            kept = {key: value for key, value in old.items() if key != "status"}
            return self.store.update(resource, {**kept, "metadata": {**old["metadata"], "resourceVersion": version}, **status})

    def scale(self, resource: str, namespace: str, name: str, replicas: int, *, resource_version: str = "") -> Object:
        """Set `spec.replicas` of a workload; 409 if a resourceVersion is given and stale."""
        kind = self._kind(resource)
        if replicas < 0:
            raise refusal(kind, name, [invalid("spec.replicas", replicas, "must be greater than or equal to 0")])
        with self.store.transaction():
            changed = copied(self._current(kind, namespace, name))
            changed["spec"]["replicas"] = replicas
            changed["metadata"]["resourceVersion"] = resource_version or changed["metadata"]["resourceVersion"]
            return self.update(resource, changed, namespace).object

    def bind(self, namespace: str, name: str, node: str) -> Object:
        """The scheduler's decision (POST pods/NAME/binding): 409 if the pod has a node already."""
        kind = BY_RESOURCE["pods"]
        with self.store.transaction():
            pod = copied(self._current(kind, namespace, name))
            if pod["spec"].get("nodeName"):
                raise _conflict(kind, name, f"pod {name} is already assigned to node {pod['spec']['nodeName']!r}")
            if deletion.is_terminating(pod):
                raise _conflict(kind, name, f"pod {name} is being deleted, cannot be assigned to a host")
            pod["spec"]["nodeName"] = node
            return self.store.update("pods", pod)

    # --- delete ------------------------------------------------------------------------------------------------------

    def delete(
        self,
        resource: str,
        namespace: str,
        name: str,
        *,
        propagation: str = deletion.BACKGROUND,
        grace: int | None = None,
        preconditions: dict[str, str] | None = None,
    ) -> Object:
        """Delete, or begin to: a bound pod first terminates (`grace` seconds, its own by default; 0 removes it at once), an object
        with finalizers waits for them, a namespace for its content. Returns the object's last or its terminating state.
        """
        kind = self._kind(resource)
        if resource == "namespaces" and name in self.config.protected_namespaces:
            raise ApiError(403, "Forbidden", f'namespaces "{name}" is forbidden: this namespace may not be deleted')
        with self.store.transaction():
            old = self._current(kind, namespace, name)
            for what, label in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
                wanted = (preconditions or {}).get(what)
                if wanted and wanted != old["metadata"][what]:
                    problem = f"Precondition failed: {label} in precondition: {wanted}, {label} in object meta: {old['metadata'][what]}"
                    raise _conflict(kind, name, problem)
            return deletion.delete(self.store, resource, old, propagation=propagation, grace=grace, now=self.now())

    # --- parts -------------------------------------------------------------------------------------------------------

    def _kind(self, resource: str) -> Kind:
        kind = BY_RESOURCE.get(resource)
        if kind is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if kind.treatment is Treatment.REQUEST:
            raise ApiError(405, "MethodNotAllowed", f"kind {kind.kind} is a request, not an object, and is not served here")
        return kind

    def _decode(self, kind: Kind, obj: Object, field_validation: str) -> tuple[Object, list[str]]:
        """A copy of `obj` that is of the published shape, and warnings for fields dropped on the way."""
        made: Object = copied(obj)
        if (made.setdefault("apiVersion", kind.api_version), made.setdefault("kind", kind.kind)) != (kind.api_version, kind.kind):
            given = f"{made.get('apiVersion')}, Kind={made.get('kind')}"
            raise ApiError(400, "BadRequest", f"{given} does not match the expected {kind.api_version}, Kind={kind.kind}")
        faults = schema.faults(made)
        unknown = [fault for fault in faults if fault.reason == "unknown"]
        fatal = [fault for fault in faults if fault.reason == "type" or (fault.reason == "unknown" and field_validation == STRICT)]
        metadata = made.get("metadata")
        name = str(metadata.get("name") or "") if isinstance(metadata, dict) else ""
        if fatal:
            raise undecodable(kind, name, fatal)
        if field_validation != STRICT:
            for fault in unknown:
                _drop(made, fault.path)
        _drop_nulls(made)
        made.setdefault("metadata", {})
        missing = [of_schema(fault) for fault in faults if fault.reason in {"required", "value"}]
        if missing:
            raise refusal(kind, name, missing)
        return made, [fault.message for fault in unknown] if field_validation == WARN else []

    def _place(self, kind: Kind, obj: Object, namespace: str) -> None:
        """Settle the namespace: the request's and the object's own must agree."""
        metadata = obj["metadata"]
        if not kind.namespaced:
            metadata.pop("namespace", None)
        elif namespace and metadata.get("namespace", namespace) != namespace:
            raise ApiError(400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request")
        else:
            metadata["namespace"] = metadata.get("namespace") or namespace or "default"

    def _require_namespace(self, kind: Kind, obj: Object) -> None:
        if not kind.namespaced:
            return
        namespace, name = obj["metadata"]["namespace"], obj["metadata"].get("name", "")
        found = self.store.get("namespaces", "", namespace)
        if found is None:
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found', details={"name": namespace, "kind": "namespaces"})
        if deletion.is_terminating(found):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            raise ApiError(
                403,
                "Forbidden",
                f'{kind.group_resource} "{name}" is forbidden: {why}',
                causes=(
                    {
                        "reason": "NamespaceTerminating",
                        "message": f"namespace {namespace} is being terminated",
                        "field": "metadata.namespace",
                    },
                ),
            )

    def _check_metadata(self, kind: Kind, obj: Object) -> list[FieldError]:
        metadata, errors = obj["metadata"], []
        name = metadata.get("name")
        if not name:
            errors.append(required("metadata.name", "name or generateName is required"))
        elif (why := strategy_of(kind.resource).names.why_not(name)) is not None:
            errors.append(invalid("metadata.name", name, why))
        errors += check_labels(metadata.get("labels"), "metadata.labels")
        errors += check_annotations(metadata.get("annotations"), "metadata.annotations")
        for index, owner in enumerate(metadata.get("ownerReferences") or ()):
            errors += [
                required(f"metadata.ownerReferences[{index}].{key}") for key in ("apiVersion", "kind", "name", "uid") if not owner.get(key)
            ]
        if sum(bool(owner.get("controller")) for owner in metadata.get("ownerReferences") or ()) > 1:
            errors.append(forbidden("metadata.ownerReferences", "Only one reference can have Controller set to true"))
        return errors

    def _refuse(self, kind: Kind, obj: Object, errors: Sequence[FieldError]) -> None:
        if errors:
            raise refusal(kind, obj["metadata"].get("name", ""), errors)

    def _finish_service(self, kind: Kind, made: Object, old: Object | None) -> None:
        services.normalise(made, old)
        self._refuse(kind, made, [*services.check(made, old, family=self.allocator.family)])
        self.allocator.allocate(made)

    def _current(self, kind: Kind, namespace: str, name: str) -> Object:
        current = self.store.get(kind.resource, namespace if kind.namespaced else "", name)
        if current is None:
            details: dict[str, object] = {"name": name, **({"group": kind.group} if kind.group else {}), "kind": kind.plural}
            raise ApiError(404, "NotFound", f'{kind.group_resource} "{name}" not found', details=details)
        return current

    def new_uid(self) -> str:
        """A uid for an object, from the seeded source."""
        return str(uuid.UUID(int=self._chance.getrandbits(128), version=4))


def _conflict(kind: Kind, name: str, problem: str) -> ApiError:
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {kind.group_resource} "{name}": {problem}',
        details={"name": name, "kind": kind.plural},
    )


def _drop(obj: Object, path: str) -> None:
    """Take away the unknown field at `path`, as a server that does not know it would."""
    holder: Any = obj
    *steps, last = path.replace("[", ".[").split(".")
    for step in steps:
        index = step.strip("[]") if step.startswith("[") else step
        holder = holder[int(index)] if isinstance(holder, list) else holder[index]
    holder.pop(last, None)


def _drop_nulls(value: Any) -> None:
    """Null and absent are one in Kubernetes' objects; only absent is kept."""
    if isinstance(value, dict):
        for key in [key for key, item in value.items() if item is None]:
            del value[key]
        for item in value.values():
            _drop_nulls(item)
    elif isinstance(value, list):
        for item in value:
            _drop_nulls(item)
