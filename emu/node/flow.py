"""What may become of a first packet at this node, whoever sends it: every end, with its probability, read from the rule set.

The question behind a scenario's `flow`: the sender need not exist, nothing is sent, and nothing is changed. Decides what a
question must say, and says of each end whether the packet would leave the cluster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emu.errors import ApiError
from emu.netfilter.backends import Fate, fates
from emu.netfilter.first_packet import first_packet
from emu.netfilter.skb import ICMPV6, PROTOCOL_NAMES, Skb
from emu.node.machine import Machine
from emu.stack.namespace import NetNamespace
from emu.wire.addr import Ip, format_ip, parse_ip

_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items() if number != ICMPV6}
Body = dict[str, Any]


def answer(machine: Machine, params: Mapping[str, Any]) -> Body:
    """`{src, dst, proto, sport, dport, iif, pods, proxy_only}` to `{"fates": [...]}`; an empty `iif` means that the node itself sends.
    `proxy_only`: by kube-proxy's rules alone, without the network plugin's. `pods` are
    addresses to be taken for pods' although a bridge or tunnel here has them, as may be in a state seen elsewhere.

    Called under the node's lock. ApiError 400 for what is no packet.
    """
    proto = _NUMBERS.get(str(params.get("proto", "tcp")))
    if proto is None:
        raise ApiError(400, "BadRequest", f"proto: {params.get('proto')!r} is not one of {', '.join(_NUMBERS)}")
    src, dst = _address(params, "src"), _address(params, "dst")
    packet = first_packet(proto, src, dst, int(params.get("sport") or 40000), int(params.get("dport") or 0))
    iif = str(params.get("iif") or "")
    around = _Node(machine.node, frozenset(parse_ip(str(ip)) for ip in params.get("pods") or ()))
    ruleset = machine.proxy_rules if params.get("proxy_only") else machine.node.netfilter.ruleset
    found = fates(ruleset, packet, around, lambda skb: _device(machine, skb), iif=iif)
    return {"fates": [_told(machine, fate) for fate in found]}


class _Node:
    """The node as rules see it, but for those addresses."""

    def __init__(self, ns: NetNamespace, pods: frozenset[Ip]) -> None:
        self._ns, self._pods = ns, pods
        self.masquerade_address, self.random, self.choose, self.hop = ns.masquerade_address, ns.random, ns.choose, ns.hop
        self.is_local_on, self.is_broadcast, self.memory = ns.is_local_on, ns.is_broadcast, ns.memory

    def is_local(self, ip: Ip) -> bool:
        return ip not in self._pods and self._ns.is_local(ip)


def _address(params: Mapping[str, Any], key: str) -> Ip:
    try:
        ip = parse_ip(str(params.get(key)))
    except ValueError:
        ip = b""
    if len(ip) != 4:
        raise ApiError(400, "BadRequest", f"{key}: {params.get(key)!r} is not an IPv4 address")
    return ip


def _device(machine: Machine, skb: Skb) -> str | None:
    route = machine.node.routes.lookup(skb.dst)
    return None if route is None else route.device


def _told(machine: Machine, fate: Fate) -> Body:
    route = machine.node.routes.lookup(fate.destination.ip) if fate.device not in (None, "lo") else None
    outside = route is not None and route.device == machine.underlay.name and route.gateway == machine.underlay.gateway
    return {
        "verdict": fate.verdict.value, "destination": str(fate.destination), "source": format_ip(fate.source), "device": fate.device,
        "masqueraded": fate.masqueraded, "reject_with": fate.reject_with, "probability": fate.probability, "rules": fate.rules,
        "outside": outside or fate.device is None,
    }  # fmt: skip
