"""The controller process as the supervisor starts it: dies with the supervisor, keeps its port over restarts.

A new life of the controller listens where the former one did, so that clients and kubeconfig files stay right. Everything
else is emu.controller's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from urllib.parse import urlsplit

from emu.model.cluster import ClusterSpec
from launcher.linux import die_with_parent, name_process
from launcher.output import outlast_full_disk
from launcher.rundir import RunDirectory
from launcher.zygote import LIFE_FD, entry


def with_former_port(spec: ClusterSpec, run: RunDirectory) -> ClusterSpec:
    """The spec, with the port of a former life where any port would do."""
    if spec.api_port or not run.api.exists():
        return spec
    return replace(spec, api_port=urlsplit(json.loads(run.api.read_text())["url"]).port or 0)


def main(argv: list[str]) -> None:
    """`python -m launcher.controller_main RUN SUPERVISOR-PID`."""
    run, supervisor = RunDirectory(argv[1]), int(argv[2])
    die_with_parent(supervisor)
    outlast_full_disk()
    name_process("pw-controller")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(LIFE_FD, False)
    spec = with_former_port(ClusterSpec.from_json(run.spec.read_text()), run)
    entry(spec.controller_main)(spec, LIFE_FD)


if __name__ == "__main__":
    main(sys.argv)
