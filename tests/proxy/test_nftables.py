"""nftables mode against kube-proxy's own published world, and its economy: one change touches one Service's part."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from emu.netfilter.nft_text import ruleset_text
from emu.proxy.changes import ServiceChanges
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.nftables import NftablesBuilder, build
from emu.wire.addr import parse_ip
from tests.kit.services import value

GOLDEN = Path(__file__).parents[1] / "golden"
NODE = NodeView("test-node", (parse_ip("192.168.0.2"), parse_ip("192.168.1.2")))
CONFIG = ProxyConfig.parse("nftables", cluster_cidr="10.0.0.0/8", service_cidr="172.30.0.0/16")


def published_world():
    changes = ServiceChanges("test-node")
    world = yaml.safe_load((GOLDEN / "published-world.yaml").read_text())
    sticky = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}
    world["ns5/svc5"]["service"]["spec"].update(sticky)
    changes.replace(world)
    changes.apply()
    return build(changes.ports, CONFIG, NODE)


def lines(listing: str) -> list[str]:
    """`CHAIN | RULE` and `@SET | ELEMENT` of an nft listing."""
    found, name = [], ""
    for line in re.sub(r",\n\s*", ",\n", listing).splitlines():
        words = line.split()
        if words[:1] in (["chain"], ["set"], ["map"]):
            name = words[1] if words[0] == "chain" else f"@{words[1]}"
        elif name.startswith("@") and (line.strip().startswith("elements") or line.rstrip().endswith((",", " }"))):
            inside = line.strip().removeprefix("elements = {").removesuffix("}").strip().strip(",")
            found += [f"{name} | {element.strip()}" for element in inside.split(",")]
        elif not name.startswith("@") and len(words) > 1 and words[0] not in ("type", "table") and name and words[0] != "comment":
            found.append(f"{name} | {line.strip()}")
        elif words in (["reject"], ["return"]):
            found.append(f"{name} | {words[0]}")
    return found


def test_the_published_world_prints_as_kube_proxy_writes_it():
    published = [line for line in (GOLDEN / "published-world.nft").read_text().splitlines() if not line.startswith("#")]
    ours = lines(ruleset_text(published_world()))
    assert sorted(ours) == sorted(published)
    for chain in {line.partition(" | ")[0] for line in published}:
        if not chain.startswith("@"):
            assert [line for line in ours if line.startswith(f"{chain} | ")] == [
                line for line in published if line.startswith(f"{chain} | ")
            ]


def world(count: int) -> dict:
    return {
        f"ns/svc{i}": value(f"ns/svc{i}", [f"10.0.1.{j}" for j in range(1, 4)], cluster_ip=f"172.30.{i >> 8}.{i & 255}")
        for i in range(count)
    }


def test_one_change_makes_one_service_s_part_anew_and_leaves_the_table_before_it_as_it_was():
    changes, builder = ServiceChanges("test-node"), NftablesBuilder(CONFIG, NODE)
    changes.replace(world(50))
    changes.apply()
    before = builder.build(changes.ports).nft
    chains, elements = dict(before.chains), {name: dict(found.elements) for name, found in before.maps.items()}
    changes.update("ns/svc7", value("ns/svc7", ["10.0.1.1", "10.0.1.9"], cluster_ip="172.30.0.7"))
    after = builder.build(changes.ports, changes.apply().ports).nft
    moved = {name for name in before.chains.keys() | after.chains.keys() if before.chains.get(name) is not after.chains.get(name)}
    assert all("/svc7/" in name for name in moved)
    assert moved
    assert before.maps["service-ips"] is after.maps["service-ips"], "nothing in it has changed"
    changes.update("ns/svc7", None)
    gone = builder.build(changes.ports, changes.apply().ports).nft
    assert not any("/svc7/" in name for name in gone.chains)
    assert parse_ip("172.30.0.7") not in gone.sets["cluster-ips"].elements
    assert (dict(before.chains), {name: dict(found.elements) for name, found in before.maps.items()}) == (chains, elements)


def test_any_order_of_changes_ends_at_the_same_table():
    changes, builder = ServiceChanges("test-node"), NftablesBuilder(CONFIG, NODE)
    builder.build(changes.ports)
    for key, each in world(20).items():
        changes.update(key, each)
        builder.build(changes.ports, changes.apply().ports)
    for key in list(world(20))[::3]:
        changes.update(key, None)
    stepwise = builder.build(changes.ports, changes.apply().ports)
    assert sorted(lines(ruleset_text(stepwise))) == sorted(lines(ruleset_text(build(changes.ports, CONFIG, NODE))))


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([None, (), ("203.0.113.9",), ("203.0.113.9", "203.0.113.8")])), max_size=12))
def test_services_that_share_an_external_address_leave_it_to_each_other(steps):
    """Each step deletes a Service or gives it external addresses: the table is as built from nothing, and the first by name has each."""
    changes, builder = ServiceChanges("test-node"), NftablesBuilder(CONFIG, NODE)
    builder.build(changes.ports)
    now = {}
    for number, external in steps:
        key = f"ns/svc{number}"
        now[number] = external
        made = None if external is None else value(key, ["10.0.1.1"], cluster_ip=f"172.30.0.{number}", externalIPs=list(external))
        changes.update(key, made)
        stepwise = builder.build(changes.ports, changes.apply().ports)
        assert sorted(lines(ruleset_text(stepwise))) == sorted(lines(ruleset_text(build(changes.ports, CONFIG, NODE))))
        for last in (8, 9):
            ip = parse_ip(f"203.0.113.{last}")
            owners = [verdict.chain for at, (verdict, _) in stepwise.nft.maps["service-ips"].elements.items() if at[:4] == ip]
            first = min((n for n, had in now.items() if had and f"203.0.113.{last}" in had), default=None)
            assert [owner.split("/")[1] for owner in owners] == ([] if first is None else [f"svc{first}"])
