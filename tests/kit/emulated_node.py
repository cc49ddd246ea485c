"""The node of `crossroads` as the emulator has it: its addresses, routes and rules, and what it says becomes of a packet."""

from __future__ import annotations

import random
from collections.abc import Callable

from emu.netfilter.backends import fates
from emu.netfilter.hooks import Verdict
from emu.netfilter.journey import Fate, Journey
from emu.netfilter.memory import Memory
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import Skb
from emu.stack.device import Device
from emu.stack.namespace import NetNamespace
from emu.stack.route import Route
from emu.stack.softnet import Softnet
from emu.wire.addr import Network, format_ip, parse_ip
from tests.kit.crossroads import ADDRESSES, GATEWAY, NODE, PODS, SOURCES, TUNNELS, End, Question

_PLACES = {address: pod for pod, address in PODS.items()}
_PATIENCE = 10_000


class EmulatedNode:
    """Ends of first packets under one rule set. What rules remember of clients lasts as long as the object."""

    def __init__(self, ruleset: RuleSet) -> None:
        self.ruleset, self.ns = ruleset, _namespace()
        self._chance = random.Random(0)

    def ends(self, question: Question, address: str) -> dict[End, float]:
        """Every end that the packet may come to, with its probability."""
        source = SOURCES[question.source]
        found = fates(self.ruleset, self._packet(question, address), self.ns, self._device, iif=source.iif)
        return {_end(question, fate): fate.probability for fate in found}

    def learn(self, question: Question, address: str, end: End) -> None:
        """Remember of this packet what a node remembers that has let it end so."""
        for _ in range(_PATIENCE):
            around = _Trial(self.ns, self._chance)
            netfilter, skb = Netfilter(around), Skb.parse(self._packet(question, address))
            assert isinstance(skb, Skb)
            skb.iif = SOURCES[question.source].iif
            netfilter.swap(self.ruleset)
            if _end(question, Journey(netfilter, self.ns.is_local, self._device).take(skb)) == end:
                self.ns.memory = around.memory
                return
        raise AssertionError(f"{question} never ended as {end} in {_PATIENCE} trials, which is said to be possible")

    def _packet(self, question: Question, address: str) -> bytes:
        return bytes(question.packet(address, 40000))

    def _device(self, skb: Skb) -> str | None:
        route = self.ns.routes.lookup(skb.dst)
        return None if route is None else route.device


def _namespace() -> NetNamespace:
    ns = NetNamespace("node", Softnet(NODE), forwarding=True)
    for name, addresses in ADDRESSES:
        ns.add_device(Device(ns, name, 1500))
        for address in addresses:
            ns.add_address(name, Network.parse(address, strict=False), parse_ip(address.partition("/")[0]))
    for network, gateway in TUNNELS.items():
        ns.add_route(Route(Network.parse(network), "flannel.1", gateway=parse_ip(gateway), onlink=True))
    ns.add_route(Route(Network.parse("0.0.0.0/0"), "eth0", gateway=parse_ip(GATEWAY)))
    return ns


class _Trial:
    """The node's surroundings, with a memory and dice that leave the node's own alone."""

    def __init__(self, ns: NetNamespace, chance: random.Random) -> None:
        self.memory: Memory = ns.memory.trial()
        self.is_local, self.is_local_on, self.is_broadcast = ns.is_local, ns.is_local_on, ns.is_broadcast
        self.masquerade_address, self.hop = ns.masquerade_address, ns.hop
        self.random: Callable[[], float] = chance.random
        self.choose: Callable[[int], int] = chance.randrange


def _end(question: Question, fate: Fate) -> End:
    if fate.verdict is Verdict.DROP:
        return End("dropped")
    if fate.verdict is Verdict.REJECT:
        return End("rejected", to=fate.reject_with or "")
    ip, seen_from = format_ip(fate.destination.ip), format_ip(fate.source)
    to = f"{ip}:{0 if question.transport == 'icmp' else fate.destination.port}"
    if fate.device == "lo":
        return End("local", "", to, seen_from)
    place = fate.device or "nowhere"
    return End("sent", _PLACES.get(ip, place) if place == "cni0" else place, to, seen_from)
