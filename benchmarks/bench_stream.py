"""TCP bytes a second between pods on two nodes, with segmentation offload, by bare pyzmq's messages of 65,500 bytes.

A message is one part, copied on both sides, as pyzmq does by default; a CPU for each end. Rows: how much the program writes at
a time, by `sendall`, and how the other reads. A byte counts when the program has it. `cpu` is µs a megabyte of the sender's
process and of the reader's, all threads; `ratio` is the median of ratios taken round by round, of the first row.
"""

from __future__ import annotations

import gc
import os
import tempfile
from contextlib import ExitStack
from typing import Any

import click

from benchmarks import floods
from benchmarks.floods import SILENCE, Round, row
from benchmarks.harness import Result, environment, placements, report, tell
from benchmarks.two_nodes import PORT, SERVICE, start_pod
from emu.pod.program import Context

MESSAGE = 65_500
WRITE = 131_072  # iperf3's default
WAYS = ((WRITE, "recv"), (WRITE, "recv_into"), (MESSAGE, "recv"), (1 << 20, "recv"))
MEGABYTE = 1e6


def run(repeats: int = 8, milliseconds: int = 500) -> Result:
    """Measure; `repeats` rounds of so long a row, reference in turn with them."""
    gc.collect()
    gc.freeze()  # as the zygote does before it forks nodes
    with tempfile.TemporaryDirectory(prefix="pw-") as directory:
        name, cpus = next(iter(placements().items()))
        tell(f"{name} …")
        rows = _rows(cpus, directory, repeats, milliseconds)
    first = rows[0]
    return {
        "bench": "stream",
        "title": "TCP between pods on two nodes, by way of a ClusterIP (MB/s: p10 p50 p90)",
        "headline": f"{first['path']} to bare pyzmq, {name}",
        "ratio": first["ratios"]["p50"],
        "measured": first["measured"],
        "reference": first["reference"],
        "ratios": first["ratios"],
        "rows": rows,
        "environment": environment(),
    }


def _rows(cpus: tuple[int, int], directory: str, repeats: int, milliseconds: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        rounds: dict[str, Round] = {"bare": floods.bare(stack, directory, cpus, MESSAGE, MESSAGE)}
        rounds |= {f"{size:,} {read}": _pods(stack, f"{directory}/{index}-", cpus, size, read) for index, (size, read) in enumerate(WAYS)}
        rates = floods.in_turn(rounds, repeats, milliseconds)
    measured = [row(f"write {size:,}, {read}", rates[f"{size:,} {read}"], rates["bare"], MEGABYTE, 1e-3) for size, read in WAYS]
    return [*measured, row(f"bare pyzmq, {MESSAGE:,}", rates["bare"], rates["bare"], MEGABYTE, 1e-3)]


def _pods(stack: ExitStack, prefix: str, cpus: tuple[int, int], size: int, read: str) -> Round:
    """Two nodes, and in their pods one that writes `size` bytes at a time and one that reads."""

    def reader(orders: int, out: int) -> None:
        start_pod(prefix, 2, lambda ctx: _read(ctx, orders, out, size, read)).run()

    def sender(orders: int, out: int) -> None:
        start_pod(prefix, 1, lambda ctx: _send(ctx, orders, out, size)).run()

    return floods.start(stack, cpus, sender, reader)


def _send(ctx: Context, orders: int, out: int, size: int) -> int:
    sock = ctx.create_connection(SERVICE)
    payload = bytes(size)

    def some() -> int:
        sock.sendall(payload)
        return size

    os.write(out, b"+")
    floods.send_on(orders, out, some)
    return 0


def _read(ctx: Context, orders: int, out: int, size: int, how: str) -> int:
    listener = ctx.socket()
    listener.bind(("0.0.0.0", PORT))
    listener.listen()
    os.write(out, b"+")
    conn, _ = listener.accept()
    buffer = bytearray(size)

    def recv() -> int:
        return len(conn.recv(size))

    def recv_into() -> int:
        return conn.recv_into(buffer)

    def drain() -> None:
        conn.settimeout(SILENCE)
        try:
            while conn.recv(size):
                pass
        except TimeoutError:
            conn.settimeout(None)

    floods.read_on(orders, out, {"recv": recv, "recv_into": recv_into}[how], drain)
    return 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--rounds", default=8, show_default=True, help="Rounds a row, taken in turn.")
@click.option("--milliseconds", default=500, show_default=True, help="Length of a round.")
def main(*, as_json: bool, rounds: int, milliseconds: int) -> None:
    """TCP bytes a second between pods on two nodes, by bare pyzmq's."""
    report(run(rounds, milliseconds), as_json=as_json)


if __name__ == "__main__":
    main()
