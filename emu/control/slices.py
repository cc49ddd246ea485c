"""How endpoints are laid out in slices: at most 100 in each, touching as few slices as can be. Pure.

Every write of a slice goes to every node, so an endpoint stays in the slice it is in; new ones first fill slices that must be
written anyway, then the fullest slice that can take all the rest, then new slices. Spec: k8s.io/endpointslice reconciler.go
`reconcileByPortMapping`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emu.control.endpoints import Ports

Object = dict[str, Any]
MAX_ENDPOINTS = 100  # kube-controller-manager --max-endpoints-per-slice


@dataclass(slots=True)
class Plan:
    """What to write: slices to make (ports and endpoints), to change (slice and its new endpoints), to delete."""

    create: list[tuple[Ports, list[Object]]] = field(default_factory=list)
    update: list[tuple[Object, list[Object]]] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)


def ports_of(obj: Object) -> Ports:
    return tuple(
        sorted(
            (p.get("name") or "", p.get("protocol") or "TCP", p.get("port") or 0, p.get("appProtocol") or "")
            for p in obj.get("ports") or ()
        )
    )


def port_objects(ports: Ports) -> list[Object]:
    return [
        {"name": name, "protocol": protocol, "port": number, **({"appProtocol": app} if app else {})}
        for name, protocol, number, app in ports
    ]


def plan(existing: Sequence[Object], wanted: Mapping[Ports, Sequence[Object]], most: int = MAX_ENDPOINTS) -> Plan:
    """Changes that make `existing` (slices of one Service and address family) hold `wanted`. A Service with no endpoints at all
    keeps one empty slice, so that its consumers can tell it from one nobody has looked at."""
    result = Plan()
    by_ports: dict[Ports, list[Object]] = {}
    for one in existing:
        by_ports.setdefault(ports_of(one), []).append(one)
    groups = {ports: list(endpoints) for ports, endpoints in wanted.items() if endpoints}
    if not groups:
        _keep_one(existing, result)
        return result
    for ports, slices in by_ports.items():
        if ports not in groups:
            result.delete += slices
    for ports, endpoints in groups.items():
        _plan_ports(ports, by_ports.get(ports, []), endpoints, most, result)
    return result


def _keep_one(existing: Sequence[Object], result: Plan) -> None:
    placeholder = next((one for one in existing if not one.get("endpoints")), None) or (existing[0] if existing else None)
    if placeholder is None:
        result.create.append(((), []))
    elif placeholder.get("endpoints"):
        result.update.append((placeholder, []))
    result.delete += [one for one in existing if one is not placeholder]


def _plan_ports(ports: Ports, slices: Sequence[Object], endpoints: Sequence[Object], most: int, result: Plan) -> None:
    left = {_identity(one): one for one in endpoints}
    kept: list[tuple[Object, list[Object], bool]] = []
    for one in slices:
        before = one.get("endpoints") or []
        now = [left.pop(_identity(e)) for e in before if _identity(e) in left]
        kept.append((one, now, now != before))
    rest = list(left.values())
    changed = sorted((row for row in kept if row[2]), key=lambda row: -len(row[1]))
    for _, now, _ in changed:
        room = most - len(now)
        now += rest[:room]
        rest = rest[room:]
    if rest and len(rest) < most:
        roomy = [row for row in kept if not row[2] and len(row[1]) + len(rest) <= most]
        if roomy:
            best = max(roomy, key=lambda row: len(row[1]))
            best[1].extend(rest)
            changed.append((best[0], best[1], True))
            rest = []
    for one, now, _ in changed:
        if now:
            result.update.append((one, now))
        else:
            result.delete.append(one)
    result.create += [(ports, rest[i : i + most]) for i in range(0, len(rest), most)]


def _identity(endpoint: Object) -> tuple[Any, ...]:
    """An endpoint is the same one while its pod and address are."""
    return (tuple(endpoint.get("addresses") or ()), (endpoint.get("targetRef") or {}).get("uid"))
