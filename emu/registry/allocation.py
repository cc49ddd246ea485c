"""ClusterIPs and node ports: which Service gets which, inside the request's transaction.

Both pools have a band at their start that automatic choice leaves to people until the rest is full (KEP-3070, KEP-3668).
What is taken is remembered as claims, value to Service; a claim counts only while that Service still has the value, so neither a
deletion nor a transaction undone needs to release anything. Spec: pkg/registry/core/service/{ipallocator,portallocator,storage}.
"""

from __future__ import annotations

import ipaddress
import itertools
import random
from collections.abc import Callable, Container, Hashable
from typing import Any

from emu.errors import ApiError
from emu.model.kinds import BY_RESOURCE
from emu.registry import services
from emu.registry.invalid import invalid, refusal
from emu.store.store import Object, Store

_TRIES = 64  # random picks before looking in order: enough for a pool that is nine tenths full

Owner = tuple[str, str]


class Pool:
    """A range of numbers, some claimed. `has(owner, number)` tells whether a claim still holds."""

    def __init__(self, first: int, size: int, static: int, chance: random.Random, has: Callable[[Owner, int], bool]) -> None:
        self.first, self.size, self.static, self._chance, self._has = first, size, static, chance, has
        self._claims: dict[int, tuple[Owner, ...]] = {}  # earlier owners stay listed: an undone deletion makes them owners again

    def __contains__(self, number: int) -> bool:
        return self.first <= number < self.first + self.size

    def free(self, number: int, owner: Owner | None = None) -> bool:
        """Whether nobody but `owner` has the number."""
        return not any(holder != owner and self._has(holder, number) for holder in self._claims.get(number, ()))

    def claim(self, number: int, owner: Owner) -> None:
        holders = self._claims.get(number, ())
        if owner not in holders:
            self._claims[number] = (*holders, owner)

    def pick(self, owner: Owner, avoid: Container[int] = ()) -> int | None:
        """A free number: random in the upper band, then in order there, then in the lower band; None if all are taken."""
        lower, upper = range(self.first, self.first + self.static), range(self.first + self.static, self.first + self.size)
        tries = (self._chance.choice(upper) for _ in range(_TRIES if upper else 0))
        for number in itertools.chain(tries, upper, lower):
            if number not in avoid and self.free(number):
                self.claim(number, owner)
                return number
        return None


def _static_band(size: int, divisor: int, least: int, most: int) -> int:
    """How many of the first numbers automatic choice leaves alone: none in a pool no larger than the least band."""
    return 0 if size <= least else min(max(least, size // divisor), most)


class Allocator:
    """The cluster's two pools. `within` is the service network, `node_ports` the first and last node port."""

    def __init__(self, store: Store, within: str, node_ports: tuple[int, int], chance: random.Random) -> None:
        self.network = ipaddress.ip_network(within)
        self.family = f"IPv{self.network.version}"
        self._store = store
        # Neither the network's own address nor IPv4's broadcast is given out.
        size = min(self.network.num_addresses, 1 << 16) - (2 if self.network.version == 4 else 1)
        first = int(self.network.network_address) + 1
        self._ips = Pool(first, size, _static_band(size + 2, 16, 16, 256), chance, self._has_ip)
        low, high = node_ports
        self._ports = Pool(low, high - low + 1, _static_band(high - low + 1, 32, 16, 128), chance, self._has_port)
        self.node_ports = node_ports
        for service in store.list("services")[0]:
            self._claim_all(service)

    def _spec(self, owner: Owner) -> Object:
        service = self._store.get("services", *owner)
        return service["spec"] if service else {}

    def _has_ip(self, owner: Owner, number: int) -> bool:
        return str(self._address(number)) in (self._spec(owner).get("clusterIPs") or ())

    def _has_port(self, owner: Owner, number: int) -> bool:
        return number in _numbers(self._spec(owner))

    def _address(self, number: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return type(self.network.network_address)(number)

    def _claim_all(self, service: Object) -> None:
        owner = _owner(service)
        for ip in service["spec"].get("clusterIPs") or ():
            if ip != services.HEADLESS:
                self._ips.claim(int(ipaddress.ip_address(ip)), owner)
        for number in _numbers(service["spec"]):
            self._ports.claim(number, owner)

    @property
    def first_address(self) -> str:
        """The address of the Service `kubernetes`."""
        return str(self._address(self._ips.first))

    def allocate(self, service: Object) -> None:
        """Give `service` (the caller's own copy, validated) what it lacks and check what it asks for; 422 if taken, 500 if full."""
        spec = service["spec"]
        if services.needs_cluster_ip(spec):
            spec.setdefault("ipFamilies", [self.family])
            spec["ipFamilyPolicy"] = "SingleStack"  # PreferDualStack on a single-stack cluster is that too
            if spec.get("clusterIP") != services.HEADLESS:
                self._allocate_ip(service)
        if services.needs_node_ports(spec):
            self._allocate_ports(service)
        if services.needs_health_check_port(spec):
            self._allocate_health_check(service)

    def adopt(self, service: Object) -> None:
        """Give a Service that was seen elsewhere a cluster IP if it lacks one, and take note of what it has, in range or not."""
        spec = service["spec"]
        if services.needs_cluster_ip(spec) and not spec.get("clusterIP"):
            self._allocate_ip(service)
        self._claim_all(service)

    def _allocate_ip(self, service: Object) -> None:
        spec, owner = service["spec"], _owner(service)
        wanted = spec.get("clusterIP")
        if not wanted:
            number = self._ips.pick(owner)
            if number is None:
                raise ApiError(500, "InternalError", "Internal error occurred: failed to allocate a serviceIP: range is full")
            spec["clusterIP"] = str(self._address(number))
            spec["clusterIPs"] = [spec["clusterIP"]]
            return
        number = int(ipaddress.ip_address(wanted))
        problem = None
        if ipaddress.ip_address(wanted).version != self.network.version or number not in self._ips:
            problem = f"provided IP is not in the valid range. The range of valid IPs is {self.network}"
        elif not self._ips.free(number, owner):
            problem = "provided IP is already allocated"
        if problem:
            error = invalid("spec.clusterIPs", spec.get("clusterIPs"), f"failed to allocate IP {wanted}: {problem}")
            raise refusal(BY_RESOURCE["services"], service["metadata"]["name"], [error])
        self._ips.claim(number, owner)

    def _allocate_ports(self, service: Object) -> None:
        spec = service["spec"]
        by_port: dict[int, int] = {}  # TCP and UDP of one number share one node port
        for index, port in enumerate(spec["ports"]):
            number = port.get("nodePort")
            if number:
                self._claim_port(service, number, f"spec.ports[{index}].nodePort")
                by_port.setdefault(port["port"], number)
        if spec.get("allocateLoadBalancerNodePorts") is False:
            return
        for port in spec["ports"]:
            if not port.get("nodePort"):
                port["nodePort"] = by_port.get(port["port"]) or self._pick_port(service, "a nodePort")
                by_port[port["port"]] = port["nodePort"]

    def _allocate_health_check(self, service: Object) -> None:
        spec = service["spec"]
        if spec.get("healthCheckNodePort"):
            self._claim_port(service, spec["healthCheckNodePort"], "spec.healthCheckNodePort")
        else:
            spec["healthCheckNodePort"] = self._pick_port(service, "a HealthCheck NodePort")

    def _claim_port(self, service: Object, number: int, path: str) -> None:
        low, high = self.node_ports
        problem = None
        if number not in self._ports:
            problem = f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
        elif not self._ports.free(number, _owner(service)):
            problem = "provided port is already allocated"
        if problem:
            raise refusal(BY_RESOURCE["services"], service["metadata"]["name"], [invalid(path, number, problem)])
        self._ports.claim(number, _owner(service))

    def _pick_port(self, service: Object, what: str) -> int:
        number = self._ports.pick(_owner(service), avoid=_numbers(service["spec"]))  # its own are not stored yet
        if number is None:
            raise ApiError(500, "InternalError", f"Internal error occurred: failed to allocate {what}: range is full")
        return number


def _owner(service: Object) -> Owner:
    return service["metadata"]["namespace"], service["metadata"]["name"]


def _numbers(spec: Object) -> set[Any]:
    ports: set[Hashable] = {port.get("nodePort") for port in spec.get("ports") or ()} | {spec.get("healthCheckNodePort")}
    return ports - {None, 0}
