r"""Filters: a subset of tcpdump's language (pcap-filter(7)) as a predicate on packets. Decides its grammar and what its words mean.

    [ip] [src|dst|src or dst|src and dst] host ADDRESS | net NET[/LENGTH|mask MASK]
    [tcp|udp|sctp] [src|dst|…] port PORT | portrange FIRST-LAST
    ip | tcp | udp | icmp | sctp | [ip] proto NUMBER|\NAME | less N | greater N
    EXPR RELOP EXPR       numbers, len, PROTOCOL[EXPR[:SIZE]], + - * / % & | ^ << >>, and names such as tcpflags, tcp-syn, icmp-echo
    vxlan [VNI]           a VXLAN packet; all that stands behind it concerns the packet inside (as pcap-filter's geneve does it)
    not ! and && or || ( )

As there, `and` and `or` bind alike, from left to right; an address or port without a keyword has the last one's (`port 80 or 443`);
a load beyond the packet's end rejects it, whatever surrounds the load. Numbers are unsigned, of 32 bits. What the language has
beside that (names of hosts and ports, MACs, ARP, IPv6 addresses) is refused with its position: there is none of it on these wires.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from emu.observe.filter_conditions import (
    MASK,
    PORT_PROTOCOLS,
    Data,
    Test,
    Value,
    addressed,
    inside_at,
    is_first_fragment,
    is_ip,
    joined,
    load,
    operation,
    ports,
    protocol_is,
    within,
)  # fmt: skip
from emu.observe.filter_words import ABSENT, DIRECTIONS, KEYWORDS, NAMES, PROTOCOLS, TYPES, FilterError, Token, as_address, as_number, words

_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    ">": int.__gt__, "<": int.__lt__, ">=": int.__ge__, "<=": int.__le__, "=": int.__eq__, "==": int.__eq__, "!=": int.__ne__,
}  # fmt: skip
_LEVELS = (("|", "^"), ("&",), ("<<", ">>"), ("+", "-"), ("*", "/", "%"))  # of arithmetic, the loosest first


class Filter:
    """A compiled expression; the empty one matches everything."""

    def __init__(self, text: str) -> None:
        parser = _Parser(text)
        self._test: Test | None = parser.whole() if text.strip() else None
        self.by_segment: bool = parser.fine
        """May it tell segments of one GSO packet apart? Otherwise it looks at nothing in which they differ."""

    def matches(self, packet: bytes) -> bool:
        """Does the packet match? `packet` may be anything at all."""
        if self._test is None:
            return True
        try:
            return self._test(packet, len(packet))
        except (IndexError, ZeroDivisionError):  # beyond its end, or a division by zero: BPF rejects the packet
            return False


class _Qualifiers(NamedTuple):
    protocol: str
    direction: str
    kind: str


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = words(text)
        self._at = 0
        self._last: _Qualifiers | None = None
        self._inside = 0  # how many `vxlan` stand before
        self.fine = False
        self._deepest = FilterError("an expression is wanted", 1)
        self._kinds: Mapping[str, Callable[[_Qualifiers], Test]] = {
            "host": self._host, "net": self._net, "port": self._port, "portrange": self._portrange, "proto": self._proto,
        }  # fmt: skip

    # ---- tokens ------------------------------------------------------------------------------------------------------------

    @property
    def _token(self) -> Token:
        return self._tokens[self._at]

    def _next(self) -> Token:
        token = self._tokens[self._at]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return token

    def _takes(self, *texts: str) -> str:
        """The next token if it is one of these, else "" and nothing is taken."""
        return self._next().text if self._token.text in texts else ""

    def _fail(self, problem: str, token: Token | None = None) -> NoReturn:
        token = token or self._token
        told = (
            problem if not token.text else f"{problem}, not {token.text!r}" if problem.endswith("wanted") else f"{token.text!r}: {problem}"
        )
        error = FilterError(told, token.column)
        if error.column >= self._deepest.column:
            self._deepest = error
        raise error

    # ---- conditions ---------------------------------------------------------------------------------------------------------

    def whole(self) -> Test:
        """The whole expression."""
        try:
            test = self._expression()
            if self._token.text:
                self._fail("'and', 'or' or the end is wanted")
        except FilterError:
            raise self._deepest from None
        return test

    def _expression(self) -> Test:
        test = self._term()
        while joint := self._takes("and", "&&", "or", "||"):
            test = joined(joint, test, self._term())
        return test

    def _term(self) -> Test:
        if self._takes("not", "!"):
            test = self._term()
            return lambda data, size: not test(data, size)
        token = self._token
        loads = self._tokens[min(self._at + 1, len(self._tokens) - 1)].text == "["
        if token.text in {"(", "len", "-"} or token.text[:1].isdigit() or loads:
            before = (self._at, self._last, self._inside, self.fine)
            try:
                return self._relation()
            except FilterError:
                self._at, self._last, self._inside, self.fine = before
        if self._takes("("):
            test = self._expression()
            if not self._takes(")"):
                self._fail("')' is wanted")
            return test
        return self._primitive()

    def _primitive(self) -> Test:
        token = self._token
        if token.text in {"less", "greater"}:
            self._next()
            bound, self.fine = self._constant(), True
            return (lambda data, size: size <= bound) if token.text == "less" else (lambda data, size: size >= bound)
        if self._takes("vxlan"):
            return self._vxlan()
        protocol = self._takes("ip", *PROTOCOLS)
        direction = self._direction()
        kind = self._takes(*TYPES)
        if not (protocol or direction or kind):
            if self._last is not None and token.word and token.text not in KEYWORDS:
                return self._inner(self._identified(self._last))
            if token.text in ABSENT:
                self._fail(ABSENT[token.text])
            if token.text[:1].isdigit():
                self._fail("host, net or port must stand before it")
            self._fail("an unknown word" if token.word and token.text not in KEYWORDS else "a condition is wanted")
        if protocol and not direction and not kind:
            return self._inner(is_ip if protocol == "ip" else protocol_is(PROTOCOLS[protocol]))
        qualifiers = _Qualifiers(protocol, direction, kind or "host")
        if protocol and (protocol in PROTOCOLS) != (qualifiers.kind in {"port", "portrange"}):
            self._fail(f"{qualifiers.kind} takes no {protocol!r} before it", token)
        if direction and kind == "proto":
            self._fail("proto has no direction", token)
        self._last = qualifiers
        return self._inner(self._identified(qualifiers))

    def _direction(self) -> str:
        first = self._takes(*DIRECTIONS)
        follows = self._tokens[self._at : self._at + 2]
        if first and len(follows) == 2 and follows[0].text in {"and", "or"} and follows[1].text in set(DIRECTIONS) - {first}:
            self._at += 2
            return follows[0].text
        return first

    def _identified(self, qualifiers: _Qualifiers) -> Test:
        """What the qualifiers say of an address, a net, a port, or several in parentheses."""
        if self._takes("not", "!"):
            denied = self._identified(qualifiers)
            return lambda data, size: not denied(data, size)
        if not self._takes("("):
            return self._kinds[qualifiers.kind](qualifiers)
        test = self._identified(qualifiers)
        while joint := self._takes("and", "&&", "or", "||"):
            test = joined(joint, test, self._identified(qualifiers))
        if not self._takes(")"):
            self._fail("')' is wanted")
        return test

    def _word(self, what: str) -> Token:
        if not self._token.word or self._token.text in KEYWORDS:
            self._fail(f"{what} is wanted")
        return self._next()

    def _constant(self) -> int:
        token = self._word("a number")
        value = as_number(token.text)
        if value is None:
            self._fail("a number is wanted", token)
        return value

    def _host(self, qualifiers: _Qualifiers) -> Test:
        token = self._word("an IPv4 address")
        address = as_address(token.text)
        if address is None or self._token.text == "/":
            self._fail("an IPv4 address is wanted (net takes a mask, and names are not looked up)", token)
        return addressed(qualifiers.direction, int.from_bytes(address, "big"), MASK)

    def _net(self, qualifiers: _Qualifiers) -> Test:
        token = self._word("a network such as 10.244.0.0/16")
        parts = token.text.split(".")
        if len(parts) > 4 or not all(part.isdigit() and int(part) < 256 for part in parts):
            self._fail("a network such as 10.244.0.0/16 is wanted", token)
        value = int.from_bytes(bytes(int(part) for part in parts).ljust(4, b"\0"), "big")
        bits = 8 * len(parts)
        mask = MASK << 32 - bits & MASK
        if self._takes("/"):
            length_at = self._token
            bits = self._constant()
            if bits > 32:
                self._fail("a length up to 32 is wanted", length_at)
            mask = MASK << 32 - bits & MASK
        elif self._takes("mask"):
            given = self._word("a mask such as 255.255.0.0")
            address = as_address(given.text)
            if address is None:
                self._fail("a mask such as 255.255.0.0 is wanted", given)
            mask = int.from_bytes(address, "big")
        if value & ~mask:
            self._fail("has bits beyond its mask", token)
        return addressed(qualifiers.direction, value, mask)

    def _port(self, qualifiers: _Qualifiers) -> Test:
        token = self._word("a port")
        port = as_number(token.text)
        if port is None or port > 0xFFFF:
            self._fail("a port's number is wanted", token)
        return ports(_carriers(qualifiers), qualifiers.direction, port, port)

    def _portrange(self, qualifiers: _Qualifiers) -> Test:
        token = self._word("ports such as 8000-8080")
        first, hyphen, last = token.text.partition("-")
        low, high = as_number(first), as_number(last if hyphen else first)
        if low is None or high is None or max(low, high) > 0xFFFF:
            self._fail("ports such as 8000-8080 are wanted", token)
        return ports(_carriers(qualifiers), qualifiers.direction, min(low, high), max(low, high))

    def _proto(self, qualifiers: _Qualifiers) -> Test:
        token = self._next()
        number = as_number(token.text) if token.word else None
        if number is None:
            number = PROTOCOLS.get(token.text.removeprefix("\\"))
        if number is None or number > 255:
            self._fail(f"a protocol's number or {', '.join(PROTOCOLS)} is wanted", token)
        return protocol_is(number)

    def _vxlan(self) -> Test:
        vni = self._constant() if self._token.text[:1].isdigit() else None
        test = self._inner(lambda data, size: inside_at(data, vni) > 0)
        self._inside += 1
        return test

    def _inner(self, test: Test) -> Test:
        """The condition on the packet that is so many tunnels inside."""
        for _ in range(self._inside):
            test = within(test)
        return test

    # ---- arithmetic ----------------------------------------------------------------------------------------------------------

    def _relation(self) -> Test:
        left = self._arithmetic(0)
        relation = self._takes(*_RELATIONS)
        if not relation:
            self._fail("a comparison is wanted")
        right, holds = self._arithmetic(0), _RELATIONS[relation]
        needed = (*left.needs, *right.needs)

        def test(data: Data, size: int) -> bool:
            return all(need(data, size) for need in needed) and holds(left.value(data, size), right.value(data, size))

        return self._inner(test)

    def _arithmetic(self, level: int) -> Value:
        if level == len(_LEVELS):
            return self._factor()
        value = self._arithmetic(level + 1)
        while operator := self._takes(*_LEVELS[level]):
            right_at = self._token
            right = self._arithmetic(level + 1)
            if operator in "/%" and right_at.text == "0":
                self._fail("a division by zero", right_at)
            value = Value(operation(operator, value.value, right.value), value.needs)  # libpcap forgets those of the right one
        return value

    def _factor(self) -> Value:
        if self._takes("-"):
            negated = self._factor()
            return Value(lambda data, size: -negated.value(data, size) & MASK, negated.needs)
        if self._takes("("):
            value = self._arithmetic(0)
            if not self._takes(")"):
                self._fail("')' is wanted")
            return value
        if self._takes("len"):
            self.fine = True
            return Value(lambda data, size: size, ())
        protocol = self._takes("ip", *PROTOCOLS)
        if protocol:
            return self._bytes(protocol)
        token = self._word("a number")
        number = NAMES.get(token.text, as_number(token.text))
        if number is None or number > MASK:
            self._fail("a number is wanted", token)
        return Value(lambda data, size: number, ())

    def _bytes(self, protocol: str) -> Value:
        """PROTOCOL[EXPR] or PROTOCOL[EXPR:SIZE]."""
        if not self._takes("["):
            self._fail("'[' is wanted")
        index = self._arithmetic(0)
        width = self._constant() if self._takes(":") else 1
        if width not in {1, 2, 4}:
            self._fail("1, 2 or 4 bytes are wanted", self._tokens[self._at - 1])
        if not self._takes("]"):
            self._fail("']' is wanted")
        self.fine = True
        at = index.value
        if protocol == "ip":
            return Value(lambda data, size: load(data, at(data, size), width), (is_ip, *index.needs))
        known = PROTOCOLS[protocol]
        needs = (protocol_is(known), is_first_fragment, *index.needs)
        return Value(lambda data, size: load(data, ((data[0] & 15) << 2) + at(data, size) & MASK, width), needs)


def _carriers(qualifiers: _Qualifiers) -> frozenset[int]:
    return frozenset((PROTOCOLS[qualifiers.protocol],)) if qualifiers.protocol else PORT_PROTOCOLS
