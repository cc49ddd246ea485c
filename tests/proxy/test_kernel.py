"""The same rules in this machine's kernel: they load as they are, and real connections end as ours do.

                               node                        pods, on a bridge
outside 192.168.0.9 --- eth0 192.168.0.2   cni0 10.244.1.1 ---+-- 10.244.1.2
                                                              +-- 10.244.1.3
                                                              +-- 10.244.1.4
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import socket
from typing import Any, NamedTuple

import pytest

from emu.netfilter.nft_text import ruleset_text
from emu.netfilter.text import restore_text, save_text
from emu.proxy.changes import ServiceChanges
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.iptables import build
from emu.proxy.syncer import BUILDERS
from emu.wire.addr import parse_ip
from tests.kit.flows import FlowNode
from tests.kit.netns import configure, missing, namespaces, run, socket_in, sysctl
from tests.kit.services import endpoint, value

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(bool(missing("iptables-restore")), reason=missing("iptables-restore"))]

PODS = {"pod1": "10.244.1.2", "pod2": "10.244.1.3", "pod3": "10.244.1.4"}
PORT, CONNECTIONS, SILENCE = 8080, 40, 0.4
CONFIG = ProxyConfig.parse("iptables", cluster_cidr="10.244.0.0/16")
NODE = NodeView("node-1", (parse_ip("192.168.0.2"), parse_ip("10.244.1.1")))


def here(*addresses: str) -> list[dict[str, Any]]:
    return [endpoint(address, "node-1") for address in addresses]


ELSEWHERE = [endpoint("10.244.2.2", "node-2")]
WORLD = [
    value("shop/all", here(*PODS.values()), cluster_ip="10.96.0.10", type="NodePort", node_port=30080),
    value("shop/alone", here(PODS["pod1"]), cluster_ip="10.96.0.11"),
    value("shop/nobody", cluster_ip="10.96.0.12", type="NodePort", node_port=30082),
    value("shop/local", here(PODS["pod2"], PODS["pod3"]), cluster_ip="10.96.0.13", type="NodePort", node_port=30083,
          externalTrafficPolicy="Local"),
    value("shop/elsewhere", ELSEWHERE, cluster_ip="10.96.0.14", type="NodePort", node_port=30084, externalTrafficPolicy="Local",
          internalTrafficPolicy="Local"),
    value("shop/guarded", here(*PODS.values()), cluster_ip="10.96.0.15", type="LoadBalancer", ingress=["198.51.100.1"],
          loadBalancerSourceRanges=["203.0.113.0/24"]),
    value("shop/open", here(*PODS.values()), cluster_ip="10.96.0.16", type="LoadBalancer", ingress=["198.51.100.2"],
          loadBalancerSourceRanges=["192.168.0.0/24"]),
    value("shop/sticky", here(*PODS.values()), cluster_ip="10.96.0.17", type="NodePort", node_port=30087, sessionAffinity="ClientIP",
          sessionAffinityConfig={"clientIP": {"timeoutSeconds": 3600}}),
]  # fmt: skip


LOADERS = {"iptables": ("iptables-restore", restore_text), "nftables": ("nft -f -", ruleset_text)}
"""How the kernel is given the rules of a mode."""


def rules(mode: str = "iptables"):
    changes = ServiceChanges(NODE.name)
    changes.replace({f"{v['service']['metadata']['namespace']}/{v['service']['metadata']['name']}": v for v in WORLD})
    changes.apply()
    config = ProxyConfig.parse(mode, cluster_cidr="10.244.0.0/16", service_cidr="10.96.0.0/16")
    return BUILDERS[mode](config, NODE, 4).build(changes.ports)


@pytest.fixture(scope="module", params=LOADERS)
def network(request):
    """The drawing above, with a listener in every pod; the node has our rules."""
    with contextlib.ExitStack() as stack:
        netns = stack.enter_context(namespaces("node", "outside", *PODS))
        node = netns["node"]
        configure(node, ["link add cni0 type bridge", "addr add 10.244.1.1/24 dev cni0", "link set cni0 up"])
        for i, (pod, address) in enumerate(PODS.items()):
            # Hairpin mode as CNI's bridge plugin has it: a pod's packet to itself leaves by the port that it came in by.
            configure(node, [f"link add v{i} type veth peer name eth0 netns {netns[pod]}", f"link set v{i} master cni0 up",
                             f"link set v{i} type bridge_slave hairpin on"])  # fmt: skip
            configure(netns[pod], [f"addr add {address}/24 dev eth0", "link set eth0 up", "route add default via 10.244.1.1"])
        configure(node, [f"link add eth0 type veth peer name eth0 netns {netns['outside']}", "addr add 192.168.0.2/24 dev eth0",
                         "link set eth0 up", "route add default via 192.168.0.9"])  # fmt: skip
        configure(netns["outside"], ["addr add 192.168.0.9/24 dev eth0", "link set eth0 up", "route add default via 192.168.0.2"])
        # Without bridge-nf-call-iptables an answer between pods of one node would pass the bridge untranslated; without
        # icmp_ratelimit=0 the kernel answers only a few REJECTs a second and the rest look like DROP.
        sysctl(node, {"net.ipv4.ip_forward": 1, "net.ipv4.icmp_ratelimit": 0, "net.ipv4.conf.all.route_localnet": 1,
                      "net.bridge.bridge-nf-call-iptables": 1})  # fmt: skip
        command, text = LOADERS[request.param]
        if missing(command.split()[0]):
            pytest.skip(missing(command.split()[0]))
        run(f"ip netns exec {node} {command}", stdin=text(rules(request.param)))
        listeners = {}
        for pod, address in PODS.items():
            listener = stack.enter_context(socket_in(netns[pod]))
            listener.bind((address, PORT))
            listener.listen(CONNECTIONS)
            listener.setblocking(False)
            listeners[address] = listener
        yield netns, listeners, request.param


def accepted(listeners: dict[str, socket.socket]) -> tuple[str, str]:
    """Which pod has got a connection, and from which address it sees it come."""
    for address, listener in listeners.items():
        with contextlib.suppress(BlockingIOError):
            connection, (source, _) = listener.accept()
            connection.close()
            return address, source
    raise AssertionError("connected, but no pod has got it")


def connect(netns: str, to: str, listeners: dict[str, socket.socket], bind: str = "") -> tuple[str, str, str]:
    """One real connection: outcome, backend, source seen by the backend."""
    host, _, port = to.partition(":")
    with socket_in(netns) as sock:
        sock.settimeout(SILENCE)
        if bind:
            sock.bind((bind, 0))
        try:
            sock.connect((host, int(port)))
        except TimeoutError:
            return "dropped", "", ""
        except OSError as error:
            assert error.errno == errno.ECONNREFUSED, error
            return "rejected", "", ""
        backend, source = accepted(listeners)
        return "delivered", f"{backend}:{PORT}", source


class Case(NamedTuple):
    claim: str
    netns: str
    src: str
    dst: str


CASES = [
    Case("a pod reaches every endpoint by the ClusterIP, as itself", "pod1", "10.244.1.2", "10.96.0.10:80"),
    Case("a pod reaching itself through its Service is masqueraded", "pod1", "10.244.1.2", "10.96.0.11:80"),
    Case("another pod reaching the same Service is not", "pod2", "10.244.1.3", "10.96.0.11:80"),
    Case("the node reaches a ClusterIP, masqueraded", "node", "192.168.0.2", "10.96.0.10:80"),
    Case("an outside client reaches every endpoint by the node port, masqueraded", "outside", "192.168.0.9", "192.168.0.2:30080"),
    Case("a pod by the node port", "pod2", "10.244.1.3", "192.168.0.2:30080"),
    Case("the node by its own node port", "node", "192.168.0.2", "192.168.0.2:30080"),
    Case("the node by localhost", "node", "127.0.0.1", "127.0.0.1:30080"),
    Case("a ClusterIP without endpoints refuses a pod", "pod1", "10.244.1.2", "10.96.0.12:80"),
    Case("a ClusterIP without endpoints refuses the node", "node", "192.168.0.2", "10.96.0.12:80"),
    Case("a node port without endpoints refuses an outside client", "outside", "192.168.0.9", "192.168.0.2:30082"),
    Case("eTP Local keeps an outside client's address", "outside", "192.168.0.9", "192.168.0.2:30083"),
    Case("eTP Local: a pod takes the short cut", "pod1", "10.244.1.2", "192.168.0.2:30083"),
    Case("eTP Local with none here is silent to the outside", "outside", "192.168.0.9", "192.168.0.2:30084"),
    Case("iTP Local with none here is silent", "pod1", "10.244.1.2", "10.96.0.14:80"),
    Case("a source outside the ranges is dropped", "outside", "192.168.0.9", "198.51.100.1:80"),
    Case("a source inside the ranges is let in", "outside", "192.168.0.9", "198.51.100.2:80"),
    Case("a port of a ClusterIP that no Service has", "pod1", "10.244.1.2", "10.96.0.10:81"),
    Case("an address of the Service network that no Service has", "pod1", "10.244.1.2", "10.96.0.99:80"),
]


@pytest.mark.parametrize("case", CASES, ids=[case.claim for case in CASES])
def test_the_kernel_answers_as_we_do(network, case):
    netns, listeners, mode = network
    iif = "eth0" if case.netns == "outside" else "cni0"
    ours = FlowNode(rules(mode), ("192.168.0.2", "10.244.1.1"), masquerade_as="10.244.1.1").ask(f"{case.src}:40000", case.dst, iif=iif)
    attempts = CONNECTIONS if ours.outcome == "delivered" else 1
    kernel = [connect(netns[case.netns], case.dst, listeners, bind=case.src) for _ in range(attempts)]
    assert {outcome for outcome, _, _ in kernel} == {NOBODY_THERE.get(ours.outcome, ours.outcome)}
    assert {(backend, source) for outcome, backend, source in kernel if outcome == "delivered"} == ours.seen


def test_session_affinity_holds_in_the_kernel_too(network):
    """One client, one backend, by every address of the Service; the list is the endpoint's own, so other Services know nothing of it."""
    netns, listeners, _ = network
    by_address = {
        to: {connect(netns["pod1"], to, listeners, bind="10.244.1.2")[:2] for _ in range(20)}
        for to in ("10.96.0.17:80", "192.168.0.2:30087", "10.96.0.10:80")
    }
    assert len(by_address["10.96.0.17:80"]) == 1
    assert by_address["10.96.0.17:80"] == by_address["192.168.0.2:30087"]
    assert len(by_address["10.96.0.10:80"]) == len(PODS)


NOBODY_THERE = {"local": "rejected", "unrouted": "dropped"}
"""What a client finds where the rules have no say: the node has no listener, and the world outside is silent."""


def plain(dump: str) -> list[str]:
    """The lines of a dump without remarks and packet counters."""
    return [line.rpartition(" [")[0] or line for line in dump.splitlines() if not line.startswith("#")]


BACKENDS = [name for name in ("iptables-nft", "iptables-legacy") if shutil.which(f"{name}-restore")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_rules_load_unchanged_and_come_back_as_we_print_them(backend):
    with namespaces(backend[-6:]) as netns:
        (name,) = netns.values()
        run(f"ip netns exec {name} {backend}-restore", stdin=restore_text(rules()))
        saved = run(f"ip netns exec {name} {backend}-save")
    assert sorted(plain(saved)) == sorted(plain(save_text(rules())))


def laid_out(listing: str) -> list[str]:
    """The lines of an nft listing, with every set's and map's elements sorted into one."""
    text = re.sub(r",\n\s*", ", ", listing)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [
        f"elements = {sorted(line.removeprefix('elements = {').removesuffix('}').strip().split(', '))}"
        if line.startswith("elements")
        else line
        for line in lines
    ]


@pytest.mark.skipif(bool(missing("nft")), reason=missing("nft"))
def test_the_nftables_rules_load_unchanged_and_come_back_as_we_print_them():
    with namespaces("nft") as netns:
        (name,) = netns.values()
        run(f"ip netns exec {name} nft -f -", stdin=ruleset_text(rules("nftables")))
        listed = run(f"ip netns exec {name} nft list ruleset")
    assert laid_out(listed) == laid_out(ruleset_text(rules("nftables")))


@pytest.mark.skipif(bool(missing("ip6tables-restore")), reason=missing("ip6tables-restore"))
def test_the_ipv6_rules_load_and_come_back_as_we_print_them():
    changes = ServiceChanges(NODE.name, 6)
    services = [
        value("shop/all", ["fd00:1::2", "fd00:1::3"], cluster_ip="fd00:96::10", type="NodePort", node_port=30080),
        value("shop/nobody", cluster_ip="fd00:96::12"),
    ]
    changes.replace({v["service"]["metadata"]["name"]: v for v in services})
    changes.apply()
    six = build(changes.ports, ProxyConfig.parse("iptables", cluster_cidr="fd00:1::/64"), NODE, family=6)
    with namespaces("six") as netns:
        (name,) = netns.values()
        run(f"ip netns exec {name} ip6tables-restore", stdin=restore_text(six))
        saved = run(f"ip netns exec {name} ip6tables-save")
    assert sorted(plain(saved)) == sorted(plain(save_text(six)))
