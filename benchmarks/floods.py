"""One process that sends as fast as it can, another that reads and counts: what `bench_pps` and `bench_stream` are made of.

Decides how a rate is taken. The sender sends from "go" to "stop"; the reader reads a while, then counts for so many milliseconds,
then reads on until nothing comes any more, so that no round finds the rest of the one before. Only what a program has read is
counted. Must not know what is sent: it is told by two functions, each of which does a handful at a time.
"""

from __future__ import annotations

import os
import select
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import zmq

from benchmarks.harness import Child, answer, commands

SILENCE = 0.1  # seconds without anything to read after which a round is over
WARM_UP = 0.05  # seconds of reading before the clock starts
Some = Callable[[], int]
"""Sends or reads a few, blocking; how much that was, in packets or bytes."""


class Rate(NamedTuple):
    """What one round came to: units (packets or bytes) read a second, units sent for each one read, CPU nanoseconds a unit."""

    rate: float
    sent: float
    sender_ns: float
    reader_ns: float


Round = Callable[[int], Rate]
"""Lets one pair of processes work for so many milliseconds."""


def send_on(orders: int, out: int, send: Some) -> None:
    """Be the sender, for as long as the parent lives. Answers "stop" with units sent and CPU nanoseconds used since "go"."""
    told = select.poll()
    told.register(orders, select.POLLIN)
    sent = used = 0
    for _, command in commands(orders):
        if command == b"go":
            sent, used = 0, time.process_time_ns()
            while not told.poll(0):
                sent += send()
            continue
        answer(out, array("Q", (sent, time.process_time_ns() - used)))


def read_on(orders: int, out: int, read: Some, drain: Callable[[], None]) -> None:
    """Be the reader. Answers with units read, nanoseconds taken and CPU nanoseconds used; then `drain`, which reads up to `SILENCE`."""
    for milliseconds, _ in commands(orders):
        answer(out, count(milliseconds, read))
        drain()
        os.write(out, b"+")


def count(milliseconds: int, read: Some) -> array[int]:
    """Read for so long and count, after having read a while."""
    now = time.perf_counter_ns
    warm = now() + int(WARM_UP * 1e9)
    read()
    while now() < warm:
        read()
    units, limit = 0, milliseconds * 1_000_000
    used, start = time.process_time_ns(), now()
    while now() - start < limit:
        units += read()
    return array("Q", (units, now() - start, time.process_time_ns() - used))


def pair(sender: Child, reader: Child) -> Round:
    """Two ready processes as one round."""

    def run(milliseconds: int) -> Rate:
        began = time.perf_counter_ns()
        sender.tell(b"go")
        units, took, read_ns = reader.round(milliseconds, answers=3)
        sent, sent_ns = sender.round(0, b"stop", answers=2)
        whole = time.perf_counter_ns() - began
        reader.ready()
        rate = units * 1e9 / took
        return Rate(rate, sent * 1e9 / whole / rate, sent_ns / max(sent, 1), read_ns / max(units, 1))

    return run


def bare(stack: ExitStack, directory: str, cpus: tuple[int, int], size: int, unit: int) -> Round:
    """Messages of `size` bytes, each worth `unit`, over a bare pyzmq PUSH and PULL: one part, copied, blocking, libzmq's own limits."""
    endpoint = f"ipc://{directory}/flood-{size}-{cpus[1]}"

    def read(orders: int, out: int) -> None:
        pull = zmq.Context().socket(zmq.PULL)
        pull.bind(endpoint)
        os.write(out, b"+")
        recv = pull.recv

        def some() -> int:
            for _ in range(64):
                recv()
            return 64 * unit

        def drain() -> None:
            pull.set(zmq.RCVTIMEO, int(SILENCE * 1000))
            try:
                while True:
                    recv()
            except zmq.Again:
                pull.set(zmq.RCVTIMEO, -1)

        read_on(orders, out, some, drain)

    def send(orders: int, out: int) -> None:
        push = zmq.Context().socket(zmq.PUSH)
        push.connect(endpoint)
        os.write(out, b"+")
        transmit, payload = push.send, bytes(size)

        def some() -> int:
            for _ in range(64):
                transmit(payload)
            return 64 * unit

        send_on(orders, out, some)

    return start(stack, cpus, send, read)


Body = Callable[[int, int], None]


def start(stack: ExitStack, cpus: tuple[int, int], send: Body, read: Body) -> Round:
    """The two processes: the sender on the first CPU, the reader, which is up before, on the second."""
    reader = stack.enter_context(Child(cpus[1], read))
    reader.ready()
    sender = stack.enter_context(Child(cpus[0], send))
    sender.ready()
    return pair(sender, reader)


def in_turn(rounds: Mapping[str, Round], repeats: int, milliseconds: int) -> dict[str, list[Rate]]:
    """Every round `repeats` times, in turn, after one that warms up and is thrown away."""
    rates: dict[str, list[Rate]] = {name: [] for name in rounds}
    for repeat in range(repeats + 1):
        for name, run in rounds.items():
            got = run(milliseconds)
            if repeat:
                rates[name].append(got)
    return rates


def row(path: str, measured: Sequence[Rate], reference: Sequence[Rate], scale: float, unit_ns: float) -> dict[str, Any]:
    """One line of a table: rates by `scale`, their ratios to the reference round by round, CPU time by `unit_ns`."""
    return {
        "path": path,
        "measured": spread([one.rate / scale for one in measured]),
        "reference": spread([other.rate / scale for other in reference]),
        "ratios": spread([one.rate / other.rate for one, other in zip(measured, reference, strict=True)]),
        "sent_to_read": spread([one.sent for one in measured])["p50"],
        "cpu": cpu(measured, unit_ns),
    }


def cpu(rates: Sequence[Rate], unit_ns: float) -> dict[str, float]:
    """What a unit costs each process, of all its threads, in medians."""
    sender, reader = ([getattr(one, end) / unit_ns for one in rates] for end in ("sender_ns", "reader_ns"))
    return {"sender": spread(sender)["p50"], "reader": spread(reader)["p50"]}


def spread(values: Sequence[float]) -> dict[str, float]:
    """p10, p50 and p90, to three digits or so."""
    ordered = sorted(values)
    return {f"p{p}": _rounded(ordered[min(len(ordered) - 1, len(ordered) * p // 100)]) for p in (10, 50, 90)}


def _rounded(value: float) -> float:
    return round(value, 3 if value < 10 else 1)
