"""What is known of a node beside its rules: addresses and routes, as `ip -j addr` and `ip -j route` print them.

A dump of rules has neither. Every question here has a third answer, None: not known, for want of the file that would say it.
Policy routing (`ip rule`) and tables other than main are not read. Spec: ip-address(8), ip-route(8), fib_frontend.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emu.errors import ConfigError
from emu.netfilter.ipset import IpSet
from emu.wire.addr import Ip, Network, parse_ip


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a device; `prefix` is the network it is in."""

    device: str
    ip: Ip
    prefix: Network
    scope: str = "global"


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """One route; `devices` are several where the path is one of many, none where the route refuses (`kind` says how)."""

    network: Network
    devices: tuple[str, ...]
    gateway: Ip | None = None
    metric: int = 0
    kind: str = "unicast"


@dataclass(frozen=True, slots=True)
class Facts:
    """`addresses` and `routes` are None where they are not known; `node_ips` are local whatever else is. `sets` are the ipsets."""

    addresses: tuple[Address, ...] | None = None
    routes: tuple[RouteEntry, ...] | None = None
    node_ips: frozenset[Ip] = frozenset()
    sets: Mapping[str, IpSet] = field(default_factory=dict)

    @property
    def devices(self) -> frozenset[str] | None:
        """The names of all devices, None if they are not known."""
        return None if self.addresses is None else frozenset(address.device for address in self.addresses)

    def is_local(self, ip: Ip) -> bool | None:
        if ip in self.node_ips or (ip[0] == 127 and len(ip) == 4) or ip == bytes(15) + b"\x01":
            return True
        if ip in (b"\xff" * 4, bytes(4)) or (ip[0] >> 4 == 14 if len(ip) == 4 else ip[0] == 255):
            return False
        return None if self.addresses is None else any(address.ip == ip for address in self.addresses)

    def is_local_on(self, ip: Ip, device: str) -> bool | None:
        return None if self.addresses is None else any(address.ip == ip and address.device == device for address in self.addresses)

    def is_broadcast(self, ip: Ip) -> bool | None:
        return None if self.addresses is None else any(address.prefix.broadcast == ip for address in self.addresses)

    def route(self, ip: Ip) -> RouteEntry | None:
        """The best route; None if there is none, or none is known."""
        found = [route for route in self.routes or () if ip in route.network]
        return min(found, key=lambda route: (-route.network.length, route.metric), default=None)

    def source_on(self, device: str, towards: Ip) -> Ip | None:
        """inet_select_addr: the device's address in whose network the next hop is, else its first, else another device's."""
        usable = [address for address in self.addresses or () if address.scope == "global" and len(address.ip) == len(towards)]
        own = [address for address in usable if address.device == device]
        near = [address.ip for address in own if towards in address.prefix]
        return next(iter(near or [address.ip for address in (*own, *usable)]), None)


def read_addresses(data: Any, *, source: str) -> tuple[Address, ...]:
    """What `ip -j addr` printed, parsed as JSON. Devices without an address have a row with an empty one. ConfigError otherwise."""
    found: list[Address] = []
    for device in _rows(data, source, "ip -j addr", "ifname"):
        own = [info for info in device.get("addr_info") or () if "local" in info]
        for info in own:
            try:
                prefix = Network.parse(f"{info['local']}/{info.get('prefixlen', '')}".rstrip("/"), strict=False)
                found.append(Address(device["ifname"], parse_ip(info["local"]), prefix, str(info.get("scope", "global"))))
            except ValueError as problem:
                raise ConfigError(str(problem), source=source, where=device["ifname"]) from None
        if not own:
            found.append(Address(device["ifname"], b"", Network(b"", 0, 0, 0), "none"))
    return tuple(found)


_REFUSING = frozenset(("unreachable", "blackhole", "prohibit", "throw"))


def read_routes(data: Any, *, source: str, family: int) -> tuple[RouteEntry, ...]:
    """What `ip -j route` (or `ip -6 -j route`) printed, parsed as JSON; routes that cannot be used now are left out."""
    found: list[RouteEntry] = []
    for row in _rows(data, source, "ip -j route", "dst"):
        if {"dead", "linkdown"} & {*row.get("flags", ())} or row.get("type") in ("local", "broadcast", "multicast", "anycast"):
            continue
        hops = row.get("nexthops") or [row]
        devices = tuple(hop["dev"] for hop in hops if "dev" in hop)
        kind = row.get("type", "unicast")
        try:
            network = Network.parse(("0.0.0.0/0" if family == 4 else "::/0") if row["dst"] == "default" else row["dst"], strict=False)
            gateway = parse_ip(hops[0]["gateway"]) if "gateway" in hops[0] else None
        except ValueError as problem:
            raise ConfigError(str(problem), source=source, where=str(row["dst"])) from None
        if not devices and kind not in _REFUSING:
            raise ConfigError("a route needs a dev", source=source, where=str(row["dst"]))
        found.append(RouteEntry(network, () if kind in _REFUSING else devices, gateway, int(row.get("metric", 0)), kind))
    return tuple(found)


def _rows(data: Any, source: str, command: str, needed: str) -> list[dict[str, Any]]:
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise ConfigError(f"this is not what `{command}` prints, a list of objects", source=source)
    for number, row in enumerate(data):
        if row and needed not in row:
            raise ConfigError(f"`{command}` would say {needed!r} here", source=source, where=f"[{number}]")
    return [row for row in data if row]
