"""The few Linux calls that the standard library lacks: prctl(2), so that no process outlives the one that answers for it.

See PR_SET_PDEATHSIG(2const) and PR_SET_CHILD_SUBREAPER(2const). The parent's death signal is tied to the parent *thread*, hence
to be set by processes whose parent forks from its main thread, and it comes even to a stopped process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int | bytes) -> None:
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    if _libc.prctl(option, argument, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Be sent `number` when the parent dies; SystemExit if `parent` (a pid) is not the parent any more."""
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before the call: nothing would ever come
        raise SystemExit(1)


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent dies, so that they can be reaped."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def name_process(name: str) -> None:
    """What `ps -o comm` and `top` show; the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def raise_file_limit() -> None:
    """Allow as many descriptors as the machine lets us: a node needs one in the controller, a pair of nodes one in each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_stopped(pid: int | None) -> bool:
    """Does the process stand still (SIGSTOP), all of its threads? False if it is not there."""
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] not in "TtXZ":
                    return False
    except OSError:  # it, or one of its threads, has just gone
        return False
    return True
