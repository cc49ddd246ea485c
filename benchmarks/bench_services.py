"""What a growing number of Services costs, in each mode of kube-proxy: first packets, syncs, memory; and the kernel's own beside it.

Every mode and count is measured in a process of its own, by the node's code without its threads: changes, endpoint choice, rule set,
hooks and conntrack. First packets go to Services at random, from a pod; the first ever to a Service, which has its chains written,
is measured apart. Where root allows, the same rules are loaded into a network namespace and a non-blocking connect(2), which walks
OUTPUT in the caller's time, is measured beside ours. The headline is what the largest number of Services does to a first packet in
nftables mode; in iptables mode it is the point that it grows.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import socket
import subprocess
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import click
import psutil

from benchmarks import wires
from benchmarks.bench_walk import SYN, Around
from benchmarks.curves import Curve, html, svg
from benchmarks.harness import CPUS, Child, Result, environment, percentiles, report, tell
from emu.netfilter.hooks import Hook
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.nft_text import ruleset_text
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import Skb
from emu.netfilter.text import restore_text
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.syncer import BUILDERS, Proxy, SyncResult
from emu.wire.addr import parse_ip

COUNTS = (100, 1000, 5000, 10_000, 30_000)
NODE_IP, POD_NETWORK = "192.168.0.2", "10.244.0.0/16"
PACKETS, CHANGES, CONNECTS = 2000, 50, 300
LOADERS: dict[str, tuple[list[str], Callable[[RuleSet], str]]] = {
    "iptables": (["iptables-restore"], restore_text), "nftables": (["nft", "-f", "-"], ruleset_text),
}  # fmt: skip


DEVICES = (
    "link set lo up", "link add d0 type veth peer name d1", f"addr add {NODE_IP}/24 dev d0", "link set d0 up", "link set d1 up",
    "neigh add 192.168.0.1 lladdr 02:00:00:00:00:01 dev d0", "route add default via 192.168.0.1",
)  # fmt: skip


def vip(number: int) -> str:
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def value(number: int, endpoints: int, moved: int = 0) -> dict[str, Any]:
    """Service `number` as the broadcast has it; `moved` moves its last endpoint to another address."""
    name = f"svc-{number}"
    ports = [{"name": "http", "protocol": "TCP", "port": 80}]
    addresses = [f"10.244.{(number + each) % 250 + 1}.{each + 2}" for each in range(endpoints - 1)] + [
        f"10.244.{number % 250 + 1}.{200 + moved}"
    ]
    return {
        "service": {"metadata": {"namespace": "ns", "name": name}, "spec": {"clusterIP": vip(number), "ports": ports}},
        "slices": [{
            "metadata": {"namespace": "ns", "name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [{"addresses": [ip], "nodeName": f"node-{each % 100}"} for each, ip in enumerate(addresses)],
        }],
    }  # fmt: skip


class Subject:
    """One node's proxy and netfilter, in one mode, with so many Services."""

    def __init__(self, mode: str, count: int, endpoints: int) -> None:
        self.count, self.endpoints, self.chance = count, endpoints, random.Random(1)
        config = ProxyConfig.parse({"mode": mode, mode: {"minSyncPeriod": 0}}, cluster_cidr=POD_NETWORK, service_cidr="10.96.0.0/12")
        self.proxy = Proxy(config, NodeView("node-1", (parse_ip(NODE_IP),)))
        self.netfilter, self.now = Netfilter(Around()), 1.0

    def sync(self) -> SyncResult:
        """As the node's control loop does it: rules are written, and swapped in."""
        self.now += 1.0
        result = self.proxy.sync(self.now)
        assert result is not None
        self.netfilter.swap(result.ruleset)
        return result

    def fill(self) -> float:
        """All Services arrive; seconds of CPU from the last one's arrival to the swap of the first rule set."""
        for number in range(self.count):
            self.proxy.on_services([(f"ns/svc-{number}", value(number, self.endpoints))], self.now)
        start = time.process_time()
        self.proxy.on_listed(self.now)
        self.sync()
        return time.process_time() - start

    def change(self, moved: int) -> int:
        """One endpoint of one Service moves: nanoseconds of CPU to the swap."""
        number = self.chance.randrange(self.count)
        changed = value(number, self.endpoints, moved)
        start = time.process_time_ns()
        self.proxy.on_services([(f"ns/svc-{number}", changed)], self.now)
        self.sync()
        return time.process_time_ns() - start

    def packet(self, number: int) -> Skb:
        data = bytearray(SYN)
        data[12:16], data[16:20] = parse_ip("10.244.1.9"), parse_ip(vip(number))
        data[20:22] = self.chance.randrange(1024, 65536).to_bytes(2, "big")
        skb = Skb.parse(bytes(data))
        assert isinstance(skb, Skb)
        skb.iif, skb.oif = "cni0", "flannel.1"
        return skb

    def through(self, skb: Skb) -> None:
        for hook in (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING):
            self.netfilter.run(hook, skb, self.now)

    def first_packets(self) -> tuple[array[int], array[int], array[int], float]:
        """Nanoseconds of the first packets ever to Services at random, which have their chains written, of later connections' first
        packets to them, and of these connections' next ones; rules evaluated, on average."""
        unwritten, first, later, rules = array("Q"), array("Q"), array("Q"), 0
        numbers = [self.chance.randrange(self.count) for _ in range(PACKETS)]
        for number in dict.fromkeys(numbers):
            skb = self.packet(number)
            start = time.perf_counter_ns()
            self.through(skb)
            unwritten.append(time.perf_counter_ns() - start)
        for number in numbers:
            skb = self.packet(number)
            again = bytes(skb.buf)
            start = time.perf_counter_ns()
            self.through(skb)
            first.append(time.perf_counter_ns() - start)
            rules += skb.rules
            following = Skb.parse(again)
            assert isinstance(following, Skb)
            following.iif, following.oif = "cni0", "flannel.1"
            start = time.perf_counter_ns()
            self.through(following)
            later.append(time.perf_counter_ns() - start)
        return unwritten, first, later, rules / PACKETS


def private() -> float:
    """Private memory of this process in MB."""
    gc.collect()
    return float(psutil.Process().memory_full_info().uss) / 1e6


def measure(mode: str, count: int, endpoints: int, *, kernel: bool) -> dict[str, Any]:
    """One row, in a process of its own."""

    def body(orders: int, out: int) -> None:
        before = private()
        subject = Subject(mode, count, endpoints)
        full = subject.fill()
        memory = private() - before
        unwritten, first, later, rules = subject.first_packets()
        changes = array("Q", (subject.change(moved + 1) for moved in range(CHANGES)))
        row = {
            "mode": mode, "services": count, "rules": round(rules, 1), "first_packet_us": percentiles(first),
            "first_ever_us": percentiles(unwritten),
            "established_us": percentiles(later), "cpu_s_a_1000": round(sum(first) / len(first) / 1e6, 3),
            "full_sync_s": round(full, 3), "one_change_ms": {name: t / 1000 for name, t in percentiles(changes).items()},
            "memory_mb": round(memory, 1),
            "kernel_us": in_kernel(mode, count, subject) if kernel else {},
        }  # fmt: skip
        os.write(out, b"+" + json.dumps(row).encode() + b"\n")

    with Child(CPUS[0], body) as child:
        child.ready()
        with os.fdopen(os.dup(child.answers), "rb") as answers:
            row: dict[str, Any] = json.loads(answers.readline())
    return row


def in_kernel(mode: str, count: int, subject: Subject) -> dict[str, float]:
    """Microseconds of a non-blocking connect to Services at random, under the same rules in a namespace of our own; {} without root."""
    command, text = LOADERS[mode]
    with contextlib.suppress(OSError, subprocess.CalledProcessError, RuntimeError):
        wires.unshare_network()
        for words in DEVICES:
            wires.ip(words)
        subprocess.run(command, input=text(subject.netfilter.ruleset), text=True, check=True, capture_output=True)
        times = array("Q")
        for number in [subject.chance.randrange(count) for _ in range(CONNECTS)]:
            with socket.socket() as client:
                client.setblocking(False)
                target = (vip(number), 80)
                start = time.perf_counter_ns()
                client.connect_ex(target)
                times.append(time.perf_counter_ns() - start)
        return percentiles(times)
    return {}


CURVES: tuple[tuple[str, str, Callable[[dict[str, Any]], float]], ...] = (
    ("first packet, µs (p50)", "first", lambda row: row["first_packet_us"]["p50"]),
    ("established packet, µs (p50)", "established", lambda row: row["established_us"]["p50"]),
    ("one changed Service, ms (p50)", "change", lambda row: row["one_change_ms"]["p50"]),
    ("full sync, s", "sync", lambda row: row["full_sync_s"]),
    ("memory, MB", "memory", lambda row: row["memory_mb"]),
)


def curves(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """A drawing for each thing measured: its name, and SVG."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    for title, name, of in CURVES:
        lines = [Curve(mode, [(row["services"], of(row)) for row in rows if row["mode"] == mode]) for mode in modes]
        if name == "first":
            lines += [
                Curve(f"{mode}, the kernel", points) for mode in modes
                if (points := [(row["services"], row["kernel_us"]["p50"]) for row in rows if row["mode"] == mode and row["kernel_us"]])
            ]  # fmt: skip
        yield name, svg(title, "Services", lines)


def run(modes: list[str], counts: list[int], endpoints: int, *, kernel: bool) -> Result:
    """Measure each mode at each count, one after the other."""
    rows = []
    for count in counts:
        for mode in modes:
            tell(f"{mode}, {count} Services")
            rows.append(measure(mode, count, endpoints, kernel=kernel))

    def first(mode: str, count: int) -> float:
        return float(next(row["first_packet_us"]["p50"] for row in rows if (row["mode"], row["services"]) == (mode, count)))

    headline = "nftables" if "nftables" in modes else modes[0]
    measured, reference = first(headline, counts[-1]), first(headline, counts[0])
    return {
        "bench": "services", "title": f"Services with {endpoints} endpoints each, by mode (CPU time; a pod's packets)",
        "headline": f"a first packet at {counts[-1]} Services to one at {counts[0]}, {headline}", "ratio": round(measured / reference, 2),
        "measured": {"first_packet_us": measured}, "reference": {"first_packet_us": reference}, "rows": rows, "environment": environment(),
    }  # fmt: skip


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--modes", default=",".join(BUILDERS), show_default=True, help="Modes, with commas between.")
@click.option("--counts", default=",".join(map(str, COUNTS)), show_default=True, help="Numbers of Services, with commas between.")
@click.option("--endpoints", default=10, show_default=True, help="Endpoints of each Service.")
@click.option("--kernel/--no-kernel", default=True, show_default=True, help="Load the rules into this machine's kernel, too (root).")
@click.option("--plot", metavar="DIR", help="Write the curves there: SVG, and all of them in services.html.")
def main(*, as_json: bool, modes: str, counts: str, endpoints: int, kernel: bool, plot: str | None) -> None:
    """What breaks at 10,000 Services, and in which mode."""
    chosen = modes.split(",")
    unknown = [mode for mode in chosen if mode not in BUILDERS]
    if unknown:
        raise click.UsageError(f"--modes: {unknown[0]} is not emulated; {', '.join(BUILDERS)} are")
    result = run(chosen, sorted(int(count) for count in counts.split(",")), endpoints, kernel=kernel and os.geteuid() == 0)
    if plot:
        os.makedirs(plot, exist_ok=True)
        drawn = dict(curves(result["rows"]))
        for name, drawing in drawn.items():
            with open(f"{plot}/services-{name}.svg", "w", encoding="utf-8") as file:
                file.write(drawing)
        with open(f"{plot}/services.html", "w", encoding="utf-8") as file:
            file.write(html(result["title"], drawn.values()))
    report(result, as_json=as_json)


if __name__ == "__main__":
    main()
