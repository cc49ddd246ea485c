"""A production node's dump of 100,000 rules: how long it takes to read, and to explain a packet by it.

The dump is kube-proxy's, of Services with five endpoints each; the packet goes to the last Service, so that every Service's rule is
passed over once for each backend. "The first packet" also pays for compiling the chains that it meets. `ratio` is of reading to
splitting the same lines into words and nothing else.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from benchmarks.harness import Result, environment, percentiles, report, tell
from emu.netfilter.explain import Asked, Explanation, explain
from emu.netfilter.facts import Facts
from emu.netfilter.first_packet import first_packet
from emu.netfilter.reader import Dump, read_dump
from emu.netfilter.skb import TCP
from emu.wire.addr import parse_ip

RULES = 100_000
ENDPOINTS = 5
PER_SERVICE = 2 + 3 * ENDPOINTS


def dump_text(services: int) -> str:
    """What iptables-save prints for so many Services."""
    nat = [":PREROUTING ACCEPT [0:0]", ":POSTROUTING ACCEPT [0:0]", ":KUBE-MARK-MASQ - [0:0]", ":KUBE-SERVICES - [0:0]"]
    rules = ['PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
             "KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000"]  # fmt: skip
    for number in range(services):
        vip, name, chain = _vip(number), f"shop/service-{number}:http", f"{number:016X}"
        nat.append(f":KUBE-SVC-{chain} - [0:0]")
        match = f'-d {vip}/32 -p tcp -m comment --comment "{name} cluster IP" -m tcp --dport 80'
        rules += [f"KUBE-SERVICES {match} -j KUBE-SVC-{chain}", f"KUBE-SVC-{chain} ! -s 10.0.0.0/8 {match} -j KUBE-MARK-MASQ"]
        for endpoint in range(ENDPOINTS):
            ip, left, sep = f"10.{128 + endpoint}.{number >> 8}.{number & 255}", ENDPOINTS - endpoint, f"{chain[1:]}{endpoint}"
            nat.append(f":KUBE-SEP-{sep} - [0:0]")
            chance = f" -m statistic --mode random --probability {1 / left:.11f}" if left > 1 else ""
            rules += [
                f'KUBE-SVC-{chain} -m comment --comment "{name} -> {ip}:8080"{chance} -j KUBE-SEP-{sep}',
                f'KUBE-SEP-{sep} -s {ip}/32 -m comment --comment "{name}" -j KUBE-MARK-MASQ',
                f'KUBE-SEP-{sep} -p tcp -m comment --comment "{name}" -m tcp -j DNAT --to-destination {ip}:8080',
            ]
    return "\n".join(("*nat", *nat, *(f"[12:720] -A {rule}" for rule in rules), "COMMIT", ""))


def _vip(number: int) -> str:
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _read(text: str, into: list[Dump]) -> None:
    into.append(read_dump(text))


def _timed(work: Callable[[], object]) -> int:
    start = time.process_time_ns()  # CPU time: a busy machine splits words no faster than it reads rules
    work()
    return time.process_time_ns() - start


def run(repeats: int = 5, packets: int = 20) -> Result:
    """Read and explain so many times, in turn with the reference."""
    services = RULES // PER_SERVICE
    text = dump_text(services)
    asked = Asked(first_packet(TCP, parse_ip("10.200.0.1"), parse_ip(_vip(services - 1)), 40000, 80))
    names = ("lines into words", "read the dump", "the first packet explained", "any other packet explained")
    times: dict[str, array[int]] = {name: array("Q") for name in names}
    gc.disable()  # as `podwire explain` does
    for repeat in range(repeats):
        tell(f"round {repeat + 1} of {repeats} …")
        dumps: list[Dump] = []
        found: list[Explanation] = []
        times[names[0]].append(_timed(lambda: [line.split() for line in text.splitlines()]))
        times[names[1]].append(_timed(partial(_read, text, dumps)))
        (dump,) = dumps

        def explained(dump: Dump = dump, found: list[Explanation] = found) -> None:
            found.append(explain(dump, asked, Facts()))

        times[names[2]].append(_timed(explained))
        times[names[3]].extend(_timed(explained) for _ in range(packets))
        assert all(not one.open and len(one.ends) == ENDPOINTS for one in found), "the wrong answer is no time at all"
    gc.enable()
    rows: list[dict[str, Any]] = [
        {"what": name, **{f"{p}, ms": round(t / 1000, 2) for p, t in percentiles(taken).items()}} for name, taken in times.items()
    ]
    ratios = sorted(read / split for split, read in zip(times[names[0]], times[names[1]], strict=True))
    return {
        "bench": "explain",
        "title": f"a dump of {services * PER_SERVICE + 2} rules",
        "headline": "reading a dump to splitting its lines into words",
        "ratio": round(ratios[len(ratios) // 2], 1),
        "measured": {"read_ms": rows[1]["p50, ms"], "explain_ms": rows[3]["p50, ms"]},
        "reference": {"split_ms": rows[0]["p50, ms"]},
        "rows": rows,
        "environment": environment(),
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--rounds", default=5, show_default=True, help="Dumps to read.")
@click.option("--count", default=20, show_default=True, help="Packets a dump.")
def main(*, as_json: bool, rounds: int, count: int) -> None:
    """What it costs to read a production node's rules, and to ask them."""
    report(run(rounds, count), as_json=as_json)


if __name__ == "__main__":
    main()
