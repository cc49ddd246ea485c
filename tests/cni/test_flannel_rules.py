"""flanneld's rules: as published, in tables that the kernel takes, and the same objects while nothing changes."""

from __future__ import annotations

import shutil

import pytest

from emu.cni.flannel_rules import FlannelRules
from emu.netfilter.text import restore_text, save_text
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.syncer import Proxy
from emu.wire.addr import Network, parse_ip
from tests.kit import netns

CLUSTER, PODS = Network.parse("10.244.0.0/16"), Network.parse("10.244.1.0/24")

PUBLISHED = """\
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.1.0/24 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.1.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
"""


def kube_proxy():
    config = ProxyConfig.parse("iptables", cluster_cidr=str(CLUSTER))
    proxy = Proxy(config, NodeView("node-1", (parse_ip("192.168.0.2"),), pod_cidrs=(PODS,)))
    proxy.on_listed(0.0)
    result = proxy.sync(proxy.poll_at() or 0.0)
    assert result is not None
    return result.ruleset


def test_they_are_printed_as_flanneld_has_them_behind_kube_proxys_jumps():
    lines = save_text(FlannelRules(CLUSTER, PODS).beside(kube_proxy())).splitlines(keepends=True)
    assert sorted(line for line in lines if line.startswith("-A FLANNEL")) == sorted(PUBLISHED.splitlines(keepends=True))
    for built_in, ours in (("POSTROUTING", "masq"), ("FORWARD", "forward")):
        assert [line for line in lines if line.startswith(f"-A {built_in} ")][-1].split('"')[1] == f"flanneld {ours}"


def test_what_has_not_changed_stays_the_same_object():
    rules, given = FlannelRules(CLUSTER, PODS), kube_proxy()
    first, second = rules.beside(given), rules.beside(given)
    assert all(first.tables[name] is second.tables[name] for name in given.tables)
    first.check()
    other = rules.beside(kube_proxy())
    assert other.tables["nat"].chains["FLANNEL-POSTRTG"] is first.tables["nat"].chains["FLANNEL-POSTRTG"]


@pytest.mark.kernel
@pytest.mark.skipif(bool(netns.missing("iptables-restore")), reason=netns.missing("iptables-restore"))
def test_the_kernel_takes_them():
    with netns.namespaces("flannel") as names:
        text = restore_text(FlannelRules(CLUSTER, PODS).beside(kube_proxy()))
        netns.run(f"ip netns exec {names['flannel']} {shutil.which('iptables-restore')}", stdin=text)
        saved = netns.run(f"ip netns exec {names['flannel']} iptables-save")
        assert all(line in saved for line in PUBLISHED.splitlines())
