"""Reads rule sets: what `iptables-save` prints, and what kube-proxy feeds to `iptables-restore`.

Decides which rule a line means. Whatever it does not know, an option, a match, a target, is an error that names the line: a rule
half understood would let the wrong packets through. Counters are read over. Reading what `text` printed gives the same rules;
from `save_text`, matches in the kernel's order and MARK as --set-xmark. Spec: iptables-extensions(8), ip(6)tables-restore(8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from emu.errors import ConfigError
from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.ruleset import (
    Accept,
    AddressType,
    Chain,
    Comment,
    ConntrackState,
    Destination,
    DestinationPort,
    Dnat,
    Drop,
    InInterface,
    Jump,
    Mark,
    Masquerade,
    Match,
    OutInterface,
    Protocol,
    Reject,
    Return,
    Rule,
    RuleSet,
    SetMark,
    Snat,
    Source,
    SourcePort,
    Statistic,
    Table,
    Target,
)
from emu.netfilter.skb import PORT_PROTOCOLS
from emu.netfilter.text import FULL_MASK, PROTOCOLS, REJECTS, STATES
from emu.wire.addr import Network, SockAddr, parse_ip

PROTOCOL_NUMBERS = {"all": 0, "icmpv6": 58, **{name: number for number, name in PROTOCOLS.items()}}
_CHAIN = re.compile(r":(\S+) (ACCEPT|DROP|-)(?: \[\d+:\d+\])?")
_COUNTERS = re.compile(r"\[\d+:\d+\]\s+")
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+')


def read_rules(text: str, *, source: str = "-", family: int = 4) -> RuleSet:
    """The rule set that a dump or a restore input describes; ConfigError with `source` and the line's number otherwise.

    `family` (4 or 6) decides only what a bare REJECT answers with.
    """
    tables: dict[str, Table] = {}
    reading: _TableReader | None = None
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        try:
            if not line or line.startswith("#"):
                continue
            if line.startswith("*"):
                if reading is not None or line[1:] in tables:
                    raise ValueError(f"table {line[1:]} begins twice" if line[1:] in tables else f"no COMMIT before {line}")
                reading = _TableReader(line[1:], family)
            elif reading is None:
                raise ValueError(f"{line!r} stands in no table")
            elif line == "COMMIT":
                tables[reading.name] = reading.table()
                reading = None
            else:
                reading.line(line, number)
        except _At as problem:
            raise ConfigError(problem.problem, source=source, where=f"line {problem.number}") from None
        except ValueError as problem:
            raise ConfigError(str(problem), source=source, where=f"line {number}") from None
    if reading is not None:
        raise ConfigError(f"table {reading.name} has no COMMIT", source=source)
    return RuleSet(MappingProxyType(tables))


class _At(Exception):
    """A fault of an earlier line, found at the table's end."""

    def __init__(self, problem: str, number: int) -> None:
        self.problem, self.number = problem, number


class _TableReader:
    """One table while it is read."""

    def __init__(self, name: str, family: int) -> None:
        self.name, self._family = name, family
        self._policies: dict[str, Verdict | None] = {}
        self._rules: dict[str, list[Rule]] = {}
        self._jumps: list[tuple[str, int]] = []

    def line(self, line: str, number: int) -> None:
        if chain := _CHAIN.fullmatch(line):
            self._declare(chain[1], chain[2])
            return
        words = split_words(_COUNTERS.sub("", line, count=1) if line.startswith("[") else line)
        if len(words) < 2 or words[0] not in ("-A", "--append"):
            raise ValueError(f"{words[0]} is not supported, only chains, -A and COMMIT")
        if words[1] not in self._rules:
            raise ValueError(f"chain {words[1]} is not declared in table {self.name}")
        rule = _RuleReader(words[2:], self._family).rule()
        self._rules[words[1]].append(rule)
        if isinstance(rule.target, Jump):
            self._jumps.append((rule.target.chain, number))

    def _declare(self, name: str, policy: str) -> None:
        builtin = name in Hook.__members__
        if builtin is (policy == "-"):
            raise ValueError(f"the built-in chain {name} needs a policy" if builtin else f"chain {name} cannot have a policy")
        if name in self._rules:
            raise ValueError(f"chain {name} is declared twice")
        self._policies[name] = Verdict(policy) if builtin else None
        self._rules[name] = []

    def table(self) -> Table:
        for target, number in self._jumps:
            if target not in self._rules:
                raise _At(f"{target} is neither a chain of table {self.name} nor a supported target", number)
            if self._policies[target] is not None:
                raise _At(f"nothing may jump to the built-in chain {target}", number)
        chains = {name: Chain(name, tuple(rules), self._policies[name]) for name, rules in self._rules.items()}
        table = Table(self.name, MappingProxyType(chains))
        if loop := table.loop():
            raise ValueError(f"chains of table {self.name} jump in a circle: {' -> '.join(loop)}")
        return table


class _RuleReader:
    """One rule's words, from left to right. `module` is the protocol whose match module is loaded before `-p` names it."""

    def __init__(self, words: list[str], family: int) -> None:
        self._words, self._at, self._family = words, 0, family
        self._matches: list[Match] = []
        self._target: Target | None = None
        self._invert = False
        self._module = 0

    def rule(self) -> Rule:
        while self._at < len(self._words):
            option = self._next("")
            if option == "!":
                if self._invert:
                    raise ValueError("two ! in a row")
                self._invert = True
                continue
            read = OPTIONS.get(option)
            if read is None:
                raise ValueError(f"{option} is not supported")
            read(self, option)
            if self._invert:
                raise ValueError(f"{option} cannot be inverted")
        if self._invert:
            raise ValueError("! stands before nothing")
        if self._module and self._protocol() is None:
            raise ValueError(f"-m {PROTOCOLS[self._module]} needs -p {PROTOCOLS[self._module]}")
        if self._target in UNFINISHED:
            raise ValueError(f"{UNFINISHED[self._target]} needs its argument")
        return Rule(tuple(self._matches), self._target)

    def _next(self, option: str) -> str:
        if self._at == len(self._words):
            raise ValueError(f"{option} needs an argument")
        self._at += 1
        return self._words[self._at - 1]

    def _bang(self) -> bool:
        """Was there a `!`? The next option has none."""
        invert, self._invert = self._invert, False
        return invert

    def _protocol(self) -> Protocol | None:
        return next((match for match in self._matches if isinstance(match, Protocol)), None)

    # ---- matches

    def source(self, option: str) -> None:
        self._matches.append(Source(_network(self._next(option)), self._bang()))

    def destination(self, option: str) -> None:
        self._matches.append(Destination(_network(self._next(option)), self._bang()))

    def in_interface(self, option: str) -> None:
        self._matches.append(InInterface(self._next(option), self._bang()))

    def out_interface(self, option: str) -> None:
        self._matches.append(OutInterface(self._next(option), self._bang()))

    def protocol(self, option: str) -> None:
        name = self._next(option).lower()
        number = PROTOCOL_NUMBERS.get(name)
        if number is None:
            number = _number(name, 255)
        if self._protocol() is not None:
            raise ValueError("a rule has one -p at most")
        if self._module and (number != self._module or self._invert):
            raise ValueError(f"-m {PROTOCOLS[self._module]} needs -p {PROTOCOLS[self._module]}")
        self._matches.append(Protocol(number, self._bang(), module=bool(self._module)))

    def module(self, option: str) -> None:
        """`-m NAME`; a protocol's own module is where the kernel's form has its ports, so the protocol moves here."""
        name = self._next(option)
        if name in MODULES:
            return
        number = PROTOCOL_NUMBERS.get(name)
        if number not in PORT_PROTOCOLS:
            raise ValueError(f"-m {name} is not supported")
        self._module = number
        protocol = self._protocol()
        if protocol is not None:
            if protocol.number != number or protocol.invert:
                raise ValueError(f"-m {name} needs -p {name}")
            self._matches.remove(protocol)
            self._matches.append(Protocol(number))

    def port(self, option: str) -> None:
        protocol = self._protocol()
        number = self._module or (protocol.number if protocol is not None and not protocol.invert else 0)
        if number not in PORT_PROTOCOLS:
            raise ValueError(f"{option} needs -p tcp, udp or sctp before it")
        first, colon, last = self._next(option).partition(":")
        low = _number(first or "0", 65535)
        high = _number(last or "65535", 65535) if colon else low
        if low > high:
            raise ValueError(f"{option} {first}:{last} is empty")
        kind = SourcePort if option in ("--sport", "--source-port") else DestinationPort
        self._matches.append(kind(number, low, high, self._bang()))

    def comment(self, option: str) -> None:
        self._matches.append(Comment(self._next(option)))

    def conntrack_state(self, option: str) -> None:
        states = tuple(self._next(option).split(","))
        if unknown := [state for state in states if state not in STATES]:
            raise ValueError(f"{option} {unknown[0]!r} is not one of {', '.join(STATES)}")
        self._matches.append(ConntrackState(states, self._bang()))

    def mark(self, option: str) -> None:
        value, mask = _masked(self._next(option))
        self._matches.append(Mark(value, mask, self._bang()))

    def address_type(self, option: str) -> None:
        kind = self._next(option)
        if kind != "LOCAL":
            raise ValueError(f"{option} {kind} is not supported, only LOCAL")
        self._matches.append(AddressType(option[2:5], kind, self._bang()))

    def mode(self, option: str) -> None:
        if (mode := self._next(option)) != "random":
            raise ValueError(f"{option} {mode} is not supported, only random")

    def probability(self, option: str) -> None:
        word = self._next(option)
        if not re.fullmatch(r"0?\.\d+|[01](\.0*)?", word):
            raise ValueError(f"{option} {word} is not a number from 0 to 1")
        self._matches.append(Statistic(float(word)))

    # ---- targets

    def jump(self, option: str) -> None:
        name = self._next(option)
        target = TARGETS.get(name, Jump(name))
        self._set(Reject("icmp6-port-unreachable") if name == "REJECT" and self._family == 6 else target)

    def goto(self, option: str) -> None:
        self._set(Jump(self._next(option), goto=True))

    def _set(self, target: Target) -> None:
        if self._target is not None:
            raise ValueError("a rule has one target at most")
        self._target = target

    def reject_with(self, option: str) -> None:
        how = self._next(option)
        if not isinstance(self._target, Reject) or how not in REJECTS:
            raise ValueError(f"{option} {how} is not supported here")
        self._target = Reject(how)

    def to_destination(self, option: str) -> None:
        match self._target:
            case Dnat():
                self._target = Dnat(_address(self._next(option)))
            case _:
                raise ValueError(f"{option} is DNAT's")

    def to_source(self, option: str) -> None:
        match self._target:
            case Snat(_, random_fully):
                self._target = Snat(_address(self._next(option)), random_fully)
            case _:
                raise ValueError(f"{option} is SNAT's")

    def random_fully(self, option: str) -> None:
        match self._target:
            case Snat(to):
                self._target = Snat(to, random_fully=True)
            case Masquerade():
                self._target = Masquerade(random_fully=True)
            case _:
                raise ValueError(f"{option} is SNAT's and MASQUERADE's")

    def set_mark(self, option: str) -> None:
        if self._target != TARGETS["MARK"]:
            raise ValueError(f"{option} is MARK's, once")
        value, mask = _masked(self._next(option))
        match option:
            case "--set-mark":
                mask |= value
            case "--or-mark":
                mask = value
            case "--xor-mark":
                mask = 0
            case "--and-mark":
                value, mask = 0, ~value & FULL_MASK
            case _:
                pass
        self._target = SetMark(value, mask, option)


Option = Callable[[_RuleReader, str], None]

MODULES = frozenset(("comment", "conntrack", "mark", "addrtype", "statistic"))
TARGETS: Mapping[str, Target] = {
    "ACCEPT": Accept(), "DROP": Drop(), "RETURN": Return(), "REJECT": Reject(), "DNAT": Dnat(SockAddr(b"", 0)),
    "SNAT": Snat(SockAddr(b"", 0)), "MASQUERADE": Masquerade(), "MARK": SetMark(0, 0, ""),
}  # fmt: skip
"""Targets as they are before their options."""
UNFINISHED: Mapping[Target | None, str] = {TARGETS[name]: name for name in ("DNAT", "SNAT", "MARK")}

OPTIONS: Mapping[str, Option] = {
    **dict.fromkeys(("-s", "--source", "--src"), _RuleReader.source),
    **dict.fromkeys(("-d", "--destination", "--dst"), _RuleReader.destination),
    **dict.fromkeys(("-i", "--in-interface"), _RuleReader.in_interface),
    **dict.fromkeys(("-o", "--out-interface"), _RuleReader.out_interface),
    **dict.fromkeys(("-p", "--protocol", "--proto"), _RuleReader.protocol),
    **dict.fromkeys(("-m", "--match"), _RuleReader.module),
    **dict.fromkeys(("--sport", "--source-port", "--dport", "--destination-port"), _RuleReader.port),
    **dict.fromkeys(("-j", "--jump"), _RuleReader.jump),
    **dict.fromkeys(("-g", "--goto"), _RuleReader.goto),
    **dict.fromkeys(("--set-xmark", "--set-mark", "--or-mark", "--xor-mark", "--and-mark"), _RuleReader.set_mark),
    **dict.fromkeys(("--src-type", "--dst-type"), _RuleReader.address_type),
    "--comment": _RuleReader.comment,
    "--ctstate": _RuleReader.conntrack_state,
    "--mark": _RuleReader.mark,
    "--mode": _RuleReader.mode,
    "--probability": _RuleReader.probability,
    "--reject-with": _RuleReader.reject_with,
    "--to-destination": _RuleReader.to_destination,
    "--to-source": _RuleReader.to_source,
    "--random-fully": _RuleReader.random_fully,
}


def split_words(line: str) -> list[str]:
    """A line's words; in double quotes, where a backslash takes the next character as it is, spaces do not separate."""
    if _WORD.sub("", line).strip():
        raise ValueError("a quote is not closed")
    return [re.sub(r'"((?:[^"\\]|\\.)*)"', lambda quoted: re.sub(r"\\(.)", r"\1", quoted[1]), word) for word in _WORD.findall(line)]


def _number(text: str, most: int) -> int:
    if not re.fullmatch(r"0x[0-9a-fA-F]+|\d+", text) or (number := int(text, 16 if text.startswith("0x") else 10)) > most:
        raise ValueError(f"{text!r} is not a number from 0 to {most}")
    return number


def _masked(text: str) -> tuple[int, int]:
    value, slash, mask = text.partition("/")
    return _number(value, FULL_MASK), _number(mask, FULL_MASK) if slash else FULL_MASK


def _network(text: str) -> Network:
    """An address with or without its length; a mask may be dotted, as in old dumps."""
    address, slash, mask = text.partition("/")
    if slash and "." in mask:
        bits = int.from_bytes(parse_ip(mask), "big")
        length = bits.bit_count()
        if bits != (1 << 32) - (1 << (32 - length)):
            raise ValueError(f"{text}: a mask with holes is not supported")
        text = f"{address}/{length}"
    return Network.parse(text, strict=False)


def _address(text: str) -> SockAddr:
    """`ADDRESS[:PORT]`, or `[ADDRESS]:PORT` for IPv6; ranges are not supported."""
    if "-" in text:
        raise ValueError(f"{text}: ranges are not supported")
    if text.startswith("[") or text.count(":") == 1:
        return SockAddr.parse(text)
    return SockAddr(parse_ip(text), 0)
