"""Which process of a cluster shall run, and what follows from a death or a fault. Pure: events and the time in, effects out.

A process is named `zygote`, `controller` or `node/NAME`. One that dies by itself is started again, as the next incarnation,
after a wait that doubles with every death in a row; one that a fault killed stays down until a fault starts it. Knows no
process table, pipes or clock; the supervisor carries out the effects and reports what came of them.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from emu.errors import PodwireError

FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0  # seconds
HEALTHY_AFTER = 10.0  # seconds of life after which a death counts as the first


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

    @property
    def settled(self) -> bool:
        """Is what was last asked of it done?"""
        return self.state != State.STARTING and not (self.state == State.KILLED and self.pid)

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
        life.state = State.STARTING
        life.incarnation += 1
        return Start(life.name, life.incarnation)

    def started(self, name: str, pid: int, now: float) -> list[Effect]:
        life = self.by_name[name]
        life.state, life.pid, life.started_at = State.RUNNING, pid, now
        self.by_pid[pid] = life
        return [Signal(pid, signal.SIGKILL)] if self.stopping else []

    def exited(self, pid: int, status: int, now: float) -> Life | None:
        """A process ended with a wait status; its life, or None if it was none of ours."""
        life = self.by_pid.pop(pid, None)
        if life is None:
            return None
        life.pid, life.last_exit = None, how(status)
        if life.state != State.KILLED:
            self._died(life, now)
        return life

    def not_started(self, name: str, why: str, now: float) -> None:
        """A start did not come about, as when the zygote died with the request."""
        life = self.by_name[name]
        life.last_exit = why
        self._died(life, now)

    def _died(self, life: Life, now: float) -> None:
        life.state = State.DEAD
        life.deaths += 1
        life.deaths_in_a_row = 1 if now - life.started_at >= HEALTHY_AFTER else life.deaths_in_a_row + 1
        life.not_before = now + min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (life.deaths_in_a_row - 1))

    def fault(self, name: str, state: str) -> list[Effect]:
        """Bring a process to `killed`, `paused`, `resumed` or `started`. PodwireError if it cannot be done from where it is."""
        life = self.by_name.get(name)
        shown = name.removeprefix("node/")
        if life is None:
            known = [name.removeprefix("node/") for name in self.by_name if name.startswith("node/")]
            raise PodwireError(f"there is no node {shown!r}; there are {known[0]} to {known[-1]}")
        match state, life.state:
            case "killed", State.RUNNING | State.PAUSED:
                life.state = State.KILLED
                return [Signal(self._pid(life), signal.SIGKILL)]
            case "killed", State.DEAD:
                life.state = State.KILLED
                return []
            case "paused", State.RUNNING:
                life.state = State.PAUSED
                return [Signal(self._pid(life), signal.SIGSTOP)]
            case "resumed", State.PAUSED:
                life.state = State.RUNNING
                return [Signal(self._pid(life), signal.SIGCONT)]
            case (("started" | "restarted"), State.KILLED | State.DEAD) if life.pid is None:
                return [self._start(life)]
            case (("killed" | "paused" | "resumed" | "started" | "restarted"), now_is):
                raise PodwireError(f"{shown} is {now_is} and cannot be {state}")
        raise PodwireError(f"{state!r} is no state to bring a process to; killed, paused, resumed and started are")

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

    def kill_all(self) -> list[Effect]:
        """End what did not heed `stop`."""
        return [Signal(life.pid, signal.SIGKILL) for life in self.by_name.values() if life.pid is not None and life.name != "zygote"]

    @property
    def remaining(self) -> int:
        """How many processes are left besides the zygote."""
        return sum(life.pid is not None or life.state == State.STARTING for life in self.by_name.values() if life.name != "zygote")


def how(status: int) -> str:
    """A wait status in words: `exit 1`, `SIGKILL`."""
    if status & 0x7F:
        number = status & 0x7F
        return signal.Signals(number).name if number in signal.valid_signals() and number < signal.SIGRTMIN else f"signal {number}"
    return f"exit {status >> 8}"
