"""`nc`, worded as Debian's netcat-openbsd: the strings are its own (1.219-1, run on loopback and in a network namespace)."""

from __future__ import annotations

import re
import time

import pytest

from emu.programs.commands import command
from emu.programs.echo import Echo
from tests.kit.pods import Node, pod_ip


@pytest.fixture(scope="module")
def node():
    node = Node()
    yield node
    node.close()


@pytest.fixture(scope="module")
def pods(node):
    client, server = node.pod("client"), node.pod("server")
    node.run(server, Echo((80, 7001), (53,)))
    return client, server


def nc(node, ns, *argv, stdin=None):
    """(exit code, stdout, stderr)."""
    run = node.run(ns, command("nc"), "nc", *argv, stdin=stdin is not None)
    if stdin is not None:
        run.process.stdin.feed(stdin)
        run.process.stdin.feed_eof()
    return run.join(), run.stdout, run.stderr


ROWS = [
    (("-zv", "IP", "80"), 0, "Connection to IP 80 port [tcp/http] succeeded!\n"),
    (("-zv", "IP", "7001"), 0, "Connection to IP 7001 port [tcp/*] succeeded!\n"),
    (("-zvn", "IP", "7001"), 0, "Connection to IP 7001 port succeeded!\n"),
    (("-z", "IP", "80"), 0, ""),
    (("-z", "IP", "81"), 1, ""),
    (("-zv", "IP", "81"), 1, "nc: connect to IP port 81 (tcp) failed: Connection refused\n"),
    (
        ("-zvw1", "IP", "79-80"),
        0,
        "nc: connect to IP port 79 (tcp) failed: Connection refused\nConnection to IP 80 port [tcp/http] succeeded!\n",
    ),
    (("-zvw", "0.05", "1.1.1.1", "80"), 1, "nc: connect to 1.1.1.1 port 80 (tcp) timed out: Operation now in progress\n"),
    (("-zvu", "IP", "53"), 0, "Connection to IP 53 port [udp/domain] succeeded!\n"),
    (("-zvu", "IP", "54"), 1, ""),
    (("-zv", "nosuch.invalid", "80"), 1, 'nc: getaddrinfo for host "nosuch.invalid" port 80: Name or service not known\n'),
    (("-zv", "localhost", "80"), 1, "nc: connect to localhost (127.0.0.1) port 80 (tcp) failed: Connection refused\n"),
    (("IP",), 1, "nc: missing port number\n"),
    (("IP", "x"), 1, "nc: port number invalid: x\n"),
    (("IP", "70000"), 1, "nc: port number too large: 70000\n"),
    (("-Q",), 1, "nc: invalid option -- 'Q'\n"),
]


@pytest.mark.parametrize(("argv", "code", "stderr"), ROWS, ids=[" ".join(row[0]) for row in ROWS])
def test_probes(node, pods, argv, code, stderr):
    client, server = pods
    words = [word.replace("IP", pod_ip(server)) for word in argv]
    assert nc(node, client, *words) == (code, "", stderr.replace("IP", pod_ip(server)))


def test_data_goes_both_ways_until_the_peer_closes(node, pods):
    client, server = pods
    assert nc(node, client, "-N", pod_ip(server), "80", stdin=b"to and fro\n") == (0, "to and fro\n", "")


def test_an_idle_connection_ends_after_w(node, pods):
    client, server = pods
    assert nc(node, client, "-w", "0.05", pod_ip(server), "80", stdin=b"x") == (0, "x", "")


def test_datagrams(node, pods):
    client, server = pods
    assert nc(node, client, "-u", "-w", "0.05", pod_ip(server), "53", stdin=b"hello") == (0, "hello", "")


def listening(run, protocol, port):
    for _ in range(1000):
        if (protocol, port) in run.ports:
            return
        time.sleep(0.001)
    raise AssertionError("never listened")


@pytest.mark.parametrize("argv", [("-lv", "-p", "7002"), ("-lv", "7002"), ("-vnlp7002",)])
def test_listening_takes_one_connection(node, argv):
    server, client = node.pod("l" + argv[0].strip("-") + str(len(argv))), node.pod("c" + argv[0].strip("-") + str(len(argv)))
    run = node.run(server, command("nc"), "nc", *argv)
    listening(run, "TCP", 7002)
    nc(node, client, "-N", pod_ip(server), "7002", stdin=b"abc\n")
    assert run.join() == 0
    assert run.stdout == "abc\n"
    assert re.fullmatch(rf"Listening on 0\.0\.0\.0 7002\nConnection received on {re.escape(pod_ip(client))} \d+\n", run.stderr)


def test_a_taken_port_cannot_be_listened_on(node, pods):
    assert nc(node, pods[1], "-l", "80") == (1, "", "nc: Address already in use\n")


def test_listening_for_datagrams(node):
    server, client = node.pod("ul"), node.pod("uc")
    run = node.run(server, command("nc"), "nc", "-ulw1", "5000")
    listening(run, "UDP", 5000)
    nc(node, client, "-u", "-w", "0.05", pod_ip(server), "5000", stdin=b"datagram")
    for _ in range(500):
        if run.stdout:
            break
        time.sleep(0.001)
    assert run.stdout == "datagram"
