"""Bringing a cluster up, and never leaving half of one behind.

`start` claims the run directory, writes the spec and execs the supervisor; the caller holds the *leash* until `release`.
However the caller ends before that (an error, Ctrl-C, SIGKILL), the supervisor sees the leash's end and takes all down.
Readiness is asked of the API, as any client would.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from emu.errors import PodwireError
from emu.model.cluster import ClusterSpec
from emu.model.kinds import Kind, kind_named
from launcher import control, rundir
from launcher.client import Client
from launcher.rundir import RunDirectory

POLL = 0.02  # seconds between two looks at what is not there yet
COURTESY, LONGEST_POLL = 8, 1.0  # times as long as a look took; who asks for everything must not keep it from happening
LAST_WORDS = 16 << 10  # bytes that a traceback may need
HOPELESS = 3  # deaths in a row after which a process is not waited for any more


class Starting:
    """A cluster on its leash."""

    def __init__(self, run: RunDirectory, spec: ClusterSpec, process: subprocess.Popen[bytes], leash: int) -> None:
        self.run, self.spec, self._process, self._leash = run, spec, process, leash

    def release(self) -> None:
        """Let the cluster live on without this process."""
        os.write(self._leash, b"1")
        os.close(self._leash)
        self._leash = -1
        self._process.returncode = 0  # it is nobody's child from here on; Popen would warn of it

    def take_down(self) -> None:
        """Pull the leash and wait until nothing is left. No error if it is gone already."""
        if self._leash >= 0:
            os.close(self._leash)
            self._leash = -1
            self._process.wait()
            self.run.alive()  # clears what a supervisor that crashed has left

    def client(self, deadline: float) -> Client:
        """A client, once the API listens."""
        self.wait(self.run.api.exists, deadline, "for the API", "controller")
        return Client.of(self.run)

    def wait(self, condition: Callable[[], object], deadline: float, what: str, *processes: str) -> None:
        """Poll until `condition`. PodwireError at `deadline` (monotonic), or as soon as one of `processes` keeps dying."""
        look_at = time.monotonic() + 0.5
        while True:
            began = time.monotonic()
            if condition():
                return
            looked = time.monotonic() - began
            if self._process.poll() is not None:
                raise PodwireError(f"the supervisor died: {last_words(self.run, 'supervisor') or f'status {self._process.returncode}'}")
            if time.monotonic() >= look_at:
                look_at += 0.5
                self.check_lives(processes)
            if time.monotonic() > deadline:
                raise PodwireError(f"timed out waiting {what}")
            time.sleep(min(max(POLL, COURTESY * looked), LONGEST_POLL))

    def check_lives(self, processes: tuple[str, ...]) -> None:
        try:
            status = control.ask(self.run, {"status": True})
        except PodwireError:  # on a busy machine it is still on its way; `wait` sees if it is dead
            return
        for life in (status["controller"], status["zygote"], *status["nodes"]):
            if life["deaths"] >= HOPELESS and (not processes or life["name"] in (*processes, "zygote")):
                words = last_words(self.run, life["name"])
                raise PodwireError(f"{life['name']} keeps dying ({life['last_exit']}): {words}")


def start(spec: ClusterSpec) -> Starting:
    """Exec a supervisor for the cluster. PodwireError if one of that name is up."""
    run = rundir.of(spec.name)
    spec = replace(spec, run_dir=os.fspath(run.path))
    run.check_lengths(node.name for node in spec.nodes)
    lock = run.claim()
    leash_read, leash = os.pipe()
    try:
        run.spec.write_text(spec.to_json())
        process = exec_supervisor(run, lock, leash_read)
    except BaseException as error:
        os.close(leash)
        run.remove()
        if isinstance(error, OSError):
            raise PodwireError(f"cannot begin in {run.path}: {error.strerror}; {rundir.ELSEWHERE}") from error
        raise
    finally:
        os.close(lock)
        os.close(leash_read)
    return Starting(run, spec, process, leash)


def exec_supervisor(run: RunDirectory, lock: int, leash: int) -> subprocess.Popen[bytes]:
    """A new session and a fresh interpreter, which finds this package wherever it is."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return subprocess.Popen(
        [sys.executable, "-m", "launcher.supervisor", os.fspath(run.path), str(lock), str(leash)], start_new_session=True,
        pass_fds=(lock, leash), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


@contextlib.contextmanager
def on_leash(spec: ClusterSpec) -> Iterator[Starting]:
    """A cluster for as long as the block runs, unless it is released in it."""
    starting = start(spec)
    try:
        yield starting
    finally:
        starting.take_down()


def last_words(run: RunDirectory, process: str) -> str:
    """The last line of a process's log, which is where Python puts what went wrong; on a full disk there may be none."""
    words = []
    with contextlib.suppress(OSError):
        words = [line for line in run.log(process).read_text(errors="replace").splitlines() if line.strip()][-1:]
    with contextlib.suppress(OSError):
        if run.room() < LAST_WORDS:
            words.append(f"(no space left in {run.path}, which may be why, and what else it said)")
    return " ".join(words)


# ---- readiness ----------------------------------------------------------------------------------------------------------


def resource(word: str) -> Kind:
    kind = kind_named(word)
    assert kind is not None
    return kind


def condition(obj: dict[str, Any], wanted: str) -> bool:
    """Is the condition of that type True?"""
    conditions = obj.get("status", {}).get("conditions") or ()
    return any(item["type"] == wanted and item["status"] == "True" for item in conditions)


def ready_nodes(client: Client) -> int:
    return sum(condition(node, "Ready") for node in client.list(resource("nodes")))


def unready(client: Client) -> list[str]:
    """What is not as its spec wants it: `deployment default/web 1 of 2 ready`, `pod default/p not ready`. A pod that is over is as
    it will be, however it ended."""
    lacking = []
    for word in ("deployments", "replicasets"):
        for obj in client.list(resource(word)):
            if any(owner.get("controller") for owner in obj["metadata"].get("ownerReferences", ())):
                continue  # its owner is looked at
            status, wanted = obj.get("status", {}), obj["spec"].get("replicas", 1)
            have = min(status.get("readyReplicas", 0), status.get("updatedReplicas", wanted))
            if have < wanted or status.get("observedGeneration", 0) < obj["metadata"].get("generation", 0):
                lacking.append(f"{obj['kind'].lower()} {obj['metadata']['namespace']}/{obj['metadata']['name']} {have} of {wanted} ready")
    for pod in client.list(resource("pods")):
        over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if not pod["metadata"].get("ownerReferences") and not condition(pod, "Ready") and not over:
            lacking.append(f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']} not ready")
    return lacking
