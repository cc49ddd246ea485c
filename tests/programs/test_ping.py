"""`ping`, worded as iputils': its own output on loopback (20221126) is the text compared with; the stock tool too, where installed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from emu.programs.commands import command
from tests.kit.pods import Node, pod_ip

PING = shutil.which("ping")

ANSWERED = """\
PING 127.0.0.1 (127.0.0.1) 56(84) bytes of data.
64 bytes from 127.0.0.1: icmp_seq=1 ttl=64 time=0.112 ms
64 bytes from 127.0.0.1: icmp_seq=2 ttl=64 time=0.032 ms

--- 127.0.0.1 ping statistics ---
2 packets transmitted, 2 received, 0% packet loss, time 201ms
rtt min/avg/max/mdev = 0.032/0.072/0.112/0.040 ms
"""
SMALL = """\
PING localhost (127.0.0.1) 8(36) bytes of data.
16 bytes from localhost (127.0.0.1): icmp_seq=1 ttl=64

--- localhost ping statistics ---
1 packets transmitted, 1 received, 0% packet loss, time 0ms

"""
SILENT = """\
PING 1.1.1.1 (1.1.1.1) 56(84) bytes of data.

--- 1.1.1.1 ping statistics ---
2 packets transmitted, 0 received, 100% packet loss, time 202ms

"""
UNREACHABLE = """\
PING 10.244.1.99 (10.244.1.99) 56(84) bytes of data.
From 10.244.1.2 icmp_seq=1 Destination Host Unreachable
From 10.244.1.2 icmp_seq=2 Destination Host Unreachable

--- 10.244.1.99 ping statistics ---
2 packets transmitted, 0 received, +2 errors, 100% packet loss, time 1001ms

"""
ROWS = [
    (("-c", "2", "-i", "0.02", "127.0.0.1"), 0, ANSWERED, ""),
    (("-c1", "-s8", "localhost"), 0, SMALL, ""),
    (("-c", "2", "-i", "0.02", "-W", "0.05", "1.1.1.1"), 1, SILENT, ""),
    (("-c", "1", "nosuch.invalid"), 2, "", "ping: nosuch.invalid: Name or service not known\n"),
    (("-c", "x", "10.9.0.1"), 1, "", "ping: invalid argument: 'x'\n"),
    ((), 1, "", "ping: usage error: Destination address required\n"),
    (("-z", "x"), 2, "", "ping: invalid option -- 'z'\n"),
    (("-c",), 2, "", "ping: option requires an argument -- 'c'\n"),
    (("-w", "0.05", "-i", "0.02", "-c", "100", "127.0.0.1"), 1, None, ""),
]


@pytest.fixture(scope="module")
def node():
    node = Node()
    yield node
    node.close()


def shape(text: str) -> str:
    """Without what depends on the day: times."""
    text = re.sub(r"time=[\d.]+ ms", "time=T ms", text)
    text = re.sub(r"time \d+ms", "time Tms", text)
    return re.sub(r"mdev = [\d./]+ ms", "mdev = T ms", text)


@pytest.mark.parametrize(("argv", "code", "stdout", "stderr"), ROWS, ids=[" ".join(row[0]) for row in ROWS])
def test_ping_prints_what_iputils_prints(node, argv, code, stdout, stderr):
    ns = (node.machine.cni._pods.get("pod/default/a") or (None,))[0] or node.pod("a")
    run = node.run(ns, command("ping"), "ping", *argv)
    assert (run.join(), run.stderr) == (code, stderr)
    if stdout is not None:
        assert shape(run.stdout) == shape(stdout)


def test_a_pod_that_is_gone_is_unreachable():
    node = Node(speed=50)
    run = node.run(node.pod("a"), command("ping"), "ping", "-c", "2", "10.244.1.99")
    assert run.join() == 1
    assert shape(run.stdout) == shape(UNREACHABLE)
    node.close()


def test_another_pod_answers(node):
    b = node.pod("b")
    run = node.run(node.pod("asks"), command("ping"), "ping", "-qc", "3", "-i", "0.01", pod_ip(b))
    assert run.join() == 0
    assert "3 packets transmitted, 3 received, 0% packet loss" in run.stdout
    assert "icmp_seq" not in run.stdout


def test_a_stopped_ping_still_sums_up(node):
    run = node.run(node.pod("interrupted"), command("ping"), "ping", "-i", "0.01", "127.0.0.1")
    while "icmp_seq=2" not in run.stdout:
        pass
    run.process.terminate()
    assert run.join() == 0
    assert "ping statistics" in run.stdout


@pytest.mark.skipif(PING is None, reason="no stock ping here")
def test_stock_ping_prints_the_same(node):
    argv = ("-c", "2", "-i", "0.2", "127.0.0.1")
    stock = subprocess.run([PING, *argv], capture_output=True, text=True, check=False)
    run = node.run(node.pod("stock"), command("ping"), "ping", *argv)
    assert (run.join(), shape(run.stdout)) == (stock.returncode, shape(stock.stdout))
