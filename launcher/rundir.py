"""Run directories: where a cluster keeps its sockets, store and logs, and how one tells whether it is alive.

A cluster is alive exactly as long as somebody holds the lock (flock(2)) on its directory: the command that makes it, from
then on its supervisor. The kernel drops the lock with the process, so a directory whose lock is free is a dead cluster's
leftover, which whoever comes next clears. A lock is good only if the path still names the locked inode.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from emu.errors import ConfigError, PodwireError
from emu.model.cluster import CLUSTER_NAME

LOOKERS = 0.2  # seconds that others may hold the lock without meaning to keep it
ROOM = 1 << 20  # bytes that must be free for a cluster to begin: its sockets, logs and an almost empty store
MAX_SOCKET_PATH = 107  # sockaddr_un.sun_path without its NUL


ELSEWHERE = "make room there, or set PODWIRE_RUN_DIR to another place"


class RunDirectory:
    """The paths of one cluster; `path` need not exist."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.spec = self.path / "cluster.json"
        self.api = self.path / "api.json"
        self.control = self.path / "supervisor.sock"
        self.logs = self.path / "log"

    def log(self, process: str) -> Path:
        """The log of `supervisor`, `zygote`, `controller` or a node."""
        return self.logs / f"{process}.log"

    def lock(self) -> int | None:
        """Take the lock of an existing directory: its descriptor, or None if another has it. FileNotFoundError if there is no directory."""
        while True:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            try:
                if os.path.samestat(os.stat(self.path), os.fstat(fd)):
                    return fd
            except FileNotFoundError:
                os.close(fd)
                raise
            os.close(fd)  # removed and made again in between

    def claim(self) -> int:
        """Make the directory, or clear a dead cluster's, and lock it. PodwireError if a cluster of that name is alive."""
        deadline = time.monotonic() + LOOKERS
        while True:
            owner_only(self.path.parent)
            try:
                with contextlib.suppress(FileExistsError):
                    self.path.mkdir(mode=0o700)
                fd = self.lock()
            except FileNotFoundError:
                continue  # its last owner has just removed it, or the last cluster the parent
            except OSError as error:
                raise PodwireError(f"cannot make {self.path}: {error.strerror}; {ELSEWHERE}") from error
            if fd is None and time.monotonic() < deadline:
                time.sleep(0.02)  # perhaps a command that looks whether it is alive, or clears it
                continue
            if fd is None:
                raise PodwireError(f"a cluster named {self.name!r} is up already (podwire down --name {self.name} ends it)")
            try:
                self._prepare()
            except BaseException:
                self.remove()
                os.close(fd)
                raise
            return fd

    def _prepare(self) -> None:
        """Empty the directory and lay it out. PodwireError if the disk has no room for a cluster."""
        try:
            empty(self.path)
            for part in (self.logs, self.path / "n"):
                part.mkdir()
            free = self.room()
        except OSError as error:
            raise PodwireError(f"cannot prepare {self.path}: {error.strerror}; {ELSEWHERE}") from error
        if free < ROOM:
            raise PodwireError(f"{self.path} has only {free >> 10} KiB free and a cluster needs {ROOM >> 10}; {ELSEWHERE}")

    def room(self) -> int:
        """Free bytes of its disk."""
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize

    def alive(self) -> bool:
        """Is the cluster up? What a dead one left is cleared."""
        try:
            fd = self.lock()
        except FileNotFoundError:
            return False
        if fd is None:
            return True
        self.remove()
        os.close(fd)
        return False

    def remove(self) -> None:
        """Remove the directory; for whoever holds the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.parent.rmdir()  # the last cluster takes the parent along; not empty otherwise

    def check_lengths(self, node_names: Iterator[str]) -> None:
        """ConfigError if a node's socket would not fit into a socket address."""
        longest = max((len(os.fsencode(self.path / "n" / f"{name}.data")), name) for name in node_names)
        if longest[0] > MAX_SOCKET_PATH:
            problem = f"socket paths below {self.path} would exceed {MAX_SOCKET_PATH} bytes; set PODWIRE_RUN_DIR to a shorter one"
            raise ConfigError(problem, where=longest[1])


def parent() -> Path:
    """Where this user's clusters are."""
    top = os.environ.get("PODWIRE_RUN_DIR") or os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - owned and checked below
    return Path(top).absolute() / f"podwire-{os.getuid()}"


def of(name: str) -> RunDirectory:
    """The directory of a name. ConfigError for what is none: it is cleared without asking, so it must not lead elsewhere."""
    if not CLUSTER_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a cluster: lower case letters, digits and -, at most 32", where="--name")
    return RunDirectory(parent() / name)


def all_alive() -> list[RunDirectory]:
    """The clusters that are up, by name; what dead ones left is cleared."""
    top = parent()
    names = sorted(os.listdir(top)) if top.is_dir() else []
    runs = [of(name) for name in names if CLUSTER_NAME.fullmatch(name)]
    return [run for run in runs if run.path.is_dir() and run.alive()]


def find(name: str) -> RunDirectory:
    """The run directory of a cluster that is up; PodwireError naming those that are."""
    run = of(name)
    if run.alive():
        return run
    others = ", ".join(other.name for other in all_alive())
    raise PodwireError(f"no cluster named {name!r} is up" + (f" (up: {others})" if others else "; start one with: podwire up"))


def owner_only(path: Path) -> None:
    """Make the directory for this user alone. PodwireError if somebody else made it: /tmp is everybody's."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise PodwireError(f"cannot make {path}: {error.strerror}; set PODWIRE_RUN_DIR to another place") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PodwireError(f"{path} is not a directory that only this user may write; set PODWIRE_RUN_DIR to another place")


def empty(path: Path) -> None:
    for entry in list(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
