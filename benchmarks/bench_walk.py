"""A packet's way through the rules: nanoseconds a rule, by this kernel's own; and what a connection's first packet costs.

The common form is kube-proxy's `-d VIP/32 -p tcp --dport N`, ten thousand of them, none of which matches; `ratio` is of it. The
kernel walks as many in the OUTPUT chain of a namespace of its own (which needs root): a datagram to loopback with them, less
one without. First packets meet the rule set of so many Services, and end at a pod.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count as numbers
from random import Random
from typing import Any

import click

from benchmarks import wires
from benchmarks.harness import CPUS, Child, Result, Round, answer, commands, environment, in_turn, percentiles, report, tell
from emu.netfilter.conntrack import Conntrack
from emu.netfilter.hooks import Hook
from emu.netfilter.memory import Memory
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.reader import read_rules
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.skb import Skb
from emu.netfilter.text import restore_text
from emu.netfilter.walk import walk
from emu.wire.addr import Ip

RULES = 10_000
SERVICES = 1_000
FORMS = {
    "-d VIP -p tcp --dport N": "-d 10.{a}.{b}.1/32 -p tcp -m tcp --dport {port} -j ACCEPT",
    "-d VIP": "-d 10.{a}.{b}.1/32 -j ACCEPT",
    "-s NETWORK -d NETWORK": "-s 10.{a}.{b}.0/24 -d 10.{b}.{a}.0/24 -j ACCEPT",
    "-p tcp --dport FROM:TO": "-p tcp -m tcp --dport {port}:{port_to} -j ACCEPT",
}
COMMON = next(iter(FORMS))
SYN = bytes.fromhex("45000028 00004000 40060000 0a630101 0a640101 9c400050 00000000 00000000 5002ffff 00000000")
"""10.99.1.1:40000 to 10.100.1.1:80, which no rule names."""


class Around:
    """The surroundings of a node that has only loopback."""

    def __init__(self) -> None:
        self.random: Callable[[], float] = Random(1).random
        self.choose: Callable[[int], int] = Random(1).randrange
        self.memory = Memory()

    def is_local(self, ip: Ip) -> bool:
        return ip[0] == 127

    def is_local_on(self, ip: Ip, device: str) -> bool:
        return device == "lo" and ip[0] == 127

    def is_broadcast(self, ip: Ip) -> bool:
        return False

    def masquerade_address(self, oif: str, dst: Ip) -> Ip | None:
        return None

    def hop(self, skb: Skb, where: str, rule: str | None = None, note: str | None = None, rules: int = 0) -> None:
        """Nothing is traced."""


def rules_of(form: str, chain: str = "OUTPUT") -> RuleSet:
    """So many rules of one form in a chain of the filter table; none of them matches `SYN`."""
    lines = (
        FORMS[form].format(a=1 + n // 5000, b=n // 40 % 125, port=1000 + n, port_to=1003 + n) for n in range(RULES)
    )  # fmt: skip
    text = "".join(f"-A {chain} {line}\n" for line in lines)
    return read_rules(f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{text}COMMIT\n")


def services_text() -> str:
    """The nat rules of so many Services with one endpoint each, as kube-proxy lays them out, and its filter jumps."""
    nat = [":PREROUTING ACCEPT", ":OUTPUT ACCEPT", ":POSTROUTING ACCEPT", ":KUBE-SERVICES -", ":KUBE-MARK-MASQ -", ":KUBE-POSTROUTING -"]
    rules = [
        "PREROUTING -j KUBE-SERVICES", "POSTROUTING -j KUBE-POSTROUTING", "KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    ]  # fmt: skip
    for n in range(SERVICES):
        vip, pod = f"10.96.{n >> 8}.{n & 255}", f"10.244.{n >> 8}.{n & 255}"
        match = f"-d {vip}/32 -p tcp -m tcp --dport 80"
        nat += [f":KUBE-SVC-{n} -", f":KUBE-SEP-{n} -"]
        rules += [
            f"KUBE-SERVICES {match} -j KUBE-SVC-{n}", f"KUBE-SVC-{n} ! -s 10.0.0.0/8 {match} -j KUBE-MARK-MASQ",
            f"KUBE-SVC-{n} -j KUBE-SEP-{n}", f"KUBE-SEP-{n} -s {pod}/32 -j KUBE-MARK-MASQ",
            f"KUBE-SEP-{n} -p tcp -m tcp -j DNAT --to-destination {pod}:8080",
        ]  # fmt: skip
    forward = "*filter\n:FORWARD ACCEPT\n-A FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
    return forward + "\n".join(("*nat", *nat, *(f"-A {rule}" for rule in rules), "COMMIT", ""))


# ---- what is measured: each yields functions that take one step ------------------------------------------------------------------


def packets(vip: bytes = SYN[16:20]) -> Iterator[Skb]:
    """First packets, each with a source of its own."""
    data = bytearray(SYN)
    data[16:20] = vip
    for number in numbers():
        data[14:16], data[20:22] = (number >> 16 & 0xFFFF).to_bytes(2, "big"), (number & 0xFFFF).to_bytes(2, "big")
        skb = Skb.parse(bytes(data))
        assert isinstance(skb, Skb)
        skb.iif, skb.oif = "eth0", "cni0"
        yield skb


def walking(form: str) -> Callable[[], Callable[[], object]]:
    table, around, stream = rules_of(form).tables["filter"], Around(), packets()

    def prepare() -> Callable[[], object]:
        skb = next(stream)
        return lambda: walk(table, "OUTPUT", skb, around)

    return prepare


def tracking(*, known: bool) -> Callable[[], Callable[[], object]]:
    """A packet of a new connection enters the table; a packet of a known one is found in it."""
    table, stream, now = Conntrack(max_entries=1 << 20), packets(), 0.0

    def enter(skb: Skb) -> None:
        table.ingress(skb, now)
        table.confirm(skb, now)

    def prepare() -> Callable[[], object]:
        skb = next(stream)
        if known:
            enter(skb)
            again = Skb.parse(bytes(skb.buf))
            assert isinstance(again, Skb)
            return lambda: table.ingress(again, now)
        return lambda: enter(skb)

    return prepare


def first_packet(number: int) -> Callable[[], Callable[[], object]]:
    """PREROUTING, FORWARD and POSTROUTING for a first packet to Service `number` of all."""
    netfilter = Netfilter(Around())
    netfilter.swap(read_rules(services_text()))
    stream = packets(bytes((10, 96, number >> 8, number & 255)))

    def prepare() -> Callable[[], object]:
        skb = next(stream)
        return lambda: [netfilter.run(hook, skb, 0.0) for hook in (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING)]

    return prepare


STEPS: dict[str, Callable[[], Callable[[], Callable[[], object]]]] = {
    **{form: partial(walking, form) for form in FORMS},
    "a connection enters the table": partial(tracking, known=False),
    "a packet's connection is found": partial(tracking, known=True),
    f"first packet to the first of {SERVICES} Services": partial(first_packet, 0),
    f"first packet to the last of {SERVICES} Services": partial(first_packet, SERVICES - 1),
}


def _ours(orders: int, out: int) -> None:
    made = {name: make() for name, make in STEPS.items()}
    for prepare in made.values():
        prepare()()
    os.write(out, b"+")
    for count, name in commands(orders):
        times: array[int] = array("Q")
        prepare = made[name.decode()]
        for _ in range(count):
            step = prepare()
            start = time.perf_counter_ns()
            step()
            times.append(time.perf_counter_ns() - start)
        answer(out, times)


def _kernel(orders: int, out: int) -> None:
    """The reference; it dies, and says why on standard error, where it may not have a namespace."""
    wires.unshare_network()
    wires.ip("link set lo up")
    rules = {b"with": restore_text(rules_of(COMMON)), b"without": "*filter\n:OUTPUT ACCEPT\nCOMMIT\n"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        sink.bind(("127.0.0.1", 0))
        source.connect(sink.getsockname())
        os.write(out, b"+")
        for count, which in commands(orders):
            subprocess.run(["iptables-restore"], input=rules[which], text=True, check=True, capture_output=True)
            times: array[int] = array("Q")
            for _ in range(count):
                start = time.perf_counter_ns()
                source.send(b"x")
                times.append(time.perf_counter_ns() - start)
            answer(out, times)


def run(repeats: int = 5, count: int = 200) -> Result:
    """Measure everything on one CPU, in turn."""
    with ExitStack() as stack:
        ours = stack.enter_context(Child(CPUS[0], _ours))
        rounds: dict[str, Round] = {name: partial(ours.round, command=name.encode()) for name in STEPS}
        try:
            kernel = stack.enter_context(Child(CPUS[0], _kernel))
            kernel.ready()
            rounds |= {which: partial(kernel.round, command=which.encode()) for which in ("with", "without")}
        except RuntimeError as error:
            tell(f"no kernel to compare with, which needs root and iptables-restore: {error}")
        ours.ready()
        times = {name: percentiles(taken) for name, taken in in_turn(rounds, repeats, count).items()}

    def a_rule(microseconds: float) -> float:
        return round(microseconds * 1000 / RULES, 1)

    rows: list[dict[str, Any]] = []
    for name in STEPS:
        per = "rule, ns" if name in FORMS else "packet, µs"
        rows.append({"what": name, "per": per, **{p: a_rule(t) if name in FORMS else t for p, t in times[name].items()}})
    measured = {"ns_a_rule": rows[0]["p50"]}
    reference: dict[str, float] = {}
    ratio: float | None = None
    if "with" in times:
        bare = times["without"]["p50"]
        rows.insert(1, {"what": f"the kernel, {COMMON}", "per": "rule, ns", **{p: a_rule(t - bare) for p, t in times["with"].items()}})
        reference = {"ns_a_rule": rows[1]["p50"]}
        ratio = round(measured["ns_a_rule"] / reference["ns_a_rule"], 2)
    return {
        "bench": "walk",
        "title": f"{RULES} rules that do not match, and first packets",
        "headline": "a rule of ours to one of this kernel's",
        "ratio": ratio,
        "measured": measured,
        "reference": reference,
        "rows": rows,
        "environment": environment(),
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--rounds", default=5, show_default=True, help="Rounds a row, taken in turn.")
@click.option("--count", default=200, show_default=True, help="Packets a round.")
def main(*, as_json: bool, rounds: int, count: int) -> None:
    """What rules and connection tracking cost a packet."""
    report(run(rounds, count), as_json=as_json)


if __name__ == "__main__":
    main()
