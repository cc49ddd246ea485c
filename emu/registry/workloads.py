"""Workloads (Deployment, ReplicaSet, StatefulSet, DaemonSet): selector, template, replicas, and what may change.

Spec: pkg/apis/apps/validation. A selector is for life, and must choose the pods that its own template makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from emu.model import selector
from emu.registry.invalid import FieldError, forbidden, invalid, required, unsupported
from emu.registry.names import check_annotations, check_labels
from emu.registry.pods import check_characters, check_spec
from emu.store.store import Object

_STRATEGIES = {
    "deployments": ("strategy", ("Recreate", "RollingUpdate")),
    "daemonsets": ("updateStrategy", ("OnDelete", "RollingUpdate")),
    "statefulsets": ("updateStrategy", ("OnDelete", "RollingUpdate")),
}
_PERCENT = re.compile(r"\d{1,3}%")
_STATEFUL_SET_CHANGEABLE = (
    "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit", "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
)  # fmt: skip


def check(resource: str, obj: Object) -> Iterator[FieldError]:
    spec = obj.get("spec") or {}
    if not obj.get("spec"):
        yield required("spec")
        return
    for field in ("replicas", "minReadySeconds", "revisionHistoryLimit"):
        if (spec.get(field) or 0) < 0:
            yield invalid(f"spec.{field}", spec[field], "must be greater than or equal to 0")
    yield from _check_selector(spec)
    template = spec.get("template")
    if not template:
        yield required("spec.template")
        return
    metadata = template.get("metadata") or {}
    yield from check_labels(metadata.get("labels"), "spec.template.labels")
    yield from check_annotations(metadata.get("annotations"), "spec.template.annotations")
    yield from check_characters(metadata.get("annotations"), "spec.template.metadata.annotations")
    yield from check_spec(template.get("spec") or {}, "spec.template.spec")
    policy = (template.get("spec") or {}).get("restartPolicy")
    if policy != "Always":
        yield unsupported("spec.template.spec.restartPolicy", policy, ("Always",))
    yield from _check_strategy(resource, spec)
    deadline, ready = spec.get("progressDeadlineSeconds"), spec.get("minReadySeconds") or 0
    if deadline is not None and deadline <= ready:
        yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")


def check_labels_match(obj: Object) -> Iterator[FieldError]:
    """Job and ReplicationController, which are only kept: their selector is optional, but must choose their own pods where it is given.

    A ReplicationController's selector is a bare map of labels.
    """
    spec = obj.get("spec") or {}
    if spec.get("selector") and spec.get("template"):
        bare = all(isinstance(value, str) for value in spec["selector"].values())
        yield from _check_selector({**spec, "selector": {"matchLabels": spec["selector"]}} if bare else spec)


def _check_selector(spec: Object) -> Iterator[FieldError]:
    wanted, labels = spec.get("selector"), ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    if wanted is None:
        yield required("spec.selector")
        return
    yield from check_labels(wanted.get("matchLabels"), "spec.selector.matchLabels")
    if not wanted.get("matchLabels") and not wanted.get("matchExpressions"):
        yield invalid("spec.selector", wanted, "empty selector is invalid for deployment")
        return
    try:
        matches = selector.from_label_selector(wanted).matches(labels)
    except ValueError as error:
        yield invalid("spec.selector.matchExpressions", wanted.get("matchExpressions"), str(error))
        return
    if spec.get("template") and not matches:
        yield invalid("spec.template.metadata.labels", labels or {}, "`selector` does not match template `labels`")


def _check_strategy(resource: str, spec: Object) -> Iterator[FieldError]:
    if resource not in _STRATEGIES:
        return
    field, supported = _STRATEGIES[resource]
    strategy = spec.get(field) or {}
    rolling = strategy.get("rollingUpdate")
    if strategy.get("type") not in supported:
        yield unsupported(f"spec.{field}.type", strategy.get("type"), supported)
    if strategy.get("type") != "RollingUpdate" and rolling:
        yield forbidden(f"spec.{field}.rollingUpdate", f"may not be specified when strategy `type` is '{strategy.get('type')}'")
    if resource == "deployments" and rolling:
        for bound in ("maxUnavailable", "maxSurge"):
            yield from _check_share(rolling.get(bound), f"spec.{field}.rollingUpdate.{bound}")
        if _is_zero(rolling.get("maxUnavailable")) and _is_zero(rolling.get("maxSurge")):
            yield invalid(f"spec.{field}.rollingUpdate.maxUnavailable", rolling.get("maxUnavailable"), "may not be 0 when `maxSurge` is 0")


def _check_share(value: Any, path: str) -> Iterator[FieldError]:
    if isinstance(value, str) and not _PERCENT.fullmatch(value):
        yield invalid(path, value, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%')")
    elif isinstance(value, int) and value < 0:
        yield invalid(path, value, "must be greater than or equal to 0")
    elif path.endswith("maxUnavailable") and isinstance(value, str) and int(value[:-1]) > 100:
        yield invalid(path, value, "must not be greater than 100%")


def _is_zero(value: Any) -> bool:
    return value in (0, "0%")


def check_update(resource: str, new: Object, old: Object) -> Iterator[FieldError]:
    yield from check(resource, new)
    before, after = old.get("spec") or {}, new.get("spec") or {}
    if resource == "statefulsets":
        if any(before.get(k) != after.get(k) for k in before.keys() | after.keys() if k not in _STATEFUL_SET_CHANGEABLE):
            listed = "', '".join(_STATEFUL_SET_CHANGEABLE)
            yield forbidden("spec", f"updates to statefulset spec for fields other than '{listed}' are forbidden")
    elif before.get("selector") != after.get("selector"):
        yield invalid("spec.selector", after.get("selector"), "field is immutable")
