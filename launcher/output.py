"""Where a process writes what it has to say: its log file, as long as there is room.

A full disk must cost words, not lives: what cannot be written is dropped, and how much was is said once there is room again.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any


class Log(io.RawIOBase):
    """A descriptor whose writes never fail."""

    def __init__(self, fd: int) -> None:
        self._fd, self.lost = fd, 0

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all of it, or drop all that does not fit."""
        rest = bytes(data)
        if self.lost:
            rest = b"(%d bytes did not fit on the disk)\n" % self.lost + rest
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            self.lost = 0
        except OSError:  # ENOSPC, EDQUOT, EFBIG, EROFS, EIO: whatever it is, there is nowhere to complain to
            self.lost += len(rest)
        return len(data)


def open_log(path: Path) -> int:
    """A descriptor at the end of a log file, or of /dev/null if there is no room even for its name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except OSError:
        return os.open(os.devnull, flags)


def redirect_output(path: Path) -> None:
    """Send stdout and stderr to the end of a log file."""
    fd = open_log(path)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    outlast_full_disk()


def outlast_full_disk() -> None:
    """Let no write to stdout or stderr, wherever they lead, raise from here on."""
    sys.stdout = io.TextIOWrapper(Log(1), "utf-8", "backslashreplace", write_through=True)
    sys.stderr = io.TextIOWrapper(Log(2), "utf-8", "backslashreplace", write_through=True)
