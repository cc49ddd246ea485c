"""Names to addresses for programs: numeric ones, /etc/hosts, then the cluster's resolver once there is one.

Decides getaddrinfo(3)'s order and errors (nsswitch: `hosts: files dns`); asking the DNS is a `Resolver`'s.
"""

from __future__ import annotations

import socket as std
from typing import TYPE_CHECKING, Protocol

from emu.wire.addr import ANY, format_ip

if TYPE_CHECKING:
    from emu.pod.blocking import Address
    from emu.pod.program import Context, PodInfo

WELL_KNOWN = {"domain": 53, "ftp": 21, "http": 80, "https": 443, "ntp": 123, "smtp": 25, "ssh": 22, "telnet": 23}  # of /etc/services
MESSAGES = {
    std.EAI_NONAME: "Name or service not known",
    std.EAI_AGAIN: "Temporary failure in name resolution",
    std.EAI_SERVICE: "Servname not supported for ai_socktype",
    std.EAI_FAMILY: "ai_family not supported",
    std.EAI_ADDRFAMILY: "Address family for hostname not supported",
}


class Resolver(Protocol):
    """Asks the DNS on behalf of a program."""

    def lookup(self, ctx: Context, name: str) -> list[str]:
        """IPv4 addresses of a name, tried as resolv.conf says; `socket.gaierror` EAI_NONAME or EAI_AGAIN. Blocks."""


def unresolved(number: int) -> std.gaierror:
    """The error of getaddrinfo(3), in glibc's words."""
    return std.gaierror(number, MESSAGES[number])


def address_of(host: str, pod: PodInfo, resolver: Resolver | None, ctx: Context) -> bytes:
    """The first address of a host as sockets take it: "" is any."""
    try:
        return std.inet_pton(std.AF_INET, host)
    except OSError:
        if not host:
            return ANY
    return std.inet_aton(_addresses(host, pod, resolver, ctx)[0])


def _addresses(host: str, pod: PodInfo, resolver: Resolver | None, ctx: Context) -> list[str]:
    name = host.rstrip(".").lower()
    if ":" in host:
        raise unresolved(std.EAI_ADDRFAMILY)  # pods have IPv4 sockets only, so far
    files = {"localhost": "127.0.0.1", **pod.hosts, (pod.hostname or pod.name): pod.ip}
    if name in files:
        return [files[name]]
    try:
        return [format_ip(std.inet_aton(host))]  # `127.1` and the like, as inet_aton(3) reads them
    except OSError:
        if resolver is None:
            raise unresolved(std.EAI_NONAME) from None
    return resolver.lookup(ctx, host)


def _port(port: int | str | None) -> int:
    if port is None:
        return 0
    if isinstance(port, int) or port.isdecimal():
        return int(port)
    if port not in WELL_KNOWN:
        raise unresolved(std.EAI_SERVICE)
    return WELL_KNOWN[port]


def getaddrinfo(
    host: str | None, port: int | str | None, family: int, kind: int, proto: int, flags: int,
    pod: PodInfo, resolver: Resolver | None, ctx: Context,
) -> list[tuple[int, int, int, str, Address]]:  # fmt: skip
    """As `socket.getaddrinfo`: (family, type, proto, canonname, (host, port)) for each address and type."""
    if family not in (std.AF_UNSPEC, std.AF_INET):
        raise unresolved(std.EAI_FAMILY)
    number = _port(port)
    if not host:
        ips = ["0.0.0.0" if flags & std.AI_PASSIVE else "127.0.0.1"]
    else:
        try:
            ips = [format_ip(std.inet_pton(std.AF_INET, host))]
        except OSError:
            if flags & std.AI_NUMERICHOST:
                raise unresolved(std.EAI_NONAME) from None
            ips = _addresses(host, pod, resolver, ctx)
    kinds = [(std.SOCK_STREAM, std.IPPROTO_TCP), (std.SOCK_DGRAM, std.IPPROTO_UDP)]
    return [
        (std.AF_INET, a_kind, a_proto, "", (ip, number))
        for ip in ips
        for a_kind, a_proto in kinds
        if kind in (0, a_kind) and proto in (0, a_proto)
    ]
