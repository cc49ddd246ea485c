"""Captures of a real cluster by the command line: live, as a file that tcpdump reads, at both ends of a link, and past a node's death."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from emu.observe import pcapng
from tests.kit.live import ROOT, cluster, curl, ip_of, manifests, netexec, pod, podwire

pytestmark = pytest.mark.cluster

WORLD = (pod("client", netexec(), node="node-1"), pod("server", netexec(), node="node-2"))


@pytest.fixture(scope="module", autouse=True)
def network():
    with cluster("capture", "--nodes", "3", "-f", "-", stdin=manifests(*WORLD)) as path:
        yield path


class Capturing:
    """`podwire capture` in the background, listening when made; `end` is Ctrl-C."""

    def __init__(self, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "capture", *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert b"listening" in self.process.stderr.readline()

    def end(self, interrupt=True):
        if interrupt:
            time.sleep(1.0)  # what is held for order, and the next statistics
            self.process.send_signal(signal.SIGINT)
        out, told = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, told
        return out, told.decode()


def test_lines_show_the_request_at_the_pod_with_its_answer():
    capturing = Capturing("--pod", "client", "--filter", "tcp port 8080")
    assert curl("client", f"http://{ip_of('server')}:8080/hostname") == "server"
    out, told = capturing.end()
    lines = out.decode().splitlines()
    assert all(" pod/default/client/eth0 " in line for line in lines)
    assert "Flags [S]" in lines[0]
    assert "Flags [S.]" in lines[1]
    assert f"{len(lines)} packets captured" in told
    assert "0 packets dropped by the capture" in told


def test_a_link_is_heard_at_both_its_ends_in_order_and_nothing_else():
    capturing = Capturing("--link", "node-1-node-2", "--json", "--filter", "vxlan and tcp")
    curl("client", f"http://{ip_of('server')}:8080/hostname")
    out, _ = capturing.end()
    packets = [json.loads(line) for line in out.splitlines()]
    assert {(packet["device"], packet["direction"]) for packet in packets} == {
        (f"node-{node}/eth0", way) for node in (1, 2) for way in ("in", "out")
    }
    times = [packet["time"] for packet in packets]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 60
    assert packets[0]["packet"]["inner"]["flags"] == "S"


def test_a_file_is_whole_and_ends_by_itself_after_so_many_packets(tmp_path):
    path = tmp_path / "some.pcapng"
    capturing = Capturing("-w", str(path), "-c", "5", "--device", "eth0", "--filter", "vxlan")
    curl("client", f"http://{ip_of('server')}:8080/hostname")
    capturing.end(interrupt=False)
    blocks = list(pcapng.Reader().feed(path.read_bytes()))
    assert sum(block.kind == pcapng.PACKET for block in blocks) == 5
    assert {block.name for block in blocks if block.kind == pcapng.INTERFACE} == {f"node-{number}/eth0" for number in (1, 2, 3)}
    if shutil.which("tcpdump"):
        read = subprocess.run(["tcpdump", "-n", "-r", str(path)], capture_output=True, text=True, check=True, timeout=20)
        assert sum(".8472: " in line for line in read.stdout.splitlines()) == 5  # as OTV, whose packets look alike


def test_a_node_that_dies_is_told_and_the_others_go_on():
    capturing = Capturing("--filter", "icmp")
    podwire("fault", "node", "node-3", "kill")
    time.sleep(4)  # until its lease has run out
    podwire("exec", "client", "--", "ping", "-c", "1", ip_of("server"))
    out, told = capturing.end()
    podwire("fault", "node", "node-3", "start")
    assert "node-3 is captured no more" in told
    assert b"echo reply" in out


def test_what_cannot_be_captured_is_said():
    assert "column 9: 'nonsense': an unknown word" in podwire("capture", "--filter", "tcp and nonsense", status=1).stderr
    assert "not found" in podwire("capture", "--node", "node-9", status=1).stderr
    assert "there is no pod" in podwire("capture", "--pod", "nobody", status=1).stderr
