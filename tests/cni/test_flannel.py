"""flannel's devices, addresses, routes and entries are what `ip` would show of a real one, whatever the order of events."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.cni.flannel import Flannel, vtep_mac
from emu.cni.plugin import NodeAddress
from emu.errors import DropReason
from emu.stack.bridge import Bridge
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import UdpSocket
from emu.stack.softnet import Softnet
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.stack.vxlan import Vxlan
from emu.wire.addr import ANY, Network, SockAddr, format_ip, format_mac, parse_ip
from tests.kit.fabric import Fabric
from tests.kit.services import value


def peer(number: int, cidr: int | None = None) -> NodeAddress:
    return NodeAddress(f"node-{number}", parse_ip(f"192.168.0.{number + 1}"), Network.parse(f"10.244.{cidr or number}.0/24"))


class World:
    def __init__(self) -> None:
        self.softnet = Softnet("node-1")
        self.node = NetNamespace("node", self.softnet, forwarding=True)
        self.cni = Flannel(self.node, self.softnet, pod_network=Network.parse("10.244.0.0/16"))
        self.cni.start(peer(1))

    @property
    def vxlan(self) -> Vxlan:
        device = self.node.devices["flannel.1"]
        assert isinstance(device, Vxlan)
        return device

    def state(self) -> tuple[object, ...]:
        """All that flannel has made in the node."""
        return [str(route) for route in self.node.routes], dict(self.vxlan.neighbours), dict(self.vxlan.fdb)  # type: ignore[return-value]


def test_a_node_has_flannel_s_devices_and_addresses() -> None:
    """As `ip addr` shows them on a node of a kind cluster with flannel."""
    node = World().node
    shown = {
        device.name: (device.kind, device.mtu, [f"{format_ip(ip)}/{prefix.length}" for ip, prefix in device.addresses])
        for device in node.devices.values()
    }
    assert shown == {
        "lo": ("loopback", 65536, ["127.0.0.1/8"]),
        "flannel.1": ("vxlan", 1450, ["10.244.1.0/32"]),
        "cni0": ("bridge", 1450, ["10.244.1.1/24"]),
    }
    assert format_mac(node.devices["cni0"].mac) == "0a:58:0a:f4:01:01"  # as CNI's bridge plugin makes it of the gateway's address
    assert [str(route) for route in node.routes] == ["10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1"]


def test_each_peer_is_a_route_a_neighbour_and_a_forwarding_entry() -> None:
    world = World()
    world.cni.set_peers([peer(1), peer(2), peer(12)])
    routes, neighbours, fdb = world.state()
    assert routes == [
        "10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1",
        "10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        "10.244.12.0/24 via 10.244.12.0 dev flannel.1 onlink",
    ]
    assert {format_ip(ip): mac for ip, mac in neighbours.items()} == {  # type: ignore[attr-defined]
        f"10.244.{n}.0": vtep_mac(parse_ip(f"192.168.0.{n + 1}")) for n in (2, 12)
    }
    assert {mac: format_ip(ip) for mac, ip in fdb.items()} == {  # type: ignore[attr-defined]
        vtep_mac(parse_ip(f"192.168.0.{n + 1}")): f"192.168.0.{n + 1}" for n in (2, 12)
    }


PEERS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=6, unique_by=(lambda p: p[0], lambda p: p[1])).map(
    lambda pairs: [peer(number, cidr) for number, cidr in pairs if number == 1 or cidr != 1]
)


@given(st.lists(PEERS, min_size=1, max_size=6))
def test_peers_are_a_level_only_the_last_set_counts(sets: list[list[NodeAddress]]) -> None:
    """Renumbered and exchanged subnets included."""
    world, fresh = World(), World()
    for peers in sets:
        world.cni.set_peers(peers)
    fresh.cni.set_peers(sets[-1])
    assert world.state() == fresh.state()


def test_a_pod_has_eth0_the_node_a_port_and_both_know_it() -> None:
    world = World()
    pod = world.cni.add_pod("pod/default/web")
    eth0 = pod.devices["eth0"]
    assert (eth0.mtu, format_mac(eth0.mac)) == (1450, "0a:58:0a:f4:01:02")
    assert [f"{format_ip(ip)}/{prefix.length}" for ip, prefix in eth0.addresses] == ["10.244.1.2/24"]
    assert [str(route) for route in pod.routes] == [
        "default via 10.244.1.1 dev eth0",
        "10.244.0.0/16 via 10.244.1.1 dev eth0",
        "10.244.1.0/24 dev eth0 proto kernel scope link src 10.244.1.2",
    ]
    bridge = world.node.devices["cni0"]
    assert isinstance(bridge, Bridge)
    (port,) = bridge.ports.values()
    assert port.master is bridge
    assert len(port.name) <= 15  # IFNAMSIZ without its NUL
    assert not pod.forwarding


def test_a_fixed_address_is_given_or_refused_and_a_refusal_leaves_nothing() -> None:
    world = World()
    first = world.cni.add_pod("pod/default/first", parse_ip("10.244.1.77"))
    assert format_ip(first.devices["eth0"].addresses[0][0]) == "10.244.1.77"
    before = sorted(world.node.devices)
    with pytest.raises(ValueError, match="belongs to pod/default/first"):
        world.cni.add_pod("pod/default/second", parse_ip("10.244.1.77"))
    assert sorted(world.node.devices) == before
    world.cni.remove_pod("pod/default/first")
    world.cni.add_pod("pod/default/second", parse_ip("10.244.1.77"))


def sizes(fabric: Fabric) -> dict[str, int]:
    """Of every table that pods leave traces in."""
    found: dict[str, int] = {}
    for name, machine in fabric.machines.items():
        node, softnet = machine.node, machine.softnet
        tables = {
            "devices": node.devices, "local": node.local, "routes": list(node.routes), "neighbours": node.neighbours.incomplete,
            "ports": machine.node.devices["cni0"].ports, "pods": machine.cni._pods, "owners": machine.cni._ipam._owner,
            "addresses": machine.cni._ipam._address, "flows": [key for device in node.devices.values() for key in device.flows],
            "shortcuts": softnet.shortcuts, "timers": softnet._timers, "backlog": softnet.backlog, "due": softnet.due,
            "traced": softnet.traced, "bound": node.sockets.bound, "conntrack": list(node.netfilter.conntrack),
        }  # fmt: skip
        found |= {f"{name}/{table}": len(entries) for table, entries in tables.items()}
    return found


def test_a_thousand_pods_that_came_talked_and_went_leave_nothing() -> None:
    """Each with a socket, a connection to another node and one that never answers; after TIME_WAIT and conntrack's longest wait."""
    fabric = Fabric(2)
    fabric.services({"ns1/svc1": value(endpoints=["10.244.2.9"])})
    server = fabric.pod(2, "server")
    asked, listener = UdpSocket(server), TcpListener(server, SockAddr(ANY, 80))
    asked.bind(SockAddr(ANY, 53))
    machine = fabric.machines["node-1"]
    to = server.devices["eth0"].addresses[0][0]
    before = sizes(fabric)
    for number in range(1000):
        pod = fabric.pod(1, f"web-{number}")
        if number % 10 == 0:
            sock, silent, stream = UdpSocket(pod), UdpSocket(pod), TcpSocket(pod)
            for _ in range(3):
                sock.send_to(b"x", SockAddr(to, 53))
                fabric.run()
            silent.send_to(b"x", SockAddr(parse_ip("10.244.1.254"), 9))
            stream.connect(SockAddr(to, 80))
            fabric.run()
            assert stream.connected
        machine.cni.remove_pod(f"pod/default/web-{number}")
        fabric.run()
    asked.queue.clear()
    while (accepted := listener.accept()) is not None:
        accepted.close()
    fabric.advance(300)
    for each in fabric.machines.values():
        each.expire()
    after = sizes(fabric)
    assert {table: (before[table], size) for table, size in after.items() if size > before[table]} == {}


def test_nobody_keeps_a_removed_pod_s_namespace_alive() -> None:
    world = World()
    for number in range(20):
        pod = world.cni.add_pod(f"pod/default/web-{number}")
        sock = UdpSocket(pod)
        sock.send_to(b"x", SockAddr(parse_ip("10.244.1.1"), 9))
        world.softnet.run()
        world.cni.remove_pod(f"pod/default/web-{number}")
    del pod, sock
    gc.collect()
    assert [ns.name for ns in gc.get_objects() if isinstance(ns, NetNamespace) and ns.softnet is world.softnet] == ["node"]


def test_a_pod_that_is_gone_is_gone_for_its_neighbours_at_once() -> None:
    fabric = Fabric(1)
    one, two = fabric.pod(1, "one"), fabric.pod(1, "two")
    receiving, sending = UdpSocket(two), UdpSocket(one)
    receiving.bind(SockAddr(ANY, 53))
    to = two.devices["eth0"].addresses[0][0]
    for _ in range(3):
        sending.send_to(b"x", SockAddr(to, 53))
        fabric.run()
    fabric.machines["node-1"].cni.remove_pod("pod/default/two")
    assert receiving.closed
    sending.send_to(b"x", SockAddr(to, 53))
    fabric.advance(3)
    assert one.drops[DropReason.HOST_UNREACHABLE] == 1
    fabric.machines["node-1"].cni.remove_pod("pod/default/two")  # no error


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_pods_come_and_go_in_any_order(steps: list[tuple[bool, int]]) -> None:
    world, here = World(), set()
    for add, number in steps:
        name = f"pod/default/p{number}"
        if add and number not in here:
            world.cni.add_pod(name)
            here.add(number)
        elif not add:
            world.cni.remove_pod(name)
            here.discard(number)
        bridge = world.node.devices["cni0"]
        assert isinstance(bridge, Bridge)
        assert len(bridge.ports) == len(here) == len(world.node.devices) - 3
