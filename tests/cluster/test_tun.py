"""Programs of this machine's kernel and pods of a real cluster, over TUN devices: who reaches whom, and when a device goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import netns
from tests.kit.live import RUN_DIR, cluster, curl, eventually, ip_of, manifests, netexec, obj, pod, podwire, service

WHY_NOT = netns.missing("curl")
pytestmark = [pytest.mark.cluster, pytest.mark.kernel, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

VIP, NODE_PORT, NODES = "10.96.8.10", 30888, ("192.168.0.2", "192.168.0.3", "192.168.0.4")
WORLD = (
    pod("near", netexec(), node="node-1"),
    pod("far", netexec(), node="node-2"),
    service("far", VIP, "far", type="NodePort", ports=[{"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}]),
)


@pytest.fixture(scope="module", autouse=True)
def network():
    with netns.namespaces("k1", "k2") as names, cluster("tun", "--nodes", "3", "--debug-assertions", "-f", "-", stdin=manifests(*WORLD)):
        yield names


@contextmanager
def tun(*options):
    made = json.loads(podwire("tun", "add", *options, "--json").stdout)
    try:
        yield made
    finally:
        place = ("--pod", made["pod"].partition("/")[2]) if made["pod"] else ("--node", made["node"])
        podwire("tun", "remove", *place, "--device", made["device"])


def listed():
    return json.loads(podwire("tun", "list", "--json").stdout)["items"]


def links(name):
    return [link["ifname"] for link in json.loads(netns.run(f"ip -n {name} -j link"))]


def fetch(name, url, *options, status=0):
    """The kernel's own curl, in a namespace."""
    command = ["ip", "netns", "exec", name, "curl", "-sS", "-m", "10", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert status is None or done.returncode == status, (url, done.returncode, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def web(name, ip):
    """python -m http.server in a namespace; a page says who asked."""
    code = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        " def do_GET(self):\n"
        "  body = self.client_address[0].encode(); self.send_response(200); self.send_header('Content-Length', str(len(body)))\n"
        "  self.end_headers(); self.wfile.write(body)\n"
        " def log_message(self, *a): pass\n"
        f"s = h.ThreadingHTTPServer(({ip!r}, 8000), H); print('up', flush=True); s.serve_forever()\n"
    )
    with subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"up\n"
            yield
        finally:
            server.kill()


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "segments"])
def test_a_kernel_client_reaches_pods_of_all_nodes_services_and_node_ports(network, offload):
    with tun("--node", "node-1", "--netns", network["k1"], "--address", "172.31.0.1/24", *([] if offload else ["--no-offload"])) as made:
        assert (made["state"], made["offload"]) == ("up", offload)
        for name in ("near", "far"):
            assert fetch(network["k1"], f"http://{ip_of(name)}:8080/hostname") == name
        assert fetch(network["k1"], f"http://{VIP}/hostname") == "far"
        for ip in NODES:
            assert fetch(network["k1"], f"http://{ip}:{NODE_PORT}/hostname") == "far"
        fetch(network["k1"], f"http://{ip_of('far')}:81/", status=7)  # connection refused
        fetch(network["k1"], f"http://{VIP}:81/", "-m", "1", status=28)  # a Service's address, but no port of it: silence
    assert links(network["k1"]) == ["lo"]
    assert listed() == []


def test_pods_see_who_they_are_asked_by_as_flannel_has_it(network):
    with tun("--node", "node-1", "--netns", network["k1"], "--address", "172.31.0.1/24"):
        near, far = (fetch(network["k1"], f"http://{ip_of(name)}:8080/clientip").rpartition(":")[0] for name in ("near", "far"))
    assert near == "172.31.0.1"
    assert far == "10.244.1.0"  # flannel.1 of the node with the device: only it knows the way back


def test_pods_of_all_nodes_reach_a_kernel_server_under_the_address_of_their_node(network):
    with tun("--node", "node-1", "--netns", network["k1"], "--address", "172.31.0.1/24"), web(network["k1"], "172.31.0.1"):
        assert eventually(lambda: curl("near", "http://172.31.0.1:8000/")) == NODES[0]
        assert eventually(lambda: curl("far", "http://172.31.0.1:8000/", "-m", "2", status=None)) == NODES[1]
        assert curl("far", "http://172.31.0.1:8001/", status=7) == ""


def test_a_pod_alone_can_be_joined_and_its_deletion_takes_the_device_away(network):
    podwire("apply", "-f", "-", stdin=manifests(pod("joined", netexec(), node="node-3")))
    eventually(lambda: obj("pod", "joined").get("status", {}).get("phase") == "Running")
    made = json.loads(podwire("tun", "add", "--pod", "joined", "--netns", network["k1"], "--device", "pod0", "--json").stdout)
    assert (made["pod"], made["node"], made["address"]) == ("default/joined", "node-3", "100.64.0.1/32")
    ip = ip_of("joined")
    assert fetch(network["k1"], f"http://{ip}:8080/hostname") == "joined"
    assert fetch(network["k1"], f"http://{ip}:8080/clientip").rpartition(":")[0] == "100.64.0.1"
    with web(network["k1"], "100.64.0.1"):
        assert curl("joined", "http://100.64.0.1:8000/") == ip
    podwire("delete", "pod", "joined")
    eventually(lambda: links(network["k1"]) == ["lo"])
    assert eventually(lambda: not listed())


def test_a_nodes_next_life_has_the_device_anew(network):
    with tun("--node", "node-1", "--netns", network["k1"], "--address", "172.31.0.1/24"):
        podwire("fault", "node", "node-1", "kill")
        eventually(lambda: links(network["k1"]) == ["lo"])
        (item,) = listed()
        assert item["state"].startswith("unknown: node node-1 cannot be asked")
        podwire("fault", "node", "node-1", "start")
        eventually(lambda: [item["state"] for item in listed()] == ["up"])
        eventually(lambda: fetch(network["k1"], f"http://{ip_of('far')}:8080/hostname", status=None) == "far")


def test_one_whose_namespace_is_gone_by_then_says_so_and_can_be_removed(network):
    with netns.namespaces("brief") as names:
        podwire("tun", "add", "--node", "node-3", "--netns", names["brief"])
        podwire("fault", "node", "node-3", "kill")
    podwire("fault", "node", "node-3", "start")
    eventually(lambda: [item["state"].partition(":")[0] for item in listed()] == ["failed"])
    assert "no network namespace" in listed()[0]["state"]
    podwire("tun", "remove", "--node", "node-3")
    assert listed() == []


def test_a_device_that_somebody_deletes_in_the_kernel_says_so(network):
    with tun("--node", "node-2", "--netns", network["k2"]):
        netns.run(f"ip -n {network['k2']} link del pw0")
        eventually(lambda: listed()[0]["state"].startswith("the kernel's end is gone"))


def test_two_devices_of_two_nodes_serve_two_namespaces(network):
    with (
        tun("--node", "node-1", "--netns", network["k1"]) as one,
        tun("--node", "node-2", "--netns", network["k2"]) as other,
        web(network["k2"], other["address"].partition("/")[0]),
    ):
        assert (one["address"], other["address"]) == ("100.64.0.1/32", "100.64.0.2/32")
        assert fetch(network["k1"], f"http://{ip_of('far')}:8080/hostname") == "far"
        assert eventually(lambda: curl("near", "http://100.64.0.2:8000/", "-m", "2", status=None)) == NODES[0]


@pytest.mark.parametrize(
    ("options", "status", "complaint"),
    [
        (["--node", "node-1", "--netns", "nowhere"], 1, "no network namespace at /run/netns/nowhere"),
        (["--node", "node-1", "--netns", "/dev/null"], 1, "cannot enter /dev/null"),
        (["--node", "node-9", "--netns", "K1"], 1, 'nodes "node-9" not found'),
        (["--pod", "nobody", "--netns", "K1"], 1, "there is no pod 'nobody'"),
        (["--netns", "K1"], 2, "--node or --pod"),
        (["--node", "node-1", "--netns", "K1", "--address", "10.244.9.1/24"], 1, "overlaps the cluster's 10.244.0.0/16"),
        (["--node", "node-1", "--netns", "K1", "--address", "300.1.1.1/24"], 1, "address: Invalid value"),
        (["--node", "node-1", "--netns", "K1", "--device", "a/b"], 1, "device: Invalid value"),
        (["--node", "node-1", "--netns", "K1", "--device", "lo"], 1, "node has a device lo already"),
        (["--node", "node-1", "--netns", "K1", "--mtu", "20"], 2, "--mtu"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence_and_leaves_no_trace(network, options, status, complaint):
    done = podwire("tun", "add", *(network["k1"] if word == "K1" else word for word in options), status=status)
    assert complaint in done.stderr
    assert links(network["k1"]) == ["lo"]
    assert listed() == []


def test_a_route_that_the_namespace_has_already_is_not_taken_over(network):
    netns.configure(network["k2"], ["route add unreachable 10.96.0.0/16"])
    try:
        done = podwire("tun", "add", "--node", "node-1", "--netns", network["k2"], status=1)
        assert "cannot give pw0 route 10.96.0.0/16: it has one already" in done.stderr
        assert links(network["k2"]) == ["lo"]
    finally:
        netns.configure(network["k2"], ["route del unreachable 10.96.0.0/16"])


def test_a_user_namespace_of_ones_own_is_enough(tmp_path):
    """Everything in one: the cluster, the device, and the client, as root of that namespace alone."""
    script = (
        'set -e; ip link set lo up; "$P" -m launcher up --nodes 2 -f world.json >up.log; '
        '"$P" -m launcher tun add --node node-1 --netns /proc/self/ns/net --address 172.31.0.1/24 >&2; '
        f"curl -sS -m 10 http://{VIP}/hostname; "
        '"$P" -m launcher down >&2'
    )
    (tmp_path / "world.json").write_text(manifests(*WORLD))
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, RUN_DIR: str(tmp_path), "PODWIRE_NAME": "own", "P": sys.executable, "PYTHONPATH": root}
    done = subprocess.run(
        ["unshare", "-Urn", "sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "far"), done.stderr
