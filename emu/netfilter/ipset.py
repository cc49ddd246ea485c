"""Sets of addresses, ports and networks: what `ipset save` prints, and what `-m set` finds in them.

A member is a row of as many values as its type has dimensions (`hash:ip,port,net` has three). Addresses are kept with their prefix
length, so that a network is found by looking up each length that occurs. Spec: ipset(8), ip_set_hash_gen.h, ip_set_getport.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

from emu.errors import ConfigError
from emu.netfilter.forms import parse_number, split_words
from emu.netfilter.modules import PROTOCOL_NUMBERS
from emu.netfilter.skb import ICMP, ICMPV6, PORT_PROTOCOLS, TCP, UDP, Skb
from emu.wire.addr import Network, parse_ip

DIMENSIONS = frozenset(("ip", "net", "port", "mac", "iface", "mark", "set"))
METHODS = frozenset(("hash", "bitmap", "list"))
_VALUED = frozenset((
    "family", "hashsize", "maxelem", "bucketsize", "initval", "timeout", "range", "netmask", "bitmask", "markmask", "size", "comment",
    "packets", "bytes", "skbmark", "skbprio", "skbqueue", "before", "after",
))  # fmt: skip
_MOST = 1 << 16  # members that one line may stand for

Value = tuple[int, int] | str | int
"""An address as (prefix length, value), a port as protocol << 16 | port, a device's name, or a mark."""
Row = tuple[Value, ...]


@dataclass(slots=True)
class IpSet:
    """One set. `rows` has for each member when it ends (infinity: never) and whether it is a `nomatch`; `lengths` the combinations
    of prefix lengths that occur, longest first; `members` the names in a list:set.
    """

    name: str
    method: str
    dimensions: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)
    rows: dict[Row, tuple[float, bool]] = field(default_factory=dict)
    members: list[str] = field(default_factory=list)
    _lengths: dict[tuple[int, ...], int] = field(default_factory=dict)

    def holds(self, skb: Skb, sides: tuple[str, ...], sets: Mapping[str, IpSet], now: float = 0.0, *, nomatch: bool = False) -> bool:
        """Is what the packet has at these sides a member? With `nomatch`: is it one that was excepted?"""
        if self.method == "list":
            return any(name in sets and sets[name].holds(skb, sides, sets, now, nomatch=nomatch) for name in self.members)
        values = self._values(skb, sides)
        if values is None:
            return False
        for lengths in sorted(self._lengths, reverse=True):
            row = tuple(_shortened(value, length) for value, length in zip(values, lengths, strict=True))
            found = self.rows.get(row)
            if found is not None and found[0] > now:
                return found[1] is nomatch
        return False

    def add(self, row: Row, ends: float = float("inf"), *, nomatch: bool = False) -> None:
        if row not in self.rows:
            lengths = _lengths(row)
            self._lengths[lengths] = self._lengths.get(lengths, 0) + 1
        self.rows[row] = (ends, nomatch)

    def remove(self, row: Row) -> None:
        if self.rows.pop(row, None) is not None:
            lengths = _lengths(row)
            self._lengths[lengths] -= 1
            if not self._lengths[lengths]:
                del self._lengths[lengths]

    def copy(self) -> IpSet:
        return replace(self, rows=dict(self.rows), members=[*self.members], _lengths=dict(self._lengths))

    def row_of(self, skb: Skb, sides: tuple[str, ...]) -> Row | None:
        """The packet's own row, as `-j SET` adds and deletes it."""
        return self._values(skb, sides)

    def _values(self, skb: Skb, sides: tuple[str, ...]) -> Row | None:
        """What the packet has in each dimension; None if it has no such thing. A side that is not given is the last one."""
        if self.options.get("family", "inet") != ("inet" if len(skb.src) == 4 else "inet6") and {"ip", "net"} & {*self.dimensions}:
            return None
        values: list[Value] = []
        for number, dimension in enumerate(self.dimensions):
            source = sides[min(number, len(sides) - 1)] == "src"
            if dimension in ("ip", "net"):
                ip = skb.src if source else skb.dst
                values.append((8 * len(ip), int.from_bytes(ip, "big")))
                if "netmask" in self.options and dimension == "ip":
                    values[-1] = _shortened(values[-1], int(self.options["netmask"]))
            elif dimension == "port":
                port = _port(skb, source=source)
                if port is None or (self.method == "bitmap" and skb.proto not in (TCP, UDP)):
                    return None
                values.append(port & 0xFFFF if self.method == "bitmap" else port)
            elif dimension == "iface":
                values.append(skb.iif if source else skb.oif)
            elif dimension == "mark":
                values.append(skb.mark & int(self.options.get("markmask", "0xffffffff"), 0))
            else:  # mac: packets here have no link header
                return None
        return tuple(values)

    # ---- text

    def rows_of(self, member: str) -> Iterator[Row]:
        """The rows that one `add` line means: ranges of ports and addresses are several."""
        words = member.split(",")
        if len(words) != len(self.dimensions):
            raise ValueError(f"{member}: a member of {self.kind} is {','.join(self.dimensions)}")
        parts = [self._meant(dimension, word) for dimension, word in zip(self.dimensions, words, strict=True)]
        count = 1
        for part in parts:
            count *= len(part)
        if count > _MOST:
            raise ValueError(f"{member} stands for {count} members, more than {_MOST}")
        return product(*parts)

    def _meant(self, dimension: str, word: str) -> list[Value]:
        match dimension:
            case "ip" | "net":
                return [_shortened(value, int(self.options["netmask"])) if "netmask" in self.options and dimension == "ip" else value
                        for value in _networks(word)]  # fmt: skip
            case "port":
                return list(_ports(word, bare=self.method == "bitmap"))
            case "mark":
                return [parse_number(word)]
            case _:
                return [word]

    @property
    def kind(self) -> str:
        return f"{self.method}:{','.join(self.dimensions)}"


def _lengths(row: Row) -> tuple[int, ...]:
    return tuple(value[0] if isinstance(value, tuple) else 0 for value in row)


def _shortened(value: Value, length: int) -> Value:
    if not isinstance(value, tuple) or value[0] == length:
        return value
    bits = 128 if value[0] > 32 or value[1] >> 32 else 32
    return length, value[1] >> (bits - length) << (bits - length)


def _networks(word: str) -> list[Value]:
    first, dash, last = word.partition("-")
    if not dash:
        network = Network.parse(word, strict=False)
        return [(network.length, network.value)]
    low, high = parse_ip(first), parse_ip(last)
    start, end, bits = int.from_bytes(low, "big"), int.from_bytes(high, "big"), 8 * len(low)
    if len(low) != len(high) or start > end or end - start >= _MOST:
        raise ValueError(f"{word} is not FIRST-LAST of one family with at most {_MOST} addresses")
    return [(bits, number) for number in range(start, end + 1)]


def _ports(word: str, *, bare: bool) -> Iterator[int]:
    """`80`, `tcp:80`, `udp:53-60`; TCP where nothing is said. With `bare`, without the protocol."""
    name, colon, ports = word.rpartition(":")
    proto = PROTOCOL_NUMBERS.get(name.lower(), -1) if colon else TCP
    if proto < 0:
        proto = parse_number(name, 255)
    if proto in (ICMP, ICMPV6) and "/" in ports:
        kind, _, code = ports.partition("/")
        ports = str(parse_number(kind, 255) << 8 | parse_number(code, 255))
    first, dash, last = ports.partition("-")
    for port in range(parse_number(first, 65535), parse_number(last if dash else first, 65535) + 1):
        yield port if bare else proto << 16 | port


def _port(skb: Skb, *, source: bool) -> int | None:
    """ip_set_get_ip_port: ports, or an ICMP message's type and code."""
    if skb.fragment:
        return None
    if skb.proto in PORT_PROTOCOLS:
        return skb.proto << 16 | (skb.sport if source else skb.dport)
    if skb.proto in (ICMP, ICMPV6):
        return skb.proto << 16 | skb.buf[skb.l4] << 8 | skb.buf[skb.l4 + 1]
    return skb.proto << 16


def read_sets(text: str, *, source: str = "-") -> dict[str, IpSet]:
    """The sets that `ipset save` printed; ConfigError with `source` and the line's number otherwise."""
    sets: dict[str, IpSet] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            words = split_words(line)
            if len(words) < 3 or words[0] not in ("create", "add", "-N", "-A"):
                raise ValueError(f"{line.strip()!r} is neither `create NAME TYPE …` nor `add NAME MEMBER …`")
            if words[0] in ("create", "-N"):
                if words[1] in sets:
                    raise ValueError(f"set {words[1]} is created twice")
                sets[words[1]] = _created(words)
            elif words[1] not in sets:
                raise ValueError(f"set {words[1]} has not been created")
            else:
                _added(sets[words[1]], words)
        except ValueError as problem:
            raise ConfigError(str(problem), source=source, where=f"line {number}") from None
    return sets


def _options(words: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    at = 0
    while at < len(words):
        valued = words[at] in _VALUED and at + 1 < len(words) and not (words[at] == "comment" and words[at + 1] in _VALUED)
        options[words[at]] = words[at + 1] if valued else ""
        at += 2 if valued else 1
    return options


def _created(words: list[str]) -> IpSet:
    method, _, kinds = words[2].partition(":")
    dimensions = tuple(kinds.split(","))
    if method not in METHODS or not DIMENSIONS.issuperset(dimensions):
        raise ValueError(f"{words[2]} is no type of set that is known, such as hash:ip,port or list:set")
    return IpSet(words[1], method, dimensions, _options(words[3:]))


def _added(into: IpSet, words: list[str]) -> None:
    options = _options(words[3:])
    if into.method == "list":
        into.members.append(words[2])
        return
    ends = float(options["timeout"]) if options.get("timeout", "0") != "0" else float("inf")
    for row in into.rows_of(words[2]):
        into.add(row, ends, nomatch="nomatch" in options)
