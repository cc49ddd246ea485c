"""What all benchmarks share: processes on chosen CPUs, rounds in turn, percentiles, one shape of result.

Decides how to be fair: reference and measurement run in the same minutes on the same CPUs, round by round in turn, since CPU
placement and the neighbours of a virtual machine decide more than code does. Must not know what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Self

import psutil
import zmq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

CPUS = sorted(os.sched_getaffinity(0))
Result = dict[str, Any]
Round = Callable[[int], "array[int]"]
"""Runs so many round trips and returns their times in nanoseconds."""


def placements() -> dict[str, tuple[int, int]]:
    """Where the two ends run: "a CPU each" (if there are two), "one CPU"."""
    apart = {"a CPU each": (CPUS[0], CPUS[1])} if len(CPUS) > 1 else {}
    return {**apart, "one CPU": (CPUS[0], CPUS[0])}


class Child:
    """A forked process on one CPU, killed when the block ends. `body` gets two descriptors: commands to read, answers to write."""

    def __init__(self, cpu: int, body: Callable[[int, int], None]) -> None:
        commands, self.commands = os.pipe()
        self.answers, answers = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self.commands)
            os.close(self.answers)
            _live(cpu, lambda: body(commands, answers))
        os.close(commands)
        os.close(answers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.commands)
        os.close(self.answers)

    def ready(self) -> None:
        """Wait for the child's first byte; RuntimeError if it dies first (its traceback is on standard error)."""
        if os.read(self.answers, 1) != b"+":
            raise RuntimeError("a benchmark's process died while it started")

    def tell(self, command: bytes, count: int = 0) -> None:
        """Write one command, not waiting for an answer."""
        os.write(self.commands, f"{count} ".encode() + command + b"\n")

    def round(self, count: int, command: bytes = b"", answers: int | None = None) -> array[int]:
        """Let the child do `count` round trips of the kind that `command` names; so many numbers come back, else one for each."""
        self.tell(command, count)
        times: array[int] = array("Q")
        wanted = (count if answers is None else answers) * times.itemsize
        data = bytearray()
        while len(data) < wanted:
            piece = os.read(self.answers, wanted - len(data))
            if not piece:
                raise RuntimeError("a benchmark's process died at work")
            data += piece
        times.frombytes(bytes(data))
        return times


def _live(cpu: int, body: Callable[[], None]) -> NoReturn:
    """Be the child: its CPU, its work, and no way back into the parent's code."""
    try:
        os.sched_setaffinity(0, {cpu})
        body()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def commands(fd: int) -> Any:
    """The commands that `Child.round` writes: (count, command), until the parent is gone."""
    with os.fdopen(fd, "rb", buffering=0) as lines:
        while line := lines.readline():
            count, _, command = line.strip().partition(b" ")
            yield int(count), command


def answer(fd: int, times: array[int]) -> None:
    """The child's answer to a round."""
    view = memoryview(times).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def in_turn(rounds: Mapping[str, Round], repeats: int, count: int) -> dict[str, array[int]]:
    """Every round `repeats` times, in turn, after one that warms up and is thrown away."""
    times: dict[str, array[int]] = {name: array("Q") for name in rounds}
    for repeat in range(repeats + 1):
        for name, run in rounds.items():
            got = run(count)
            if repeat:
                times[name].extend(got)
    return times


def percentiles(times: Sequence[int]) -> dict[str, float]:
    """p50, p90 and p99 in microseconds, of nanoseconds."""
    ordered = sorted(times)
    return {f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)] / 1000, 1) for p in (50, 90, 99)}


def environment(profile: str = "fast") -> dict[str, Any]:
    """What a number means nothing without."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = subprocess.run(
        ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, check=False
    )  # fmt: skip
    return {
        "revision": git.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpu": _cpu_model(), "cpus": len(CPUS), "memory_mib": psutil.virtual_memory().total >> 20, "kernel": platform.release(),
            "load": round(os.getloadavg()[0], 2),
        },
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "profile": profile,
    }  # fmt: skip


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        return next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())


def report(result: Result, *, as_json: bool) -> None:
    """The result on standard output: JSON, or a table of its rows under a headline."""
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    rows = result["rows"]
    table = Table(title=result["title"], title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        numbers = all(isinstance(row.get(column, 0), int | float | dict) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numbers else "left", no_wrap=numbers)
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    console.print(table)
    if result.get("ratio") is not None:
        console.print(f"[bold]{result['ratio']:g}[/bold] is the ratio of {result['headline']}", highlight=False)
    env = result["environment"]
    machine = env["machine"]
    about = f"{env['revision']}, Python {env['python']}, pyzmq {env['pyzmq']}, {machine['cpus']} × {machine['cpu']}, load {machine['load']}"
    console.print(about, style="dim", highlight=False)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(_number(number) for number in value.values())
    return _number(value) if isinstance(value, int | float) else str(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def tell(text: str) -> None:
    """Progress, on standard error, so that standard output is the result alone."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
