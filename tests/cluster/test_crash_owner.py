"""Pods and nodes deleted, killed, restarted and paused under load, their addresses taken by others meanwhile: only owners receive.

Every pod talks to every address, says whom it means, and writes down what it was not meant to have; every delivery in every node asserts
the owner as well (debugAssertions), so a node that hands a packet to the wrong pod dies and is seen to have died.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest

from launcher import control, rundir
from tests.kit.live import cluster, eventually, manifests, pod, podwire, service
from tests.kit.writers import ask

pytestmark = pytest.mark.cluster

NAME, VIP, NODES = "own", "10.96.7.50", 4
ADDRESSES = [f"10.244.{node}.{host}" for node in range(1, NODES + 1) for host in (50, 51, 52)]
PODS = "/api/v1/namespaces/default/pods"
TIMINGS = "timings: {nodeMonitorGracePeriod: 2s, defaultUnreachableTolerationSeconds: 1s}\n"
PORTS = [{"name": "udp", "port": 9100, "targetPort": 9100, "protocol": "UDP"}, {"name": "tcp", "port": 9101, "targetPort": 9101}]


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """(API, run directory, file of strays)."""
    path = tmp_path_factory.mktemp("own")
    (path / "cluster.yaml").write_text(f"nodes: {NODES}\ndebugAssertions: true\n{TIMINGS}")
    programs = str(Path(__file__).parent / "programs")
    with cluster(NAME, "--config", str(path / "cluster.yaml"), "--path", programs, "-f", "-", stdin=manifests(SERVICE)):
        yield json.loads(podwire("status", "--json").stdout)["url"], rundir.find(NAME), path / "strays"


SERVICE = service("peers", VIP, "p", ports=PORTS)


class Chaos:
    """Takes the cluster's pods and nodes down and puts them up again. node-1 is left alone, to have somebody who never rests."""

    def __init__(self, where, run, strays, seed, pause):
        self.where, self.run, self.strays, self.pause = where, run, strays, pause
        self.chance, self.born = random.Random(seed), 0

    def create(self, address):
        """A pod of a new name at the address; it waits there until the former is gone."""
        self.born += 1
        container = {"name": "peer", "image": "example.com/mine", "args": [str(self.strays), *ADDRESSES, VIP, VIP, VIP]}
        annotations = {"podwire.dev/program": "owning:peer", "podwire.dev/address": address}
        made = pod(f"p-{self.born}", container, annotations=annotations, node=f"node-{address.split('.')[2]}")
        made["metadata"]["labels"] = {"app": "p", "address": address}
        status, answer = ask(self.where, "POST", PODS, made)
        assert status == 201, answer

    def replace(self, node=None):
        """Delete a pod, at once or with grace, and have its address taken by another as soon as may be."""
        address = self.chance.choice([a for a in ADDRESSES if node is None or a.startswith(f"10.244.{node}.")])
        grace = self.chance.choice((0, 0, 1))
        for old in ask(self.where, "GET", f"{PODS}?labelSelector=address%3D{address}")[1]["items"]:
            ask(self.where, "DELETE", f"{PODS}/{old['metadata']['name']}?gracePeriodSeconds={grace}")
        self.create(address)

    def fill(self):
        """Every address has a pod that is not about to go."""
        items = ask(self.where, "GET", PODS)[1]["items"]
        there = {item["metadata"]["labels"]["address"] for item in items if not item["metadata"].get("deletionTimestamp")}
        for address in set(ADDRESSES) - there:
            self.create(address)

    def node(self):
        node = self.chance.randrange(2, NODES + 1)
        what = self.chance.choice(("restart", "pause", "pause", "kill"))
        if what == "restart":
            self.fault(node, "restarted")
            return
        self.fault(node, {"pause": "paused", "kill": "killed"}[what])
        end = time.monotonic() + self.pause
        while time.monotonic() < end:  # what is replaced on it meanwhile, it will hear of later
            self.replace(node)
            self.replace()
            time.sleep(min(1.0, self.pause / 3))
        self.fault(node, {"pause": "resumed", "kill": "started"}[what])

    def fault(self, node, state):
        control.ask(self.run, {"node": f"node-{node}", "state": state})

    def go_on(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.chance.choice((self.replace, self.replace, self.replace, self.node))()
            self.fill()
            time.sleep(self.chance.uniform(0, 0.5))

    def settle(self):
        """All addresses have a Ready pod. A node that was away too long loses its pods to eviction even now: nobody else replaces those."""
        eventually(lambda: self.fill() or self.all_ready(), 60)

    def all_ready(self):
        items = ask(self.where, "GET", PODS)[1]["items"]
        ready = [i for i in items if any(c["type"] == "Ready" and c["status"] == "True" for c in i["status"].get("conditions", ()))]
        return len(ready) == len(items) == len(ADDRESSES)


def tallies():
    for line in podwire("get", "pods", "-o", "name").stdout.split():
        lines = podwire("logs", line.removeprefix("pod/"), "--tail", "1").stdout.splitlines()
        yield json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("seconds", "pause"), [(15, 3), pytest.param(240, 60, marks=pytest.mark.long)])
def test_under_no_condition_does_a_packet_reach_a_pod_that_does_not_own_its_destination(world, seconds, pause):
    chaos = Chaos(*world, seconds, pause)
    chaos.fill()
    chaos.settle()
    chaos.go_on(seconds)
    chaos.settle()
    time.sleep(2)
    seen = list(tallies())
    total = {key: sum(one.get(key, 0) for one in seen) for key in ("asked", "answered", "lines")}
    status = control.ask(world[1], {"status": True})
    sys.stdout.write(f"{json.dumps({'pods': chaos.born, **total, 'lives': [n['incarnation'] for n in status['nodes']]})}\n")
    assert not world[2].exists() or world[2].read_text() == ""
    assert [(node["name"], node["deaths"], node["last_exit"]) for node in status["nodes"] if node["deaths"]] == []
    assert total["answered"] > 1000
    assert total["lines"] > 500
