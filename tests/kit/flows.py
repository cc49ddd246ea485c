"""Asks a rule set what becomes of the first packet of a connection: one node's netfilter, real packets, no stack.

Walks the hooks as a node does (a pod's or an outside packet: PREROUTING, route, INPUT or FORWARD, POSTROUTING; the node's
own: OUTPUT, then as routed) and lists every backend that chance may pick, by taking each way of every draw once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from emu.netfilter.conn import parts
from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.memory import Memory
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import PROTOCOL_NAMES, Skb
from emu.wire.addr import SockAddr, format_ip, parse_ip

PROTOCOLS = {name: number for number, name in PROTOCOL_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client would find: `outcome` is delivered, local, unrouted, rejected or dropped.

    `seen` has each backend with the address that it sees the client come from; `masquerade`: is that another than the
    client's own (or another port) for any of them? `rules` is the number of rules evaluated.
    """

    outcome: str
    seen: frozenset[tuple[str, str]] = frozenset()
    masquerade: bool = False
    rules: int = 0

    @property
    def to(self) -> set[str]:
        return {backend for backend, _ in self.seen}


def packet(src: str, dst: str, protocol: str = "tcp") -> Skb:
    """The first packet of a connection between two `ip:port`: a SYN, a datagram or an INIT."""
    source, destination, number = SockAddr.parse(src), SockAddr.parse(dst), PROTOCOLS[protocol]
    ports = source.port.to_bytes(2, "big") + destination.port.to_bytes(2, "big")
    body = {
        "tcp": bytes(8) + b"\x50\x02\xff\xff" + bytes(4),
        "udp": b"\x00\x08\x00\x00",
        "sctp": bytes(8) + b"\x01\x00\x00\x14" + bytes(16),
    }[protocol]
    header = bytes((0x45, 0)) + (24 + len(body)).to_bytes(2, "big") + bytes((0, 0, 0x40, 0, 64, number, 0, 0)) + source.ip + destination.ip
    skb = Skb.parse(header + ports + body)
    assert isinstance(skb, Skb)
    return skb


class FlowNode:
    """A node's surroundings for rules: its addresses, where masquerade gets its own from, and chance."""

    def __init__(self, ruleset: RuleSet, ips: tuple[str, ...] = ("192.168.0.2",), seed: int = 0, masquerade_as: str = "") -> None:
        self.ips = tuple(map(parse_ip, ips))
        self.masquerade_as = parse_ip(masquerade_as) if masquerade_as else self.ips[0]
        self.chance: Callable[[], float] = random.Random(seed).random
        self.ruleset = ruleset
        self.memory, self.now = Memory(), 0.0

    def is_local(self, ip: bytes) -> bool:
        return ip in self.ips or ip[0] == 127

    def is_local_on(self, ip: bytes, device: str) -> bool:
        return device == "eth0" and ip in self.ips

    def is_broadcast(self, ip: bytes) -> bool:
        return False

    def masquerade_address(self, oif: str, dst: bytes) -> bytes | None:
        return self.masquerade_as

    def random(self) -> float:
        return self.chance()

    def choose(self, count: int) -> int:
        return next((number for number in range(count - 1) if self.chance() < 1 / (count - number)), count - 1)

    def hop(self, skb: Skb, where: str, rule: str | None = None, note: str | None = None, rules: int = 0) -> None:
        """Nothing is traced here."""

    def once(self, src: str, dst: str, protocol: str = "tcp", *, iif: str = "cni0") -> Answer:
        """Send one packet, on a node without any connections."""
        netfilter, skb = Netfilter(self), packet(src, dst, protocol)
        netfilter.swap(self.ruleset)
        own = self.is_local(skb.src)
        skb.iif, skb.oif = ("", "eth0") if own else (iif, "")
        for hook in (Hook.OUTPUT,) if own else (Hook.PREROUTING,):
            if (verdict := netfilter.run(hook, skb, self.now)) is not Verdict.ACCEPT:
                return _refused(verdict, skb)
        local = self.is_local(skb.dst)
        if not own:
            skb.oif = "" if local else "eth0"
            if (verdict := netfilter.run(Hook.INPUT if local else Hook.FORWARD, skb, self.now)) is not Verdict.ACCEPT:
                return _refused(verdict, skb)
        if (own or not local) and (verdict := netfilter.run(Hook.POSTROUTING, skb, self.now)) is not Verdict.ACCEPT:
            return _refused(verdict, skb)
        return self._arrived(skb, SockAddr.parse(src), SockAddr.parse(dst), local=local)

    def _arrived(self, skb: Skb, src: SockAddr, dst: SockAddr, *, local: bool) -> Answer:
        assert skb.ct is not None
        answering_ip, answering_port, seen_ip, _ = parts(skb.ct.reply)
        assert (answering_ip, answering_port) == skb.destination, "what is sent and what is expected back must agree"
        masquerade = seen_ip != src.ip or (skb.source != src)
        if skb.destination == dst:
            return Answer("local" if local else "unrouted", rules=skb.rules)
        return Answer("delivered", frozenset([(str(skb.destination), format_ip(skb.src))]), masquerade, skb.rules)

    def ask(self, src: str, dst: str, protocol: str = "tcp", *, iif: str = "cni0") -> Answer:
        """Every backend that may be drawn; the outcome must not depend on the draw. Rules: the most."""
        answers: list[Answer] = []
        pending: list[tuple[bool, ...]] = [()]
        while pending:
            script = pending.pop()
            draws: list[bool] = []

            def chance(script: tuple[bool, ...] = script, draws: list[bool] = draws) -> float:
                taken = script[len(draws)] if len(draws) < len(script) else True
                draws.append(taken)
                return 0.0 if taken else 0.999999

            self.chance = chance
            answers.append(self.once(src, dst, protocol, iif=iif))
            pending.extend((*draws[:i], False) for i in range(len(script), len(draws)))
        (outcome,) = {a.outcome for a in answers}
        seen = frozenset[tuple[str, str]]().union(*(a.seen for a in answers))
        return Answer(outcome, seen, any(a.masquerade for a in answers), max(a.rules for a in answers))

    def sample(self, src: str, dst: str, count: int, seed: int) -> Counter[str]:
        """How often each backend is drawn by `count` connections."""
        self.chance = random.Random(seed).random
        return Counter(backend for _ in range(count) for backend in self.once(src, dst).to)


def _refused(verdict: Verdict, skb: Skb) -> Answer:
    return Answer("rejected" if verdict is Verdict.REJECT else "dropped", rules=skb.rules)
