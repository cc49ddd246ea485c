"""Change tracking: what is different since the last sync, however often it changed in between.

Decides which Services need new rules. Any burst of changes to a Service folds into one (previous, current) pair; a change
that is taken back, or touches nothing that rules depend on (a label, a slice's resourceVersion), disappears. Level, not
edge: only the last value counts. Must not know when a sync happens (`syncer`) nor what rules look like.
Spec: kubernetes `pkg/proxy/servicechangetracker.go`, `endpointschangetracker.go`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from emu.netfilter.skb import UDP
from emu.proxy.names import ServicePortName
from emu.proxy.serviceport import ServicePortInfo, read_service_ports

Value = Mapping[str, Any]


class Change(NamedTuple):
    """The service ports of one Service before and after; () where it did not or does not exist for the proxy."""

    previous: tuple[ServicePortInfo, ...]
    current: tuple[ServicePortInfo, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """What `ServiceChanges.apply` did: the service ports that came, went or changed.

    `udp_endpoints` says whether endpoints of a UDP port changed (stale conntrack entries).
    """

    services: int
    udp_endpoints: bool
    ports: frozenset[ServicePortName]


class ServiceChanges:
    """The service ports as last synced, and the changes pending since. Keys are the stream's, `namespace/name`."""

    def __init__(self, node: str, family: int = 4) -> None:
        self._node, self._family = node, family
        self._applied: dict[str, tuple[ServicePortInfo, ...]] = {}
        self._pending: dict[str, Change] = {}
        self.ports: dict[ServicePortName, ServicePortInfo] = {}

    def update(self, key: str, value: Value | None) -> bool:
        """Take in a Service's new value, None for deleted; True if something is pending now."""
        previous = self._applied.get(key, ())
        current = () if value is None else _reuse(previous, read_service_ports(value, self._node, self._family))
        if current == previous:
            self._pending.pop(key, None)
        else:
            self._pending[key] = Change(previous, current)
        return bool(self._pending)

    def replace(self, values: Mapping[str, Value]) -> bool:
        """Take in a snapshot of all Services: those not in it are gone. True if something is pending now."""
        for key in [*self._applied, *self._pending]:
            if key not in values:
                self.update(key, None)
        for key, value in values.items():
            self.update(key, value)
        return bool(self._pending)

    @property
    def pending(self) -> Mapping[str, Change]:
        return self._pending

    def apply(self) -> Applied:
        """Move all pending changes into `ports`; unchanged ports stay the same objects."""
        changes, self._pending = self._pending, {}
        udp = False
        moved: set[ServicePortName] = set()
        for key, change in changes.items():
            udp = udp or _endpoints(change.previous, UDP) != _endpoints(change.current, UDP)
            moved.update(port.name for port in (*change.previous, *change.current))
            for port in change.previous:
                del self.ports[port.name]
            self.ports.update((port.name, port) for port in change.current)
            if change.current:
                self._applied[key] = change.current
            else:
                self._applied.pop(key, None)
        return Applied(len(changes), udp, frozenset(moved))

    def check(self) -> None:
        """Assert that `ports` is just what is applied."""
        assert {p.name: p for ports in self._applied.values() for p in ports} == self.ports


def _reuse(previous: tuple[ServicePortInfo, ...], current: tuple[ServicePortInfo, ...]) -> tuple[ServicePortInfo, ...]:
    """`current` with the old object wherever a port is equal to what it was: identity is what the builder's memory goes by."""
    old = {port.name: port for port in previous}
    return tuple(old[port.name] if old.get(port.name) == port else port for port in current)


def _endpoints(ports: Iterable[ServicePortInfo], protocol: int) -> dict[ServicePortName, object]:
    return {port.name: port.endpoints for port in ports if port.protocol == protocol}
