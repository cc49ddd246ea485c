"""Real network namespaces of this machine's kernel, to be asked what it would do. Needs root; makes, uses and removes its own only."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def missing(*programs: str) -> str:
    """Why kernel tests cannot run here; "" if they can."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    absent = [program for program in ("ip", *programs) if shutil.which(program) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def run(command: str, stdin: str | None = None) -> str:
    """Run one command; an AssertionError with its own words if it fails."""
    done = subprocess.run(command.split(), input=stdin, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, f"{command}: {done.stderr.strip()}"
    return done.stdout


@contextmanager
def namespaces(*names: str) -> Iterator[dict[str, str]]:
    """Namespaces for these short names: a mapping to the real, unique ones. They are gone afterwards, devices included."""
    real = {name: f"podwire-{os.getpid()}-{name}" for name in names}
    made = []
    try:
        for name in real.values():
            run(f"ip netns add {name}")
            made.append(name)
            run(f"ip -n {name} link set lo up")
        yield real
    finally:
        for name in made:
            run(f"ip netns del {name}")


def configure(netns: str, commands: Iterable[str]) -> None:
    """`ip` commands inside a namespace, in one process."""
    run(f"ip -n {netns} -batch -", stdin="\n".join(commands) + "\n")


def sysctl(netns: str, settings: dict[str, object]) -> None:
    for key, value in settings.items():
        run(f"ip netns exec {netns} sysctl -qw {key}={value}")


def inside(netns: str, make: Callable[[], T]) -> T:
    """What `make` returns when called inside the namespace: by a thread that enters it, for the caller, who does not."""
    made: list[T | OSError] = []

    def enter() -> None:
        try:
            with open(f"/var/run/netns/{netns}", "rb") as file:
                if _libc.setns(file.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), f"setns {netns}")
            made.append(make())
        except OSError as problem:
            made.append(problem)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, OSError):
        raise result
    return result


def socket_in(netns: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
    """A socket that lives in the namespace."""
    return inside(netns, lambda: socket.socket(family, kind, proto))
