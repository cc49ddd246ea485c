"""nftables as text: a table as `nft list table` shows it, which `nft -f` takes as it is.

Decides spelling and order only. Sets and maps come first, since a chain may only name what exists; chains follow those that they jump
to no more than nft asks for, which is not at all within one table. Spec: nft(8); checked against nftables 1.0.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from emu.netfilter import nft
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import PROTOCOL_NAMES
from emu.wire.addr import Network, SockAddr, format_ip

_FAMILIES = {4: "ip", 6: "ip6"}
_TYPES = {4: "ipv4_addr", 6: "ipv6_addr"}


def ruleset_text(ruleset: RuleSet) -> str:
    """The nftables part of a rule set; "" if there is none."""
    return table_text(ruleset.nft) if ruleset.nft is not None else ""


def table_text(table: nft.Table) -> str:
    """The whole table."""
    lines = [f"table {_FAMILIES[table.family]} {table.name} {{"]
    if table.comment:
        lines.append(f"\tcomment {_quoted(table.comment)}")
    for one in table.sets.values():
        lines += ["", *_set(one, table.family)]
    for map_ in table.maps.values():
        lines += ["", *_map(map_, table.family)]
    for chain in table.chains.values():
        lines += ["", *_chain(chain, table.family)]
    return "\n".join([*lines, "}", ""])


def _set(one: nft.AddressSet, family: int) -> Iterator[str]:
    yield f"\tset {one.name} {{"
    yield f"\t\ttype {_TYPES[family]}"
    if one.timeout:
        yield "\t\tsize 65535"
        yield "\t\tflags dynamic,timeout"
        yield f"\t\ttimeout {duration(one.timeout)}"
    if one.comment:
        yield f"\t\tcomment {_quoted(one.comment)}"
    if one.elements:
        yield f"\t\telements = {{ {', '.join(format_ip(ip) for ip in sorted(one.elements))} }}"
    yield "\t}"


def _map(found: nft.VerdictMap, family: int) -> Iterator[str]:
    key = f"{_TYPES[family]} . inet_proto . inet_service" if found.by_address else "inet_proto . inet_service"
    yield f"\tmap {found.name} {{"
    yield f"\t\ttype {key} : verdict"
    if found.comment:
        yield f"\t\tcomment {_quoted(found.comment)}"
    if found.elements:
        rows = [_element(key, verdict, comment) for key, (verdict, comment) in found.elements.items()]
        yield "\t\telements = { " + ",\n\t\t\t     ".join(rows) + " }"
    yield "\t}"


def _element(key: bytes, verdict: nft.ElementVerdict, comment: str) -> str:
    fields = [format_ip(key[:-3])] if len(key) > 3 else []
    fields += [PROTOCOL_NAMES[key[-3]], str(key[-2] << 8 | key[-1])]
    told = f" comment {_quoted(comment)}" if comment else ""
    return f"{' . '.join(fields)}{told} : {_verdict(verdict)}"


def _verdict(verdict: nft.ElementVerdict) -> str:
    return "drop" if isinstance(verdict, nft.Drop) else f"{'goto' if verdict.goto else 'jump'} {verdict.chain}"


def _chain(chain: nft.Chain, family: int) -> Iterator[str]:
    yield f"\tchain {chain.name} {{"
    if chain.comment:
        yield f"\t\tcomment {_quoted(chain.comment)}"
    if chain.base is not None:
        base = chain.base
        yield f"\t\ttype {base.kind} hook {base.hook.name.lower()} priority {base.words}; policy accept;"
    for rule in chain.rules:
        yield f"\t\t{rule_text(rule, family)}"
    yield "\t}"


def rule_text(rule: nft.Rule, family: int = 4) -> str:
    """One rule."""
    words = [*(_condition(each, family) for each in rule.conditions), *(_statement(each, family) for each in rule.statements)]
    if rule.comment:
        words.append(f"comment {_quoted(rule.comment)}")
    return " ".join(words)


def _condition(condition: nft.Condition, family: int) -> str:
    ip = _FAMILIES[family]
    match condition:
        case nft.Address(side, network, invert):
            return f"{ip} {side} {'!= ' if invert else ''}{_network(network)}"
        case nft.AddressIn(side, networks, invert):
            listed = ", ".join(map(_network, networks))
            return f"{ip} {side} {'!= ' if invert else ''}{f'{{ {listed} }}' if len(networks) > 1 else listed}"
        case nft.AddressInSet(side, name):
            return f"{ip} {side} @{name}"
        case nft.FibLocal(side):
            return f"fib {side} type local"
        case nft.InputInterface(name, invert):
            return f"iifname {'!= ' if invert else ''}{_quoted(name)}"
        case nft.CtStateNew():
            return "ct state new"
        case nft.MarkIsClear(bits):
            return f"meta mark & {bits:#010x} == 0x00000000"
        case nft.L4Proto(proto):
            return f"meta l4proto {PROTOCOL_NAMES[proto]}"
        case _:
            assert_never(condition)


def _statement(statement: nft.Statement, family: int) -> str:
    ip = _FAMILIES[family]
    match statement:
        case nft.Jump():
            return _verdict(statement)
        case nft.Return():
            return "return"
        case nft.Drop():
            return "drop"
        case nft.Reject():
            return "reject"
        case nft.MarkOr(bits):
            return f"meta mark set meta mark | {bits:#010x}"
        case nft.MarkXor(bits):
            return f"meta mark set meta mark ^ {bits:#010x}"
        case nft.Masquerade():
            return "masquerade fully-random"
        case nft.Dnat(to):
            return f"dnat to {_target(to)}"
        case nft.Update(name):
            return f"update @{name} {{ {ip} saddr }}"
        case nft.Lookup(name, by_address):
            return f"{f'{ip} daddr . ' if by_address else ''}meta l4proto . th dport vmap @{name}"
        case nft.Spread(chains):
            choices = ", ".join(f"{number} : goto {chain}" for number, chain in enumerate(chains))
            return f"numgen random mod {len(chains)} vmap {{ {choices} }}"
        case _:
            assert_never(statement)


def _network(network: Network) -> str:
    return format_ip(network.address) if network.length == 8 * len(network.address) else str(network)


def _target(to: SockAddr) -> str:
    return f"[{format_ip(to.ip)}]:{to.port}" if len(to.ip) == 16 else f"{format_ip(to.ip)}:{to.port}"


def duration(seconds: int) -> str:
    """Seconds as nft writes them: 3h, 1d2h, 1m30s."""
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _quoted(text: str) -> str:
    return f'"{text}"'
