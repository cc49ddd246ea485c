"""Addresses. Decides how they are read and printed; on every path they are `bytes`: 4 for IPv4, 16 for IPv6.

Bytes compare, hash and slice out of packets without a conversion, and make the tables family-neutral (see RFC 4291, RFC 5952).
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import NamedTuple

Ip = bytes

LOOPBACK = bytes((127, 0, 0, 1))
ANY = bytes(4)


def parse_ip(text: str) -> Ip:
    """`10.0.0.1` or `fd00::1` to 4 or 16 bytes; ValueError for anything else (leading zeros included)."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return ipaddress.ip_address(text).packed  # which says what is wrong with it


def format_ip(ip: Ip) -> str:
    """The canonical text of an address (RFC 5952 for IPv6)."""
    return socket.inet_ntop(socket.AF_INET if len(ip) == 4 else socket.AF_INET6, ip)


class SockAddr(NamedTuple):
    """An address and a port, printed as Kubernetes and iptables print it."""

    ip: Ip
    port: int

    def __str__(self) -> str:
        return f"{format_ip(self.ip)}:{self.port}" if len(self.ip) == 4 else f"[{format_ip(self.ip)}]:{self.port}"

    @classmethod
    def parse(cls, text: str) -> SockAddr:
        """`10.0.0.1:80` or `[fd00::1]:80`; ValueError otherwise."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not ADDRESS:PORT")
        return cls(parse_ip(host[1:-1] if host.startswith("[") and host.endswith("]") else host), int(port))


@dataclass(frozen=True, slots=True)
class Network:
    """A prefix such as 10.244.0.0/16. `value` and `mask` are integers so that `in` is one `and` and one compare."""

    address: Ip
    length: int
    value: int
    mask: int

    @classmethod
    def parse(cls, text: str, *, strict: bool = True) -> Network:
        """`10.244.0.0/16`; a bare address is a /32 or /128. With `strict`, host bits are a ValueError, else they are cleared."""
        host, slash, digits = text.partition("/")
        ip = parse_ip(host)
        bits = 8 * len(ip)
        if slash and not (digits.isascii() and digits.isdigit() and int(digits) <= bits):
            raise ValueError(f"{text!r} has no prefix length from 0 to {bits}")
        length = int(digits) if slash else bits
        mask = (1 << bits) - (1 << (bits - length))
        number = int.from_bytes(ip, "big")
        if strict and number & ~mask:
            raise ValueError(f"{text} has host bits set")
        value = number & mask
        return cls(value.to_bytes(len(ip), "big"), length, value, mask)

    @property
    def broadcast(self) -> Ip | None:
        """The last address, which all hosts of an IPv4 network hear; None where there is none (IPv6, /31, /32)."""
        size = len(self.address)
        return (self.value | self.mask ^ 0xFFFFFFFF).to_bytes(4, "big") if size == 4 and self.length < 31 else None

    def __contains__(self, ip: Ip) -> bool:
        return len(ip) == len(self.address) and int.from_bytes(ip, "big") & self.mask == self.value

    def __str__(self) -> str:
        return f"{format_ip(self.address)}/{self.length}"

    def host(self, index: int) -> Ip:
        """The `index`-th address of the network; ValueError if it has no such address."""
        size = 1 << (len(self.address) * 8 - self.length)
        if not 0 <= index < size:
            raise ValueError(f"{self} has no address number {index}")
        return (self.value + index).to_bytes(len(self.address), "big")


def mac_of(ip: Ip) -> bytes:
    """The locally administered MAC that flannel-like devices carry here: 0a:58 and the IPv4 address, as CNI's bridge plugin makes it."""
    return b"\x0a\x58" + ip[-4:]


def format_mac(mac: bytes) -> str:
    return mac.hex(":")
