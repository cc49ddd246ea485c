"""`podwire fault link|partition|heal|status`: faults on links through the API, as any client.

Decides when one counts as come about: when every node that is Ready and not standing still has heard of it.
"""

from __future__ import annotations

import time
from typing import Any

from emu.errors import PodwireError
from launcher import control, rundir
from launcher.client import Client
from launcher.rundir import RunDirectory

STREAM = "links"
PATIENCE = 10.0  # seconds for all nodes to have heard
POLL = 0.02


def make(cluster: str, spec: dict[str, Any]) -> dict[str, Any]:
    """Put a fault on links, and wait until nodes heed it; the fault as the API has it. ApiError if it is refused."""
    run = rundir.find(cluster)
    client = Client.of(run)
    made = client.podwire("POST", "faults", spec)
    _heard(run, client)
    return made


def heal(cluster: str, what: str | None) -> dict[str, Any]:
    """End the fault of that name, those of that link, or (None) all; what they were."""
    run = rundir.find(cluster)
    client = Client.of(run)
    if what is not None and "->" not in what:
        ended = client.podwire("DELETE", f"faults/{what}")
    else:
        ended = client.podwire("DELETE", "faults", None, **({"link": what} if what else {}))
        if what and not ended["items"]:
            raise PodwireError(f"there is no fault on the link {what} (see podwire fault status)")
    _heard(run, client)
    return ended


def broken(cluster: str) -> dict[str, Any]:
    """All that is not as it should be: `faults` on links, `processes` that do not run, `problem` of the API."""
    run = rundir.find(cluster)
    seen = control.ask(run, {"status": True})
    lives = [{"name": "controller", **seen["controller"]}, *seen["nodes"]]
    processes = [{"name": life["name"], "state": life["state"]} for life in lives if life["state"] != "running"]
    try:
        client = Client.of(run)
        client.timeout = 5.0
        return {"faults": client.podwire("GET", "faults")["items"], "processes": processes, "problem": None}
    except PodwireError as error:
        return {"faults": [], "processes": processes, "problem": str(error)}


def _heard(run: RunDirectory, client: Client) -> None:
    """Wait until what has been published is what each node that runs says it has applied."""
    deadline = time.monotonic() + PATIENCE
    while True:
        still = {life["name"] for life in control.ask(run, {"status": True})["nodes"] if life["state"] != "running"}
        told = client.podwire("GET", "status")
        wanted = told["published"].get(STREAM, 0)
        deaf = [n["name"] for n in told["nodes"] if n["ready"] and n["name"] not in still and n["applied"].get(STREAM, -1) < wanted]
        if not deaf and not told["publishing"]:
            return
        if time.monotonic() > deadline:
            raise PodwireError(f"it is kept, but after {PATIENCE:g} s these nodes have not heard of it: {', '.join(deaf[:5])}")
        time.sleep(POLL)
