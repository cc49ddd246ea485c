"""A REJECT behind a DNAT: the refusal must come from the address that the client has asked, or the client waits in vain."""

from __future__ import annotations

import errno

import pytest

from emu.errors import DropReason
from emu.netfilter.conn import Conn
from emu.stack.namespace import NetNamespace
from emu.stack.tcp_sockets import TcpSocket
from emu.wire.addr import SockAddr, format_ip
from tests.kit.fabric import Fabric
from tests.kit.rulesets import rules, table

VIP = "172.30.0.41"
REFUSALS = {
    "tcp-reset": errno.ECONNREFUSED,
    "icmp-port-unreachable": errno.ECONNREFUSED,
    "icmp-host-prohibited": errno.EHOSTUNREACH,
}


def refused(source: NetNamespace, fabric: Fabric) -> TcpSocket:
    sock = TcpSocket(source)
    sock.connect(SockAddr.parse(f"{VIP}:80"))
    fabric.run()
    return sock


@pytest.mark.parametrize("source", ["pod", "node"])
@pytest.mark.parametrize("how", REFUSALS)
def test_a_refusal_after_translation_reaches_the_client(source: str, how: str) -> None:
    fabric = Fabric(2)
    client, server = fabric.pod(1, "client"), fabric.pod(2, "server")
    node = fabric.machines["node-1"].node
    backend = format_ip(server.devices["eth0"].addresses[0][0])
    to = f"-d {VIP} -p tcp -j DNAT --to-destination {backend}:8080"
    reject = f"-d {backend} -p tcp -m tcp --dport 8080 -j REJECT --reject-with {how}"
    node.swap(rules(table("nat", f"PREROUTING {to}", f"OUTPUT {to}"), table("filter", f"FORWARD {reject}", f"OUTPUT {reject}")))
    assert refused(client if source == "pod" else node, fabric).error == REFUSALS[how]
    left: list[Conn] = list(node.netfilter.conntrack)
    assert left == [], "what was refused is no connection"


def test_a_full_conntrack_table_is_told_apart_from_a_rule_that_drops() -> None:
    fabric = Fabric(1)
    client, node = fabric.pod(1, "client"), fabric.machines["node-1"].node
    node.swap(rules(table("filter", "FORWARD -p udp -j DROP")))
    node.netfilter.conntrack.max_entries = 0
    refused(client, fabric)
    assert node.drops == {DropReason.CONNTRACK_FULL: 1}
