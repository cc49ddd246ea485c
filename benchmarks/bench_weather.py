"""How long a hundred megabytes take from pod to pod over a link in trouble, by what they take in fair weather.

A row is a new pair of nodes whose links have the row's conditions both ways; the same bytes go over one TCP connection with
segmentation offload, and are compared at the other end. Seconds are from the first byte read to the last; `ratio` is fair weather's
median by the foul one's (loss, reordering and duplication at once). `lost`: segments that the sender's link lost.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import click

from benchmarks.harness import Child, Result, answer, commands, environment, placements, report, tell
from benchmarks.two_nodes import POD, PORT, Running, start_pod
from emu.errors import DropReason
from emu.model.links import read_fault
from emu.pod.program import Context

WEATHER: Mapping[str, Mapping[str, Any]] = {
    "fair": {},
    "loss 2%, reorder 1%, duplicate 1%": {"loss": 2, "reorder": 1, "duplicate": 1},
    "loss 2%": {"loss": 2},
    "reorder 1%": {"reorder": 1},
    "duplicate 1%": {"duplicate": 1},
    "delay 10ms": {"delay": "10ms"},
    "rate 200mbit": {"rate": "200mbit"},
}
BLOCK = os.urandom(1 << 20)
MEGABYTE = 10**6


def run(repeats: int = 3, megabytes: int = 100) -> Result:
    """Measure; `repeats` transfers a row, rows in turn."""
    cpus = next(iter(placements().values()))
    times: dict[str, list[tuple[float, int]]] = {name: [] for name in WEATHER}
    for _ in range(repeats):
        for name, conditions in WEATHER.items():
            tell(f"{name} …")
            times[name].append(_transfer(cpus, conditions, megabytes * MEGABYTE))
    fair = statistics.median(seconds for seconds, _ in times["fair"])
    rows = [_row(name, found, fair, megabytes) for name, found in times.items()]
    foul = rows[1]
    return {
        "bench": "weather",
        "title": f"{megabytes} MB of TCP between pods on two nodes over links in trouble (seconds)",
        "headline": f"fair weather to {foul['path']}",
        "ratio": foul["ratio"],
        "measured": {"p50": foul["seconds"]},
        "reference": {"p50": fair},
        "rows": rows,
        "environment": environment(),
    }


def _row(name: str, found: list[tuple[float, int]], fair: float, megabytes: int) -> dict[str, Any]:
    seconds = statistics.median(seconds for seconds, _ in found)
    return {
        "path": name,
        "seconds": round(seconds, 2),
        "slowest": round(max(seconds for seconds, _ in found), 2),
        "mb_s": round(megabytes / seconds, 1),
        "lost": round(statistics.median(lost for _, lost in found)),
        "ratio": round(fair / seconds, 3),
    }


def _transfer(cpus: tuple[int, int], conditions: Mapping[str, Any], size: int) -> tuple[float, int]:
    """Seconds, and segments lost. RuntimeError if other bytes arrive than were sent."""
    faults = [read_fault({"link": "*->*", **conditions}, "weather")] if conditions else []
    with tempfile.TemporaryDirectory(prefix="pw-") as directory, ExitStack() as stack:
        prefix = f"{directory}/"

        def reader(orders: int, out: int) -> None:
            start_pod(prefix, 2, lambda ctx: _read(ctx, out), faults).run()

        def sender(orders: int, out: int) -> None:
            nodes: list[Running] = []
            nodes.append(start_pod(prefix, 1, lambda ctx: _send(ctx, orders, out, nodes), faults))
            nodes[0].run()

        far = stack.enter_context(Child(cpus[1], reader))
        far.ready()
        near = stack.enter_context(Child(cpus[0], sender))
        near.ready()
        near.tell(b"send", size)
        nanoseconds, arrived, digest = far.round(0, b"read", 3)
        (lost,) = near.round(0, b"lost", 1)
    if (arrived, digest) != (size, _digest(size)):
        raise RuntimeError(f"{arrived} bytes arrived of {size}, or others than were sent")
    return nanoseconds / 1e9, lost


def _pieces(size: int) -> list[memoryview]:
    return [memoryview(BLOCK)[: min(len(BLOCK), size - start)] for start in range(0, size, len(BLOCK))]


def _digest(size: int) -> int:
    found = hashlib.blake2b(digest_size=8)
    for piece in _pieces(size):
        found.update(piece)
    return int.from_bytes(found.digest(), "big")


def _send(ctx: Context, orders: int, out: int, nodes: list[Running]) -> int:
    os.write(out, b"+")
    for size, command in commands(orders):
        if command == b"send":
            sock = ctx.create_connection(POD)
            for piece in _pieces(size):
                sock.sendall(piece)
            sock.close()
        else:
            answer(out, array("Q", [nodes[0].machine.node.drops[DropReason.LINK_LOSS]]))
    return 0


def _read(ctx: Context, out: int) -> int:
    listener = ctx.socket()
    listener.bind(("0.0.0.0", PORT))
    listener.listen()
    os.write(out, b"+")
    conn, _ = listener.accept()
    found, size, began = hashlib.blake2b(digest_size=8), 0, 0
    while chunk := conn.recv(1 << 20):
        began = began or time.perf_counter_ns()
        found.update(chunk)
        size += len(chunk)
    answer(out, array("Q", [time.perf_counter_ns() - began, size, int.from_bytes(found.digest(), "big")]))
    ctx.sleep(3600)
    return 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--rounds", default=3, show_default=True, help="Transfers a row, rows in turn.")
@click.option("--megabytes", default=100, show_default=True, help="Length of a transfer.")
def main(*, as_json: bool, rounds: int, megabytes: int) -> None:
    """A hundred megabytes over links in trouble, by fair weather."""
    report(run(rounds, megabytes), as_json=as_json)


if __name__ == "__main__":
    main()
