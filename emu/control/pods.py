"""What controllers ask of a Pod: is it active, ready, available; and its conditions. Values only.

Spec: pkg/api/v1/pod/util.go, pkg/controller/controller_utils.go (IsPodActive, IsPodAvailable).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]

TERMINAL = ("Succeeded", "Failed")


def phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def is_active(pod: Object) -> bool:
    """Does it count towards its owner's replicas?"""
    return phase(pod) not in TERMINAL and not pod["metadata"].get("deletionTimestamp")


def condition(obj: Object, kind: str) -> Object | None:
    """A condition of an object's status by its type."""
    found: Object | None = next((c for c in (obj.get("status") or {}).get("conditions") or () if c.get("type") == kind), None)
    return found


def is_ready(pod: Object) -> bool:
    ready = condition(pod, "Ready")
    return ready is not None and ready.get("status") == "True"


def ready_since(pod: Object) -> float | None:
    """Seconds of the epoch at which it became Ready; None if it is not."""
    ready = condition(pod, "Ready")
    if ready is None or ready.get("status") != "True":
        return None
    return seconds(ready.get("lastTransitionTime") or pod["metadata"].get("creationTimestamp"))


def available_at(pod: Object, min_ready: int) -> float | None:
    """Seconds of the epoch from which it counts as available (Ready for `min_ready` seconds); None if it is not Ready."""
    since = ready_since(pod)
    return None if since is None else since + min_ready


def seconds(timestamp: str | None) -> float:
    """RFC 3339 text as seconds of the epoch; 0 for none."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def timestamp_of(epoch: float) -> str:
    """The inverse of `seconds`, whole seconds as Kubernetes writes them."""
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def with_condition(status: Object, kind: str, value: str, reason: str, message: str, now: str, **more: Any) -> Object:
    """A status in which a condition stands as given; `lastTransitionTime` is `now` only if its value changes."""
    conditions = list(status.get("conditions") or ())
    old = next((c for c in conditions if c.get("type") == kind), None)
    new = {"type": kind, "status": value, "lastTransitionTime": now, **more}
    new.update({key: text for key, text in (("reason", reason), ("message", message)) if text})
    if old is not None and old.get("status") == value:
        new["lastTransitionTime"] = old.get("lastTransitionTime", now)
    position = conditions.index(old) if old is not None else len(conditions)
    return {**status, "conditions": [*conditions[:position], new, *conditions[position + 1 :]]}
