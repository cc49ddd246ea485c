"""Rule sets as text: what is fed to `iptables-restore`, and what `iptables-save` would print once the kernel has it.

The two differ. kube-proxy writes matches in its own order, without masks, `-m tcp -p tcp`, marks in eight digits and
probabilities with ten; the kernel gives back addresses, devices and protocol first, matches in the order of their loading,
and 31-bit probabilities. Both load unchanged. Reading is `reader`'s.
Spec: iptables-extensions(8); iptables 1.8 `print_match_save`, `xtables_save_string`; kubernetes `pkg/util/iptables`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import assert_never

from emu.netfilter.forms import FULL_MASK, ends_text, option_words, quote
from emu.netfilter.hooks import Hook
from emu.netfilter.modules import MODULES, PROTOCOLS, STATES
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
    Extension,
    Fragment,
    HeaderOption,
    InInterface,
    Jump,
    Mark,
    Masquerade,
    Match,
    Netmap,
    Option,
    OutInterface,
    Protocol,
    Redirect,
    Reject,
    Return,
    Rule,
    RuleSet,
    SetMark,
    Snat,
    Source,
    SourcePort,
    Spread,
    Statistic,
    Table,
    Target,
    TargetExtension,
)
from emu.netfilter.skb import PORT_PROTOCOLS
from emu.netfilter.targets import TARGET_EXTENSIONS
from emu.wire.addr import Network, SockAddr, format_ip

_BUILTINS = [hook.name for hook in Hook]


# ---- whole rule sets --------------------------------------------------------------------------------------------------------------


def restore_text(ruleset: RuleSet, *, mark_digits: int = 8) -> str:
    """The rule set as input of `iptables-restore`, spelt as kube-proxy spells it; a mark has at least `mark_digits` hex digits."""

    def lines(chain: Chain) -> Iterator[str]:
        return (restore_line(chain.name, rule, mark_digits) for rule in chain.rules)

    return "".join(_table_text(table, lines) for table in ruleset.tables.values())


def save_text(ruleset: RuleSet) -> str:
    """The rule set as `iptables-save` prints it: built-in chains in the order of the hooks, then the others by name."""

    def lines(chain: Chain) -> Iterator[str]:
        return (rule_line(chain.name, rule) for rule in chain.rules)

    def in_order(table: Table) -> Table:
        return Table(table.name, {chain.name: chain for chain in sorted(table.chains.values(), key=_save_order)})

    return "".join(_table_text(in_order(table), lines) for table in ruleset.tables.values())


def _save_order(chain: Chain) -> tuple[int, str]:
    return (_BUILTINS.index(chain.name), "") if chain.policy is not None else (len(_BUILTINS), chain.name)


def _table_text(table: Table, lines: Callable[[Chain], Iterable[str]]) -> str:
    out = [f"*{table.name}"]
    out.extend(f":{chain.name} {_policy(chain)} [0:0]" for chain in table.chains.values())
    for chain in table.chains.values():
        out.extend(lines(chain))
    return "\n".join((*out, "COMMIT", ""))


def _policy(chain: Chain) -> str:
    return "-" if chain.policy is None else chain.policy.value


# ---- one rule ------------------------------------------------------------------------------------------------------------------------


def rule_line(chain: str, rule: Rule) -> str:
    """The rule as `iptables-save` prints it."""
    return " ".join((f"-A {chain}", *_save_head(rule), *_save_rest(rule), *_target_words(rule.target)))


def restore_line(chain: str, rule: Rule, mark_digits: int = 8) -> str:
    """The rule as kube-proxy writes it: matches in the rule's own order."""
    words = (word for match in rule.matches for word in _restore_words(match, mark_digits))
    return " ".join((f"-A {chain}", *words, *_restore_target(rule.target, mark_digits)))


def _bang(invert: bool) -> tuple[str, ...]:
    return ("!",) if invert else ()


def _ports(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}:{last}"


def protocol_name(number: int) -> str:
    return PROTOCOLS.get(number, str(number))


def _restore_quote(text: str) -> str:
    """kube-proxy quotes what contains a space; what a shell-like reader could misread is quoted too."""
    return text if text and not re.search(r"[\s\"'\\]", text) else '"' + re.sub(r"([\"\\])", r"\\\1", text) + '"'


def _masked(value: int, mask: int, digits: int = 0) -> str:
    return f"0x{value:0{digits or 1}x}" + ("" if mask == FULL_MASK else f"/0x{mask:0{digits or 1}x}")


# the kernel's form: header matches in a fixed order, then match modules in the order of their loading


def _save_head(rule: Rule) -> Iterator[str]:
    found: dict[type, Match] = {type(match): match for match in rule.matches}
    for kind, option in ((Source, "-s"), (Destination, "-d"), (InInterface, "-i"), (OutInterface, "-o"), (Protocol, "-p")):
        match = found.get(kind)
        match match:
            case Source(network, invert) | Destination(network, invert) if network.length or invert:
                yield from (*_bang(invert), option, str(network))
            case InInterface(name, invert) | OutInterface(name, invert):
                yield from (*_bang(invert), option, name)
            case Protocol(number, invert) if number:
                yield from (*_bang(invert), option, protocol_name(number))
            case _:
                pass
    fragment = found.get(Fragment)
    if isinstance(fragment, Fragment):
        yield from (*_bang(fragment.invert), "-f")


def _save_rest(rule: Rule) -> Iterator[str]:
    ports: list[SourcePort | DestinationPort] = [match for match in rule.matches if isinstance(match, SourcePort)]
    ports += [match for match in rule.matches if isinstance(match, DestinationPort)]
    options = [match.option for match in rule.matches if isinstance(match, HeaderOption)]
    options.sort(key=lambda option: option.name != "--tcp-option")  # the only two of one module; the flags come last
    place = _module_place(rule)
    for match in rule.matches:
        if match is place:
            yield from ("-m", protocol_name(match.number if isinstance(match, Protocol) else match.proto))
            for port in ports:
                yield from _port_words(port, shown=(0, 65535))
            for option in options:
                yield from option_words(option, None)
        match match:
            case Source() | Destination() | InInterface() | OutInterface() | Protocol() | SourcePort() | DestinationPort():
                pass
            case Fragment() | HeaderOption():
                pass
            case Extension(module, given):
                yield from _extension_words(module, given)
            case Comment(text):
                yield from ("-m", "comment", "--comment", quote(text))
            case Statistic(probability):
                yield from ("-m", "statistic", "--mode", "random", "--probability", f"{round(probability * (1 << 31)) / (1 << 31):.11f}")
            case ConntrackState(states, invert):
                yield from ("-m", "conntrack", *_bang(invert), "--ctstate", ",".join(state for state in STATES if state in states))
            case Mark(value, mask, invert):
                yield from ("-m", "mark", *_bang(invert), "--mark", _masked(value, mask))
            case AddressType(side, kind, invert):
                yield from ("-m", "addrtype", *_bang(invert), f"--{side}-type", kind)
            case _:
                assert_never(match)


def _extension_words(module: str, options: tuple[Option, ...]) -> Iterator[str]:
    yield from ("-m", module)
    forms = MODULES[module].forms if module in MODULES else {}
    for option in options:
        yield from option_words(option, forms.get(option.name))


def _module_place(rule: Rule) -> Protocol | SourcePort | DestinationPort | HeaderOption | None:
    """Where the protocol's match module is loaded: by its own `-m`, else by the first port; None if it is not."""
    for match in rule.matches:
        if isinstance(match, SourcePort | DestinationPort | HeaderOption):
            return match
        if isinstance(match, Protocol) and match.module and not match.invert and match.number in PORT_PROTOCOLS:
            return match
    return None


def _port_words(match: SourcePort | DestinationPort, shown: tuple[int, int] | None = None) -> Iterator[str]:
    """`shown` is the range that goes without saying."""
    if (match.first, match.last) == shown and not match.invert:
        return
    yield from (*_bang(match.invert), "--sport" if isinstance(match, SourcePort) else "--dport", _ports(match.first, match.last))


def _target_words(target: Target | None) -> Iterable[str]:
    match target:
        case None:
            return ()
        case Jump(chain, goto):
            return ("-g" if goto else "-j", chain)
        case Accept():
            return ("-j", "ACCEPT")
        case Drop():
            return ("-j", "DROP")
        case Return():
            return ("-j", "RETURN")
        case Reject(how):
            return ("-j", "REJECT", "--reject-with", how)
        case Dnat(to, spread):
            return ("-j", "DNAT", "--to-destination", *_ends(to, spread, random_fully=False))
        case Snat(to, random_fully, spread):
            return ("-j", "SNAT", "--to-source", *_ends(to, spread, random_fully=random_fully))
        case Masquerade(random_fully, ports, random):
            return ("-j", "MASQUERADE", *_to_ports(ports), *_flags(("--random", random), ("--random-fully", random_fully)))
        case Redirect(ports, random):
            return ("-j", "REDIRECT", *_to_ports(ports), *_flags(("--random", random)))
        case Netmap(network):
            return ("-j", "NETMAP", "--to", str(network))
        case TargetExtension(name, options):
            forms = TARGET_EXTENSIONS[name].forms if name in TARGET_EXTENSIONS else {}
            return ("-j", name, *(word for option in options for word in option_words(option, forms.get(option.name))))
        case SetMark(value, mask):
            return ("-j", "MARK", "--set-xmark", f"{value:#x}/{mask:#x}")
        case _:
            assert_never(target)


def _flags(*flags: tuple[str, bool]) -> tuple[str, ...]:
    return tuple(name for name, given in flags if given)


def _to_ports(ports: tuple[int, int] | None) -> tuple[str, ...]:
    return () if ports is None else ("--to-ports", str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}")


def _ends(to: SockAddr, spread: Spread | None, *, random_fully: bool) -> tuple[str, ...]:
    if spread is None:
        return (ends_text(to, to), *_flags(("--random-fully", random_fully)))
    flags = _flags(("--random", spread.random), ("--random-fully", random_fully), ("--persistent", spread.persistent))
    return (ends_text(to, spread.last or to, spread.shifted_from), *flags)


# kube-proxy's form


def _restore_words(match: Match, mark_digits: int) -> Iterator[str]:
    match match:
        case Comment(text):
            yield from ("-m", "comment", "--comment", _restore_quote(text))
        case Source(network, invert):
            yield from (*_bang(invert), "-s", _bare(network))
        case Destination(network, invert):
            yield from (*_bang(invert), "-d", _bare(network))
        case InInterface(name, invert):
            yield from (*_bang(invert), "-i", name)
        case OutInterface(name, invert):
            yield from (*_bang(invert), "-o", name)
        case Protocol(number, invert, module):
            if module and not invert and number in PORT_PROTOCOLS:
                yield from ("-m", protocol_name(number))
            yield from (*_bang(invert), "-p", protocol_name(number))
        case SourcePort() | DestinationPort():
            yield from _port_words(match)
        case ConntrackState(states, invert):
            yield from ("-m", "conntrack", *_bang(invert), "--ctstate", ",".join(states))
        case Mark(value, mask, invert):
            yield from ("-m", "mark", *_bang(invert), "--mark", _masked(value, mask, mark_digits))
        case AddressType(side, kind, invert):
            yield from ("-m", "addrtype", *_bang(invert), f"--{side}-type", kind)
        case Statistic(probability):
            yield from ("-m", "statistic", "--mode", "random", "--probability", f"{probability:.10f}")
        case Fragment(invert):
            yield from (*_bang(invert), "-f")
        case HeaderOption(_, option):
            yield from option_words(option, None)
        case Extension("recent", options):
            yield from ("-m", "recent")
            for option in sorted(options, key=lambda option: option.name != "--name"):
                if (option.name, *option.values) not in _RECENT_DEFAULTS:
                    yield from option_words(option, None)
        case Extension(module, options):
            yield from _extension_words(module, options)
        case _:
            assert_never(match)


_RECENT_DEFAULTS = frozenset((
    ("--rsource",), ("--mask", "255.255.255.255"), ("--mask", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
))  # fmt: skip


def _bare(network: Network) -> str:
    """kube-proxy writes single addresses without their length."""
    return format_ip(network.address) if network.length == 8 * len(network.address) else str(network)


_DEFAULT_REJECTS = frozenset(("icmp-port-unreachable", "icmp6-port-unreachable"))


def _restore_target(target: Target | None, mark_digits: int) -> Iterable[str]:
    match target:
        case Reject(how) if how in _DEFAULT_REJECTS:
            return ("-j", "REJECT")
        case SetMark(value, mask, spelling) if spelling != "--set-xmark":
            return ("-j", "MARK", spelling, mark_argument(spelling, value, mask, mark_digits))
        case _:
            return _target_words(target)


def mark_argument(spelling: str, value: int, mask: int, digits: int) -> str:
    """The argument under which a spelling of MARK means (mark & ~mask) ^ value; AssertionError if none does."""
    match spelling:
        case "--or-mark":
            assert mask == value, "--or-mark sets what it masks"
            argument = value
        case "--xor-mark":
            assert mask == 0, "--xor-mark masks nothing"
            argument = value
        case "--and-mark":
            assert value == 0, "--and-mark sets nothing"
            argument = ~mask & FULL_MASK
        case "--set-mark":
            assert mask & value == value, "--set-mark sets only what it masks"
            return _masked(value, mask, digits)
        case _:
            raise AssertionError(f"MARK has no option {spelling}")
    return f"0x{argument:0{digits}x}"
