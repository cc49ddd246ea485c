"""FROM and TO as people write them."""

from __future__ import annotations

import pytest

from emu.controller.resolve import Source, Target, source, target
from emu.errors import ApiError
from tests.kit.plane import Plane, service


@pytest.fixture(scope="module")
def store():
    plane = Plane()
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}]
    plane.registry.create("services", service("web", clusterIP="10.96.0.10"), "default")
    two = service("two", clusterIP="10.96.0.11")
    plane.registry.create("services", {**two, "spec": {**two["spec"], "ports": ports}}, "default")
    plane.registry.create("services", service("headless", clusterIP="None"), "default")
    for name, spec in (("p", {"nodeName": "node-2"}), ("pending", {"nodeSelector": {"a": "b"}})):
        container = {"name": "c", "image": "nginx", "ports": [{"name": "http", "containerPort": 8080}]}
        plane.registry.create("pods", {"metadata": {"name": name}, "spec": {**spec, "containers": [container]}}, "default")
    plane.settle()
    return plane.store


@pytest.mark.parametrize(
    ("text", "namespace", "expected"),
    [
        ("pod/p", "default", Source("node-2", "pod/default/p")),
        ("pod/p", "", Source("node-2", "pod/default/p")),
        ("pod/default/p", "other", Source("node-2", "pod/default/p")),
        ("node/node-3", "default", Source("node-3", "node")),
    ],
)
def test_from(store, text, namespace, expected):
    assert source(store, text, namespace) == expected


@pytest.mark.parametrize(
    ("text", "port", "proto", "expected"),
    [
        ("svc/web", None, None, Target("10.96.0.10", 80, "tcp")),  # its only port
        ("svc/default/web", 80, None, Target("10.96.0.10", 80, "tcp")),
        ("svc/default/web:http", None, None, Target("10.96.0.10", 80, "tcp")),
        ("svc/web:81", None, None, Target("10.96.0.10", 81, "tcp")),  # that it lacks is what one may want to see
        ("svc/two:dns", None, None, Target("10.96.0.11", 53, "udp")),
        ("svc/two", None, "udp", Target("10.96.0.11", 53, "udp")),  # the only one of that protocol
        ("svc/web", None, "icmp", Target("10.96.0.10", None, "icmp")),
        ("pod/default/p", None, None, Target("10.244.2.2", None, "icmp")),
        ("pod/p:http", None, None, Target("10.244.2.2", 8080, "tcp")),
        ("pod/p", "8080", "udp", Target("10.244.2.2", 8080, "udp")),
        ("node/node-1", None, None, Target("192.168.0.2", None, "icmp")),
        ("node/node-1:30080", None, None, Target("192.168.0.2", 30080, "tcp")),
        ("10.1.2.3", None, None, Target("10.1.2.3", None, "icmp")),
        ("svc/two", None, None, Target("10.96.0.11", None, "icmp")),
        ("10.1.2.3:53", None, "udp", Target("10.1.2.3", 53, "udp")),
        ("[fd00::1]:53", None, None, Target("fd00::1", 53, "tcp")),
        ("fd00::1", None, None, Target("fd00::1", None, "icmp")),
    ],
)
def test_to(store, text, port, proto, expected):
    assert target(store, text, "default", port, proto) == expected


@pytest.mark.parametrize(
    ("text", "port", "proto", "code", "message"),
    [
        ("svc/web:https", None, None, 400, "no port named 'https'"),
        ("svc/nope", None, None, 404, "not found in namespace default"),
        ("svc/headless", None, None, 400, "no cluster IP; trace to one of its pods"),
        ("pod/pending:80", None, None, 400, "no address yet"),
        ("pod/a/b/c", None, None, 400, "is not pod/NAME"),
        ("pod/p:admin", None, None, 400, "no port named 'admin'"),
        ("10.1.2.3:99999", None, None, 400, "is not a port number"),
        ("10.1.2.3:80", 81, None, 400, "has a port already"),
        ("10.1.2.3", None, "udp", 400, "udp needs one"),
        ("10.1.2.3", None, "sctp", 400, "not one of tcp, udp, icmp"),
        ("somewhere", None, None, 400, "is not svc/…, pod/…, node/NAME or an IP address"),
    ],
)
def test_what_is_not_clear_is_asked_about(store, text, port, proto, code, message):
    with pytest.raises(ApiError, match=message) as refused:
        target(store, text, "default", port, proto)
    assert refused.value.code == code


@pytest.mark.parametrize(("text", "code"), [("svc/web", 400), ("10.1.2.3", 400), ("pod/nope", 404), ("pod/pending", 400), ("node/x", 404)])
def test_a_probe_starts_at_a_pod_or_a_node(store, text, code):
    with pytest.raises(ApiError) as refused:
        source(store, text, "default")
    assert refused.value.code == code
