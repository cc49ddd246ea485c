"""What a traced packet tells of its way: values only.

A trace id is a 32-bit number on the packet's metadata, 0 meaning "not traced". The request has an even id, and whatever is
sent in answer to it carries `id | REPLY`, so that one number gathers both directions. Namespaces emit `Hop`s while they
carry such a packet; nodes report them; the controller puts them in order. Hops are facts about one packet at one place,
never verdicts about the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REPLY = 1
LINK = "link"  # where a packet is that has left its node by the wire and never came to another


@dataclass(frozen=True, slots=True)
class PacketSummary:
    """The innermost addresses of the packet as it is at one hop, printed form."""

    src: str
    dst: str
    proto: str
    sport: int | None = None
    dport: int | None = None

    def json(self) -> dict[str, Any]:
        return {"src": self.src, "dst": self.dst, "proto": self.proto, "sport": self.sport, "dport": self.dport}


@dataclass(frozen=True, slots=True)
class Hop:
    """One thing that happened to a traced packet.

    `where` is a device (`eth0`), a table and chain (`nat/KUBE-SERVICES`), `route`, `neighbour`, `conntrack`, `socket` or
    `wire`; `rule` is the rule that matched in iptables syntax; `note` says what came of it. `at` is the clock's time in
    seconds and `seq` the order within a node, which together order hops of one host. `rules` counts the rules evaluated
    at this hop. `verdict` is set on the last hop of a packet only: delivered, local, rejected, dropped, unrouted.
    """

    trace: int
    node: str
    netns: str
    where: str
    packet: PacketSummary
    at: float
    seq: int
    rule: str | None = None
    note: str | None = None
    rules: int = 0
    verdict: str | None = None

    def json(self) -> dict[str, Any]:
        hop: dict[str, Any] = {"node": self.node, "netns": self.netns, "where": self.where, "packet": self.packet.json()}
        if self.rule is not None:
            hop["rule"] = self.rule
        if self.note is not None:
            hop["note"] = self.note
        return hop
