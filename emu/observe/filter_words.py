"""The words of the filter language: which there are, and a text cut into them. Decides nothing of what they mean together."""

from __future__ import annotations

import re
from typing import NamedTuple

from emu.errors import PodwireError
from emu.wire import checksum
from emu.wire.addr import parse_ip

PROTOCOLS = {"icmp": checksum.ICMP, "tcp": checksum.TCP, "udp": checksum.UDP, "sctp": checksum.SCTP}
NAMES = {
    "tcpflags": 13, "tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16, "tcp-urg": 32, "tcp-ece": 64, "tcp-cwr": 128,
    "icmptype": 0, "icmpcode": 1, "icmp-echoreply": 0, "icmp-unreach": 3, "icmp-redirect": 5, "icmp-echo": 8, "icmp-timxceed": 11,
    "icmp-paramprob": 12,
}  # fmt: skip
ABSENT = {
    "arp": "neighbours are found without packets here", "rarp": "neighbours are found without packets here",
    "ether": "packets are captured from their IP header on", "vlan": "packets are captured from their IP header on",
    "ip6": "no node speaks IPv6 yet", "icmp6": "no node speaks IPv6 yet",
}  # fmt: skip
TYPES = ("host", "net", "port", "portrange", "proto")
DIRECTIONS = ("src", "dst")
KEYWORDS = frozenset((*TYPES, *DIRECTIONS, *PROTOCOLS, *ABSENT, "ip", "less", "greater", "len", "vxlan", "and", "or", "not", "mask"))
_TOKEN = re.compile(r"\s*(?:(\\?[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?)|(<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^<>=!()\[\]:]))")


class FilterError(PodwireError):
    """The expression is not of this language. `column` counts from 1."""

    def __init__(self, problem: str, column: int) -> None:
        self.column = column
        super().__init__(f"filter, column {column}: {problem}")


class Token(NamedTuple):
    """A word, number or sign; `column` counts from 1. The end is the empty one."""

    text: str
    column: int
    word: bool


def words(text: str) -> list[Token]:
    """The text in words, and the end; FilterError for a character that is of none."""
    found, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            column = at + len(text[at:]) - len(text[at:].lstrip()) + 1
            raise FilterError(f"{text[column - 1]!r} is of no word", column)
        at = match.end()
        found.append(Token(match[1] or match[2], match.start(match.lastindex or 0) + 1, match[1] is not None))
    return [*found, Token("", end + 1, word=False)]


def as_number(text: str) -> int | None:
    """A decimal, octal (0…) or hexadecimal (0x…) number."""
    if re.fullmatch(r"0[xX][0-9A-Fa-f]+", text):
        return int(text, 16)
    if re.fullmatch(r"0[0-7]+", text):
        return int(text, 8)
    return int(text) if re.fullmatch(r"[1-9][0-9]*|0", text) else None


def as_address(text: str) -> bytes | None:
    """An IPv4 address with all its four parts."""
    try:
        return parse_ip(text) if text.count(".") == 3 else None
    except ValueError:
        return None
