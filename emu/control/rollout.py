"""The arithmetic of a Deployment: how many replicas each of its ReplicaSets should have next. Pure numbers.

Never more than `replicas + surge` pods by the specs, never fewer than `replicas - unavailable` available ones by our doing.
Terminating pods do not count. Spec: pkg/controller/deployment/{rolling,sync}.go, util/deployment_util.go; website deployment.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ReplicaSetState:
    """One ReplicaSet of a Deployment. `replicas` is its spec, `available` its status; `created` orders by age (seconds).

    `max_before` and `desired_before` are the Deployment's size with and without surge when this set was last scaled (annotations
    of its own), 0 if unknown: by them a set's share is kept when a Deployment is scaled in mid-rollout.
    """

    name: str
    replicas: int
    available: int
    created: float = 0.0
    max_before: int = 0
    desired_before: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far a rollout may stray from `replicas`; `surge` and `unavailable` are numbers, percents resolved."""

    replicas: int
    surge: int
    unavailable: int

    @classmethod
    def resolve(cls, replicas: int, max_surge: int | str, max_unavailable: int | str) -> Bounds:
        """Percent: surge rounds up, unavailable down; both 0 would be a standstill, so one may then be unavailable."""
        surge, unavailable = _share(max_surge, replicas, up=True), _share(max_unavailable, replicas, up=False)
        if surge == 0 and unavailable == 0:
            unavailable = 1
        return cls(replicas, surge, min(unavailable, replicas))

    @property
    def most(self) -> int:
        """Pods allowed by the specs; a Deployment of none has none."""
        return self.replicas + self.surge if self.replicas else 0

    @property
    def least(self) -> int:
        """Pods that must stay available."""
        return self.replicas - self.unavailable


def _share(value: int | str, of: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    percent = int(value.removesuffix("%"))
    return math.ceil(percent * of / 100) if up else percent * of // 100


def new_size(bounds: Bounds, sets: Sequence[ReplicaSetState], new: ReplicaSetState) -> int:
    """What the new ReplicaSet may have now; `sets` are all of the Deployment, `new` among them."""
    if new.replicas >= bounds.replicas:
        return bounds.replicas
    room = bounds.replicas + bounds.surge - sum(one.replicas for one in sets)
    return new.replicas + max(0, min(room, bounds.replicas - new.replicas))


def old_sizes(bounds: Bounds, olds: Sequence[ReplicaSetState], new: ReplicaSetState) -> dict[str, int]:
    """What the old ReplicaSets may have now: those that change. Unhealthy pods go first, for they serve nobody."""
    olds = sorted(olds, key=lambda one: (one.created, one.name))
    everything = sum(one.replicas for one in olds) + new.replicas
    budget = everything - bounds.least - (new.replicas - new.available)
    if budget <= 0:
        return {}
    shrunk = _drop_unhealthy(olds, budget)
    spare = sum(one.available for one in (*olds, new)) - bounds.least
    result = [(old, _less(one, spare_left)) for old, one, spare_left in _with_spare(olds, shrunk, spare)]
    return {old.name: size for old, size in result if size != old.replicas}


def _drop_unhealthy(olds: Sequence[ReplicaSetState], budget: int) -> list[ReplicaSetState]:
    shrunk = []
    for one in olds:
        drop = min(budget, max(0, one.replicas - one.available))
        budget -= drop
        shrunk.append(replace(one, replicas=one.replicas - drop))
    return shrunk


def _with_spare(
    olds: Sequence[ReplicaSetState], shrunk: Sequence[ReplicaSetState], spare: int
) -> list[tuple[ReplicaSetState, ReplicaSetState, int]]:
    """Each set with what may still be taken from it and those after it."""
    rows = []
    for old, one in zip(olds, shrunk, strict=True):
        rows.append((old, one, max(0, spare)))
        spare -= min(one.replicas, max(0, spare))
    return rows


def _less(one: ReplicaSetState, spare: int) -> int:
    return one.replicas - min(one.replicas, spare)


def proportional(bounds: Bounds, sets: Sequence[ReplicaSetState]) -> dict[str, int]:
    """Sizes when a Deployment is scaled while several ReplicaSets are active: each keeps its share, the rest goes to the largest."""
    active = [one for one in sets if one.replicas > 0]
    to_add = bounds.most - sum(one.replicas for one in active)
    newer_first = -1.0 if to_add > 0 else 1.0  # growing favours the newest of equal sets, shrinking the oldest
    active.sort(key=lambda one: (-one.replicas, newer_first * one.created))
    sizes, added = {}, 0
    for one in active:
        part = _proportion(bounds, one, to_add, added)
        sizes[one.name] = one.replicas + part
        added += part
    if active and to_add:
        first = active[0].name
        sizes[first] = max(0, sizes[first] + to_add - added)
    return {one.name: sizes[one.name] for one in active if sizes[one.name] != one.replicas}


def _proportion(bounds: Bounds, one: ReplicaSetState, to_add: int, added: int) -> int:
    if to_add in (0, added):
        return 0
    allowed = to_add - added
    if bounds.replicas == 0:
        fraction = -one.replicas
    else:
        before = one.max_before or bounds.most
        fraction = math.floor(one.replicas * bounds.most / before + 0.5) - one.replicas
    return min(fraction, allowed) if to_add > 0 else max(fraction, allowed)


def scaled(bounds: Bounds, olds: Sequence[ReplicaSetState], new: ReplicaSetState | None, *, rolling: bool) -> dict[str, int]:
    """Sizes after `replicas` alone has changed (or while paused), without rolling anything: those that change."""
    sets = [*olds, *([new] if new is not None else [])]
    active = [one for one in sets if one.replicas > 0]
    only = active[0] if len(active) == 1 else (new or max(olds, key=lambda one: one.created, default=None)) if not active else None
    if only is not None:
        return {only.name: bounds.replicas} if only.replicas != bounds.replicas else {}
    if new is not None and new.replicas == new.available == bounds.replicas == new.desired_before:  # saturated: the old are surplus
        return {one.name: 0 for one in olds if one.replicas}
    return proportional(bounds, sets) if rolling else {}
