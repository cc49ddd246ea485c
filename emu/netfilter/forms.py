"""How an extension's options are written: how many words follow, which of them are right, and how the kernel gives them back.

A `Form` turns what a person wrote into the one spelling that `iptables-save` prints, or says in a ValueError what would have been
right. Decides nothing about what an option means. Spec: iptables-extensions(8); checked against iptables 1.8.9 in both back ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from emu.netfilter.ruleset import Option
from emu.wire.addr import Network, SockAddr, format_ip, parse_ip

FULL_MASK = 0xFFFFFFFF
_PLAIN = re.compile(r"[-_0-9A-Za-z]+")

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_WORD = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"])+')

Word = Callable[[str], str]
"""One word's canonical spelling; ValueError if it has none."""


@dataclass(frozen=True, slots=True)
class Form:
    """An option's words. `quoted`: printed as a string; `invertible`: a `!` may stand before it."""

    words: tuple[Word, ...] = ()
    invertible: bool = False
    quoted: bool = False
    always_quoted: bool = False


@dataclass(frozen=True, slots=True)
class Extent:
    """What an extension may hold: its options in the order in which the kernel prints them, other names for them, and what is made
    of all of them at the rule's end: defaults put in or left out. That function may also insist on what must be there.
    """

    forms: Mapping[str, Form]
    aliases: Mapping[str, str] = field(default_factory=dict)
    complete: Callable[[list[Option], int], list[Option]] = lambda options, family: options

    def settle(self, options: list[Option], family: int) -> tuple[Option, ...]:
        """The options as the kernel keeps them."""
        names = list(self.forms)
        return tuple(sorted(self.complete(options, family), key=lambda option: names.index(option.name)))


def quote(text: str) -> str:
    """A string as `iptables-save` quotes it: unless it is of letters, digits, `-` and `_` only."""
    return text if _PLAIN.fullmatch(text) else '"' + re.sub(r"([\"'\\])", r"\\\1", text) + '"'


def option_words(option: Option, form: Form | None) -> list[str]:
    """An option as `iptables-save` prints it; without a form, as it stood."""
    values = option.values
    if form is not None and form.quoted:
        values = tuple(quote(value) for value in values)
    elif form is not None and form.always_quoted:
        values = tuple('"' + quote(value).strip('"') + '"' for value in values)
    name = [option.name] if option.name else []
    return ["!", *name, *values] if option.invert else [*name, *values]


def split_words(line: str) -> list[str]:
    """A line's words; in double quotes, where a backslash takes the next character as it is, spaces do not separate."""
    if '"' not in line:
        return line.split()
    pieces = line.split('"')
    if "\\" not in line and len(pieces) & 1 and _whole_words(pieces):
        words: list[str] = []
        for at, piece in enumerate(pieces):
            if at & 1:
                words.append(piece)
            else:
                words += piece.split()
        return words
    if _WORD.sub("", line).strip():
        raise ValueError("a quote is not closed")
    return [_QUOTED.sub(lambda quoted: re.sub(r"\\(.)", r"\1", quoted[1]), word) for word in _WORD.findall(line)]


def _whole_words(pieces: list[str]) -> bool:
    """Do quotes hold whole words, as in every dump? `pieces` are what stands outside and inside of them, in turn."""
    if pieces[0][-1:] not in ("", " ") or pieces[-1][:1] not in ("", " "):
        return False
    return all(not pieces[at] or pieces[at][0] == pieces[at][-1] == " " for at in range(2, len(pieces) - 1, 2))


# ---- words -----------------------------------------------------------------------------------------------------------------------


def text(word: str) -> str:
    return word


def parse_number(word: str, most: int = FULL_MASK, least: int = 0) -> int:
    """Decimal or 0x…; ValueError outside `least`–`most`."""
    if (
        not re.fullmatch(r"0[xX][0-9a-fA-F]+|\d+", word)
        or not least <= (number := int(word, 0 if word[:2] in ("0x", "0X") else 10)) <= most
    ):
        raise ValueError(f"{word!r} is not a number from {least} to {most}")
    return number


def number(most: int = FULL_MASK, least: int = 0) -> Word:
    return lambda word: str(parse_number(word, most, least))


def hexadecimal(most: int = FULL_MASK, digits: int = 1) -> Word:
    return lambda word: f"0x{parse_number(word, most):0{digits}x}"


def parse_masked(word: str, most: int = FULL_MASK) -> tuple[int, int]:
    value, slash, mask = word.partition("/")
    return parse_number(value, most), parse_number(mask, most) if slash else most


def masked(word: str) -> str:
    """`VALUE/MASK` of 32 bits, the mask unprinted if it is full."""
    value, mask = parse_masked(word)
    return f"{value:#x}" if mask == FULL_MASK else f"{value:#x}/{mask:#x}"


def fully_masked(word: str) -> str:
    value, mask = parse_masked(word)
    return f"{value:#x}/{mask:#x}"


def choice(*names: str) -> Word:
    def word_of(word: str) -> str:
        if word not in names:
            raise ValueError(f"{word!r} is not one of {', '.join(names)}")
        return word

    return word_of


def several(names: Sequence[str], **groups: Sequence[str]) -> Word:
    """A list of names with commas, given back in the kernel's order; a group's name stands for its members."""

    def word_of(word: str) -> str:
        asked: set[str] = set()
        for name in word.split(","):
            if name in groups:
                asked.update(groups[name])
            elif name in names:
                asked.add(name)
            else:
                raise ValueError(f"{name!r} is not one of {', '.join(names)}")
        return ",".join(name for name in names if name in asked) or "NONE"

    return word_of


def listed(names: Sequence[str]) -> Word:
    """A list of names with commas, in the order in which it is written."""

    def word_of(word: str) -> str:
        if unknown := [name for name in word.split(",") if name not in names]:
            raise ValueError(f"{unknown[0]!r} is not one of {', '.join(names)}")
        return word

    return word_of


def span(most: int = 65535, separator: str = ":", *, single: bool = True) -> Word:
    """`FIRST:LAST`, either end open; one number stands for itself alone."""

    def word_of(word: str) -> str:
        first, last = parse_span(word, most, separator)
        return str(first) if first == last and single else f"{first}{separator}{last}"

    return word_of


def parse_span(word: str, most: int = 65535, separator: str = ":") -> tuple[int, int]:
    first, given, last = word.partition(separator)
    low = parse_number(first or "0", most)
    high = parse_number(last or str(most), most) if given else low
    if low > high:
        raise ValueError(f"{word} is empty")
    return low, high


def port_list(word: str) -> str:
    """`80,443,1000:2000`, at most 15 ports, a range counting as two (XT_MULTI_PORTS)."""
    ports = [span()(port) for port in word.split(",")]
    if sum(2 if ":" in port else 1 for port in ports) > 15:
        raise ValueError(f"{word}: multiport takes 15 ports at most, a range counts as two")
    return ",".join(ports)


def address(word: str) -> str:
    return format_ip(parse_ip(word))


def network(word: str) -> str:
    """An address with its prefix length, which is unprinted where it is full."""
    found = parse_network(word)
    return format_ip(found.address) if found.length == 8 * len(found.address) else str(found)


def parse_network(word: str) -> Network:
    """An address with or without its length; a mask may be dotted, as in old dumps."""
    host, slash, mask = word.partition("/")
    if slash and "." in mask:
        bits = int.from_bytes(parse_ip(mask), "big")
        length = bits.bit_count()
        if bits != (1 << 32) - (1 << (32 - length)):
            raise ValueError(f"{word}: a mask with holes is not supported")
        word = f"{host}/{length}"
    return Network.parse(word, strict=False)


def parse_address_range(word: str) -> tuple[bytes, bytes]:
    first, _, last = word.partition("-")
    low = parse_ip(first)
    high = parse_ip(last) if last else low
    if len(low) != len(high) or low > high:
        raise ValueError(f"{word} is not FIRST-LAST of one family")
    return low, high


def address_range(word: str) -> str:
    low, high = parse_address_range(word)
    return f"{format_ip(low)}-{format_ip(high)}"


@dataclass(frozen=True, slots=True)
class Ends:
    """`ADDRESS[-ADDRESS][:PORT[-PORT[/FROM]]]`, what `--to-destination` and `--to-source` take; port 0 and b"" stand for none."""

    first: SockAddr
    last: SockAddr
    shifted_from: int = 0


def parse_ends(word: str) -> Ends:
    """Addresses of IPv6 stand in brackets if ports follow."""
    if word.startswith("["):
        addresses, bracket, ports = word[1:].partition("]")
        if not bracket:
            raise ValueError(f"{word}: a ] is missing")
        ports = ports.removeprefix(":")
    elif word.count(":") > 1:
        addresses, ports = word, ""
    else:
        addresses, _, ports = word.partition(":")
    low, high = parse_address_range(addresses) if addresses else (b"", b"")
    ports, _, shift = ports.partition("/")
    first, last = parse_span(ports, separator="-") if ports else (0, 0)
    if not addresses and not ports:
        raise ValueError(f"{word!r} is not ADDRESS[-ADDRESS][:PORT[-PORT]]")
    return Ends(SockAddr(low, first), SockAddr(high, last), parse_number(shift, 65535) if shift else 0)


def ends_text(first: SockAddr, last: SockAddr, shifted_from: int = 0) -> str:
    """The opposite of `parse_ends`."""
    addresses = format_ip(first.ip) if first.ip else ""
    if last.ip != first.ip:
        addresses += f"-{format_ip(last.ip)}"
    if not first.port and not last.port:
        return addresses
    ports = str(first.port) if first.port == last.port else f"{first.port}-{last.port}"
    if shifted_from:
        ports += f"/{shifted_from}"
    return f"[{addresses}]:{ports}" if len(first.ip) == 16 else f"{addresses}:{ports}"
