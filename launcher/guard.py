"""The guard: the supervisor's parent, which outlives it for as long as it takes to leave nothing behind.

It holds the run directory's lock together with the supervisor and does nothing while that lives. When it is dead, in whatever way,
the kernel kills controller and zygote, and with the zygote the nodes, paused ones included; as orphans they come to the guard (it
is the subreaper), which reaps the last of them, clears the directory and goes. So a name is free only when nobody of its former
cluster is left. Should the guard die first, its supervisor ends the cluster in order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType

from launcher.linux import adopt_orphans, name_process
from launcher.rundir import RunDirectory

GRACE = 0.5  # seconds for the kernel's signals to do their work before the guard helps along
LOOK = 0.002


def watch(run: RunDirectory, supervisor: int, lock: int) -> int:
    """Wait until the supervisor and all others are gone, and clear the directory; the supervisor's exit status."""
    name_process("pw-guard")

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(supervisor, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, forward)
    adopt_orphans()
    _, status = os.waitpid(supervisor, 0)
    outlast_orphans()
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.stat(run.path), os.fstat(lock)):  # else the supervisor has removed it, and another may have made it
            run.remove()
    return os.waitstatus_to_exitcode(status) & 0xFF


def outlast_orphans() -> None:
    """Reap until there is no child left, killing those that take too long."""
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid:
                continue
            if time.monotonic() > deadline:
                kill_children()
            time.sleep(LOOK)


def kill_children() -> None:
    """SIGKILL to every child of this process."""
    with contextlib.suppress(OSError):
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
