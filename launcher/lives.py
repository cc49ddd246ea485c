"""Which process of a cluster shall run, and what follows from a death or a fault. Pure: events and the time in, effects out.

A process is named `zygote`, `controller` or `node/NAME`. One that dies by itself is started again, as the next incarnation,
after a wait that doubles with every death in a row; one that a fault killed stays down until a fault starts it. A fault may come
at any moment, also between a start's order and its coming about. Knows no process table, pipes or clock; the supervisor carries out
the effects and reports what came of them.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from typing import Any, NamedTuple

from emu.errors import PodwireError

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0  # seconds
HEALTHY_AFTER = 10.0  # seconds of life after which a death counts as the first


FAULTS = {  # what a fault may bring a process to, and from where
    "killed": "only what is not yet killed can",
    "paused": "only what is running can",
    "resumed": "only what is paused can",
    "started": "only what is killed or dead can",
    "restarted": "only what is not just starting can",
}


class State(StrEnum):
    """What a process is doing, as `status` prints it."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    KILLED = "killed"  # by a fault; stays down
    DEAD = "dead"  # by itself; starts again at `not_before`


class Start(NamedTuple):
    """Effect: start the process; report `started` or `exited`."""

    name: str
    incarnation: int


class Signal(NamedTuple):
    """Effect: send it a signal."""

    pid: int
    number: signal.Signals


Effect = Start | Signal


@dataclass(slots=True)
class Life:
    """One process over all its incarnations."""

    name: str
    incarnation: int = 0
    state: State = State.DEAD
    pid: int | None = None
    started_at: float = 0.0
    deaths: int = 0
    deaths_in_a_row: int = 0
    not_before: float = 0.0
    last_exit: str = ""
    ordered: bool = False  # a start that has neither come about nor failed
    wanted: bool = False  # a fault asked for its next life, which does not run yet

    @property
    def settled(self) -> bool:
        """Is what was last asked of it done?"""
        return not self.ordered and not self.wanted and not (self.state == State.KILLED and self.pid)

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name.removeprefix("node/"), "state": self.state, "pid": self.pid, "incarnation": self.incarnation,
            "deaths": self.deaths, "last_exit": self.last_exit,
        }  # fmt: skip


class Lives:
    """All processes of a cluster. Every method returns effects, in order."""

    def __init__(self, names: list[str]) -> None:
        self.by_name = {name: Life(name) for name in names}
        self.by_pid: dict[int, Life] = {}
        self.stopping = False

    def due(self, now: float) -> list[Effect]:
        """Start what shall run and does not."""
        return [self._start(life) for life in self.by_name.values() if self._waits(life) and life.not_before <= now]

    def next_due(self) -> float | None:
        """When `due` will have something to do; None if no death makes it so."""
        return min((life.not_before for life in self.by_name.values() if self._waits(life)), default=None)

    def _waits(self, life: Life) -> bool:
        return life.state == State.DEAD and not self.stopping

    def _start(self, life: Life) -> Start:
        life.state, life.ordered = State.STARTING, True
        life.incarnation += 1
        return Start(life.name, life.incarnation)

    def started(self, name: str, pid: int, now: float) -> list[Effect]:
        life = self.by_name[name]
        life.pid, life.started_at, life.ordered, life.wanted = pid, now, False, False
        self.by_pid[pid] = life
        if life.state == State.KILLED or self.stopping:  # while it was on its way
            return [Signal(pid, signal.SIGKILL)]
        life.state = State.RUNNING
        return []

    def exited(self, pid: int, status: int, now: float) -> Life | None:
        """A process ended with a wait status; its life, or None if it was none of ours."""
        life = self.by_pid.pop(pid, None)
        if life is None:
            return None
        life.pid, life.last_exit = None, how(status)
        if life.state != State.KILLED:
            self._died(life, now)
        elif life.wanted:
            life.state, life.not_before = State.DEAD, now
        return life

    def not_started(self, name: str, why: str, now: float) -> None:
        """A start did not come about, as when the zygote died with the request."""
        life = self.by_name[name]
        life.last_exit, life.ordered = why, False
        if life.state != State.KILLED:
            self._died(life, now)

    def _died(self, life: Life, now: float) -> None:
        life.state = State.DEAD
        life.deaths += 1
        life.deaths_in_a_row = 1 if now - life.started_at >= HEALTHY_AFTER else life.deaths_in_a_row + 1
        life.not_before = now + min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (life.deaths_in_a_row - 1))

    def fault(self, name: str, state: str) -> list[Effect]:
        """Bring a process to one of `FAULTS`. PodwireError if it cannot be done from where it is."""
        life = self.by_name.get(name)
        if life is None:
            raise PodwireError(self._stranger(name.removeprefix("node/")))
        if self.stopping:  # a start would be waited for, and there may be nobody left to carry it out
            raise PodwireError(f"{name.removeprefix('node/')} cannot be {state}: the cluster is going down")
        match state, life.state:
            case "killed", State.RUNNING | State.PAUSED:
                life.state = State.KILLED
                return [Signal(self._pid(life), signal.SIGKILL)]
            case "killed", State.DEAD | State.STARTING:
                life.state, life.wanted = State.KILLED, False
                return []
            case "paused", State.RUNNING:
                life.state = State.PAUSED
                return [Signal(self._pid(life), signal.SIGSTOP)]
            case "resumed", State.PAUSED:
                life.state = State.RUNNING
                return [Signal(self._pid(life), signal.SIGCONT)]
            case (("started" | "restarted"), State.KILLED | State.DEAD) if life.pid is None and not life.ordered:
                life.wanted = True
                return [self._start(life)]
            case "restarted", State.RUNNING | State.PAUSED:
                life.state, life.wanted = State.KILLED, True
                return [Signal(self._pid(life), signal.SIGKILL)]
        if state not in FAULTS:
            raise PodwireError(f"{state!r} is no state to bring a process to; {', '.join(FAULTS)} are")
        raise PodwireError(f"{name.removeprefix('node/')} is {life.state} and cannot be {state}: {FAULTS[state]}")

    def _stranger(self, shown: str) -> str:
        known = [name.removeprefix("node/") for name in self.by_name if name.startswith("node/")]
        near = get_close_matches(shown, known, n=1)
        return f"there is no node {shown!r}; " + (f"did you mean {near[0]}?" if near else f"there are {known[0]} to {known[-1]}")

    def _pid(self, life: Life) -> int:
        assert life.pid is not None
        return life.pid

    def stop(self) -> list[Effect]:
        """Ask everything but the zygote to end, and start nothing more."""
        self.stopping = True
        effects: list[Effect] = []
        for life in self.by_name.values():
            if life.pid is not None and life.name != "zygote":
                effects += [Signal(life.pid, signal.SIGTERM), Signal(life.pid, signal.SIGCONT)]  # a stopped one wakes to hear it
        return effects

    def withdraw(self, name: str) -> None:
        """A start was ordered and will not be carried out."""
        life = self.by_name[name]
        life.state, life.ordered, life.wanted = State.KILLED, False, False

    def kill_all(self) -> list[Effect]:
        """End what did not heed `stop`."""
        return [Signal(life.pid, signal.SIGKILL) for life in self.by_name.values() if life.pid is not None and life.name != "zygote"]

    @property
    def remaining(self) -> int:
        """How many processes are left besides the zygote."""
        return sum(life.pid is not None or life.ordered for life in self.by_name.values() if life.name != "zygote")


def how(status: int) -> str:
    """A wait status in words: `exit 1`, `SIGKILL`."""
    if status & 0x7F:
        number = status & 0x7F
        return signal.Signals(number).name if number in signal.valid_signals() and number < signal.SIGRTMIN else f"signal {number}"
    return f"exit {status >> 8}"
