"""The node agent's door: nothing before the first snapshot, one sync a burst, full syncs when the node itself changes."""

from __future__ import annotations

import random
from dataclasses import replace

from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.text import save_text
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.syncer import Proxy
from emu.wire.addr import format_ip, parse_ip
from tests.kit.flows import FlowNode, packet
from tests.kit.services import endpoint, value

NODE = NodeView("host-1", (parse_ip("192.168.0.2"),))
CONFIG = ProxyConfig.parse("iptables", cluster_cidr="10.244.0.0/16")


def proxy():
    return Proxy(CONFIG, NODE)


def test_nothing_is_written_before_the_first_snapshot():
    subject = proxy()
    subject.on_services([("ns1/svc1", value())], 1.0)
    assert subject.poll_at() is None
    assert subject.sync(100.0) is None
    subject.on_listed(101.0)
    assert subject.sync(101.0).services_changed == 1


def test_the_first_snapshot_is_written_even_if_there_are_no_services():
    subject = proxy()
    subject.on_snapshot({}, 1.0)
    result = subject.sync(1.0)
    assert result.full
    assert "KUBE-SERVICES" in result.ruleset.tables["nat"].chains
    result.ruleset.check()


def test_a_burst_costs_one_sync_a_minimum_period():
    subject = proxy()
    subject.on_snapshot({}, 1.0)
    subject.sync(1.0)
    for i in range(10):
        subject.on_services([(f"ns1/svc{i}", value(f"ns1/svc{i}", ["10.244.1.2"], cluster_ip=f"10.96.0.{i}"))], 1.1 + i / 100)
    assert subject.sync(1.5) is None
    assert subject.poll_at() == 2.0
    result = subject.sync(2.0)
    assert (result.services_changed, result.full) == (10, False)
    assert subject.poll_at() is None
    assert subject.stats().syncs == 2


def test_what_is_taken_back_before_the_sync_costs_none():
    subject = proxy()
    subject.on_snapshot({}, 1.0)
    subject.sync(1.0)
    subject.on_services([("ns1/svc1", value())], 1.1)
    subject.on_services([("ns1/svc1", None)], 1.2)
    assert subject.poll_at() is None


def test_a_resync_that_brings_nothing_new_costs_none():
    subject = proxy()
    subject.on_snapshot({"ns1/svc1": value()}, 1.0)
    subject.sync(1.0)
    subject.on_snapshot({"ns1/svc1": value()}, 5.0)
    assert subject.poll_at() is None


def test_a_new_zone_of_the_node_is_a_full_sync():
    subject = proxy()
    hinted = [endpoint("10.244.1.2", zones=["a"]), endpoint("10.244.2.2", zones=["b"])]
    subject.on_snapshot({"ns1/svc1": value(endpoints=hinted)}, 1.0)
    before = subject.sync(1.0).ruleset.tables["nat"].chains
    subject.on_node(NODE, 2.0)
    assert subject.poll_at() is None, "the same node again is no change"
    subject.on_node(replace(NODE, zone="b"), 3.0)
    result = subject.sync(3.0)
    assert result.full
    assert len(before) - len(result.ruleset.tables["nat"].chains) == 1, "one endpoint chain less: the other zone's"


def test_udp_endpoints_that_change_name_their_stale_flows_and_tcp_ones_never():
    subject = proxy()
    subject.on_snapshot({"ns1/svc1": value(endpoints=["10.244.1.2"])}, 1.0)
    assert subject.sync(1.0).stale is None
    subject.on_services([("ns1/dns", value("ns1/dns", ["10.244.1.3"], protocol="UDP", port=53, cluster_ip="10.96.0.53"))], 3.0)
    assert subject.sync(3.0).stale is not None


def test_a_udp_client_that_keeps_its_port_gets_a_living_endpoint_after_the_sync():
    subject = proxy()

    def dns(address):
        return {"ns1/dns": value("ns1/dns", [address], protocol="UDP", port=53, target=53, cluster_ip="10.96.0.53")}

    subject.on_snapshot(dns("10.244.1.3"), 1.0)
    ruleset = subject.sync(1.0).ruleset
    netfilter = Netfilter(FlowNode(ruleset))
    netfilter.swap(ruleset)

    def ask():
        skb = packet("10.244.1.2:5000", "10.96.0.53:53", "udp")
        for hook in (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING):
            assert netfilter.run(hook, skb, 4.0) is Verdict.ACCEPT
        return format_ip(skb.dst)

    assert ask() == "10.244.1.3"
    subject.on_snapshot(dns("10.244.1.4"), 3.0)
    result = subject.sync(3.0)
    netfilter.swap(result.ruleset)
    assert ask() == "10.244.1.3", "conntrack remembers, whatever the rules say now"
    assert netfilter.conntrack.delete_matching(result.stale) == 1
    assert ask() == "10.244.1.4"


def test_stats_tell_the_size_of_what_is_in_force():
    subject = proxy()
    subject.on_snapshot({"ns1/svc1": value(endpoints=["10.244.1.2", "10.244.1.3"])}, 1.0)
    subject.sync(1.0)
    subject.on_swapped(0.25)
    stats = subject.stats()
    assert (stats.syncs, stats.full_syncs, stats.service_ports, stats.endpoints, stats.last_sync, stats.last_seconds) == (
        1,
        1,
        1,
        2,
        1.0,
        0.25,
    )
    assert stats.rules["mangle"] == 0
    assert stats.rules["nat"] == 2 + 1 + 2 + 3 + 1 + 3 + 2 * 2  # jumps, postrouting jump, SERVICES, POSTROUTING, MARK, SVC, SEP


def late(values, read):
    """Values that note in `read` when somebody reads them."""
    return [(key, made and (lambda key=key, made=made: read.append(key) or made)) for key, made in values.items()]


def test_a_late_rule_set_is_written_when_somebody_looks_and_a_burst_is_read_once():
    subject, read = proxy(), []
    subject.on_late(late({"ns1/svc1": value(endpoints=["10.244.1.1"])}, read), 1.0)
    subject.on_listed(1.0)
    subject.sync(1.0, late=True)
    for at, address in ((3.0, "10.244.1.2"), (5.0, "10.244.1.3")):
        subject.on_late(late({"ns1/svc1": value(endpoints=[address])}, read), at)
        last = subject.sync(at, late=True).ruleset
    assert set(last.tables) == {"mangle", "filter", "nat"}
    assert (read, subject.seen) == ([], False)
    subject.on_late(late({"ns1/svc1": value(endpoints=["10.244.1.4"])}, read), 6.0)
    text = save_text(last)
    assert (read, subject.seen) == (["ns1/svc1"], True)
    assert "10.244.1.3" in text, "what has been heard since is the next rule set's"
    assert not any(address in text for address in ("10.244.1.1", "10.244.1.2", "10.244.1.4"))


def test_where_packets_walk_the_next_rules_are_there_when_they_come():
    subject, read = proxy(), []
    subject.on_listed(1.0)
    save_text(subject.sync(1.0, late=True).ruleset)
    subject.on_late(late({"ns1/svc1": value()}, read), 3.0)
    subject.sync(3.0, late=True)
    assert read == ["ns1/svc1"]
    subject.on_late(late({"ns1/svc1": None, "ns1/svc2": value("ns1/svc2")}, read), 5.0)
    unseen = subject.sync(5.0, late=True)
    assert read == ["ns1/svc1"], "nobody has looked since"
    assert "svc2" in save_text(unseen.ruleset)
    assert "svc1" not in save_text(unseen.ruleset)


def test_flows_of_udp_are_never_left_to_a_late_rule_set():
    subject = proxy()
    subject.on_listed(1.0)
    subject.sync(1.0, late=True)
    dns = value("ns1/dns", ["10.244.1.3"], protocol="UDP", port=53, cluster_ip="10.96.0.53")
    subject.on_late(late({"ns1/dns": dns}, []), 3.0)
    assert subject.sync(3.0, late=False).stale is not None


def test_late_or_at_once_the_rules_are_the_same():
    chance = random.Random(5)
    eager, lazy = proxy(), proxy()
    for subject in (eager, lazy):
        subject.on_listed(0.0)
    for step in range(60):
        key, now = f"ns1/svc{chance.randrange(5)}", 10.0 + 2 * step
        made = chance.choice([None, value(key, [f"10.244.1.{chance.randrange(4)}"], cluster_ip="10.96.0.1")])
        eager.on_services([(key, made)], now)
        lazy.on_late([(key, made and (lambda made=made: made))], now)
        at_once, later = eager.sync(now), lazy.sync(now, late=True)
        if at_once is not None and chance.random() < 0.4:
            assert save_text(at_once.ruleset) == save_text(later.ruleset)
