"""The proxy's configuration: KubeProxyConfiguration's own keys, and an error that helps for any other."""

from __future__ import annotations

import pytest

from emu.errors import ConfigError
from emu.proxy.config import ProxyConfig
from emu.wire.addr import parse_ip

NODE_IPS = (parse_ip("192.168.0.2"), parse_ip("192.168.99.11"))


def test_a_mode_alone_has_kube_proxys_defaults():
    config = ProxyConfig.parse("iptables", cluster_cidr="10.244.0.0/16")
    assert (config.iptables.masquerade_mark, config.iptables.min_sync_period, config.iptables.sync_period) == (0x4000, 1.0, 30.0)
    assert [str(cidr) for cidr in config.cluster_cidrs] == ["10.244.0.0/16"]
    assert config.detect_local_mode == "ClusterCIDR"


def test_every_key_is_read():
    config = ProxyConfig.parse({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": "10.1.0.0/16,fd00::/64",
        "detectLocalMode": "BridgeInterface",
        "detectLocal": {"bridgeInterface": "cni0", "interfaceNamePrefix": "veth"},
        "nodePortAddresses": ["192.168.0.0/24"],
        "iptables": {
            "masqueradeBit": 15, "masqueradeAll": True, "localhostNodePorts": False, "minSyncPeriod": "250ms", "syncPeriod": "1m30s",
        },
    })  # fmt: skip
    assert len(config.cluster_cidrs) == 2
    assert (config.detect_local_mode, config.bridge_interface, config.interface_name_prefix) == ("BridgeInterface", "cni0", "veth")
    assert [str(cidr) for cidr in config.node_port_addresses] == ["192.168.0.0/24"]
    assert (config.iptables.masquerade_mark, config.iptables.masquerade_all, config.iptables.localhost_node_ports) == (0x8000, True, False)
    assert (config.iptables.min_sync_period, config.iptables.sync_period) == (0.25, 90.0)


def test_an_empty_cluster_cidr_means_no_local_detector_even_if_the_cluster_has_one():
    assert ProxyConfig.parse({"clusterCIDR": ""}, cluster_cidr="10.244.0.0/16").cluster_cidrs == ()


WRONG = [
    ({"clusterCidr": "10.0.0.0/8"}, "proxy.clusterCidr: unknown key; did you mean clusterCIDR?"),
    ({"iptables": {"masqueradeall": True}}, "proxy.iptables.masqueradeall: unknown key; did you mean masqueradeAll?"),
    ({"conntrack": {}}, "proxy.conntrack: a setting of kube-proxy's that is not emulated yet"),
    ({"mode": "ipvs"}, "proxy.mode: mode ipvs is not emulated yet; iptables and nftables are"),
    ({"mode": "userspace"}, "proxy.mode: 'userspace' is no proxy mode; iptables and nftables are"),
    ({"clusterCIDR": "10.0.0.1/8"}, "'10.0.0.1/8' is not a CIDR"),
    ({"clusterCIDR": "10.0.0.0/8,11.0.0.0/8"}, "one CIDR of each IP family"),
    ({"detectLocalMode": "BridgeInterface"}, "BridgeInterface needs detectLocal.bridgeInterface"),
    ({"detectLocalMode": "Magic"}, "'Magic' is not one of ClusterCIDR"),
    ({"nodePortAddresses": ["192.168.0.0/24", "x"]}, "proxy.nodePortAddresses[1]: 'x' is not a CIDR"),
    ({"iptables": {"masqueradeBit": 32}}, "proxy.iptables.masqueradeBit: must be a number from 0 to 31, not 32"),
    ({"iptables": {"minSyncPeriod": "soon"}}, "'soon' is not a duration"),
    ({"iptables": {"masqueradeAll": "yes"}}, "must be true or false, not 'yes'"),
    ({"iptables": 1}, "proxy.iptables: must be a mapping, not 1"),
]


@pytest.mark.parametrize(("mapping", "message"), WRONG)
def test_a_wrong_setting_is_an_error_that_says_where(mapping, message):
    with pytest.raises(ConfigError) as caught:
        ProxyConfig.parse(mapping)
    assert message in str(caught.value)


NODE_PORTS = [
    ("by default every local address answers", {}, None),
    ("a zero CIDR is every local address", {"nodePortAddresses": ["0.0.0.0/0"]}, None),
    ("CIDRs of the other family only are as none", {"nodePortAddresses": ["fd00::/8"]}, None),
    ("only addresses inside a CIDR", {"nodePortAddresses": ["192.168.99.0/24"]}, ["192.168.99.11"]),
    ("primary is the node's first address", {"nodePortAddresses": ["primary"]}, ["192.168.0.2"]),
]


@pytest.mark.parametrize(("mapping", "expected"), [row[1:] for row in NODE_PORTS], ids=[row[0] for row in NODE_PORTS])
def test_addresses_that_answer_node_ports(mapping, expected):
    found = ProxyConfig.parse(mapping).node_ports_on(NODE_IPS)
    assert found == (None if expected is None else tuple(parse_ip(text) for text in expected))


LOCALHOST = [
    ("answers by default", {}, True),
    ("not when turned off", {"iptables": {"localhostNodePorts": False}}, False),
    ("not when the addresses leave it out", {"nodePortAddresses": ["192.168.0.0/24"]}, False),
    ("when they name it", {"nodePortAddresses": ["192.168.0.0/24", "127.0.0.0/8"]}, True),
    ("not under primary", {"nodePortAddresses": ["primary"]}, False),
]


@pytest.mark.parametrize(("mapping", "expected"), [row[1:] for row in LOCALHOST], ids=[row[0] for row in LOCALHOST])
def test_localhost_as_a_node_port_address(mapping, expected):
    config = ProxyConfig.parse(mapping)
    assert config.localhost_node_ports() is expected
    assert config.localhost_node_ports(family=6) is False
