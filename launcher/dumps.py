"""From `podwire explain`'s flags and files to one packet in a node's surroundings. Decides what is taken for granted.

A packet comes from outside unless --from is `local`, one of the known addresses of the node, or --out is given. With routes but no
--in-interface it comes in by the device that leads back to its source, as strict reverse-path filtering would insist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emu.errors import ConfigError
from emu.netfilter.conn import CtState
from emu.netfilter.explain import Asked, Explanation, explain
from emu.netfilter.facts import Facts, read_addresses, read_routes
from emu.netfilter.first_packet import first_packet
from emu.netfilter.forms import parse_number
from emu.netfilter.ipset import read_sets
from emu.netfilter.reader import Dump, read_dump
from emu.netfilter.skb import ICMP, ICMPV6, PROTOCOL_NAMES
from emu.wire.addr import Ip, SockAddr, format_ip, parse_ip

NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
DEFAULT_PORT = 40000  # of a client that was given none: in Linux's ephemeral range

IPVS_DEVICE = "kube-ipvs0"  # holds the addresses of all Services where kube-proxy runs in ipvs mode

Text = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Question:
    """All that was asked. `guessed` are sentences about what was taken for granted."""

    dump: Dump
    facts: Facts
    asked: Asked
    source: SockAddr
    target: SockAddr
    proto: str
    assumed: Mapping[str, bool]
    guessed: tuple[str, ...] = field(default=())


def question(text: Text, rules: str, given: Mapping[str, Any]) -> Question:
    """From flags, by their names, and what `text` reads. ConfigError names the flag, or the file and line."""
    target, has_port = _end(given["target"], "--to")
    family = 4 if len(target.ip) == 4 else 6
    node_ips = [_address(ip, "--node-ip") for ip in given["node_ips"]]
    facts = Facts(
        read_addresses(_json(text, given["addresses"]), source=given["addresses"]) if given["addresses"] else None,
        read_routes(_json(text, given["routes"]), source=given["routes"], family=family) if given["routes"] else None,
        frozenset(node_ips),
        read_sets(text(given["ipset"]), source=given["ipset"]) if given["ipset"] else {},
    )
    proto = given["proto"] or ("tcp" if has_port else "icmp")
    if proto != "icmp" and not has_port:
        raise ConfigError(f"{given['target']!r} needs a port, ADDRESS:PORT, for {proto}", source="--to")
    if given["source"] == "local":
        source, sent = SockAddr(_own_address(facts, node_ips, target.ip, given["out_interface"]), DEFAULT_PORT), True
    else:
        source, with_port = _end(given["source"], "--from")
        source = source if with_port else SockAddr(source.ip, DEFAULT_PORT)
        sent = given["out"] or (facts.is_local(source.ip) is True and not given["in_interface"])
    if len(source.ip) != len(target.ip):
        raise ConfigError(f"{given['source']} and {given['target']} are of different families", source="--from")
    if given["out"] and given["in_interface"]:
        raise ConfigError("a packet that the node itself sends comes in by no device; give one of the two", source="--out, --in-interface")
    iif, guessed = given["in_interface"] or "", []
    if not sent and not iif and facts.routes is not None and (back := facts.route(source.ip)) is not None and len(back.devices) == 1:
        iif = back.devices[0]
        guessed.append(f"it comes in by {iif}, to which the route back to {format_ip(source.ip)} leads (else give --in-interface)")
    if any(address.device == IPVS_DEVICE and address.ip == target.ip for address in facts.addresses or ()):
        guessed.append(f"{format_ip(target.ip)} is on {IPVS_DEVICE}: what passes INPUT goes to IPVS, whose backends `ipvsadm -S -n` lists")
    number = {"icmp": ICMP if family == 4 else ICMPV6}.get(proto) or NUMBERS[proto]
    packet = first_packet(number, source.ip, target.ip, source.port, target.port)
    asked = Asked(
        packet, sent, iif, given["out_interface"] or "", given["physdev_in"] or "", _mark(given["mark"]), CtState(given["ctstate"])
    )
    dump = read_dump(text(rules), source=rules, family=family, lenient=given["lenient"])
    return Question(dump, facts, asked, source, target, proto, _assumed(given["assumed"], dump), tuple(guessed))


def answer(asked: Question) -> Explanation:
    return explain(asked.dump, asked.asked, asked.facts, asked.assumed)


def _end(word: str, flag: str) -> tuple[SockAddr, bool]:
    """`ADDRESS[:PORT]`, and whether there was a port."""
    try:
        if word.startswith("[") or word.count(":") == 1:
            return SockAddr.parse(word), True
        return SockAddr(parse_ip(word), 0), False
    except ValueError as problem:
        raise ConfigError(f"{problem}; right would be 10.0.0.1:80 or [fd00::1]:80", source=flag) from None


def _address(word: str, flag: str) -> Ip:
    try:
        return parse_ip(word)
    except ValueError as problem:
        raise ConfigError(str(problem), source=flag) from None


def _own_address(facts: Facts, node_ips: list[Ip], dst: Ip, device: str | None) -> Ip:
    """The address from which the node itself sends."""
    if facts.is_local(dst):
        return dst
    route = facts.route(dst)
    name = device or (route.devices[0] if route is not None and route.devices else "")
    found = facts.source_on(name, route.gateway if route is not None and route.gateway else dst) if name else None
    found = found or next((ip for ip in node_ips if len(ip) == len(dst)), None)
    if found is None:
        raise ConfigError("local needs --node-ip, or --addresses and --routes, to know from which address the node sends", source="--from")
    return found


def _json(text: Text, name: str) -> Any:
    try:
        return json.loads(text(name))
    except json.JSONDecodeError as problem:
        raise ConfigError(f"this is not JSON ({problem.msg}); `ip -j` prints it", source=name, where=f"line {problem.lineno}") from None


def _mark(word: str) -> int:
    try:
        return parse_number(word)
    except ValueError as problem:
        raise ConfigError(str(problem), source="--mark") from None


def _assumed(words: tuple[str, ...], dump: Dump) -> dict[str, bool]:
    assumed: dict[str, bool] = {}
    lines = {line for place in dump.places.values() for line in place.lines} if any(word[:1].isdigit() for word in words) else set()
    for word in words:
        what, _, value = word.partition("=")
        if value not in ("yes", "no") or not what:
            raise ConfigError(f"{word!r} is not WHAT=yes or WHAT=no", source="--assume")
        if what.isdigit() and int(what) not in lines:
            raise ConfigError(f"no rule stands in line {what} of {dump.source}", source="--assume")
        assumed[what] = value == "yes"
    return assumed
