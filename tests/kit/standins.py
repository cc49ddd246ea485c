"""Clusters of stand-in processes: started, looked at and counted; with the one thing their tests share, that nothing is left."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from emu.errors import PodwireError
from emu.model.cluster import ClusterSpec
from launcher import control, rundir, startup

STANDIN = Path(__file__).parents[1] / "launcher" / "standin"
PATIENCE = 10.0


def spec(name="t", nodes=2, node="node", controller="controller"):
    made = ClusterSpec.from_mapping({"name": name, "nodes": nodes})
    return replace(made, node_main=f"standin_processes:{node}", controller_main=f"standin_processes:{controller}")


def processes_of(path) -> list[int]:
    """Everything in /proc that mentions the directory; nodes carry the zygote's command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            zombie = entry.name.isdigit() and (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if entry.name.isdigit() and not zombie and str(path).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def status(run):
    return control.ask(run, {"status": True})


def all_running(run, incarnation=1):
    try:
        seen = status(run)
    except PodwireError:
        return False
    lives = [seen["controller"], seen["zygote"], *seen["nodes"]]
    return all(life["state"] == "running" for life in lives) and all(n["incarnation"] >= incarnation for n in seen["nodes"])


def life(run, name):
    return next(node for node in status(run)["nodes"] if node["name"] == name)


def started(made, incarnation=1):
    """A cluster off its leash, all of it running."""
    starting = startup.start(made)
    until(lambda: all_running(starting.run, incarnation) and starting.run.api.exists())
    starting.release()
    return starting.run


@contextlib.contextmanager
def own_run_dir(monkeypatch):
    """A short place of one test's own: socket paths are limited to 107 bytes."""
    path = tempfile.mkdtemp(prefix="pw-", dir="/tmp")
    monkeypatch.setenv("PODWIRE_RUN_DIR", path)
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))
    yield Path(path)
    for run in rundir.all_alive():  # of a test that failed half-way
        control.stop(run)
    assert processes_of(path) == []
    shutil.rmtree(path)
