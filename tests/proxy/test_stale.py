"""Which UDP flows a sync makes stale. Facts: kubernetes `conntrack/cleanup.go`, v1.35."""

from __future__ import annotations

import pytest

from emu.netfilter.conn import Conn, make_key
from emu.netfilter.skb import TCP, UDP
from emu.proxy.serviceport import read_service_ports
from emu.proxy.stale import StaleUdp
from emu.wire.addr import SockAddr
from tests.kit.services import endpoint, value

LEAVING = {"ready": False, "serving": True, "terminating": True}
GONE = {"ready": False, "serving": False, "terminating": True}
VALUES = [
    value("kube-system/dns", ["10.0.0.1", endpoint("10.0.0.2", **LEAVING), endpoint("10.0.0.3", **GONE)], cluster_ip="10.96.0.53", port=53,
          target=5353, protocol="UDP", type="NodePort", node_port=30053, externalIPs=["192.168.99.1"]),
    value("ns1/empty", cluster_ip="10.96.0.54", port=53, protocol="UDP"),
    value("ns1/web", ["10.0.0.9"], cluster_ip="10.96.0.55"),
]  # fmt: skip

ROWS = [
    ("to an endpoint that is ready: kept", UDP, "10.96.0.53:53", "10.0.0.1:5353", False),
    ("to an endpoint that terminates but serves: kept", UDP, "10.96.0.53:53", "10.0.0.2:5353", False),
    ("to an endpoint that serves no more: stale", UDP, "10.96.0.53:53", "10.0.0.3:5353", True),
    ("to an endpoint that is gone: stale", UDP, "10.96.0.53:53", "10.0.0.8:5353", True),
    ("to the right pod on a port it has left: stale", UDP, "10.96.0.53:53", "10.0.0.1:53", True),
    ("never translated, from before there were rules: stale", UDP, "10.96.0.53:53", "10.96.0.53:53", True),
    ("by an external IP: stale", UDP, "192.168.99.1:53", "10.0.0.8:5353", True),
    ("by a node port, whatever the node's address: stale", UDP, "192.168.0.2:30053", "10.0.0.8:5353", True),
    ("straight to a pod: none of ours", UDP, "10.0.0.8:5353", "10.0.0.8:5353", False),
    ("to a Service with no serving endpoint at all: kept, as in 1.35", UDP, "10.96.0.54:53", "10.0.0.8:5353", False),
    ("TCP is never touched", TCP, "10.96.0.55:80", "10.0.0.8:8080", False),
]


@pytest.mark.parametrize(("protocol", "destination", "answering", "stale"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_flow(protocol, destination, answering, stale):
    subject = StaleUdp(port for v in VALUES for port in read_service_ports(v, "host-1"))
    client, to, answers = SockAddr.parse("10.0.7.7:5000"), SockAddr.parse(destination), SockAddr.parse(answering)
    conn = Conn(make_key(protocol, client.ip, to.ip, client.port, to.port))
    conn.reply = make_key(protocol, answers.ip, client.ip, answers.port, client.port)
    assert subject(conn) is stale
