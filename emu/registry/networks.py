"""Networks named in objects: a Node's podCIDR, a policy's ipBlock, a ServiceCIDR. Decides only whether they are networks.

Spec: pkg/apis/core/validation ValidateNode, pkg/apis/networking/validation ValidateIPBlock and ValidateNetworkPolicyPeer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from emu.registry.invalid import FieldError, forbidden, invalid, required
from emu.registry.names import check_cidr, check_labels
from emu.store.store import Object

_PEER_SELECTORS = ("podSelector", "namespaceSelector")


def check_node(obj: Object) -> Iterator[FieldError]:
    """Nodes route to each other's podCIDR: nonsense must never reach them."""
    spec = obj.get("spec") or {}
    if spec.get("podCIDR"):
        yield from check_cidr(spec["podCIDR"], "spec.podCIDR")
    for index, cidr in enumerate(spec.get("podCIDRs") or ()):
        yield from check_cidr(cidr, f"spec.podCIDRs[{index}]")


def check_node_update(new: Object, old: Object) -> Iterator[FieldError]:
    yield from check_node(new)
    before, after = (old.get("spec") or {}).get("podCIDR"), (new.get("spec") or {}).get("podCIDR")
    if before and before != after:
        yield forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')


def check_service_cidr(obj: Object) -> Iterator[FieldError]:
    for index, cidr in enumerate((obj.get("spec") or {}).get("cidrs") or ()):
        yield from check_cidr(cidr, f"spec.cidrs[{index}]")


def check_policy(obj: Object) -> Iterator[FieldError]:
    """A NetworkPolicy's peers: each is one ipBlock, or selectors."""
    spec = obj.get("spec") or {}
    yield from check_labels((spec.get("podSelector") or {}).get("matchLabels"), "spec.podSelector.matchLabels")
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or ()):
            for number, peer in enumerate((rule or {}).get(side) or ()):
                yield from _check_peer(peer or {}, f"spec.{direction}[{index}].{side}[{number}]")


def _check_peer(peer: dict[str, Any], path: str) -> Iterator[FieldError]:
    selectors = [name for name in _PEER_SELECTORS if peer.get(name) is not None]
    for name in selectors:
        yield from check_labels(peer[name].get("matchLabels"), f"{path}.{name}.matchLabels")
    block = peer.get("ipBlock")
    if block is None:
        if not selectors:
            yield required(path, "must specify a peer")
        return
    if selectors:
        yield forbidden(path, "may not specify both ipBlock and another peer")
    yield from _check_block(block, f"{path}.ipBlock")


def _check_block(block: dict[str, Any], path: str) -> Iterator[FieldError]:
    faults = list(check_cidr(block.get("cidr"), f"{path}.cidr"))
    yield from faults
    for index, left_out in enumerate(block.get("except") or ()):
        wrong = list(check_cidr(left_out, f"{path}.except[{index}]"))
        yield from wrong
        if not faults and not wrong and not _strictly_within(left_out, block["cidr"]):
            yield invalid(f"{path}.except[{index}]", left_out, "must be a strict subset of `cidr`")


def _strictly_within(inner: str, outer: str) -> bool:
    small, large = (ipaddress.ip_network(cidr, strict=False) for cidr in (inner, outer))
    return small.version == large.version and small.prefixlen > large.prefixlen and small.network_address in large
