"""The controller as a real process: HTTP in front, ZeroMQ behind, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from emu.bus.follower import Follower
from emu.bus.zeromq import NodeBus
from emu.model.cluster import ClusterSpec

pytestmark = pytest.mark.cluster


class Controller:
    """A forked controller process; `start` again after it has ended."""

    def __init__(self, run_dir, nodes=2):
        self.dir = run_dir
        self.spec = ClusterSpec.from_mapping({"name": "t", "nodes": nodes}, run_dir=str(run_dir))
        self.pid, self.life = 0, -1

    def start(self):
        (self.dir / "api.json").unlink(missing_ok=True)
        read, self.life = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self.life)
                from emu.controller.main import run

                run(self.spec, read)
                status = 0
            finally:
                os._exit(status)
        os.close(read)
        until((self.dir / "api.json").exists)
        self.url = json.loads((self.dir / "api.json").read_text())["url"]
        return self

    def wait(self):
        """Its wait status."""
        ended = (0, 0)

        def reaped():
            nonlocal ended
            ended = os.waitpid(self.pid, os.WNOHANG)
            return ended[0]

        until(reaped)
        self.pid = 0
        return ended[1]

    def ask(self, path, body=None, method=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def status(self):
        return self.ask("/apis/podwire.dev/v1alpha1/status")


class Node(threading.Thread):
    """A node in a thread: registers, leases, answers `rules`."""

    def __init__(self, controller, spec):
        super().__init__(daemon=True)
        hello = {
            "t": "hello", "name": spec.name, "ip": spec.ip, "pod_cidr": spec.pod_cidr, "endpoint": "ipc:///none", "incarnation": 1,
            "labels": {}, "pid": os.getpid(),
        }  # fmt: skip
        self.follower = Follower(hello)
        self.link = NodeBus(spec.name, f"ipc://{controller.dir}/bus.pub", f"ipc://{controller.dir}/bus.ctl", self.follower.streams)
        self.ended = False

    def run(self):
        leased = 0.0
        while not self.ended:
            for message in self.link.poll(0.2):
                step = self.follower.on_message(message)
                for answer in step.send:
                    self.link.post(answer)
                if step.changed:
                    leased = 0.0
                if step.message and step.message["t"] == "call":
                    self.link.post({"t": "answer", "id": step.message["id"], "body": {"text": "*nat"}, "last": True})
            if time.monotonic() - leased > 0.2:
                leased = time.monotonic()
                self.link.post(self.follower.lease())
        self.link.close()

    def stop(self):
        self.ended = True
        self.link.wake()
        self.join(5)


def until(true, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.005)


@pytest.fixture
def controller(tmp_path_factory):
    controller = Controller(tmp_path_factory.mktemp("c"))
    yield controller.start()
    if controller.pid:
        os.kill(controller.pid, signal.SIGKILL)
        controller.wait()
    if controller.life >= 0:
        os.close(controller.life)


@pytest.fixture
def nodes(controller):
    nodes = [Node(controller, spec) for spec in controller.spec.nodes]
    for node in nodes:
        node.start()
    yield nodes
    for node in nodes:
        node.stop()


def test_nodes_register_are_called_and_survive_a_killed_controller(controller, nodes):
    until(lambda: controller.status()["settled"] and len(controller.status()["nodes"]) == 2)
    assert controller.ask("/apis/podwire.dev/v1alpha1/nodes/node-1/rules") == {"text": "*nat"}
    ports = {"selector": {"app": "x"}, "ports": [{"port": 80}], "clusterIP": "10.96.0.77"}
    controller.ask(
        "/api/v1/namespaces/default/services", {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": ports}
    )
    until(lambda: all("default/web" in node.follower.services for node in nodes))

    os.kill(controller.pid, signal.SIGKILL)
    assert os.WTERMSIG(controller.wait()) == signal.SIGKILL
    assert nodes[0].follower.services.get("default/web"), "nodes keep what they know"
    os.close(controller.life)
    controller.start()
    assert controller.ask("/api/v1/namespaces/default/services/web")["spec"]["clusterIP"] == "10.96.0.77"
    until(lambda: controller.status()["settled"] and all(node["pid"] for node in controller.status()["nodes"]))
    controller.ask("/api/v1/namespaces/default/services/web", method="DELETE")
    until(lambda: not any("default/web" in node.follower.services for node in nodes))


def test_a_term_signal_ends_it_cleanly_also_under_an_open_watch(controller):
    host, port = controller.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as watch:
        watch.sendall(b"GET /api/v1/namespaces?watch=true HTTP/1.1\r\nHost: x\r\n\r\n")
        assert watch.recv(100).startswith(b"HTTP/1.1 200")
        os.kill(controller.pid, signal.SIGTERM)
        assert controller.wait() == 0
    assert (controller.dir / "store.db").exists()


def test_the_end_of_the_life_pipe_ends_it(controller):
    os.close(controller.life)
    controller.life = -1
    assert controller.wait() == 0


def test_a_fault_is_the_supervisor_s_to_carry_out(controller, nodes):
    until(lambda: len(controller.status()["nodes"]) == 2)
    path = "/apis/podwire.dev/v1alpha1/nodes/node-2/fault"
    with pytest.raises(urllib.error.HTTPError) as refused:
        controller.ask(path, {"state": "killed"})
    assert refused.value.code == 503
    refused.value.close()
    asked = []

    def supervisor(listener):
        for answer in ({"ok": True, "pid": 5}, {"ok": False, "message": "node-2 is killed"}):
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as lines:
                asked.append(json.loads(lines.readline()))
                lines.write(json.dumps(answer).encode() + b"\n")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{controller.dir}/supervisor.sock")
        listener.listen()
        thread = threading.Thread(target=supervisor, args=(listener,), daemon=True)
        thread.start()
        assert controller.ask(path, {"state": "killed"}) == {"node": "node-2", "state": "killed", "pid": 5}
        with pytest.raises(urllib.error.HTTPError) as refused:
            controller.ask(path, {"state": "paused"})
        assert json.load(refused.value)["message"] == "node-2 is killed" and refused.value.code == 409
        refused.value.close()
        thread.join(5)
    assert asked == [{"node": "node-2", "state": "killed"}, {"node": "node-2", "state": "paused"}]
