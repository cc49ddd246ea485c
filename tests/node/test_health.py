"""Health-check node ports on a node: opened, moved and closed with their Services, and said aloud where the port is taken."""

from __future__ import annotations

import pytest

from emu.bus.messages import pack
from emu.node.health import HealthPorts
from emu.pod.program import PodInfo
from tests.kit.pods import Node
from tests.kit.services import endpoint, value


@pytest.fixture
def node():
    made = Node()
    yield made
    made.close()


def ports(node, warnings, ns=None):
    ns = ns or node.pod("kube-proxy")
    return ns, HealthPorts(node.kernel, ns, PodInfo("kube-proxy", "kube-system", "10.244.1.2", "here"), ["0.0.0.0"], warnings.append)


def packed(port=32123, *, endpoints=1):
    here = [endpoint(f"10.244.1.{number + 1}", "here") for number in range(endpoints)]
    return pack(value("ns/web", here, type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=port))


def asked(node, ns, port):
    def ask(ctx):
        try:
            with ctx.create_connection(("127.0.0.1", port), timeout=2) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return sock.makefile("rb").read().split(b"\r\n")[0].decode()
        except ConnectionRefusedError:
            return "refused"

    return node.call(ns, ask)


def test_a_port_follows_its_service(node):
    warnings = []
    ns, health = ports(node, warnings)
    health.on_services([("ns/web", packed())])
    assert asked(node, ns, 32123) == "refused"  # not before the rules are there
    health.sync()
    assert asked(node, ns, 32123) == "HTTP/1.1 200 OK"
    health.on_services([("ns/web", packed(endpoints=0))])
    health.sync()
    assert asked(node, ns, 32123) == "HTTP/1.1 503 Service Unavailable"
    health.on_services([("ns/web", packed(port=32124))])
    health.sync()
    assert [asked(node, ns, port) for port in (32123, 32124)] == ["refused", "HTTP/1.1 200 OK"]
    health.on_services([("ns/web", None)])
    health.sync()
    assert asked(node, ns, 32124) == "refused"
    assert warnings == []


def test_a_port_that_is_taken_is_an_event_and_is_tried_again(node):
    warnings = []
    ns, first = ports(node, [])
    first.on_services([("ns/first", packed())])
    first.sync()
    _, health = ports(node, warnings, ns)
    health.on_services([("ns/web", packed())])
    health.sync()
    assert [(one["reason"], one["object"]["name"]) for one in warnings] == [("FailedToStartServiceHealthcheck", "web")]
    assert warnings[0]["message"].endswith("on port 32123: listen tcp 0.0.0.0:32123: Address already in use")
    health.on_services([("ns/other", packed(port=32125))])
    health.sync()
    assert len(warnings) == 2
    assert asked(node, ns, 32125) == "HTTP/1.1 200 OK"
    first.close()
    health.sync()
    assert len(warnings) == 2
    assert asked(node, ns, 32123) == "HTTP/1.1 200 OK"


def test_a_stopped_proxy_listens_nowhere(node):
    ns, health = ports(node, [])
    health.on_services([("ns/web", packed())])
    health.sync()
    health.close()
    assert asked(node, ns, 32123) == "refused"
