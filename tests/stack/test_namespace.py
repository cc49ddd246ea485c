"""Which address a namespace lends to MASQUERADE; the expected ones are what the kernel chose for the same devices (inet_select_addr)."""

from __future__ import annotations

import pytest

from emu.stack.device import Device
from emu.stack.namespace import NetNamespace
from emu.stack.softnet import Softnet
from emu.wire.addr import Network, format_ip, parse_ip

ROWS = {
    "the device's first address": ("eth0", "8.8.8.8", "192.168.0.2"),
    "the address whose subnet holds the destination": ("eth0", "10.9.9.1", "10.9.9.9"),
    "another device's, where it has none": ("bare", "8.8.8.8", "192.168.0.2"),
    "another device's on loopback, 127.0.0.1 being of scope host": ("lo", "192.168.0.2", "192.168.0.2"),
    "none by a device that does not exist": ("eth7", "8.8.8.8", None),
}


@pytest.fixture
def ns() -> NetNamespace:
    node = NetNamespace("node", Softnet("node-1"))
    for name, *addresses in (("bare",), ("eth0", "192.168.0.2/24", "10.9.9.9/24")):
        node.add_device(Device(node, name, 1500))
        for address in addresses:
            node.add_address(name, Network.parse(address, strict=False), parse_ip(address.split("/")[0]))
    return node


@pytest.mark.parametrize(("device", "dst", "address"), ROWS.values(), ids=ROWS)
def test_masquerade_takes(ns: NetNamespace, device: str, dst: str, address: str | None) -> None:
    found = ns.masquerade_address(device, parse_ip(dst))
    assert (None if found is None else format_ip(found)) == address
