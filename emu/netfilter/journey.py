"""A first packet's way through a node, from hook to hook, and what became of it at the end.

Decides the order of hooks as the stack does (net/ipv4: ip_rcv, ip_forward, ip_local_out); which addresses are the node's own and
where packets are routed is asked. Nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.skb import Skb
from emu.wire.addr import Ip, SockAddr

Route = Callable[[Skb], str | None]
"""The device by which a packet leaves for its (present) destination, which is not local; None if there is no route."""

LOCAL = "lo"


@dataclass(frozen=True, slots=True)
class Fate:
    """One end that the packet may come to.

    `destination` and `source` are the packet's at that end (the port of a masqueraded source is chosen by the packet, and is not
    told); `device` is where it then goes: "lo" to this node itself, None nowhere, for want of a route. `rules` is the largest
    number of rules evaluated on the way.
    `masqueraded`: its source is another than it was, if only by its port (a node that has the client's address takes that).
    """

    verdict: Verdict
    destination: SockAddr
    source: Ip
    device: str | None
    masqueraded: bool
    reject_with: str | None = None
    probability: float = 1.0
    rules: int = 0


class Journey:
    """One packet's way through a node that has no connections yet."""

    def __init__(self, netfilter: Netfilter, is_local: Callable[[Ip], bool], route: Route) -> None:
        self._netfilter, self._is_local, self._route = netfilter, is_local, route

    def take(self, skb: Skb) -> Fate:
        source = skb.source
        verdict, device = self._sent(skb) if not skb.iif else self._received(skb)
        reject_with = skb.reject_with if verdict is Verdict.REJECT else None
        return Fate(verdict, skb.destination, skb.src, device, skb.source != source, reject_with)

    def _next(self, skb: Skb) -> str | None:
        return LOCAL if self._is_local(skb.dst) else self._route(skb)

    def _hooks(self, skb: Skb, *hooks: Hook) -> Verdict:
        for hook in hooks:
            if (verdict := self._netfilter.run(hook, skb, 0.0)) is not Verdict.ACCEPT:
                return verdict
        return Verdict.ACCEPT

    def _received(self, skb: Skb) -> tuple[Verdict, str | None]:
        verdict = self._hooks(skb, Hook.PREROUTING)
        device = self._next(skb)
        if verdict is not Verdict.ACCEPT or device is None:
            return verdict, device
        if device == LOCAL:
            return self._hooks(skb, Hook.INPUT), device
        skb.oif = device
        return self._hooks(skb, Hook.FORWARD, Hook.POSTROUTING), device

    def _sent(self, skb: Skb) -> tuple[Verdict, str | None]:
        device = self._next(skb)
        if device is None:
            return Verdict.ACCEPT, None
        skb.oif = device
        verdict = self._hooks(skb, Hook.OUTPUT)
        device = self._next(skb)
        if verdict is not Verdict.ACCEPT or device is None:
            return verdict, device
        skb.oif = device
        verdict = self._hooks(skb, Hook.POSTROUTING)
        return (self._looped(skb), device) if device == LOCAL and verdict is Verdict.ACCEPT else (verdict, device)

    def _looped(self, skb: Skb) -> Verdict:
        """What the node sends to itself comes in again by `lo`, and meets INPUT there; NAT has been decided."""
        again = Skb.parse(skb.buf)
        assert isinstance(again, Skb), again
        again.iif, again.mark = LOCAL, skb.mark
        verdict = self._hooks(again, Hook.PREROUTING, Hook.INPUT)
        skb.reject_with = again.reject_with
        skb.rules += again.rules
        return verdict
