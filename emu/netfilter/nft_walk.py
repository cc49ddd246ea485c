"""The walk of a packet through an nftables chain: conditions, then statements, a verdict map being one look-up.

The counterpart of `walk`. Every rule looked at counts as one in `skb.rules`, a look-up included, however many elements the map has.
Decides what the rules say; what follows from it is `netfilter`'s.
"""

from __future__ import annotations

from typing import assert_never

from emu.netfilter import nft
from emu.netfilter.conn import CtState
from emu.netfilter.hooks import Surroundings
from emu.netfilter.nft_text import rule_text
from emu.netfilter.ruleset import Dnat, Masquerade, Reject
from emu.netfilter.skb import PORT_PROTOCOLS, Skb
from emu.netfilter.walk import ACCEPT, DROP, Outcome
from emu.wire.addr import Ip

_REJECT = {4: Reject("icmp-port-unreachable"), 6: Reject("icmp6-port-unreachable")}
_MASQUERADE = Masquerade(random_fully=True)
DEEPEST = 16  # NFT_JUMP_STACK_SIZE


def walk(table: nft.Table, chain: nft.Chain, skb: Skb, around: Surroundings) -> Outcome:
    """What a base chain says of a packet."""
    outcome = _walk(table, chain, skb, around, 0)
    return ACCEPT if outcome is None else outcome


def _walk(table: nft.Table, chain: nft.Chain, skb: Skb, around: Surroundings, depth: int) -> Outcome | None:
    """None: the packet has come to the chain's end and goes back to where it came from."""
    assert depth < DEEPEST, f"{table.name}: jumps are nested too deep at {chain.name}"
    for rule in chain.rules:
        skb.rules += 1
        if not all(_holds(condition, table, skb, around) for condition in rule.conditions):
            continue
        if skb.trace:
            around.hop(skb, f"{table.name}/{chain.name}", rule=rule_text(rule, table.family), rules=1)
        for statement in rule.statements:
            over, outcome = _do(statement, table, skb, around, depth)
            if over:
                return outcome
    return None


def _holds(condition: nft.Condition, table: nft.Table, skb: Skb, around: Surroundings) -> bool:
    match condition:
        case nft.Address(side, network, invert):
            return (_side(skb, side) in network) != invert
        case nft.AddressIn(side, networks, invert):
            address = _side(skb, side)
            return any(address in network for network in networks) != invert
        case nft.AddressInSet(side, name):
            found = table.sets[name]
            address = _side(skb, side)
            return around.memory.remembers(name, address) if found.timeout else address in found.elements
        case nft.FibLocal(side):
            return around.is_local(_side(skb, side))
        case nft.InputInterface(name, invert):
            return (skb.iif.startswith(name[:-1]) if name.endswith("*") else skb.iif == name) != invert
        case nft.CtStateNew():
            return skb.ct_state is CtState.NEW
        case nft.MarkIsClear(bits):
            return not skb.mark & bits
        case nft.L4Proto(proto):
            return skb.proto == proto
        case _:
            assert_never(condition)


def _side(skb: Skb, side: str) -> Ip:
    return skb.src if side == "saddr" else skb.dst


Step = tuple[bool, Outcome | None]
_ON: Step = (False, None)
_BACK: Step = (True, None)


def _do(statement: nft.Statement, table: nft.Table, skb: Skb, around: Surroundings, depth: int) -> Step:
    """Whether the chain ends here, and with which outcome (None: it returns)."""
    match statement:
        case nft.Jump():
            return _jump(statement, table, skb, around, depth)
        case nft.Return():
            return _BACK
        case nft.Drop():
            return True, DROP
        case nft.Reject():
            return True, _REJECT[table.family]
        case nft.MarkOr(bits):
            skb.mark |= bits
            return _ON
        case nft.MarkXor(bits):
            skb.mark ^= bits
            return _ON
        case nft.Masquerade():
            return True, _MASQUERADE
        case nft.Dnat(to):
            return True, Dnat(to)
        case nft.Update(name):
            around.memory.remember(name, skb.src, table.sets[name].timeout)
            return _ON
        case nft.Lookup(name, by_address):
            return _look_up(table.maps[name], table, skb, around, depth, by_address=by_address)
        case nft.Spread(chains):
            chosen = chains[around.choose(len(chains))] if len(chains) > 1 else chains[0]
            return _jump(nft.Jump(chosen, goto=True), table, skb, around, depth)
        case _:
            assert_never(statement)


def _look_up(found: nft.VerdictMap, table: nft.Table, skb: Skb, around: Surroundings, depth: int, *, by_address: bool) -> Step:
    if skb.proto not in PORT_PROTOCOLS:
        return _ON
    key = nft.service_key(skb.dst, skb.proto, skb.dport) if by_address else nft.port_key(skb.proto, skb.dport)
    element = found.elements.get(key)
    if element is None:
        return _ON
    verdict = element[0]
    return (True, DROP) if isinstance(verdict, nft.Drop) else _jump(verdict, table, skb, around, depth)


def _jump(jump: nft.Jump, table: nft.Table, skb: Skb, around: Surroundings, depth: int) -> Step:
    outcome = _walk(table, table.chains[jump.chain], skb, around, depth + 1)
    if outcome is not None:
        return True, outcome
    return _BACK if jump.goto else _ON
