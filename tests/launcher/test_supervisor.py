"""Processes of a cluster over their whole life, with stand-ins for node and controller: started, broken, mended, gone without trace."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from emu.errors import ConfigError, PodwireError
from launcher import control, rundir, startup
from tests.kit.live import kill
from tests.kit.standins import STANDIN, all_running, life, own_run_dir, processes_of, spec, started, status, until

pytestmark = pytest.mark.cluster

PATIENCE = 10.0


@pytest.fixture(autouse=True)
def run_dir(monkeypatch):
    with own_run_dir(monkeypatch) as path:
        yield path


def test_down_leaves_no_process_and_no_file(run_dir):
    run = started(spec(nodes=5))
    assert len(processes_of(run_dir)) == 4 + 5  # guard, supervisor, controller, zygote and the nodes
    control.stop(run)
    assert list(run_dir.iterdir()) == []


def test_a_node_inherits_the_life_pipe_and_nothing_else():
    with startup.on_leash(spec(nodes=1)) as starting:
        told = starting.run.path / "n" / "node-1.1.json"
        until(lambda: told.exists() and told.read_text())
        listing = "4"  # the descriptor by which the node lists its own
        assert json.loads(told.read_text())["fds"] == ["0", "1", "2", "3", listing]


def victims(run):
    """The processes above the nodes, by name."""
    seen = status(run)
    return {"guard": seen["guard"], "supervisor": seen["pid"], "zygote": seen["zygote"]["pid"], "controller": seen["controller"]["pid"]}


@pytest.mark.parametrize("killed", ["supervisor", "supervisor zygote", "zygote supervisor", "supervisor controller zygote", "guard"])
def test_sigkill_of_whoever_is_above_the_nodes_leaves_no_process_no_socket_and_no_directory(run_dir, killed):
    """Paused nodes included: the kernel's death signal heeds no pause."""
    run = started(spec(nodes=3))
    control.ask(run, {"node": "node-2", "state": "paused"})
    pids = victims(run)
    if killed != "guard":
        os.kill(pids["supervisor"], signal.SIGSTOP)  # so that it restarts nothing in between
    for name in killed.split():
        kill(pids[name])
    until(lambda: not processes_of(run_dir), seconds=2)
    assert list(run_dir.iterdir()) == []


def test_when_all_of_them_are_killed_at_once_nodes_die_and_the_next_command_clears_the_directory(run_dir):
    run = started(spec(nodes=3))
    pids = victims(run)
    os.kill(pids["guard"], signal.SIGSTOP)
    os.kill(pids["supervisor"], signal.SIGSTOP)
    for pid in pids.values():
        kill(pid)
    until(lambda: not processes_of(run_dir), seconds=2)
    with pytest.raises(PodwireError, match="no cluster named 't' is up"):
        rundir.find("t")
    assert list(run_dir.iterdir()) == []


def test_a_name_is_free_only_when_nobody_of_its_former_cluster_is_left(run_dir):
    """The guard holds the lock until then: a new cluster never meets an old one's processes."""
    run = started(spec(nodes=20))
    old = set(processes_of(run_dir)) - {status(run)["guard"]}  # which gives the name up with its last breath
    os.kill(status(run)["pid"], signal.SIGKILL)
    again = None
    while again is None:
        with contextlib.suppress(PodwireError):
            again = startup.start(spec(nodes=1))
    assert not old & set(processes_of(run_dir))
    again.take_down()


def test_a_dead_clusters_leftovers_are_in_nobodys_way():
    run = rundir.of("t")
    run.path.mkdir(parents=True)
    (run.path / "store.db").write_text("of old")
    run.path.parent.chmod(0o700)
    again = started(spec())
    assert not (again.path / "store.db").exists()
    control.stop(again)


def test_kill_pause_resume_and_start_do_what_they_say():
    run = started(spec())
    pid = life(run, "node-1")["pid"]
    control.ask(run, {"node": "node-1", "state": "paused"})
    assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
    control.ask(run, {"node": "node-1", "state": "resumed"})
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING)
    control.ask(run, {"node": "node-1", "state": "killed"})
    assert not psutil.pid_exists(pid)
    time.sleep(0.3)
    assert life(run, "node-1")["pid"] is None  # it stays down
    told = control.ask(run, {"node": "node-1", "state": "started"})
    assert told["incarnation"] == 2
    assert psutil.pid_exists(told["pid"])
    again = control.ask(run, {"node": "node-1", "state": "restarted"})
    assert (again["incarnation"], again["deaths"], again["state"]) == (3, 0, "running")
    assert psutil.pid_exists(again["pid"])
    assert not psutil.pid_exists(told["pid"])
    assert life(run, "node-2")["incarnation"] == 1
    control.stop(run)


def test_a_node_that_crashes_is_started_again_and_its_traceback_is_in_its_log():
    run = started(spec(nodes=1, node="crashing_node"), incarnation=3)
    seen = life(run, "node-1")
    assert (seen["deaths"], seen["last_exit"]) == (2, "exit 1")
    assert run.log("node-1").read_text().count("RuntimeError: node-1 has no luck") == 2
    control.stop(run)


def test_a_zygote_that_dies_takes_its_nodes_along_and_all_come_back():
    run = started(spec(nodes=3))
    before = {node["pid"] for node in status(run)["nodes"]}
    os.kill(status(run)["zygote"]["pid"], signal.SIGKILL)
    until(lambda: all_running(run, incarnation=2))
    assert not any(psutil.pid_exists(pid) for pid in before)
    control.stop(run)


def test_a_controller_that_is_killed_by_a_fault_stays_down_and_comes_back_on_its_port():
    run = started(spec())
    url = run.api.read_text()
    control.ask(run, {"controller": "killed"})
    time.sleep(0.3)
    assert status(run)["controller"]["state"] == "killed"
    run.api.write_text('{"url": "http://127.0.0.1:4711"}')
    control.ask(run, {"controller": "started"})
    until(lambda: status(run)["controller"]["state"] == "running" and run.api.read_text() != url)
    assert json.loads(run.api.read_text())["url"].endswith(":4711")
    control.stop(run)


def test_a_controller_that_dies_by_itself_comes_back():
    run = started(spec())
    os.kill(status(run)["controller"]["pid"], signal.SIGKILL)
    until(lambda: status(run)["controller"]["incarnation"] == 2 and status(run)["controller"]["state"] == "running")
    control.stop(run)


def test_a_node_that_does_not_heed_sigterm_delays_down_by_no_more_than_the_grace(run_dir):
    run = started(spec(nodes=2, node="deaf_node"))
    time.sleep(0.1)  # until it is deaf
    began = time.monotonic()
    control.stop(run)
    assert time.monotonic() - began < 3
    assert list(run_dir.iterdir()) == []


def test_clusters_stand_side_by_side_by_name_and_a_name_is_taken_once():
    first, second = started(spec("one")), started(spec("two"))
    assert [run.name for run in rundir.all_alive()] == ["one", "two"]
    with pytest.raises(PodwireError, match="a cluster named 'one' is up already"):
        startup.start(spec("one"))
    control.stop(first)
    assert all_running(second)
    with pytest.raises(PodwireError, match=r"no cluster named 'one' is up \(up: two\)"):
        rundir.find("one")
    control.stop(second)


def test_a_command_that_is_killed_before_its_cluster_is_up_leaves_nothing(run_dir):
    program = (
        "import sys, time; from test_spec import made; from launcher import startup\n"
        "starting = startup.start(made); print('started', flush=True); time.sleep(60)"
    )
    (run_dir / "test_spec.py").write_text(
        "from dataclasses import replace\nfrom emu.model.cluster import ClusterSpec\n"
        f"made = ClusterSpec.from_json({spec(nodes=3).to_json()!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{run_dir}:{STANDIN}"}
    command = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    with command:
        assert command.stdout.readline() == b"started\n"
        until(lambda: all_running(rundir.of("t")))
        command.kill()
    until(lambda: not processes_of(run_dir / f"podwire-{os.getuid()}"), seconds=3)
    until(lambda: not rundir.of("t").path.exists(), seconds=1)


def test_a_controller_that_never_comes_up_fails_the_start_with_its_last_words(run_dir):
    with (
        pytest.raises(PodwireError, match=r"controller keeps dying \(exit 1\): no port is good enough"),
        startup.on_leash(spec(controller="hopeless_controller")) as starting,
    ):
        starting.client(time.monotonic() + PATIENCE)
    assert list(run_dir.iterdir()) == []


def test_a_supervisor_asked_for_nonsense_says_so_and_lives_on():
    run = started(spec())
    with pytest.raises(PodwireError, match="no such request"):
        control.ask(run, {"dance": True})
    with pytest.raises(PodwireError, match="there is no node 'x'"):
        control.ask(run, {"node": "x", "state": "killed"})
    assert all_running(run)
    control.stop(run)


def test_two_hundred_nodes_are_forked_by_one_zygote():
    run = started(spec(nodes=200))
    assert len({node["pid"] for node in status(run)["nodes"]}) == 200
    control.stop(run)


def test_a_run_directory_too_deep_for_sockets_is_refused(monkeypatch, run_dir):
    monkeypatch.setenv("PODWIRE_RUN_DIR", str(run_dir / ("x" * 100)))
    with pytest.raises(ConfigError, match="set PODWIRE_RUN_DIR to a shorter one"):
        startup.start(spec())


def test_a_parent_directory_that_others_may_write_is_refused(run_dir):
    parent = run_dir / f"podwire-{os.getuid()}"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(PodwireError, match="only this user may write"):
        startup.start(spec())
