"""The store when its disk is full, read-only, gone or damaged: writes are refused in words, nothing is half done, reads go on."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from emu.errors import ApiError, PodwireError
from emu.store.store import Change, Store


def item(name: str, size: int = 0) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default"}, "data": "x" * size}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    made = Store(str(path))
    made.create("configmaps", item("kept"))
    yield made
    made.close()


@contextmanager
def no_more_pages(store: Store) -> Iterator[None]:
    file = store._file.connection
    pages = file.execute("PRAGMA page_count").fetchone()[0]
    file.execute(f"PRAGMA max_page_count = {pages}")
    yield
    file.execute("PRAGMA max_page_count = 1073741823")


@contextmanager
def file_size_limit(store: Store) -> Iterator[None]:
    """RLIMIT_FSIZE, setrlimit(2): Python ignores SIGXFSZ, so that writes fail with EFBIG."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(store._file.path + "-wal").st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(store: Store) -> Iterator[None]:
    store._file.connection.execute("PRAGMA query_only = 1")
    yield
    store._file.connection.execute("PRAGMA query_only = 0")


@contextmanager
def locked(store: Store) -> Iterator[None]:
    other = sqlite3.connect(store._file.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._file.connection.execute("PRAGMA busy_timeout = 1")
    yield
    other.execute("ROLLBACK")
    other.close()


@contextmanager
def moved(store: Store) -> Iterator[None]:
    os.rename(store._file.path, store._file.path + ".away")
    yield
    os.rename(store._file.path + ".away", store._file.path)


@contextmanager
def log_removed(store: Store) -> Iterator[None]:
    os.rename(store._file.path + "-wal", store._file.path + ".away")
    yield
    os.rename(store._file.path + ".away", store._file.path + "-wal")


@contextmanager
def replaced(store: Store) -> Iterator[None]:
    with moved(store):
        Path(store._file.path).write_bytes(b"")
        yield
        os.unlink(store._file.path)


TROUBLES: dict[str, tuple[Callable[[Store], Any], int, str, str]] = {
    "full": (no_more_pages, 507, "InsufficientStorage", "cannot grow, its disk is full .*; free some space and ask again"),
    "file size limit": (file_size_limit, 500, "InternalError", "cannot be written .*; see to its disk and ask again"),
    "read-only": (read_only, 500, "InternalError", "it is read-only .*; make it writable and ask again"),
    "locked": (locked, 503, "ServiceUnavailable", "is locked by another program"),
    "removed": (moved, 500, "InternalError", "was removed or replaced while in use: .*podwire fault controller restart"),
    "log removed": (log_removed, 500, "InternalError", "was removed or replaced while in use"),
    "replaced": (replaced, 500, "InternalError", "was removed or replaced while in use"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_write_that_the_disk_refuses_is_refused_in_words_and_leaves_nothing(store: Store, path: Path, trouble: str) -> None:
    cause, code, reason, told = TROUBLES[trouble]
    seen: list[Change] = []
    store.subscribe(seen.extend)
    before = (store.revision, store.list("configmaps"))
    with cause(store):
        for _ in range(2):
            with pytest.raises(ApiError, match=told) as refused, store.transaction():
                store.update("configmaps", item("kept", 10))
                store.delete("configmaps", "default", "kept")
                store.create("configmaps", item("new", 100_000))
            assert (refused.value.code, refused.value.reason) == (code, reason)
            assert str(path) in refused.value.message
        assert (store.revision, store.list("configmaps")) == before
        assert seen == []
    store.check()
    store.create("configmaps", item("after", 100_000))  # once there is room again, all goes on
    assert [change.object["metadata"]["name"] for change in seen] == ["after"]
    store.check()
    again = Store(str(path))
    assert again.list("configmaps") == store.list("configmaps")
    again.close()


def damaged_header(path: Path) -> None:
    path.write_bytes(b"not a database at all, but long enough to be read as one" * 200)


def damaged_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def damaged_object(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("UPDATE objects SET object = '{\"metadata\"'")
    file.close()


def not_an_object(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("UPDATE objects SET object = '[]'")
    file.close()


def lost_revision(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("UPDATE revision SET number = 0")
    file.close()


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [damaged_header, damaged_page, cut, damaged_object, not_an_object, lost_revision, a_directory])
def test_a_damaged_file_is_named_with_what_to_do_about_it(path: Path, damage: Callable[[Path], None]) -> None:
    store = Store(str(path))
    for number in range(20):
        store.create("configmaps", item(f"c{number}", 1000))
    store.close()
    damage(path)
    with pytest.raises(PodwireError, match="put back a good copy") as refused:
        Store(str(path))
    assert str(refused.value).startswith(f"the store {path} cannot be read: ")


def test_a_killed_process_loses_nothing_that_it_was_told_is_there(path: Path) -> None:
    """What was acknowledged before SIGKILL, in the middle of a write as likely as not, is in the file."""
    program = (
        "import sys; from emu.store.store import Store; s = Store(sys.argv[1])\n"
        "for n in range(10**6):\n"
        "    s.create('configmaps', {'metadata': {'name': str(n)}, 'data': 'x' * (n * 37 % 3000)})\n"
        "    print(n, flush=True)\n"
    )
    for size in (1, 50, 400):
        shutil.rmtree(path.parent)
        path.parent.mkdir()
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(size)]
            writer.kill()
            acknowledged += [int(line) for line in writer.stdout.read().split(b"\n")[:-1]]
        store = Store(str(path))
        there = {int(obj["metadata"]["name"]) for obj in store.list("configmaps")[0]}
        assert there >= set(acknowledged)
        assert there == set(range(len(there)))
        assert len(there) - len(acknowledged) <= 1  # one may have been written and not yet told
        store.check()
        store.close()
