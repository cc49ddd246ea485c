"""The cluster file: which nodes there are, their addresses, and the settings that every process of the cluster shares.

Decides defaults and what a wrong file is told (path and nearest key); a key that nothing here carries out is an error too.
One `ClusterSpec` is made by the launcher, written to `RUN/cluster.json` and handed to every process; it never changes while
the cluster is up. Addresses are text here, as in Node objects. Must not know what the proxy's keys mean: `proxy` is handed on
to emu.proxy.config. Keys are Kubernetes' own flag and field names where it has them; docs: SCENARIO (`spec.cluster`).
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from emu.errors import ConfigError
from emu.model.links import Place, check_words, read_links
from emu.model.objects import ZONE_LABEL
from emu.model.quantities import duration, nearest

API_VERSION = "podwire.dev/v1alpha1"
MAX_NODES = 4096
CNIS_PLANNED = ("calico", "cilium")
NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
CLUSTER_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
NAME_RULE = "lower case letters, digits and -, starting and ending with a letter or digit"
NOT_EMULATED = frozenset(("dns", "ingress", "outside"))  # keys of the Scenario format that later versions carry out
WIDE_POD_CIDR = "10.224.0.0/11"  # the default above 255 nodes: a /24 a node no longer fits the usual /16

SmallNetwork = ipaddress.IPv4Network
JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Timings:
    """Periods in seconds. `kubernetes` has upstream's values; `fast` is for people who are waiting.

    node_grace          a node whose lease is older is NotReady        kube-controller-manager --node-monitor-grace-period
    lease_period        how often a node renews it                     a quarter of kubelet's lease duration of 40 s
    toleration          NotReady to eviction of its pods               kube-apiserver --default-unreachable-toleration-seconds
    min_sync_period     least time between two syncs of the proxy      KubeProxyConfiguration iptables.minSyncPeriod
    restart_backoff     first wait before a container's restart, doubled each time up to `restart_backoff_max`
    """

    profile: str
    node_grace: float
    lease_period: float
    toleration: float
    min_sync_period: float
    restart_backoff: float
    restart_backoff_max: float

    @classmethod
    def of(cls, profile: str, nodes: int) -> Timings:
        """The profile's values for a cluster of `nodes` nodes; ValueError if there is no such profile."""
        if profile == "kubernetes":
            return cls(profile, 40.0, 10.0, 300.0, 1.0, 10.0, 300.0)
        if profile == "fast":
            grace = max(3.0, nodes / 25)  # a lease costs the controller about 60 µs; many nodes must not cost it a core
            return cls(profile, grace, grace / 3, 5.0, 0.0, 0.5, 10.0)
        raise ValueError(f"{profile!r} is no profile")


TIMING_KEYS = {
    "nodeMonitorGracePeriod": "node_grace",
    "nodeLeaseRenewPeriod": "lease_period",
    "defaultUnreachableTolerationSeconds": "toleration",
    "minSyncPeriod": "min_sync_period",
    "containerRestartBackoff": "restart_backoff",
    "maxContainerRestartPeriod": "restart_backoff_max",
}


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node. `index` counts from 1; `ip` is the first of `addresses`, all of which are local to the node."""

    name: str
    index: int
    ip: str
    pod_cidr: str
    addresses: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """A checked cluster file with everything filled in.

    `proxy` is KubeProxyConfiguration's mapping, `node_port_range` has both ends inside, `api_port` 0 means any free one,
    `run_dir` is absolute, `links` is as in the file (see emu.model.links). `debug_assertions` is the test build: every delivery
    asserts that the pod owns the destination.
    `node_main` and `controller_main` are what the processes run, `module:function`; no file may set them.
    """

    name: str
    nodes: tuple[NodeSpec, ...]
    timings: Timings
    pod_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/16"
    node_cidr: str = "192.168.0.0/16"
    node_port_range: tuple[int, int] = (30000, 32767)
    cni: str = "flannel"
    proxy: Mapping[str, Any] = field(default_factory=lambda: {"mode": "iptables"})
    seed: int = 1
    run_dir: str = ""
    api_port: int = 0
    transport: str = "ipc"
    debug_assertions: bool = False
    program_paths: tuple[str, ...] = ()
    links: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    node_main: str = "emu.node.main:run"
    controller_main: str = "emu.controller.main:run"

    @property
    def profile(self) -> str:
        """The name of the timings' profile: `fast` or `kubernetes`."""
        return self.timings.profile

    def node(self, name: str) -> NodeSpec:
        """The node of that name; KeyError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, source: str = "", run_dir: str = "") -> ClusterSpec:
        """Check a cluster file's mapping, bare or as `{apiVersion, kind: Cluster, metadata: {name}, spec}`; ConfigError says where."""
        return _Reader(source).cluster(_unwrap(mapping, source), run_dir)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> ClusterSpec:
        """The inverse of `to_json`; trusts its input, which the launcher wrote."""
        raw = json.loads(text)
        nodes = tuple(NodeSpec(**{**node, "addresses": tuple(node["addresses"])}) for node in raw.pop("nodes"))
        raw.update(nodes=nodes, timings=Timings(**raw["timings"]))
        raw.update({key: tuple(raw[key]) for key in ("node_port_range", "program_paths")})
        return cls(**raw)


def _unwrap(mapping: Mapping[str, Any], source: str) -> JsonObject:
    """The bare form of a file written as a Kubernetes object."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"a cluster file is a mapping, not {mapping!r}", source=source)
    if "kind" not in mapping and "apiVersion" not in mapping:
        return dict(mapping)
    read = _Reader(source)
    read.known(mapping, ("apiVersion", "kind", "metadata", "spec"), "")
    if (mapping.get("apiVersion"), mapping.get("kind")) != (API_VERSION, "Cluster"):
        raise ConfigError(f"a cluster file says apiVersion: {API_VERSION} and kind: Cluster, or neither", source=source)
    metadata = read.mapping(mapping.get("metadata", {}), "metadata")
    named = {"name": metadata["name"]} if "name" in metadata else {}
    return {**named, **read.mapping(mapping.get("spec", {}), "spec")}


class _Reader:
    """Reads values of the cluster file; every complaint names the file and the path."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, problem: str, where: str) -> ConfigError:
        return ConfigError(problem, source=self.source, where=where)

    def cluster(self, given: JsonObject, run_dir: str) -> ClusterSpec:
        self.known(given, CLUSTER_KEYS, "")
        nodes = given.get("nodes", 3)
        count = len(nodes) if isinstance(nodes, list) else self.number(nodes, "nodes", 1, MAX_NODES)
        pod_cidr = self.network(given.get("podCIDR", "10.244.0.0/16" if count <= 255 else WIDE_POD_CIDR), "podCIDR")
        node_cidr = self.network(given.get("nodeCIDR", "192.168.0.0/16"), "nodeCIDR")
        service_cidr = self.network(given.get("serviceCIDR", "10.96.0.0/16"), "serviceCIDR")
        self.disjoint({"podCIDR": pod_cidr, "nodeCIDR": node_cidr, "serviceCIDR": service_cidr})
        timings = self.timings(given, count)
        made = self.nodes(nodes, count, pod_cidr, node_cidr, self.number(given.get("nodeCIDRMaskSize", 24), "nodeCIDRMaskSize", 16, 30))
        return ClusterSpec(
            name=self.name(given.get("name", "podwire"), CLUSTER_NAME, "name"),
            nodes=made,
            timings=timings,
            pod_cidr=str(pod_cidr),
            service_cidr=str(service_cidr),
            node_cidr=str(node_cidr),
            node_port_range=self.port_range(given.get("serviceNodePortRange", "30000-32767")),
            cni=self.cni(given.get("cni", "flannel")),
            proxy=self.proxy(given.get("proxy", "iptables"), timings, str(pod_cidr)),
            seed=self.number(given.get("seed", 1), "seed", 0, 2**63 - 1),
            run_dir=run_dir,
            api_port=self.number(given.get("apiPort", 0), "apiPort", 0, 65535),
            transport=self.word(given.get("transport", "ipc"), ("ipc", "tcp"), "transport"),
            debug_assertions=self.flag(given.get("debugAssertions", False), "debugAssertions"),
            program_paths=tuple(self.text(path, f"path[{i}]") for i, path in enumerate(self.list(given.get("path", []), "path"))),
            links=self.links(given.get("links", {}), made),
        )

    # ---- nodes ----

    def nodes(self, given: Any, count: int, pods: SmallNetwork, hosts: SmallNetwork, mask: int) -> tuple[NodeSpec, ...]:
        made = []
        for i in range(count):
            where = f"nodes[{i}]" if isinstance(given, list) else "nodes"
            made.append(self.one_node(self.mapping(given[i], where) if isinstance(given, list) else {}, i + 1, where, pods, hosts, mask))
        self.distinct([node.name for node in made], "name")
        self.distinct([address for node in made for address in node.addresses], "address")
        subnets = sorted((ipaddress.IPv4Network(node.pod_cidr), node.name) for node in made)
        for (left, left_name), (right, right_name) in itertools.pairwise(subnets):
            if left.overlaps(right):
                raise self.fail(f"pod networks {left} of {left_name} and {right} of {right_name} overlap", "nodes")
        return tuple(made)

    def one_node(self, given: JsonObject, index: int, where: str, pods: SmallNetwork, hosts: SmallNetwork, mask: int) -> NodeSpec:
        self.known(given, ("name", "addresses", "podCIDR", "labels"), where)
        own = given.get("podCIDR")
        subnet = self.subnet(pods, index, mask, where) if own is None else self.network(own, f"{where}.podCIDR")
        addresses = self.list(given.get("addresses", []), f"{where}.addresses")
        if not addresses:
            if index + 1 >= hosts.num_addresses - 1:
                raise self.fail(f"{hosts} has no address for node {index}", "nodeCIDR")
            addresses = [str(hosts[index + 1])]
        checked = tuple(self.address(address, f"{where}.addresses[{i}]") for i, address in enumerate(addresses))
        if str(hosts[1]) in checked:
            raise self.fail(f"{hosts[1]} is the router's of {hosts}", f"{where}.addresses")
        labels = self.mapping(given.get("labels", {}), f"{where}.labels")
        for key, value in labels.items():
            self.text(value, f"{where}.labels.{key}", empty=True)
        name = self.name(given.get("name", f"node-{index}"), NODE_NAME, f"{where}.name")
        return NodeSpec(name, index, checked[0], str(subnet), checked, labels)

    def subnet(self, pods: SmallNetwork, index: int, mask: int, where: str) -> SmallNetwork:
        """Node N's part of the pod network: the N-th of its parts, so that node 1 has 10.244.1.0/24."""
        base = int(pods.network_address) + index * (1 << (32 - mask))
        if mask < pods.prefixlen or base > int(pods.broadcast_address):
            raise self.fail(f"{pods} has no /{mask} for node {index}; a wider one is {WIDE_POD_CIDR}", "podCIDR")
        return SmallNetwork((base, mask))

    def distinct(self, values: list[str], what: str) -> None:
        seen: set[str] = set()
        for value in values:
            if value in seen:
                raise self.fail(f"two nodes have the {what} {value}", "nodes")
            seen.add(value)

    # ---- the rest of the file ----

    def links(self, given: Any, nodes: Iterable[NodeSpec]) -> JsonObject:
        """The mapping as it is, once it reads and names only nodes and zones that there are."""
        places = [Place(node.name, node.labels.get(ZONE_LABEL, "")) for node in nodes]
        for fault in read_links(given, "links", self.source):
            check_words(fault, places, where=f"links.{fault.link}", source=self.source)
        return self.mapping(given, "links")

    def timings(self, given: JsonObject, count: int) -> Timings:
        profile = self.word(given.get("profile", "fast"), ("fast", "kubernetes"), "profile")
        overrides = self.mapping(given.get("timings", {}), "timings")
        self.known(overrides, TIMING_KEYS, "timings")
        values = {TIMING_KEYS[key]: duration(value, f"timings.{key}", self.source) for key, value in overrides.items()}
        timings = Timings(**{**asdict(Timings.of(profile, count)), **values})
        if "node_grace" in values and "lease_period" not in values:
            timings = Timings(**{**asdict(timings), "lease_period": timings.node_grace / 4})
        if timings.lease_period <= 0 or timings.lease_period >= timings.node_grace:
            raise self.fail("must be above 0 and below nodeMonitorGracePeriod", "timings.nodeLeaseRenewPeriod")
        return timings

    def proxy(self, given: Any, timings: Timings, pod_cidr: str) -> JsonObject:
        """The mapping, with what the rest of the file implies filled in where it says nothing."""
        mapping = {"mode": given} if isinstance(given, str) else self.mapping(given, "proxy")
        iptables = self.mapping(mapping.get("iptables", {}), "proxy.iptables")
        return {"clusterCIDR": pod_cidr, **mapping, "iptables": {"minSyncPeriod": timings.min_sync_period, **iptables}}

    def cni(self, given: Any) -> str:
        name = given
        if isinstance(given, Mapping):
            self.known(given, ("name", "backend"), "cni")
            name = given.get("name", "flannel")
            if given.get("backend", "vxlan") != "vxlan":
                raise self.fail(f"{given['backend']!r} is not emulated yet; vxlan is", "cni.backend")
        if name in CNIS_PLANNED:
            raise self.fail(f"{name} is not emulated yet; flannel is", "cni")
        return self.word(name, ("flannel",), "cni")

    def port_range(self, given: Any) -> tuple[int, int]:
        found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", str(given))
        if not found or not 1 <= int(found[1]) <= int(found[2]) <= 65535:
            raise self.fail(f"{given!r} is not a range of ports such as 30000-32767", "serviceNodePortRange")
        return int(found[1]), int(found[2])

    # ---- values ----

    def known(self, given: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
        allowed = tuple(keys)
        for key in given:
            path = f"{where}.{key}" if where else str(key)
            if key in NOT_EMULATED and not where:
                raise self.fail("not emulated yet", path)
            if key not in allowed:
                raise self.fail(f"unknown key; did you mean {nearest(str(key), allowed)}?", path)

    def mapping(self, value: Any, where: str) -> JsonObject:
        if not isinstance(value, Mapping):
            raise self.fail(f"must be a mapping, not {value!r}", where)
        return {str(key): item for key, item in value.items()}

    def list(self, value: Any, where: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise self.fail(f"must be a list, not {value!r}", where)
        return [*value]

    def number(self, value: Any, where: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(f"must be a number from {low} to {high}, not {value!r}", where)
        return value

    def flag(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            raise self.fail(f"must be true or false, not {value!r}", where)
        return value

    def text(self, value: Any, where: str, *, empty: bool = False) -> str:
        if not isinstance(value, str) or not (value or empty):
            raise self.fail(f"must be a text, not {value!r}", where)
        return value

    def word(self, value: Any, allowed: tuple[str, ...], where: str) -> str:
        if value not in allowed:
            raise self.fail(f"must be {' or '.join(allowed)}, not {value!r}", where)
        return str(value)

    def name(self, value: Any, pattern: re.Pattern[str], where: str) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self.fail(f"{value!r} is no name: {NAME_RULE}, at most {32 if pattern is CLUSTER_NAME else 63}", where)
        return value

    def network(self, value: Any, where: str) -> SmallNetwork:
        try:
            if not isinstance(value, str) or "/" not in value:
                raise ValueError(f"{value!r} is not ADDRESS/LENGTH")
            network = ipaddress.ip_network(value)
        except ValueError as error:
            raise self.fail(f"{value!r} is not a CIDR: {error}", where) from None
        if not isinstance(network, SmallNetwork):
            raise self.fail("IPv6 pod and Service networks are not emulated yet", where)
        return network

    def address(self, value: Any, where: str) -> str:
        try:
            return str(ipaddress.IPv4Address(self.text(value, where)))
        except ValueError as error:
            raise self.fail(f"{value!r} is not an IPv4 address: {error}", where) from None

    def disjoint(self, networks: Mapping[str, SmallNetwork]) -> None:
        names = list(networks)
        for i, left in enumerate(names):
            for right in names[i + 1 :]:
                if networks[left].overlaps(networks[right]):
                    raise self.fail(f"{networks[right]} overlaps {left} {networks[left]}", right)


CLUSTER_KEYS = (
    "name nodes podCIDR nodeCIDR serviceCIDR nodeCIDRMaskSize serviceNodePortRange cni proxy profile timings seed apiPort transport "
    "debugAssertions path links"
).split()
