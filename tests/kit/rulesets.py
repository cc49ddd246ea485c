"""Rule sets for tests, written as one writes them for `iptables-restore`, and a node's surroundings for them."""

from __future__ import annotations

import random
from collections.abc import Callable

from emu.netfilter.reader import read_rules
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import Skb
from emu.wire.addr import parse_ip

HOOKS = {
    "filter": "INPUT FORWARD OUTPUT",
    "nat": "PREROUTING INPUT OUTPUT POSTROUTING",
    "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING",
}


def table(name: str, *rules: str, policies: dict[str, str] | None = None) -> str:
    """One table's text: its built-in chains, a chain for every other name after `-A`, and the rules (each without `-A`)."""
    builtins = HOOKS[name].split()
    chains = {chain: (policies or {}).get(chain, "ACCEPT") for chain in builtins}
    chains |= {rule.split()[0]: "-" for rule in rules if rule.split()[0] not in builtins}
    lines = [f":{chain} {policy} [0:0]" for chain, policy in chains.items()] + [f"-A {rule}" for rule in rules]
    return "\n".join((f"*{name}", *lines, "COMMIT", ""))


def rules(*tables: str) -> RuleSet:
    return read_rules("".join(tables))


class Around:
    """What rules may ask: local addresses, the masquerade address of each device, and chance."""

    def __init__(self, *local: str, masquerade: dict[str, str] | None = None, seed: int = 0) -> None:
        self.local = set(map(parse_ip, local))
        self.masquerade = {name: parse_ip(address) for name, address in (masquerade or {}).items()}
        self.chance: Callable[[], float] = random.Random(seed).random
        self.hops: list[tuple[str, str | None, str | None, int]] = []

    def is_local(self, ip: bytes) -> bool:
        return ip in self.local or ip[0] == 127

    def masquerade_address(self, oif: str, dst: bytes) -> bytes | None:
        return self.masquerade.get(oif)

    def random(self) -> float:
        return self.chance()

    def hop(self, skb: Skb, where: str, rule: str | None = None, note: str | None = None, rules: int = 0) -> None:
        self.hops.append((where, rule, note, rules))
