"""A cluster at the edge of its disk, a small tmpfs of its own: full, or its store gone or damaged. Traffic and reads go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launcher import control, rundir
from tests.kit.live import NAME, RUN_DIR, curl, eventually, ip_of, manifests, netexec, pod, podwire, processes
from tests.kit.writers import CONFIGMAPS, TROUBLE, Watcher, ask

pytestmark = [pytest.mark.cluster, pytest.mark.kernel, pytest.mark.skipif(os.getuid() != 0, reason="mounting a tmpfs needs root")]

SIZE = 6 << 20
POD_STATUS = "/api/v1/namespaces/default/pods"


@contextmanager
def small_disk():
    path = tempfile.mkdtemp(prefix="pw-", dir="/tmp")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", path], check=True)
    os.environ[RUN_DIR], os.environ[NAME] = path, "edge"
    try:
        yield Path(path)
    finally:
        del os.environ[RUN_DIR], os.environ[NAME]
        subprocess.run(["umount", path], check=True)
        shutil.rmtree(path)


@contextmanager
def full(disk):
    """Not a byte is left."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, suppress(OSError):
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
    yield
    filler.unlink()


@pytest.fixture(scope="module")
def disk():
    with small_disk() as path:
        yield path


@pytest.fixture
def edge(disk):
    """(API, run directory): two pods on two nodes, taken down whatever the disk is like."""
    world = (pod("client", netexec(), node="node-1"), pod("server", netexec(), node="node-2"))
    podwire("up", "--nodes", "2", "-f", "-", stdin=manifests(*world))
    run = rundir.find("edge")
    yield json.loads(run.api.read_text())["url"], run
    podwire("down")
    assert [path for path in disk.iterdir() if path.name != "filler"] == []
    assert processes(str(disk)) == []


def write(where, name, size=200_000):
    return ask(where, "POST", CONFIGMAPS, {"metadata": {"name": name}, "data": {"a": "x" * size}})


def names(where):
    return [obj["metadata"]["name"] for obj in ask(where, "GET", CONFIGMAPS)[1]["items"]]


def test_on_a_full_disk_writes_fail_in_words_and_all_else_goes_on_until_there_is_room(edge, disk):
    where, run = edge
    assert write(where, "before")[0] == 201
    watcher = Watcher(where)
    watcher.start()
    to = ip_of("server")
    with full(disk):
        status, told = write(where, "never")
        assert (status, told["kind"], told["reason"]) == (507, "Status", "InsufficientStorage")
        assert f"the store {run.path}/store.db cannot grow, its disk is full" in told["message"]
        assert told["message"].endswith("nothing of the request was kept; free some space and ask again")
        assert names(where) == ["before"]
        assert curl("client", f"http://{to}:8080/hostname") == "server"
        os.kill(control.ask(run, {"status": True})["nodes"][1]["pid"], signal.SIGKILL)  # whose death cannot even be logged
        eventually(lambda: control.ask(run, {"status": True})["nodes"][1]["incarnation"] == 2)
        large = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "y" * 90_000}}
        assert "its disk is full" in podwire("apply", "-f", "-", stdin=manifests(large), status=1).stderr
    assert write(where, "after")[0] == 201
    eventually(lambda: sorted(watcher.seen) == sorted(names(where)))
    assert watcher.wrong == []
    watcher.over.set()
    eventually(lambda: curl("client", f"http://{ip_of('server')}:8080/hostname", "-m", "1", status=None) == "server")
    podwire("fault", "controller", "restart")
    assert "after" in names(where)


def test_a_controller_that_starts_on_a_full_disk_says_why_it_cannot_and_does_once_there_is_room(edge, disk):
    where, run = edge
    assert write(where, "kept", 1000)[0] == 201
    podwire("fault", "controller", "kill")
    with full(disk):
        done = podwire("fault", "controller", "start", status=None)
        if done.returncode:  # it may also do without room: then it serves what it has
            assert f"the controller died again (exit 1): (no space left in {run.path}" in done.stderr
        time.sleep(0.5)
        assert len(run.log("controller").read_text()) < 100_000
    eventually(lambda: "kept" in _names(where), 25)


def _names(where):
    try:
        return names(where)
    except TROUBLE:
        return []


def test_a_store_that_was_removed_refuses_writes_until_the_controller_begins_anew(edge):
    where, run = edge
    assert write(where, "lost", 10)[0] == 201
    for part in run.path.glob("store.db*"):
        part.unlink()
    status, told = write(where, "never", 10)
    assert (status, told["reason"]) == (500, "InternalError")
    assert "was removed or replaced while in use" in told["message"]
    assert "podwire fault controller restart" in told["message"]
    assert names(where) == ["lost"]  # reads go on
    podwire("fault", "controller", "restart")
    assert names(where) == []
    assert write(where, "new", 10)[0] == 201
    assert eventually(lambda: podwire("get", "nodes", "--no-headers").stdout.count(" Ready ") == 2)


def test_a_damaged_store_is_named_by_the_controller_that_cannot_start_and_put_right_by_a_good_copy(edge):
    where, run = edge
    assert write(where, "kept", 10)[0] == 201
    podwire("fault", "controller", "kill")
    store = run.path / "store.db"
    copies = {part: part.read_bytes() for part in run.path.glob("store.db*")}
    for part in copies:
        part.unlink()
    store.write_bytes(b"damaged" * 1000)
    told = podwire("fault", "controller", "start", status=1).stderr
    assert f"the store {store} cannot be read: file is not a database; put back a good copy, or remove it" in told
    told = podwire("status").stdout
    assert "controller died (exit 1): the store" in told
    assert "Traceback" not in run.log("controller").read_text()
    for part, content in copies.items():
        part.write_bytes(content)
    eventually(lambda: "kept" in _names(where), 25)


def test_up_without_room_says_so_and_leaves_nothing(disk):
    with full(disk):
        refused = podwire("up", "--nodes", "1", status=1)
        assert "KiB free and a cluster needs 1024; make room there, or set PODWIRE_RUN_DIR to another place" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert list(disk.iterdir()) == []
    assert processes(str(disk)) == []
