"""nftables as kube-proxy uses it, as values: one table with its sets, verdict maps and chains.

What `ruleset` is to iptables. Decides which statements there are, not what they do (`nft_walk`) nor how they are written
(`nft_text`). A look-up key is the concatenation of its fields' bytes, so that a map is one dictionary. Spec: nft(8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emu.netfilter.hooks import Hook
from emu.netfilter.late import LateRules
from emu.wire.addr import Ip, Network, SockAddr

# ---- expressions that a packet meets or not --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """`ip saddr NETWORK`, `ip daddr != NETWORK`; `side` is saddr or daddr."""

    side: str
    network: Network
    invert: bool = False


@dataclass(frozen=True, slots=True)
class AddressIn:
    """`ip saddr { NETWORK, … }`, `ip daddr != { … }`: a set without a name."""

    side: str
    networks: tuple[Network, ...]
    invert: bool = False


@dataclass(frozen=True, slots=True)
class AddressInSet:
    """`ip daddr @NAME`."""

    side: str
    name: str


@dataclass(frozen=True, slots=True)
class FibLocal:
    """`fib saddr type local`: is it an address of the namespace?"""

    side: str


@dataclass(frozen=True, slots=True)
class InputInterface:
    """`iifname "NAME"`, `iifname != "prefix*"`."""

    name: str
    invert: bool = False


@dataclass(frozen=True, slots=True)
class CtStateNew:
    """`ct state new`."""


@dataclass(frozen=True, slots=True)
class MarkIsClear:
    """`meta mark & BITS == 0`."""

    bits: int


@dataclass(frozen=True, slots=True)
class L4Proto:
    """`meta l4proto PROTOCOL`."""

    proto: int


Condition = Address | AddressIn | AddressInSet | FibLocal | InputInterface | CtStateNew | MarkIsClear | L4Proto

# ---- statements ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Jump:
    """`jump CHAIN`, or `goto CHAIN`, which does not come back."""

    chain: str
    goto: bool = False


@dataclass(frozen=True, slots=True)
class Return:
    """`return`."""


@dataclass(frozen=True, slots=True)
class Drop:
    """`drop`."""


@dataclass(frozen=True, slots=True)
class Reject:
    """`reject`: an ICMP port unreachable."""


@dataclass(frozen=True, slots=True)
class MarkOr:
    """`meta mark set mark or BITS`."""

    bits: int


@dataclass(frozen=True, slots=True)
class MarkXor:
    """`meta mark set mark xor BITS`."""

    bits: int


@dataclass(frozen=True, slots=True)
class Masquerade:
    """`masquerade fully-random`."""


@dataclass(frozen=True, slots=True)
class Dnat:
    """`dnat to ADDRESS:PORT`."""

    to: SockAddr


@dataclass(frozen=True, slots=True)
class Update:
    """`update @NAME { ip saddr }`: the source is in the set, from now on for the set's time."""

    name: str


@dataclass(frozen=True, slots=True)
class Lookup:
    """`ip daddr . meta l4proto . th dport vmap @NAME`, or without the address: a verdict by what the packet is for."""

    name: str
    by_address: bool = True


@dataclass(frozen=True, slots=True)
class Spread:
    """`numgen random mod N vmap { 0 : goto A, 1 : goto B, … }`: one of these chains, each as likely."""

    chains: tuple[str, ...]


Statement = Jump | Return | Drop | Reject | MarkOr | MarkXor | Masquerade | Dnat | Update | Lookup | Spread
ElementVerdict = Jump | Drop


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions, all of which must hold, then statements, in order. `comment` is "" for none."""

    conditions: tuple[Condition, ...]
    statements: tuple[Statement, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Base:
    """Where a base chain is hooked in; `kind` is filter or nat. `priority` is its number, `words` how kube-proxy writes it."""

    kind: str
    hook: Hook
    priority: int
    words: str


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A chain with its rules."""

    name: str
    rules: tuple[Rule, ...] = ()
    base: Base | None = None
    comment: str = ""


class LateChain(LateRules, Chain):
    """A late chain."""

    __slots__ = ("_subject", "_write")

    def __init__(self, name: str, write: Callable[[Any], Iterable[Rule]], subject: object) -> None:
        put = object.__setattr__
        put(self, "name", name)
        put(self, "base", None)
        put(self, "comment", "")
        put(self, "_write", write)
        put(self, "_subject", subject)


@dataclass(frozen=True, slots=True)
class AddressSet:
    """`set NAME { type ipv4_addr; … }`. With a `timeout` (seconds) its elements are packets' doing: `flags dynamic,timeout`."""

    name: str
    elements: frozenset[Ip] = frozenset()
    timeout: int = 0
    comment: str = ""


@dataclass(frozen=True, slots=True)
class VerdictMap:
    """`map NAME { type … : verdict; … }`. Keys are address, protocol and port, or the last two; each verdict has a comment."""

    name: str
    by_address: bool
    elements: Mapping[bytes, tuple[ElementVerdict, str]]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """`table ip NAME`; `family` is 4 or 6."""

    name: str
    family: int
    chains: Mapping[str, Chain]
    sets: Mapping[str, AddressSet]
    maps: Mapping[str, VerdictMap]
    bases: tuple[Chain, ...] = field(default=())
    comment: str = ""


def service_key(ip: Ip, proto: int, port: int) -> bytes:
    """`ip daddr . meta l4proto . th dport`."""
    return ip + bytes((proto, port >> 8, port & 255))


def port_key(proto: int, port: int) -> bytes:
    """`meta l4proto . th dport`."""
    return bytes((proto, port >> 8, port & 255))
