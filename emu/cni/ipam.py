"""host-local IPAM: which address of the node's subnet a pod gets (CNI's host-local plugin).

Decides like upstream: round robin from the last address given, so that a freed one is not reused at once; upstream keeps that one in
a file (last_reserved_ip) which outlives a reboot, here each life of a node begins at another place. The network address, the gateway
(first host) and the broadcast address are never given.
"""

from __future__ import annotations

from emu.wire.addr import Ip, Network, format_ip

LIVES = 4  # of a node until one begins where another did


class HostLocal:
    """The addresses of one subnet in the node's `life` (its incarnation, from 1). `reserve` and `release` are by owner name."""

    def __init__(self, subnet: Network, life: int = 1) -> None:
        self.subnet = subnet
        self._size = 1 << (8 * len(subnet.address) - subnet.length)
        if self._size < 4:
            raise ValueError(f"{subnet} has no room for a gateway and a pod: a pod subnet is a /30 or larger")
        hosts = self._size - 3
        self._last = 1 + (life - 1) * (hosts // LIVES) % hosts
        self._owner: dict[Ip, str] = {}
        self._address: dict[str, Ip] = {}

    @property
    def gateway(self) -> Ip:
        return self.subnet.host(1)

    def reserve(self, owner: str, wanted: Ip | None = None) -> Ip:
        """An address for `owner`, the same one if it has one already; ValueError if the wanted or any address is not to be had."""
        known = self._address.get(owner)
        if known is not None and wanted in (None, known):
            return known
        ip = self._next() if wanted is None else self._check(wanted)
        self.release(owner)
        self._owner[ip], self._address[owner] = owner, ip
        return ip

    def release(self, owner: str) -> None:
        """Give the owner's address back; no error if it has none."""
        ip = self._address.pop(owner, None)
        if ip is not None:
            del self._owner[ip]

    def _check(self, wanted: Ip) -> Ip:
        if wanted not in self.subnet:
            raise ValueError(f"address {format_ip(wanted)} is not in the node's pod subnet {self.subnet}")
        if wanted in (self.subnet.host(0), self.gateway, self.subnet.host(self._size - 1)):
            raise ValueError(f"address {format_ip(wanted)} is the network, gateway or broadcast address of {self.subnet}")
        if wanted in self._owner:
            raise ValueError(f"address {format_ip(wanted)} belongs to {self._owner[wanted]}")
        return wanted

    def _next(self) -> Ip:
        hosts = self._size - 3  # without network, gateway and broadcast
        for step in range(1, hosts + 1):
            index = 2 + (self._last - 2 + step) % hosts
            ip = self.subnet.host(index)
            if ip not in self._owner:
                self._last = index
                return ip
        raise ValueError(f"no free address in {self.subnet}: all {hosts} are in use")
