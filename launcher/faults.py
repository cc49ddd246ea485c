"""`podwire fault node|controller`: asked of the supervisor, who alone signals and starts processes, whatever else is broken.

Decides when a fault counts as come about: a process killed is gone and reaped, a paused one stands still, and one that was started
again does its work, which is a node being Ready in its new life, or the API answering.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from emu.bus.views import INCARNATION_ANNOTATION
from emu.errors import PodwireError
from launcher import control, rundir, startup
from launcher.client import Client
from launcher.rundir import RunDirectory

ANEW = ("started", "restarted")
PATIENCE = 30.0  # seconds for a process that was started again to do its work
POLL = 0.02


def node(cluster: str, name: str, state: str) -> dict[str, Any]:
    """Bring a node's process to one of `lives.FAULTS`; its life as JSON. PodwireError if it cannot be done, or does not come about."""
    run = rundir.find(cluster)
    life = control.ask(run, {"node": name, "state": state})
    if state in ANEW and control.ask(run, {"status": True})["controller"]["state"] == "running":
        _wait(run, lambda: _ready(run, life), f"{name} runs (pid {life['pid']}), but is not Ready")
    return life


def controller(cluster: str, state: str) -> dict[str, Any]:
    """The same for the controller; nodes go on forwarding without it."""
    run = rundir.find(cluster)
    life = control.ask(run, {"controller": state})
    if state in ANEW:
        _wait(run, lambda: _answers(run, life), f"the controller runs (pid {life['pid']}), but does not answer")
    return life


def _ready(run: RunDirectory, life: dict[str, Any]) -> bool:
    found = Client.of(run).get(startup.resource("nodes"), "", life["name"])
    now_is = (found["metadata"].get("annotations") or {}).get(INCARNATION_ANNOTATION)
    return now_is == str(life["incarnation"]) and startup.condition(found, "Ready")


def _answers(run: RunDirectory, life: dict[str, Any]) -> bool:
    now_is = control.ask(run, {"status": True})["controller"]
    if now_is["state"] == "dead" or now_is["pid"] != life["pid"]:
        raise StillDead(f"the controller died again ({now_is['last_exit']}): {startup.last_words(run, 'controller')}")
    listening = json.loads(run.api.read_text())
    if listening.get("pid") != life["pid"]:
        return False  # what its former life wrote
    Client.of(run).podwire("GET", "status")
    return True


class StillDead(PodwireError):
    """What was started ended again: nothing to wait for."""


def _wait(run: RunDirectory, condition: Callable[[], bool], otherwise: str) -> None:
    """Poll until it is so; what fails meanwhile is why it is not so yet."""
    deadline, trouble = time.monotonic() + PATIENCE, ""
    while True:
        try:
            if condition():
                return
            trouble = ""
        except StillDead:
            raise
        except (PodwireError, OSError, ValueError) as error:
            trouble = f": {error}"
        if time.monotonic() > deadline:
            raise PodwireError(f"{otherwise} after {PATIENCE:g} s{trouble}")
        time.sleep(POLL)
