"""The endpoint choice: who may answer, for which kind of traffic. One decision table for every proxy mode.

    traffic                                   policy                   candidates          none here, some elsewhere   none at all
    to the ClusterIP                          internalTrafficPolicy
                                                Cluster                cluster set         -                           REJECT
                                                Local                  local set           DROP                        REJECT
    to a node port, external or LB address    externalTrafficPolicy
      from anywhere                             Cluster                cluster set, SNAT   -                           REJECT
      from a pod of the cluster                 Local                  cluster set         -                           REJECT
      from the node itself                      Local                  cluster set, SNAT   -                           REJECT
      from elsewhere                            Local                  local set           DROP                        REJECT

Must not know rules or addresses of Services: it sees endpoints, policies, the node's name and zone. Chance is the data
path's: every candidate of a set is equally likely, drawn once a connection.
Spec: kubernetes `pkg/proxy/topology.go`; KEP-1669 (terminating endpoints), KEP-2086 (internalTrafficPolicy),
KEP-2433 and KEP-3015 (zone and node hints).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emu.proxy.serviceport import EndpointInfo, ServicePortInfo


@dataclass(frozen=True, slots=True)
class Place:
    """Where the choice is made: the node's name, and its `topology.kubernetes.io/zone` ("" if it has none)."""

    node: str
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What the table says of one service port on one node.

    `cluster` and `local` are the two candidate sets; None if no traffic uses the set. `has_any` is False when nothing in
    the whole cluster can answer: then traffic is rejected; if only the set in question is empty, it is dropped.
    """

    cluster: tuple[EndpointInfo, ...] | None
    local: tuple[EndpointInfo, ...] | None
    has_any: bool

    @property
    def used(self) -> tuple[EndpointInfo, ...]:
        """Every endpoint that some traffic may reach, in endpoint order."""
        both = {endpoint.text: endpoint for endpoint in (*(self.cluster or ()), *(self.local or ()))}
        return tuple(both[text] for text in sorted(both))


def choose(port: ServicePortInfo, place: Place) -> Choice:
    """Apply the decision table to `port` as seen from `place`."""
    external = port.externally_accessible
    uses_cluster = not port.internal_local or external
    uses_local = port.internal_local or (port.external_local and external)

    cluster = _cluster_set(port.endpoints, place) if uses_cluster else None
    local = _usable([e for e in port.endpoints if e.node and e.node == place.node]) if uses_local else None
    has_any = bool(cluster) or (uses_local and bool(_usable(port.endpoints)))
    return Choice(cluster, local, has_any)


def _usable(endpoints: Sequence[EndpointInfo]) -> tuple[EndpointInfo, ...]:
    """The ready ones; if there are none, those that terminate but still serve (KEP-1669: late is better than never)."""
    ready = tuple(e for e in endpoints if e.ready)
    return ready or tuple(e for e in endpoints if e.serving and e.terminating)


def _cluster_set(endpoints: Sequence[EndpointInfo], place: Place) -> tuple[EndpointInfo, ...]:
    """All usable endpoints, narrowed by hints only while ready ones exist."""
    ready = tuple(e for e in endpoints if e.ready)
    return _near(ready, place) if ready else _usable(endpoints)


def _near(ready: tuple[EndpointInfo, ...], place: Place) -> tuple[EndpointInfo, ...]:
    """Follow node hints, else zone hints, else neither.

    A mode holds only if every ready endpoint carries the hint and one names us: a half-hinted set is a controller in the
    middle of an update, and an unhinted node must not be left without a backend.
    """
    if all(e.node_hints for e in ready):
        near = tuple(e for e in ready if place.node in e.node_hints)
        if near:
            return near
    if place.zone and all(e.zone_hints for e in ready):
        near = tuple(e for e in ready if place.zone in e.zone_hints)
        if near:
            return near
    return ready
