"""`podwire fault`: through the API, as any client; to the supervisor where the API itself is what is broken."""

from __future__ import annotations

from typing import Any

from emu.errors import ApiError, PodwireError
from launcher import control, rundir
from launcher.client import Client


def node(cluster: str, name: str, state: str) -> dict[str, Any]:
    """Bring a node's process to `killed`, `paused`, `resumed` or `started`. ApiError or PodwireError if it cannot be done."""
    run = rundir.find(cluster)
    try:
        return Client.of(run).podwire("POST", f"nodes/{name}/fault", {"state": state})
    except ApiError:
        raise
    except PodwireError:  # nobody listens: the controller is down, which must not save the nodes
        return control.ask(run, {"node": name, "state": state})


def controller(cluster: str, state: str) -> dict[str, Any]:
    """Kill or start the controller, who cannot be asked to do it himself."""
    return control.ask(rundir.find(cluster), {"controller": state})
