"""The rule set as a value: complete, shared where nothing changed, and the same however it came about."""

from __future__ import annotations

import random

import pytest

from emu.netfilter.ruleset import Comment, Dnat, InInterface, Jump, Source
from emu.proxy.changes import ServiceChanges
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.iptables import IptablesBuilder, build
from emu.wire.addr import Network, parse_ip
from tests.kit.services import value

NODE = NodeView("host-1", (parse_ip("192.168.0.2"),), pod_cidrs=(Network.parse("10.244.1.0/24"),))
CONFIG = ProxyConfig.parse("iptables", cluster_cidr="10.244.0.0/16")


def ports_of(values, family=4):
    changes = ServiceChanges("host-1", family)
    changes.replace(values)
    changes.apply()
    return changes.ports


def shop(count, **fields):
    return {
        f"ns1/svc{i:05}": value(
            f"ns1/svc{i:05}", [f"10.244.1.{i % 250}", f"10.244.2.{i % 250}"], cluster_ip=f"10.96.{i >> 8}.{i & 255}", **fields
        )
        for i in range(count)
    }


def said(ruleset):
    """All that a rule set says, as comparable values."""
    return {(table.name, chain.name): (chain.rules, chain.policy) for table in ruleset.tables.values() for chain in table.chains.values()}


def rules_by_table(ruleset):
    return {table.name: sum(len(chain.rules) for chain in table.chains.values()) for table in ruleset.tables.values()}


def order(ruleset):
    return [(table.name, name) for table in ruleset.tables.values() for name in table.chains]


def test_every_rule_set_would_be_accepted_by_iptables_restore():
    for settings in ({}, {"clusterCIDR": ""}, {"nodePortAddresses": ["192.168.0.0/24"]}, {"iptables": {"masqueradeAll": True}}):
        config = ProxyConfig.parse(settings, cluster_cidr="10.244.0.0/16")
        build(ports_of(shop(5, type="NodePort", node_port=30080, externalTrafficPolicy="Local")), config, NODE).check()


def test_one_change_among_many_services_leaves_every_other_chain_the_same_object():
    changes = ServiceChanges("host-1")
    changes.replace(shop(200))
    changes.apply()
    builder = IptablesBuilder(CONFIG, NODE)
    before = builder.build(changes.ports)
    changes.update("ns1/svc00100", value("ns1/svc00100", ["10.244.3.1"], cluster_ip="10.96.0.100"))
    changes.apply()
    after = builder.build(changes.ports)
    old, new = before.tables["nat"].chains, after.tables["nat"].chains
    assert len([name for name in new if old.get(name) is not new[name]]) == 2, "the Service's SVC chain and its one new SEP chain"
    assert after.tables["filter"] is before.tables["filter"]
    assert after.tables["mangle"] is before.tables["mangle"]


def test_building_step_by_step_or_at_once_gives_the_same_rule_set():
    chance = random.Random(3)
    changes, builder = ServiceChanges("host-1"), IptablesBuilder(CONFIG, NODE)
    for _ in range(60):
        key = f"ns1/svc{chance.randrange(8)}"
        endpoints = [f"10.244.1.{chance.randrange(5)}" for _ in range(chance.randrange(4))]
        changes.update(key, chance.choice([None, value(key, endpoints, cluster_ip="10.96.0.1", type="NodePort", node_port=30080)]))
        changes.apply()
        step = builder.build(changes.ports)
        fresh = build(changes.ports, CONFIG, NODE)
        assert said(step) == said(fresh)
        assert order(step) == order(fresh)
        assert builder.rules == rules_by_table(step)


def test_a_service_that_is_gone_leaves_no_chain():
    changes, builder = ServiceChanges("host-1"), IptablesBuilder(CONFIG, NODE)
    empty = builder.build(changes.ports)
    changes.replace(shop(3))
    changes.apply()
    builder.build(changes.ports)
    changes.replace({})
    changes.apply()
    assert said(builder.build(changes.ports)) == said(empty)


def test_above_a_thousand_endpoints_the_many_rules_lose_their_comments_but_old_chains_keep_theirs():
    changes, builder = ServiceChanges("host-1"), IptablesBuilder(CONFIG, NODE)
    changes.replace(shop(1))
    changes.apply()
    builder.build(changes.ports)
    changes.replace(shop(501))
    changes.apply()
    nat = builder.build(changes.ports).tables["nat"]
    commented = [
        chain.name for chain in nat.chains.values() if chain.name.startswith("KUBE-SEP") and isinstance(chain.rules[0].matches[0], Comment)
    ]
    assert len(commented) == 2, "those of the Service that was there before"
    services = nat.chains["KUBE-SERVICES"].rules
    assert all(isinstance(rule.matches[0], Comment) for rule in services)


DETECTORS = [
    ("ClusterCIDR", {}, Source(Network.parse("10.244.0.0/16"), invert=True)),
    ("NodeCIDR", {"detectLocalMode": "NodeCIDR"}, Source(Network.parse("10.244.1.0/24"), invert=True)),
    ("BridgeInterface", {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}},
     InInterface("cni0", invert=True)),
    ("InterfaceNamePrefix", {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}},
     InInterface("veth+", invert=True)),
    ("none", {"clusterCIDR": ""}, None),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "expected"), [row[1:] for row in DETECTORS], ids=[row[0] for row in DETECTORS])
def test_what_counts_as_coming_from_outside_follows_detect_local_mode(settings, expected):
    ruleset = build(ports_of(shop(1)), ProxyConfig.parse(settings, cluster_cidr="10.244.0.0/16"), NODE)
    (svc,) = [chain for name, chain in ruleset.tables["nat"].chains.items() if name.startswith("KUBE-SVC-")]
    marking = [rule for rule in svc.rules if rule.target == Jump("KUBE-MARK-MASQ")]
    assert [rule.matches[-1] for rule in marking] == ([] if expected is None else [expected])


def test_ipv6_has_its_own_addresses_and_no_localhost_firewall():
    values = {"ns1/svc1": value(endpoints=["fd00:1::2"], cluster_ip="fd00:96::1")}
    node = NodeView("host-1", (parse_ip("192.168.0.2"), parse_ip("fd00::2")))
    ruleset = build(ports_of(values, family=6), ProxyConfig.parse("iptables", cluster_cidr="10.244.0.0/16,fd00:1::/64"), node, family=6)
    ruleset.check()
    assert "KUBE-FIREWALL" not in ruleset.tables["filter"].chains
    targets = [rule.target for chain in ruleset.tables["nat"].chains.values() for rule in chain.rules]
    assert [str(target.to) for target in targets if isinstance(target, Dnat)] == ["[fd00:1::2]:8080"]
