"""Whoever of a cluster is killed, at whatever moment: either all of it is gone at once, or all of it runs again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from emu.errors import PodwireError
from launcher import control, rundir, startup
from launcher.zygote import SOCKET_FD
from tests.kit.live import kill
from tests.kit.standins import all_running, own_run_dir, processes_of, spec, started, status, until

pytestmark = pytest.mark.cluster

GONE_AFTER = 2.0  # seconds
PARTS = ("pw-guard", "pw-supervisor", "pw-zygote", "pw-controller")


@pytest.fixture(autouse=True)
def run_dir(monkeypatch):
    with own_run_dir(monkeypatch) as path:
        yield path


def comm(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def parts(run_dir):
    """The processes above the nodes that are there now; one whose name is not set yet counts as the guard."""
    found = {}
    for pid in processes_of(run_dir):
        name = comm(pid)
        if name in PARTS or name.startswith("python"):
            found.setdefault(name if name in PARTS else "pw-guard", pid)
    return found


def kill_some(run_dir, chance):
    """SIGKILL to a few of them, but never to both guard and supervisor: then nobody is left to clear up. The names."""
    found = parts(run_dir)
    chosen = chance.sample(sorted(found), k=min(len(found), chance.choice((1, 1, 2, 3))))
    if {"pw-guard", "pw-supervisor"} <= set(chosen):
        chosen.remove("pw-guard")
    for name in chosen:
        kill(found[name])
    return chosen


def fatal(chosen):
    return "pw-guard" in chosen or "pw-supervisor" in chosen


def all_gone(run_dir, chosen):
    with contextlib.suppress(AssertionError):
        until(lambda: not processes_of(run_dir), seconds=GONE_AFTER)
    left = {comm(pid): Path(f"/proc/{pid}/status").read_text().splitlines()[2:7] for pid in processes_of(run_dir)}
    assert left == {}, f"left after the end of {chosen}"
    assert list(run_dir.iterdir()) == [], chosen


def check(run_dir, run, chosen, again):
    """All gone with files and sockets, or all at work again."""
    if fatal(chosen):
        all_gone(run_dir, chosen)
    else:
        until(lambda: all_running(run))
        again()


def during_up(run_dir, chance):
    starting = startup.start(spec(nodes=8))
    time.sleep(chance.uniform(0, 0.7))
    chosen = kill_some(run_dir, chance)
    if fatal(chosen):
        until(lambda: starting._process.poll() is not None, seconds=GONE_AFTER)  # as the waiting command notices
        starting.take_down()
        check(run_dir, starting.run, chosen, lambda: None)
    else:
        check(run_dir, starting.run, chosen, starting.take_down)


def during_faults(run_dir, chance):
    run = started(spec(nodes=4))
    over = threading.Event()

    def trouble():
        while not over.is_set():
            node, state = chance.choice(("node-1", "node-2")), chance.choice(("paused", "resumed", "killed", "started", "restarted"))
            with contextlib.suppress(PodwireError, OSError, ValueError):
                control.ask(run, {"node": node, "state": state}, timeout=3.0)

    thread = threading.Thread(target=trouble)
    thread.start()
    try:
        time.sleep(chance.uniform(0, 0.4))
        chosen = kill_some(run_dir, chance)
        if fatal(chosen):
            check(run_dir, run, chosen, lambda: None)
            return
    finally:
        over.set()
        thread.join()
    for node in ("node-1", "node-2"):  # whatever they were left in
        for state in ("resumed", "started"):
            with contextlib.suppress(PodwireError):
                control.ask(run, {"node": node, "state": state})
    check(run_dir, run, chosen, lambda: control.stop(run))


def during_down(run_dir, chance):
    run = started(spec(nodes=4))
    control.ask(run, {"node": "node-1", "state": "paused"})

    def stop():
        with contextlib.suppress(PodwireError, OSError, ValueError):
            control.stop(run)

    thread = threading.Thread(target=stop)
    thread.start()
    time.sleep(chance.uniform(0, 0.06))
    chosen = kill_some(run_dir, chance)
    all_gone(run_dir, chosen)
    thread.join()


@pytest.mark.parametrize("moment", [during_up, during_faults, during_down])
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 30))])
def test_a_kill_at_any_moment_leaves_all_or_nothing(run_dir, moment, seed):
    moment(run_dir, random.Random(seed))


def test_a_zygote_killed_while_nodes_are_paused_brings_all_of_them_back_running(run_dir):
    run = started(spec(nodes=3))
    control.ask(run, {"node": "node-2", "state": "paused"})
    os.kill(status(run)["zygote"]["pid"], signal.SIGKILL)
    until(lambda: all_running(run, incarnation=2))
    assert rundir.find("t").path == run.path
    control.stop(run)


PIDFD_GETFD = 438  # the system call's number on every architecture; Python has no name for it


def test_a_dead_zygote_whose_socket_somebody_still_holds_is_replaced(run_dir):
    """As a node does that was stopped in the instant it was forked, before it could close what it inherited."""
    run = started(spec(nodes=3))
    zygote = status(run)["zygote"]["pid"]
    pidfd = os.pidfd_open(zygote)
    held = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, SOCKET_FD, 0)
    os.close(pidfd)
    if held < 0:
        control.stop(run)
        pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    try:
        kill(zygote)
        until(lambda: all_running(run, incarnation=2))
        control.stop(run)
    finally:
        os.close(held)
