"""A whole cluster for a benchmark: brought up and asked by `podwire` itself, as a user would, and always taken down.

Decides how memory and idle time are read: USS from /proc/PID/smaps, CPU time from /proc/PID/schedstat, of every process that
the supervisor names. Must not know what is measured with it.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import psutil

import emu
import launcher
from launcher import control, rundir, startup
from launcher.client import Client


class Cluster:
    """A cluster of its own name, gone at the end of the block, whatever happens in it."""

    def __init__(self, purpose: str) -> None:
        self.name = f"bench-{purpose}-{os.getpid()}"
        for package in (emu, launcher):  # as pip does for what it installs: an editable tree may never have been compiled
            compileall.compile_dir(package.__path__[0], quiet=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if rundir.of(self.name).alive():
            control.stop(rundir.of(self.name))

    def podwire(self, *arguments: str, stdin: str | None = None) -> str:
        """Run one command on this cluster; what it printed. RuntimeError with its last words if it fails."""
        command = [sys.executable, "-m", "launcher", arguments[0], "--name", self.name, *arguments[1:]]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"podwire {' '.join(arguments[:2])}… exited with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout

    @property
    def client(self) -> Client:
        return Client.of(rundir.of(self.name))

    @property
    def directory(self) -> Path:
        """Where the cluster keeps its files while it is up."""
        return rundir.of(self.name).path

    def objects(self, resource: str) -> list[dict[str, Any]]:
        """All objects of a resource, as the API has them."""
        return self.client.list(startup.resource(resource))

    def processes(self) -> dict[str, list[int]]:
        """Process ids by role: supervisor, zygote, controller, nodes."""
        status = control.ask(rundir.of(self.name), {"status": True})
        return {
            "supervisor": [status["pid"]],
            "zygote": [status["zygote"]["pid"]],
            "controller": [status["controller"]["pid"]],
            "nodes": [node["pid"] for node in status["nodes"]],
        }

    def memory(self) -> dict[str, float]:
        """Private memory (USS) in MB (10**6 bytes): of each single process, and of all nodes their mean and largest."""
        uss = {role: [psutil.Process(pid).memory_full_info().uss / 1e6 for pid in pids] for role, pids in self.processes().items()}
        nodes = uss.pop("nodes")
        single = {role: round(sizes[0], 1) for role, sizes in uss.items()}
        return {"node_mean": round(sum(nodes) / len(nodes), 2), "node_max": round(max(nodes), 2), **single}

    def idle(self, seconds: float) -> dict[str, float]:
        """Per cent of one core that each role takes while nothing is asked of the cluster."""
        before, start = self._cpu_time(), time.monotonic()
        time.sleep(seconds)
        after, elapsed = self._cpu_time(), time.monotonic() - start
        shares = {role: round((after[role] - before[role]) / elapsed / 1e7, 2) for role in before}
        return {**shares, "all": round(sum(shares.values()), 2)}

    def _cpu_time(self) -> dict[str, int]:
        """Nanoseconds on a CPU so far, all threads of all processes of each role."""
        return {role: sum(_on_cpu(pid) for pid in pids) for role, pids in self.processes().items()}


def _on_cpu(pid: int) -> int:
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as stat:
            total += int(stat.read().split()[0])
    return total
