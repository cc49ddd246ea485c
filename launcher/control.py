"""The supervisor's control socket from the outside: one question, one answer. See `supervisor` for the requests."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from typing import Any

from emu.errors import PodwireError
from launcher.rundir import RunDirectory

EXIT_PATIENCE = 5.0  # seconds between the supervisor's last word and its end


def ask(run: RunDirectory, request: dict[str, Any], *, timeout: float = 10.0) -> dict[str, Any]:
    """The supervisor's answer. PodwireError if it refuses, is not there, or stays silent for `timeout` seconds."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(run.control))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = connection.makefile("rb").readline()
    except TimeoutError:
        raise PodwireError(f"the supervisor of {run.name!r} does not answer") from None
    except OSError as error:
        raise PodwireError(f"the supervisor of {run.name!r} is not there: {error.strerror}") from error
    if not line:
        raise PodwireError(f"the supervisor of {run.name!r} went away")
    answer: dict[str, Any] = json.loads(line)
    if not answer.pop("ok"):
        raise PodwireError(answer["message"])
    return answer


def stop(run: RunDirectory) -> None:
    """End the cluster; returns when nothing of it is left, the supervisor and its guard included."""
    seen = ask(run, {"status": True})
    ends = []
    try:
        for pid in (seen["pid"], seen["guard"]):
            with contextlib.suppress(ProcessLookupError):  # the guard may have been killed, which ends the cluster too
                ends.append(os.pidfd_open(pid))
        ask(run, {"stop": True})
        deadline = time.monotonic() + EXIT_PATIENCE
        for end in ends:
            select.select([end], [], [], max(0.0, deadline - time.monotonic()))
    finally:
        for end in ends:
            os.close(end)
