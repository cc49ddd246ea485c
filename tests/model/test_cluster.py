"""Cluster files: what is filled in, what is refused and in which words, and that the processes read what the launcher wrote."""

from __future__ import annotations

import ipaddress

import pytest

from emu.errors import ConfigError
from emu.model.cluster import ClusterSpec, Timings
from emu.model.quantities import duration


def test_node_n_has_the_addresses_that_the_documentation_gives_it():
    spec = ClusterSpec.from_mapping({"nodes": 3})
    assert [(n.name, n.ip, n.pod_cidr) for n in spec.nodes] == [
        ("node-1", "192.168.0.2", "10.244.1.0/24"),
        ("node-2", "192.168.0.3", "10.244.2.0/24"),
        ("node-3", "192.168.0.4", "10.244.3.0/24"),
    ]
    assert (spec.name, spec.service_cidr, spec.node_port_range, spec.cni, spec.profile) == (
        "podwire",
        "10.96.0.0/16",
        (30000, 32767),
        "flannel",
        "fast",
    )


@pytest.mark.parametrize(("count", "network"), [(255, "10.244.0.0/16"), (256, "10.224.0.0/11"), (1000, "10.224.0.0/11")])
def test_above_255_nodes_the_pod_network_is_wider_and_no_two_nodes_share_an_address(count, network):
    spec = ClusterSpec.from_mapping({"nodes": count})
    subnets = [ipaddress.ip_network(node.pod_cidr) for node in spec.nodes]
    assert spec.pod_cidr == network
    assert all(subnet.subnet_of(ipaddress.ip_network(network)) for subnet in subnets)
    assert len(set(subnets)) == len({node.ip for node in spec.nodes}) == count
    assert spec.nodes[-1].ip == str(ipaddress.ip_address("192.168.0.0") + count + 1)


@pytest.mark.parametrize(
    ("nodes", "grace", "lease"),
    [(3, 3.0, 1.0), (200, 8.0, 8 / 3), (1000, 40.0, 40 / 3)],
)
def test_the_fast_profile_gives_big_clusters_more_grace(nodes, grace, lease):
    timings = Timings.of("fast", nodes)
    assert (timings.node_grace, timings.lease_period, timings.toleration, timings.min_sync_period) == (grace, lease, 5.0, 0.0)


def test_the_kubernetes_profile_has_upstreams_values():
    timings = ClusterSpec.from_mapping({"nodes": 1, "profile": "kubernetes"}).timings
    assert (timings.node_grace, timings.toleration, timings.min_sync_period, timings.lease_period) == (40.0, 300.0, 1.0, 10.0)


def test_what_the_launcher_writes_the_processes_read():
    spec = ClusterSpec.from_mapping(
        {
            "name": "odd",
            "nodes": [
                {"name": "a", "addresses": ["192.168.7.1", "192.168.99.11"], "podCIDR": "10.244.9.0/24", "labels": {"zone": "x"}},
                {},
            ],
            "proxy": {"mode": "iptables", "iptables": {"masqueradeAll": True}},
            "timings": {"nodeMonitorGracePeriod": "20s", "defaultUnreachableTolerationSeconds": 7},
            "path": ["/srv"],
            "seed": 9,
        },
        run_dir="/run/x",
    )
    assert ClusterSpec.from_json(spec.to_json()) == spec
    assert spec.node("a").addresses == ("192.168.7.1", "192.168.99.11")
    assert (spec.timings.node_grace, spec.timings.lease_period, spec.timings.toleration) == (20.0, 5.0, 7.0)


def test_the_same_file_may_be_written_as_a_kubernetes_object():
    wrapped = {"apiVersion": "podwire.dev/v1alpha1", "kind": "Cluster", "metadata": {"name": "x"}, "spec": {"nodes": 2}}
    assert ClusterSpec.from_mapping(wrapped) == ClusterSpec.from_mapping({"name": "x", "nodes": 2})


def test_the_proxy_syncs_at_once_in_the_fast_profile_unless_told_otherwise():
    def period(**given):
        return ClusterSpec.from_mapping({"nodes": 1, **given}).proxy["iptables"]["minSyncPeriod"]

    assert period() == 0.0
    assert period(profile="kubernetes") == 1.0
    assert period(proxy={"iptables": {"minSyncPeriod": "5s"}}) == "5s"


@pytest.mark.parametrize(
    ("mapping", "told"),
    [
        ({"nodez": 3}, "c.yaml: nodez: unknown key; did you mean nodes?"),
        ({"PodCidr": "10.0.0.0/8"}, "c.yaml: PodCidr: unknown key; did you mean podCIDR?"),
        ({"nodes": [{"labls": {}}]}, "c.yaml: nodes[0].labls: unknown key; did you mean labels?"),
        ({"timings": {"nodeGrace": 1}}, "c.yaml: timings.nodeGrace: unknown key; did you mean nodeMonitorGracePeriod?"),
        ({"podCIDR": "10.244.1.1/16"}, "c.yaml: podCIDR: '10.244.1.1/16' is not a CIDR: 10.244.1.1/16 has host bits set"),
        ({"podCIDR": "10.244.0.0"}, "c.yaml: podCIDR: '10.244.0.0' is not a CIDR: '10.244.0.0' is not ADDRESS/LENGTH"),
        ({"serviceCIDR": "10.244.64.0/18"}, "c.yaml: serviceCIDR: 10.244.64.0/18 overlaps podCIDR 10.244.0.0/16"),
        ({"podCIDR": "fd00::/48"}, "c.yaml: podCIDR: IPv6 pod and Service networks are not emulated yet"),
        ({"nodes": 0}, "c.yaml: nodes: must be a number from 1 to 4096, not 0"),
        ({"nodes": True}, "c.yaml: nodes: must be a number from 1 to 4096, not True"),
        (
            {"nodes": 300, "podCIDR": "10.244.0.0/16"},
            "c.yaml: podCIDR: 10.244.0.0/16 has no /24 for node 256; a wider one is 10.224.0.0/11",
        ),
        ({"nodes": [{"name": "a"}, {"name": "a"}]}, "c.yaml: nodes: two nodes have the name a"),
        ({"nodes": [{"addresses": ["192.168.0.3"]}, {}]}, "c.yaml: nodes: two nodes have the address 192.168.0.3"),
        (
            {"nodes": [{"podCIDR": "10.244.2.0/23"}, {}]},
            "c.yaml: nodes: pod networks 10.244.2.0/23 of node-1 and 10.244.2.0/24 of node-2 overlap",
        ),
        ({"nodes": [{"addresses": ["fe80::1"]}]}, "c.yaml: nodes[0].addresses[0]: 'fe80::1' is not an IPv4 address: "),
        ({"cni": "calico"}, "c.yaml: cni: calico is not emulated yet; flannel is"),
        ({"cni": {"name": "flannel", "backend": "host-gw"}}, "c.yaml: cni.backend: 'host-gw' is not emulated yet; vxlan is"),
        ({"cni": "weave"}, "c.yaml: cni: must be flannel, not 'weave'"),
        ({"links": {"defualt": {}}}, "c.yaml: links.defualt: 'defualt' is not a link: A->B or A<->B, where A and B are"),
        ({"links": {"default": {"lost": 1}}}, "c.yaml: links.default.lost: unknown key; did you mean loss?"),
        ({"links": {"node-1->nod-2": {"loss": 1}}}, "c.yaml: links.node-1->nod-2: there is no node 'nod-2'; did you mean node-2?"),
        ({"profile": "slow"}, "c.yaml: profile: must be fast or kubernetes, not 'slow'"),
        ({"serviceNodePortRange": "9-1"}, "c.yaml: serviceNodePortRange: '9-1' is not a range of ports such as 30000-32767"),
        ({"name": "No_Name"}, "c.yaml: name: 'No_Name' is no name: "),
        ({"timings": {"minSyncPeriod": "soon"}}, "c.yaml: timings.minSyncPeriod: 'soon' is not a duration such as 40s or 250ms"),
        (
            {"timings": {"nodeLeaseRenewPeriod": 3}},
            "c.yaml: timings.nodeLeaseRenewPeriod: must be above 0 and below nodeMonitorGracePeriod",
        ),
        ({"kind": "Clutter"}, "c.yaml: a cluster file says apiVersion: podwire.dev/v1alpha1 and kind: Cluster, or neither"),
        ([], "c.yaml: a cluster file is a mapping, not []"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_file_is_told_where_and_what_would_be_right(mapping, told):
    with pytest.raises(ConfigError) as caught:
        ClusterSpec.from_mapping(mapping, source="c.yaml")
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(("text", "seconds"), [("40s", 40.0), ("1m30s", 90.0), ("250ms", 0.25), (2, 2.0), ("0", 0.0), ("1.5h", 5400.0)])
def test_durations_are_gos(text, seconds):
    assert duration(text, "x") == seconds
