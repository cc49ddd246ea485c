"""Routes: the longest prefix decides, and a table reads as `ip route` of a real kernel with the same routes does."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.stack.route import Route, RoutingTable
from emu.wire.addr import Network, format_ip, parse_ip
from tests.kit import netns

PREFIXES = st.builds(
    lambda value, length: Network.parse(f"{format_ip(value.to_bytes(4, 'big'))}/{length}", strict=False),
    st.sampled_from([0x0A000000, 0x0AF40000, 0x0AF40100, 0x0AF40180, 0xC0A80001, 0x0AF401FF]),
    st.integers(0, 32),
)
ADDRESSES = st.sampled_from([0x0A000001, 0x0AF40101, 0x0AF401FF, 0x0AF40180, 0xC0A80001, 0xC0A80002, 0x08080808]).map(
    lambda value: value.to_bytes(4, "big")
)


@given(st.lists(st.tuples(st.booleans(), PREFIXES), max_size=20), ADDRESSES)
def test_the_longest_prefix_that_still_stands_decides(steps: list[tuple[bool, Network]], ip: bytes) -> None:
    """Against Python's ipaddress; a later route to the same prefix replaces the earlier."""
    table, model = RoutingTable(), {}
    for number, (add, prefix) in enumerate(steps):
        if add:
            table.add(Route(prefix, f"dev{number}"))
            model[str(prefix)] = f"dev{number}"
        else:
            table.remove(prefix)
            model.pop(str(prefix), None)
    matching = [text for text in model if ipaddress.ip_address(ip) in ipaddress.ip_network(text)]
    expected = model[max(matching, key=lambda text: ipaddress.ip_network(text).prefixlen)] if matching else None
    found = table.lookup(ip)
    assert (found.device if found else None) == expected
    assert {str(route.prefix): route.device for route in table} == model


def test_the_same_holds_for_ipv6() -> None:
    table = RoutingTable()
    for prefix, device in (("::/0", "eth0"), ("fd00::/8", "cni0"), ("fd00:1::/64", "flannel.1")):
        table.add(Route(Network.parse(prefix), device))
    for ip, device in (("fd00:1::7", "flannel.1"), ("fd00:2::7", "cni0"), ("2001:db8::1", "eth0")):
        found = table.lookup(parse_ip(ip))
        assert found is not None
        assert found.device == device


# as the commands that make them; d0 has 192.168.0.2/16, d1 10.244.1.1/24 and 10.9.9.9/32
ROUTES = (
    ("192.168.0.0/16", "d0", None, "192.168.0.2", False),
    ("10.244.1.0/24", "d1", None, "10.244.1.1", False),
    ("0.0.0.0/0", "d0", "192.168.0.1", None, False),
    ("10.244.2.0/24", "d1", "10.244.2.0", None, True),
    ("10.244.10.0/24", "d1", "10.244.10.0", None, True),
    ("10.244.0.0/16", "d0", "192.168.0.1", None, False),
    ("10.244.1.0/25", "d0", "192.168.0.9", None, False),
    ("172.30.0.41/32", "d0", "192.168.0.9", None, False),
    ("203.0.113.0/24", "d0", None, None, False),
    ("203.0.113.9/32", "d0", None, None, False),
)
FROM_ADDRESSES = 2  # of these the kernel makes itself


def ours() -> RoutingTable:
    table = RoutingTable()
    for prefix, device, gateway, source, onlink in ROUTES:
        via, src = parse_ip(gateway) if gateway else None, parse_ip(source) if source else None
        table.add(Route(Network.parse(prefix), device, via, src, onlink))
    return table


@pytest.mark.kernel
def test_a_table_reads_as_ip_route_of_a_real_kernel() -> None:
    """Line by line and in the kernel's order; and the kernel chooses the same device and gateway for every address asked."""
    with netns.namespaces("routes") as real:
        space = real["routes"]
        commands = [
            "link add d0 type veth peer e0",
            "link add d1 type veth peer e1",
            *(f"link set {name} up" for name in ("d0", "e0", "d1", "e1")),
        ]
        commands += ["addr add 192.168.0.2/16 dev d0", "addr add 10.244.1.1/24 dev d1", "addr add 10.9.9.9/32 dev d1"]
        for prefix, device, gateway, source, onlink in ROUTES[FROM_ADDRESSES:]:
            via, src = f"via {gateway}" if gateway else "", f"src {source}" if source else ""
            commands.append(f"route add {prefix} {via} dev {device} {src} {'onlink' if onlink else ''}")
        netns.configure(space, commands)
        table = ours()
        assert [str(route) for route in table] == [line.strip() for line in netns.run(f"ip -n {space} route").splitlines()]
        for prefix, *_ in ROUTES:
            for offset in (1, 130, 255):
                ip = (int.from_bytes(Network.parse(prefix).address, "big") + offset).to_bytes(4, "big")
                chosen, words = table.lookup(ip), netns.run(f"ip -n {space} route get {format_ip(ip)}").split()
                assert chosen is not None
                if words[0] not in {"local", "broadcast"}:  # the local table comes before main
                    assert words[words.index("dev") + 1] == chosen.device
                    assert ("via" in words) == (chosen.gateway is not None)
                    assert chosen.gateway is None or words[words.index("via") + 1] == format_ip(chosen.gateway)
