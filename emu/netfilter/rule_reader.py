"""Reads one rule: its words, from left to right, become its matches and its target.

Decides which option belongs to what: header options stand for themselves, others to the target, to the module loaded last that
has them, or to the protocol that `-p` named. What an option may hold is `modules`' and `targets`'. Spec: iptables-extensions(8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from emu.netfilter.forms import Extent, Form, parse_masked, parse_network, parse_number, parse_span
from emu.netfilter.modules import IMPLICIT, MODULES, PROTOCOL_NUMBERS, PROTOCOL_OPTIONS, PROTOCOLS, SYN_ONLY
from emu.netfilter.ruleset import (
    AddressType,
    Comment,
    ConntrackState,
    Destination,
    DestinationPort,
    Extension,
    Fragment,
    HeaderOption,
    InInterface,
    Jump,
    Mark,
    Match,
    Option,
    OutInterface,
    Protocol,
    Rule,
    Source,
    SourcePort,
    Statistic,
    Target,
    TargetExtension,
)
from emu.netfilter.skb import PORT_PROTOCOLS
from emu.netfilter.targets import TARGET_OPTIONS, TARGETS, made

_network = lru_cache(maxsize=4096)(parse_network)
_protocol = lru_cache(Protocol)


class Unknown(ValueError):
    """An option, a match or a target that is not known: what `--lenient` reads over."""


@lru_cache(maxsize=4096)
def _ports(option: str, proto: int, word: str, invert: bool) -> SourcePort | DestinationPort:
    try:
        low, high = parse_span(word)
    except ValueError as problem:
        raise ValueError(f"{option} {problem}") from None
    return (SourcePort if option in ("--sport", "--source-port") else DestinationPort)(proto, low, high, invert)


class _Loaded:
    """A module that a rule has loaded, and the options it was given so far; its match takes the place where it was loaded.

    `end` is where its last option's words ended; `run` are all words from its name up to one of STOPS, which it has to itself if they
    end at `end`.
    """

    __slots__ = ("end", "extent", "name", "options", "run", "start")

    def __init__(self, name: str, extent: Extent) -> None:
        self.name, self.extent = name, extent
        self.options: list[Option] = []
        self.run: tuple[str, ...] = ()
        self.start = self.end = 0


STOPS = frozenset(("-m", "-j", "-g"))
"""Where a module's words end in every dump."""

Memory = dict[tuple[str, ...], "Match | Target"]
"""What runs of words were read as before, in one file: most rules of a dump repeat what others say."""


class RuleReader:
    """One rule's words. `module` is the protocol whose match module is loaded before `-p` names it."""

    def __init__(self, words: list[str], family: int, memory: Memory, *, lenient: bool = False) -> None:
        self._words, self._at, self._family, self._memory, self._lenient = words, 0, family, memory, lenient
        self._matches: list[Match | _Loaded] = []
        self._loaded: list[_Loaded] = []
        self._protocol: Protocol | None = None
        self._target: Target | None = None
        self._target_options: _Loaded | None = None
        self._invert = False
        self._module = 0

    def rule(self) -> Rule:
        """ValueError says what is wrong; it is an `Unknown` where only something is not known."""
        words, end = self._words, len(self._words)
        while self._at < end:
            option = words[self._at]
            self._at += 1
            if option == "!":
                if self._invert:
                    raise ValueError("two ! in a row")
                self._invert = True
                continue
            read = OPTIONS.get(option)
            if read is not None:
                read(self, option)
            else:
                self._of_an_extension(option)
            if self._invert:
                raise ValueError(f"{option} cannot be inverted")
        if self._invert:
            raise ValueError("! stands before nothing")
        if self._module and self._protocol is None:
            raise ValueError(f"-m {PROTOCOLS[self._module]} needs -p {PROTOCOLS[self._module]}")
        if self._target_options is not None:
            self._settle_target(self._target_options)
        if self._loaded:
            return Rule(tuple([self._settled(match) if isinstance(match, _Loaded) else match for match in self._matches]), self._target)
        return Rule(tuple(self._matches), self._target)  # type: ignore[arg-type]

    def _next(self, option: str) -> str:
        if self._at == len(self._words):
            raise ValueError(f"{option} needs an argument")
        self._at += 1
        return self._words[self._at - 1]

    def _bang(self) -> bool:
        """Was there a `!`? The next option has none."""
        invert, self._invert = self._invert, False
        return invert

    # ---- header options

    def source(self, option: str) -> None:
        self._matches.append(Source(_network(self._next(option)), self._bang()))

    def destination(self, option: str) -> None:
        self._matches.append(Destination(_network(self._next(option)), self._bang()))

    def in_interface(self, option: str) -> None:
        self._matches.append(InInterface(self._next(option), self._bang()))

    def out_interface(self, option: str) -> None:
        self._matches.append(OutInterface(self._next(option), self._bang()))

    def fragment(self, option: str) -> None:
        self._matches.append(Fragment(self._bang()))

    def protocol(self, option: str) -> None:
        name = self._next(option).lower()
        number = PROTOCOL_NUMBERS.get(name)
        if number is None:
            number = parse_number(name, 255)
        if self._protocol is not None:
            raise ValueError("a rule has one -p at most")
        if self._module and (number != self._module or self._invert):
            raise ValueError(f"-m {PROTOCOLS[self._module]} needs -p {PROTOCOLS[self._module]}")
        self._protocol = _protocol(number, self._bang(), module=bool(self._module))
        self._matches.append(self._protocol)

    # ---- modules

    def module(self, option: str) -> None:
        """`-m NAME`; a protocol's own module is where the kernel's form has its ports, so the protocol moves here."""
        words, at = self._words, self._at
        name = self._next(option)
        if name == "comment" and words[at + 1 : at + 2] == ["--comment"] and at + 2 < len(words) and not self._invert:
            self._at = at + 3
            self._matches.append(Comment(words[at + 2]))
            return
        extent = MODULES.get(name)
        if extent is not None:
            end = at + 1
            while end < len(words) and words[end] not in STOPS:
                end += 1
            run = tuple(words[at:end])
            known = self._memory.get(run)
            if known is not None and not self._invert:
                self._matches.append(known)  # type: ignore[arg-type]
                self._at = end
                return
            loaded = self._load(name, extent)
            loaded.run, loaded.start = run, at
            return
        number = PROTOCOL_NUMBERS.get(name)
        if number not in PORT_PROTOCOLS:
            self._unknown(f"-m {name} is not supported", name)
            return
        self._module = number
        protocol = self._protocol
        if protocol is not None:
            if protocol.number != number or protocol.invert:
                raise ValueError(f"-m {name} needs -p {name}")
            self._matches.remove(protocol)
            self._protocol = _protocol(number)
            self._matches.append(self._protocol)

    def _load(self, name: str, extent: Extent) -> _Loaded:
        loaded = _Loaded(name, extent)
        self._loaded.append(loaded)
        self._matches.append(loaded)
        return loaded

    def _unknown(self, problem: str, module: str) -> None:
        """Leniently, the module's words are kept as they stand, up to the next `-m`, `-j` or `-g`."""
        if not self._lenient:
            raise Unknown(problem)
        self._matches.append(Extension(module, (Option("", self._words_left()),), known=False))

    def _words_left(self) -> tuple[str, ...]:
        start = self._at
        while self._at < len(self._words) and self._words[self._at] not in STOPS:
            self._at += 1
        return tuple(self._words[start : self._at])

    def _of_an_extension(self, option: str) -> None:
        target = self._target_options
        if self._lenient and target is None and type(self._target) is Jump:  # a target's options follow it, up to the end
            self._keep_target(self._target.chain, self._at - 1)
            return
        for loaded in (target, *reversed(self._loaded)) if target is not None else reversed(self._loaded):
            name = loaded.extent.aliases.get(option, option)
            form = loaded.extent.forms.get(name)
            if form is not None:
                self._take(loaded, name, form)
                return
        if self._of_the_protocol(option):
            return
        if target is not None and self._lenient:
            self._target_options = None
            self._keep_target(target.name, target.start + 1)
            return
        if self._loaded and self._lenient and self._loaded[-1].run:
            last = self._loaded.pop()
            self._at, self._invert = last.start + 1, False
            self._matches[self._matches.index(last)] = Extension(last.name, (Option("", self._words_left()),), known=False)
            return
        raise Unknown(_not_here(option))

    def _keep_target(self, name: str, start: int) -> None:
        """A target that is not known, or not all of it, is kept with its words."""
        self._target = TargetExtension(name, (Option("", tuple(self._words[start:])),), known=False)
        self._at, self._invert = len(self._words), False

    def _take(self, loaded: _Loaded, name: str, form: Form) -> None:
        values = []
        for word_of in form.words:
            word = self._next(name)
            try:
                values.append(word_of(word))
            except ValueError as problem:
                raise ValueError(f"{name} {problem}") from None
        loaded.options.append(Option(name, tuple(values), self._bang() if form.invertible else False))
        loaded.end = self._at

    def _of_the_protocol(self, option: str) -> bool:
        """Is it an option that the protocol's own module brings?"""
        number = self._module or (self._protocol.number if self._protocol is not None and not self._protocol.invert else 0)
        if option in ("--syn", "--tcp-flags", "--tcp-option", "--chunk-types"):
            if option == "--syn" and number == 6:
                self._matches.append(HeaderOption(6, Option("--tcp-flags", SYN_ONLY, self._bang())))
                return True
            form = PROTOCOL_OPTIONS.get(number, {}).get(option)
            if form is None:
                raise ValueError(f"{option} needs -p {'sctp' if option == '--chunk-types' else 'tcp'} before it")
            one = _Loaded("", Extent({}))
            self._take(one, option, form)
            self._matches.append(HeaderOption(number, one.options[0]))
            return True
        name = IMPLICIT.get(number, "")
        if name and option in MODULES[name].forms:
            self._take(self._load(name, MODULES[name]), option, MODULES[name].forms[option])
            return True
        return False

    def port(self, option: str) -> None:
        number = self._module or (self._protocol.number if self._protocol is not None and not self._protocol.invert else 0)
        if number not in PORT_PROTOCOLS:
            raise ValueError(f"{option} needs -p tcp, udp or sctp before it")
        self._matches.append(_ports(option, number, self._next(option), self._bang()))

    # ---- targets

    def jump(self, option: str) -> None:
        at = self._at
        name = self._next(option)
        if name not in TARGET_OPTIONS:
            self._set(TARGETS.get(name) or Jump(name))
            return
        run = tuple(self._words[at:])
        known = self._memory.get(run)
        if known is not None:
            self._set(known)  # type: ignore[arg-type]
            self._at = len(self._words)
            return
        self._set(Jump(name))  # until its options are known
        self._target_options = options = _Loaded(name, TARGET_OPTIONS[name])
        options.run, options.start, options.end = run, at, self._at

    def goto(self, option: str) -> None:
        self._set(Jump(self._next(option), goto=True))

    def _set(self, target: Target) -> None:
        if self._target is not None:
            raise ValueError("a rule has one target at most")
        self._target = target

    # ---- what an extension's options are as a match or a target

    def _settled(self, loaded: _Loaded) -> Match:
        """The match that a module's options make: one of the rule's own kinds where it says no more than that."""
        match = _match_of(loaded.name, loaded.extent, loaded.options, self._family)
        if loaded.run and loaded.end == loaded.start + len(loaded.run):
            self._memory[loaded.run] = match
        return match

    def _settle_target(self, loaded: _Loaded) -> None:
        self._target = made(loaded.name, loaded.options, self._family)
        if loaded.end == len(self._words) and loaded.name != "DNAT":  # of which each has its own
            self._memory[loaded.run] = self._target


def _not_here(option: str) -> str:
    """Whose option it would have been."""
    owners = [name for name, extent in TARGET_OPTIONS.items() if option in extent.forms]
    owners += [f"-m {name}" for name, extent in MODULES.items() if option in extent.forms or option in extent.aliases]
    if not owners:
        return f"{option} is not supported"
    whose = " and ".join(f"{owner}'s" for owner in owners)
    return f"{option} is {whose}, which the rule has not loaded before it"


def _match_of(name: str, extent: Extent, options: list[Option], family: int) -> Match:
    if len(options) == 1 or name == "statistic":
        make = PLAIN.get((name, options[0].name))
        if make is not None and (match := make(options)) is not None:
            return match
    names = [option.name for option in options]
    if len(set(names)) != len(names):
        raise ValueError(f"-m {name} has an option twice")
    return Extension(name, extent.settle(options, family))


def _conntrack_state(options: list[Option]) -> Match:
    return ConntrackState(tuple(options[0].values[0].split(",")), options[0].invert)


def _mark(options: list[Option]) -> Match:
    return Mark(*parse_masked(options[0].values[0]), options[0].invert)


def _address_type(options: list[Option]) -> Match | None:
    kind = options[0].values[0]
    return None if "," in kind else AddressType(options[0].name[2:5], kind, options[0].invert)


def _statistic(options: list[Option]) -> Match | None:
    given = {option.name: option for option in options}
    chance = given.get("--probability")
    if len(options) == 2 and chance is not None and not chance.invert and given.get("--mode") == Option("--mode", ("random",)):
        return Statistic(float(chance.values[0]))
    return None


PLAIN: Mapping[tuple[str, str], Callable[[list[Option]], Match | None]] = {
    ("comment", "--comment"): lambda options: Comment(options[0].values[0]),
    ("conntrack", "--ctstate"): _conntrack_state,
    ("mark", "--mark"): _mark,
    ("addrtype", "--src-type"): _address_type,
    ("addrtype", "--dst-type"): _address_type,
    ("statistic", "--mode"): _statistic,
}
"""Modules, with the one option, that have a kind of their own."""


OPTIONS: Mapping[str, Callable[[RuleReader, str], None]] = {
    **dict.fromkeys(("-s", "--source", "--src"), RuleReader.source),
    **dict.fromkeys(("-d", "--destination", "--dst"), RuleReader.destination),
    **dict.fromkeys(("-i", "--in-interface"), RuleReader.in_interface),
    **dict.fromkeys(("-o", "--out-interface"), RuleReader.out_interface),
    **dict.fromkeys(("-p", "--protocol", "--proto"), RuleReader.protocol),
    **dict.fromkeys(("-f", "--fragment"), RuleReader.fragment),
    **dict.fromkeys(("-m", "--match"), RuleReader.module),
    **dict.fromkeys(("--sport", "--source-port", "--dport", "--destination-port"), RuleReader.port),
    **dict.fromkeys(("-j", "--jump"), RuleReader.jump),
    **dict.fromkeys(("-g", "--goto"), RuleReader.goto),
}
