"""Nodes whose addresses are several, or in no common network: every one of them reaches its node from every other."""

from __future__ import annotations

import pytest

from emu.cni.plugin import NodeAddress
from emu.node.machine import Machine
from emu.overlay.memory import MemoryNetwork
from emu.stack.sockets import PingSocket, UdpSocket
from emu.wire.addr import Network, SockAddr, parse_ip

PODS, NODES = Network.parse("10.50.0.0/16"), Network.parse("172.20.0.0/15")
ADDRESSES = {"alpha": ["172.20.5.2", "172.20.99.7", "198.51.100.1"], "beta": ["172.21.0.3"], "gamma": ["203.0.113.3"]}


@pytest.fixture
def machines():
    network, made, values = MemoryNetwork(), {}, []
    for index, (name, ips) in enumerate(ADDRESSES.items()):
        cidr = f"10.50.{index}.0/24"
        me = NodeAddress(name, parse_ip(ips[0]), Network.parse(cidr))
        made[name] = Machine(me, network.carrier(name), 1, pod_network=PODS, node_network=NODES, checks=True)
        for extra in ips[1:]:
            made[name].node.add_address("eth0", Network.parse(f"{extra}/32"), parse_ip(extra))
        values.append({"name": name, "ip": ips[0], "addresses": ips, "pod_cidr": cidr, "endpoint": name, "incarnation": 1})
    for machine in made.values():
        machine.set_peers(values)
    return made


def run(machines):
    for machine in machines.values():
        machine.softnet.run()
    busy = True
    while busy:
        busy = False
        for machine in machines.values():
            while (message := machine.carrier.recv_nowait()) is not None:
                busy = True
                machine.underlay.receive_message(message)
                machine.softnet.run()


def pairs():
    return [(here, there, ip) for here in ADDRESSES for there, ips in ADDRESSES.items() if here != there for ip in ips]


@pytest.mark.parametrize(("here", "there", "ip"), pairs())
def test_any_node_answers_a_ping_to_any_of_its_addresses(machines, here, there, ip):
    ping = PingSocket(machines[here].node)
    ping.send_echo(parse_ip(ip), 1, b"x")
    run(machines)
    assert ping.receive() is not None


def test_pods_of_nodes_without_a_common_network_reach_each_other(machines):
    pods = {name: machine.cni.add_pod(f"pod/default/{name}") for name, machine in machines.items()}
    for there in ("beta", "gamma"):
        listening = UdpSocket(pods[there])
        listening.bind(SockAddr(bytes(4), 53))
        address = pods[there].devices["eth0"].addresses[0][0]
        UdpSocket(pods["alpha"]).send_to(b"hello", SockAddr(address, 53))
        run(machines)
        data, client = listening.receive()
        assert (data, client.ip) == (b"hello", pods["alpha"].devices["eth0"].addresses[0][0])


def test_a_node_that_is_gone_leaves_no_route(machines):
    alpha = machines["alpha"]
    before = [str(route) for route in alpha.node.routes]
    assert "203.0.113.3 dev eth0 scope link" in before
    alpha.update_peers([("gamma", None)])
    assert "203.0.113.3 dev eth0 scope link" not in [str(route) for route in alpha.node.routes]
