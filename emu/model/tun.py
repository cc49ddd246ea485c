"""A TUN device as a user asks for it: what joins a kernel's network namespace to a node or a pod. Decides fields, defaults, checks.

Nodes carry what they have been asked for in an annotation, so that a node's next life makes it anew and its peers know the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from emu.errors import ApiError
from emu.wire.addr import Ip, Network, format_ip, parse_ip

ANNOTATION = "podwire.dev/tuns"  # on a Node: a JSON list of `TunSpec.to_mapping`
DEFAULT_DEVICE, DEFAULT_MTU = "pw0", 1500
DEFAULT_ADDRESSES = Network.parse("100.64.0.0/16")  # of RFC 6598's range, which no cluster and few others use
SMALLEST_MTU, LARGEST_MTU = 68, 65535
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")  # IFNAMSIZ
_FIELDS = ("device", "netns", "pod", "address", "mtu", "offload")


@dataclass(frozen=True, slots=True)
class TunSpec:
    """`netns` is a name of `ip netns` or a path, `pod` NAMESPACE/NAME or "" for the node itself, `address` the kernel's IP/LENGTH."""

    device: str
    netns: str
    address: str
    pod: str = ""
    mtu: int = DEFAULT_MTU
    offload: bool = True

    @classmethod
    def from_mapping(cls, given: Any, taken: Iterable[str] = ()) -> TunSpec:
        """Check a request's body; without an address the first default one that is not `taken`. ApiError 422 names the field."""
        if not isinstance(given, Mapping):
            raise ApiError(400, "BadRequest", "a JSON object that describes the TUN device is wanted")
        for key in given:
            if key not in _FIELDS:
                raise _invalid(str(key), given[key], f"unknown field; there are {', '.join(_FIELDS)}")
        told = {key: value for key, value in given.items() if value is not None}
        found = {"device": DEFAULT_DEVICE, "netns": "", "pod": "", "mtu": DEFAULT_MTU, "offload": True, **told}
        found.setdefault("address", _free(taken))
        for field, is_right, what in _CHECKS:
            if not is_right(found[field]):
                raise _invalid(field, found[field], what)
        return cls(**found)

    def to_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def ip(self) -> Ip:
        return parse_ip(self.address.partition("/")[0])

    @property
    def network(self) -> Network:
        """What is behind the device: the network of the kernel's address."""
        return Network.parse(self.address, strict=False)


def specs_of(annotations: Mapping[str, str] | None) -> list[TunSpec]:
    """What a Node's annotations ask for. What is no such list, since anybody may write annotations, asks for nothing."""
    try:
        listed = json.loads((annotations or {}).get(ANNOTATION, "[]"))
        return [TunSpec.from_mapping(given) for given in listed] if isinstance(listed, list) else []
    except (ValueError, ApiError):
        return []


def annotation(specs: Iterable[TunSpec]) -> str:
    """The inverse of `specs_of`."""
    return json.dumps([spec.to_mapping() for spec in specs])


def _invalid(field: str, value: object, problem: str) -> ApiError:
    return ApiError(422, "Invalid", f"{field}: Invalid value: {json.dumps(value, default=str)}: {problem}")


def _is_device(value: Any) -> bool:
    return isinstance(value, str) and _DEVICE.fullmatch(value) is not None


def _is_pod(value: Any) -> bool:
    return isinstance(value, str) and (not value or all(value.partition("/")))


def _is_mtu(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and SMALLEST_MTU <= value <= LARGEST_MTU


def _is_address(value: Any) -> bool:
    """The address of a host, and how long its network's prefix is."""
    try:
        network = Network.parse(value, strict=False) if isinstance(value, str) else None
    except ValueError:
        return False
    return network is not None and len(network.address) == 4 and network.length > 0 and 0 < network.address[0] < 224


_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("device", _is_device, "a device's name has 1 to 15 letters, digits, dots, dashes or underscores"),
    ("netns", lambda value: isinstance(value, str) and value.isprintable() and value != "",
     "must be a network namespace: NAME of ip netns, or a path such as /proc/PID/ns/net"),
    ("pod", _is_pod, "must be NAMESPACE/NAME"),
    ("address", _is_address, "must be the kernel's IPv4 address and its prefix length, such as 172.31.0.1/24"),
    ("mtu", _is_mtu, f"must be a number from {SMALLEST_MTU} to {LARGEST_MTU}"),
    ("offload", lambda value: isinstance(value, bool), "must be true or false"),
)  # fmt: skip


def _free(taken: Iterable[str]) -> str:
    """A default address that nobody has."""
    held = {text.partition("/")[0] for text in taken}
    return next(f"{ip}/32" for i in range(1, 65535) if (ip := format_ip(DEFAULT_ADDRESSES.host(i))) not in held)
