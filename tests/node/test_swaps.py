"""Rule sets swap whole, under load: no packet is judged by two of them, and no connection that stands notices.

Two Services change places at every sync: each one's only endpoint, address and port, becomes the other's. Neither server listens on
the other's port, so a packet that met a rule of each set would be refused.
"""

from __future__ import annotations

from http.client import HTTPException, HTTPResponse
from types import SimpleNamespace

import pytest

from emu.bus.messages import SERVICES
from emu.wire.addr import format_ip
from tests.kit.controller_end import OWN, Controller
from tests.kit.nodes import pod
from tests.kit.pods import Run
from tests.kit.services import value

VIPS = ("10.96.0.41", "10.96.0.42")
IMAGE = "registry.k8s.io/e2e-test-images/agnhost:2.53"
REQUEST = b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n"


def server(name, port):
    return pod(name, IMAGE, port=port, args=("netexec", f"--http-port={port}", "--udp-port=-1"))


class Load:
    """Clients of both Services: new connections all the time, and one that stays."""

    def __init__(self):
        self.over = False
        self.failures, self.seen, self.kept = [], {"one": 0, "two": 0}, {"one": 0, "two": 0}

    def come_and_go(self, ctx):
        number = 0
        while not self.over:
            number += 1
            try:
                with ctx.create_connection((VIPS[number % 2], 80), timeout=5) as sock:
                    self.seen[ask(sock)] += 1
            except (OSError, HTTPException) as error:
                self.failures.append(f"connection {number}: {error!r}")
        return 0

    def stay(self, ctx):
        try:
            with ctx.create_connection((VIPS[0], 80), timeout=5) as sock:
                while not self.over:
                    self.kept[ask(sock)] += 1
                    ctx.sleep(0.002)
        except (OSError, HTTPException) as error:
            self.failures.append(f"the one that stays: {error!r}")
        return 0


def ask(sock):
    """The name of the pod that answers."""
    sock.sendall(REQUEST)
    response = HTTPResponse(sock)
    response.begin()
    return response.read().decode()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("syncs", [300, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_no_packet_sees_a_mixture_and_no_connection_breaks(mode, syncs, record_property):
    controller = Controller(proxy={"mode": mode, mode: {"minSyncPeriod": "0s"}})
    try:
        controller.synced()
        for name, port in (("one", 8080), ("two", 8081), ("client", 8082)):
            controller.publish(OWN, f"default/{name}", server(name, port))
        controller.until(lambda: all(ready(controller, name) for name in ("one", "two", "client")))
        client = controller.agent.kubelet.namespace("pod/default/client")
        ips = [controller.status(name)["status"]["podIP"] for name in ("one", "two")]

        def world(turn):
            places = [(ips[0], 8080), (ips[1], 8081)]
            chosen = zip(VIPS, places if turn % 2 else places[::-1], strict=True)
            return {f"ns/{vip}": value(f"ns/{vip}", [ip], cluster_ip=vip, target=port) for vip, (ip, port) in chosen}

        def done():
            return controller.agent.proxy.stats().syncs

        controller.publish_all(SERVICES, world(0))
        controller.until(lambda: all(vip in rules(controller, mode) for vip in VIPS))
        load, started, turn = Load(), done(), 0
        node = SimpleNamespace(kernel=controller.kernel, processes=[])
        runs = [Run(node, client, program, (), {}) for program in (load.come_and_go, load.stay)]
        controller.until(lambda: load.seen["one"] and load.seen["two"] and sum(load.kept.values()))
        while done() - started < syncs:
            turn, before = turn + 1, done()
            controller.publish_all(SERVICES, world(turn))
            controller.until(lambda before=before: done() > before)
        load.over = True
        for run in runs:
            run.join()
        told = {"syncs": done() - started, "new": load.seen, "kept": load.kept}
        record_property("swaps", str(told))
        assert load.failures == [], told
        assert min(load.seen.values()) > syncs / 20, told
        assert sorted(map(bool, load.kept.values())) == [False, True], "the one that stays keeps its pod"
    finally:
        controller.close()


def ready(controller, name):
    conditions = controller.status(name).get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def rules(controller, mode):
    """The addresses that lead anywhere, or the text in which they stand."""
    if mode == "iptables":
        return controller.rules()
    found = controller.machine.node.netfilter.ruleset.nft
    return [] if found is None else [format_ip(key[:4]) for key in found.maps["service-ips"].elements]
