"""One trace put together from the hops of several nodes, which come in any order and may be missing.

Within a node `seq` orders hops. Between nodes the wire does: a hop `wire` with the note `to IP` ends a stay on its node, and the
packet goes on in the first stay of that peer not yet told. Clocks are not compared, so nodes may be on different hosts. The request
ends with a hop that has a verdict; the reply (hops with `trace | REPLY`) starts where the request ended and ends with the prober's.

The outcome is what the client experiences, so the probe's own result has the last word: a REJECT whose ICMP error was lost is a
drop to him. What is missing after the deadline reads `lost after HOP`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emu.trace import LINK, REPLY, Hop

VXLAN_PORT = 8472
ANSWERED = frozenset(("connected", "answered"))
REFUSED = frozenset(("refused", "unreachable"))
SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Journey:
    """One direction in order. `ended` is by a verdict; `lost` means that the last hop was the wire, or stopped in mid-stay."""

    hops: tuple[Hop, ...]
    ended: bool

    @property
    def last(self) -> Hop | None:
        return self.hops[-1] if self.hops else None

    @property
    def lost(self) -> bool:
        return bool(self.hops) and not self.ended

    @property
    def inner(self) -> list[Hop]:
        """The hops that show the packet itself, not the tunnel's outside."""
        return [hop for hop in self.hops if not (hop.packet.proto == "udp" and hop.packet.dport == VXLAN_PORT)] or list(self.hops)


@dataclass(slots=True)
class Assembly:
    """Gathers the hops of one trace. `origin` is the prober's node, `nodes` maps underlay addresses to node names."""

    trace: int
    origin: str
    nodes: Mapping[str, str]
    proto: str = "tcp"
    result: str | None = None
    _hops: dict[tuple[str, int], Hop] = field(default_factory=dict)

    def add(self, hop: Hop) -> None:
        """Take a hop in; one reported twice counts once."""
        assert hop.trace | REPLY == self.trace | REPLY
        self._hops[hop.node, hop.seq] = hop

    def seen_nodes(self) -> set[str]:
        """The nodes that have had this packet or its reply."""
        return {hop.node for hop in self._hops.values()}

    def request(self) -> Journey:
        return self._journey(self.trace & ~REPLY, self.origin)

    def reply(self, request: Journey) -> Journey:
        return self._journey(self.trace | REPLY, request.last.node if request.last else self.origin)

    @property
    def complete(self) -> bool:
        """Is everything here that will come? The probe has its result, and no journey is left in mid-air.

        A reply is due whenever the probe was answered; a silent probe has none, or one that was dropped on its way.
        """
        if self.result is None:
            return False
        request = self.request()
        reply = self.reply(request)
        answered = self.result != SILENT
        return request.ended and not reply.lost and (reply.ended or not answered or _refused_at_home(request, self.origin))

    @property
    def hopeless(self) -> bool:
        """Has the packet ended where nobody answers, and has no answer been seen? An ICMP error would be on its way by now."""
        request = self.request()
        last = request.last
        return last is not None and last.verdict in ("dropped", "unrouted") and not self.reply(request).hops

    def report(self) -> dict[str, Any]:
        """The trace as JSON, as far as it is known now."""
        request = self.request()
        reply = self.reply(request)
        first, last = (request.inner[0], request.inner[-1]) if request.hops else (None, None)
        return {
            "outcome": outcome(request, self.result or SILENT, self.proto),
            "backend": _backend(first, last),
            "masquerade": first is not None and last is not None and first.packet.src != last.packet.src,
            "rules_evaluated": sum(hop.rules for hop in request.hops),
            "nodes_crossed": len({hop.node for hop in request.hops}),
            "request": _story(request),
            "reply": _story(reply),
        }

    def _journey(self, trace: int, start: str) -> Journey:
        stays = self._stays(trace)
        ordered: list[Hop] = []
        node: str | None = start if start in stays else min(stays, key=lambda name: stays[name][0][0].at, default=None)
        while node is not None and stays.get(node):
            stay = stays[node].pop(0)
            ordered += stay
            node = self._next(stay[-1])
        return Journey(tuple(ordered), bool(ordered) and ordered[-1].verdict is not None)

    def _stays(self, trace: int) -> dict[str, list[list[Hop]]]:
        """Node -> its hops, cut after each that leaves by the wire or ends the packet."""
        stays: dict[str, list[list[Hop]]] = {}
        open_stay: dict[str, list[Hop]] = {}
        for hop in sorted((hop for hop in self._hops.values() if hop.trace == trace), key=lambda hop: (hop.node, hop.seq)):
            stay = open_stay.get(hop.node)
            if hop.where == LINK and hop.node in stays:  # the wire was not the end of its stay after all
                stay = stays[hop.node][-1]
            elif stay is None:
                stay = open_stay[hop.node] = []
                stays.setdefault(hop.node, []).append(stay)
            stay.append(hop)
            if hop.where == "wire" or hop.verdict is not None:
                open_stay.pop(hop.node, None)
        return stays

    def _next(self, hop: Hop) -> str | None:
        """The node where a packet goes on after leaving by the wire; its own if it has not left."""
        if hop.verdict is not None:
            return None
        if hop.where != "wire" or not hop.note:
            return None
        return self.nodes.get(hop.note.removeprefix("to "))


def outcome(request: Journey, result: str, proto: str) -> str:
    """delivered, local, rejected, dropped or unrouted: what the client experiences."""
    last = request.last
    verdict = last.verdict if last is not None else None
    if verdict == "unrouted":
        return "unrouted"
    if result in REFUSED:
        return "rejected"
    if last is None or verdict is None:
        return "dropped"
    accepted = verdict in ("delivered", "local") and (result in ANSWERED or proto == "udp")
    if not accepted:
        return "dropped"
    return "local" if verdict == "local" or last.netns == "node" else "delivered"


def _refused_at_home(request: Journey, origin: str) -> bool:
    """A packet refused where it was made needs no reply on any wire."""
    last = request.last
    return last is not None and last.verdict != "delivered" and last.node == origin


def _backend(first: Hop | None, last: Hop | None) -> str | None:
    """The pod's address that the packet was sent to: where it arrived, or what NAT chose."""
    if first is None or last is None:
        return None
    packet = last.packet
    arrived = last.netns.startswith("pod/") and last.verdict in ("delivered", "rejected") and last.where in ("socket", "icmp")
    translated = (packet.dst, packet.dport) != (first.packet.dst, first.packet.dport)
    if not arrived and not translated:
        return None
    return f"{packet.dst}:{packet.dport}" if packet.dport is not None else packet.dst


def _story(journey: Journey) -> list[dict[str, Any]]:
    story = [hop.json() for hop in journey.hops]
    if journey.lost:
        last = journey.hops[-1]
        note = f"lost after {last.node} {last.netns} {last.where}" + (f" {last.note}" if last.note else "")
        story.append({"node": last.node, "netns": last.netns, "where": "lost", "packet": last.packet.json(), "note": note})
    return story
