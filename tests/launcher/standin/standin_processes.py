"""Processes that do nothing but live, to try the launcher without a cluster: found by module name through PYTHONPATH."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path

from emu.model.cluster import ClusterSpec


def live(life_fd: int) -> None:
    """Until SIGTERM (whose default ends the process) or the end of the life pipe."""
    select.select([life_fd], [], [])
    assert os.read(life_fd, 1) == b""


def node(spec: ClusterSpec, name: str, incarnation: int, life_fd: int) -> None:
    Path(spec.run_dir, "n", f"{name}.{incarnation}.json").write_text(
        json.dumps({"pid": os.getpid(), "fds": sorted(os.listdir("/proc/self/fd"))})
    )
    live(life_fd)


def crashing_node(spec: ClusterSpec, name: str, incarnation: int, life_fd: int) -> None:
    if incarnation < 3:
        raise RuntimeError(f"{name} has no luck")
    node(spec, name, incarnation, life_fd)


def deaf_node(spec: ClusterSpec, name: str, incarnation: int, life_fd: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    node(spec, name, incarnation, -1) if life_fd < 0 else time.sleep(60)


def controller(spec: ClusterSpec, life_fd: int) -> None:
    Path(spec.run_dir, "api.json").write_text(json.dumps({"url": f"http://127.0.0.1:{spec.api_port or 7}"}))
    live(life_fd)


def hopeless_controller(spec: ClusterSpec, life_fd: int) -> None:
    sys.exit("no port is good enough")
