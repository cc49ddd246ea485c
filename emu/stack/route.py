"""Routes: longest prefix first (`ip route`). Decides where a destination goes; must not know devices beyond their names.

Local delivery is decided before these are asked, as Linux's `local` table comes before `main`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from emu.wire.addr import Ip, Network, format_ip


@dataclass(frozen=True, slots=True)
class Route:
    """`PREFIX [via GATEWAY] dev DEVICE [src SOURCE]`; a gateway on `onlink` need not be reachable by another route.

    A source without a gateway is what the kernel itself makes of a device's address (`proto kernel`).
    """

    prefix: Network
    device: str
    gateway: Ip | None = None
    source: Ip | None = None
    onlink: bool = False

    def __str__(self) -> str:
        length = self.prefix.length
        text = "default" if length == 0 else str(self.prefix) if length < 8 * len(self.prefix.address) else format_ip(self.prefix.address)
        if self.gateway is not None:
            text += f" via {format_ip(self.gateway)}"
        text += f" dev {self.device}"
        if self.gateway is None:
            text += " scope link" if self.source is None else " proto kernel scope link"
        if self.source is not None:
            text += f" src {format_ip(self.source)}"
        return text + (" onlink" if self.onlink else "")


class RouteSource(Protocol):
    """Routes of one prefix length that are written when somebody asks for them: a node of a big cluster talks to few of its peers."""

    def route(self, value: int) -> Route | None:
        """The route to the prefix of this value, if there is one."""

    def __iter__(self) -> Iterator[Route]: ...


class RoutingTable:
    """The main table of one namespace and family. One dict a prefix length, asked from long to short.

    A prefix length may have a source too: its routes are looked for after those that were added.
    """

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, Route]] = {}
        self._sources: dict[int, RouteSource] = {}
        self._order: tuple[tuple[int, dict[int, Route], RouteSource | None], ...] = ()

    def derive(self, length: int, source: RouteSource) -> None:
        """Ask `source` for the routes of a prefix length from now on."""
        self._sources[length] = source
        self._by_length.setdefault(length, {})
        self._reorder()

    def add(self, route: Route) -> None:
        """Add or replace the route to a prefix."""
        table = self._by_length.setdefault(route.prefix.length, {})
        table[route.prefix.value] = route
        if len(table) == 1:  # perhaps the first of its length
            self._reorder()

    def remove(self, prefix: Network) -> None:
        """Take the route to a prefix away; no error if there is none."""
        table = self._by_length.get(prefix.length, {})
        if table.pop(prefix.value, None) is not None and not table:
            self._reorder()

    def _reorder(self) -> None:
        # masks are precomputed so that a look-up is one `and` and one dict access per prefix length in use
        bits = 8 * next((len(r.prefix.address) for table in self._by_length.values() for r in table.values()), 4)
        full = (1 << bits) - 1
        self._order = tuple(
            (full ^ (full >> length), table, self._sources.get(length))
            for length, table in sorted(self._by_length.items(), reverse=True)
            if table or length in self._sources
        )

    def lookup(self, ip: Ip) -> Route | None:
        """The most specific route to an address."""
        value = int.from_bytes(ip, "big")
        for mask, table, source in self._order:
            route = table.get(value & mask)
            if route is None and source is not None:
                route = source.route(value & mask)
            if route is not None:
                return route
        return None

    def exact(self, prefix: Network) -> Route | None:
        """The route to just this prefix."""
        return self._by_length.get(prefix.length, {}).get(prefix.value)

    def __iter__(self) -> Iterator[Route]:
        """In the order of `ip route`: by address, of several prefixes with one address the longest first (net/ipv4/fib_trie.c)."""
        routes = [route for table in self._by_length.values() for route in table.values()]
        taken = {(route.prefix.length, route.prefix.value) for route in routes}
        routes += [route for source in self._sources.values() for route in source if (route.prefix.length, route.prefix.value) not in taken]
        return iter(sorted(routes, key=lambda route: (route.prefix.value, -route.prefix.length)))
