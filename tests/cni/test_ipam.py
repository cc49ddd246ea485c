"""host-local IPAM: round robin, exhaustion, and addresses that cannot be had."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.cni.ipam import HostLocal
from emu.wire.addr import Network, format_ip, parse_ip


def ipam(subnet: str = "10.244.1.0/29") -> HostLocal:
    return HostLocal(Network.parse(subnet))


def test_addresses_are_given_in_turn_from_the_second_host_on() -> None:
    pool = ipam("10.244.1.0/24")
    assert [format_ip(pool.reserve(f"pod{n}")) for n in range(3)] == ["10.244.1.2", "10.244.1.3", "10.244.1.4"]
    assert format_ip(pool.gateway) == "10.244.1.1"


def test_a_freed_address_waits_until_all_others_have_been_given() -> None:
    pool = ipam()
    first = pool.reserve("first")
    given_since = []
    for n in range(4):
        pool.release("first" if n == 0 else f"pod{n - 1}")
        given_since.append(pool.reserve(f"pod{n}"))
    assert first not in given_since
    pool.release("pod3")
    assert pool.reserve("next") == first


@pytest.mark.parametrize("subnet", ["10.0.0.0/30", "10.0.0.0/29", "10.0.0.128/25", "10.244.0.0/22", "fd00::/120"])
def test_every_host_but_the_gateway_is_given_once_and_then_none(subnet: str) -> None:
    """Against Python's ipaddress, which knows hosts (of IPv6 too: no broadcast address there, but host-local keeps the last one back)."""
    pool = ipam(subnet)
    network = ipaddress.ip_network(subnet)
    hosts = {network[n] for n in range(2, network.num_addresses - 1)}
    assert {ipaddress.ip_address(pool.reserve(f"pod{n}")) for n in range(len(hosts))} == hosts
    with pytest.raises(ValueError, match=f"no free address in {subnet}: all {len(hosts)} are in use"):
        pool.reserve("one too many")
    pool.release("pod0")
    pool.reserve("one too many")


@pytest.mark.parametrize("subnet", ["10.0.0.0/31", "10.0.0.0/32"])
def test_a_subnet_without_room_is_refused_at_once(subnet: str) -> None:
    with pytest.raises(ValueError, match="a pod subnet is a /30 or larger"):
        ipam(subnet)


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("10.244.2.3", "is not in the node's pod subnet 10.244.1.0/29"),
        ("fd00::3", "is not in the node's pod subnet"),
        ("10.244.1.0", "is the network, gateway or broadcast address"),
        ("10.244.1.1", "is the network, gateway or broadcast address"),
        ("10.244.1.7", "is the network, gateway or broadcast address"),
        ("10.244.1.2", "belongs to first"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused_with_the_reason(wanted: str, problem: str) -> None:
    pool = ipam()
    pool.reserve("first")
    with pytest.raises(ValueError, match=problem):
        pool.reserve("second", parse_ip(wanted))
    assert format_ip(pool.reserve("second")) == "10.244.1.3"


def test_an_owner_keeps_its_address_and_may_ask_for_another() -> None:
    pool = ipam()
    ip = pool.reserve("pod")
    assert pool.reserve("pod") == ip == pool.reserve("pod", ip)
    other = pool.reserve("pod", parse_ip("10.244.1.6"))
    assert format_ip(other) == "10.244.1.6"
    assert pool.reserve("second", ip) == ip


def test_a_refusal_takes_nothing_from_its_owner() -> None:
    pool = ipam()
    ip = pool.reserve("pod")
    pool.reserve("other", parse_ip("10.244.1.6"))
    with pytest.raises(ValueError, match="belongs to other"):
        pool.reserve("pod", parse_ip("10.244.1.6"))
    assert pool.reserve("pod") == ip


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["reserve", "release", "want"]), st.integers(0, 7))))
def test_no_address_ever_has_two_owners(steps: list[tuple[str, str, int]]) -> None:
    pool, model = ipam(), {}
    for owner, verb, index in steps:
        if verb == "release":
            pool.release(owner)
            model.pop(owner, None)
            continue
        try:
            model[owner] = pool.reserve(owner, pool.subnet.host(index) if verb == "want" else None)
        except ValueError:
            assert verb == "want" or len(model) == 5
        assert len(set(model.values())) == len(model)
        assert all(pool.reserve(name) == ip for name, ip in model.items())


@pytest.mark.parametrize("subnet", ["10.244.1.0/24", "10.244.1.0/28", "10.244.1.0/30"])
def test_a_node_s_next_life_does_not_begin_with_the_addresses_of_the_last(subnet: str) -> None:
    """Who still holds an old endpoint must not find another pod behind it at once."""
    lives = [HostLocal(Network.parse(subnet), life) for life in range(1, 6)]
    first = [format_ip(life.reserve("pod")) for life in lives]
    assert len(set(first[:4])) == (1 if subnet.endswith("30") else 4)
    assert all(Network.parse(subnet).address[:3] == parse_ip(ip)[:3] for ip in first)
    assert all(2 <= int(ip.rpartition(".")[2]) < (1 << 32 - int(subnet[-2:])) - 1 for ip in first)
