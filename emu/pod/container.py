"""A container: runs of a process, one after the other, as the kubelet makes them.

Decides state (waiting, running, terminated), restart by policy and back-off, and readiness: from its program's start, or once
it listens on its declared ports. Takes the time as a value and is polled; the pod (`runtime`) says when to stop.
See k8s.io/api/core/v1 ContainerStatus and pkg/kubelet/kuberuntime (doBackOff).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from emu.pod.output import Log
from emu.pod.process import SIGKILL_CODE, Process
from emu.pod.program import Program

ABANDON_AFTER = 1.0  # seconds between a kill and giving a thread up
INFINITY = float("inf")
PortList = frozenset[tuple[str, int]]  # ("TCP", 80)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between restarts: the first wait and the longest; the defaults are kubelet's backOffPeriod and MaxContainerBackOff."""

    first: float = 10.0
    longest: float = 300.0

    def after(self, crashes: int) -> float:
        """How long to wait after the `crashes`-th exit in a row: 0, 10, 20, 40 … 300."""
        return 0.0 if crashes <= 1 else min(self.longest, self.first * 2.0 ** min(crashes - 2, 20))

    @property
    def forget(self) -> float:
        """A run this long wipes the slate."""
        return 2 * self.longest


KUBELET_BACKOFF = Backoff()


def rfc3339(at: float) -> str:
    """Unix time as Kubernetes' metav1.Time."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True, slots=True)
class Launch:
    """How a container's image is run: a program made anew for each run, its arguments, and when it counts as ready."""

    program: Callable[[], Program]
    argv: tuple[str, ...] = ()
    ready_at_start: bool = True  # else once it listens on the declared ports: only a stranger's program needs watching
    stand_in: bool = False  # not the image itself, but something that answers in its place


class Images(Protocol):
    """What the pod runtime asks of the table of images and commands."""

    def launch(self, pod: Mapping[str, Any], container: Mapping[str, Any], *, init: bool) -> Launch:
        """How to run a container of a pod; never fails: what cannot be imported is a program that raises why."""

    def command(self, name: str) -> Program | None:
        """The program that `exec` finds under this name; None for none."""


MakeProcess = Callable[["Container", Launch, Program], Process]


class Container:
    """One container of a pod. Polled by its pod's owner only; its process reports by flags that `poll` reads."""

    def __init__(
        self, spec: Mapping[str, Any], policy: str, launch: Callable[[], Launch], make: MakeProcess, *, boot: float, epoch: float,
        backoff: Backoff = KUBELET_BACKOFF,
    ) -> None:  # fmt: skip
        self.spec, self.policy, self._backoff = spec, policy, backoff
        self.name: str = spec["name"]
        self._launch, self._make, self._boot, self._epoch = launch, make, boot, epoch
        self.launch: Launch | None = None
        self.process: Process | None = None
        self.listening: set[tuple[str, int]] = set()
        self.log, self.previous_log = Log(), Log()
        self.restarts = 0
        self.abandoned = 0
        self._crashes = 0
        self._state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        self._last_state: dict[str, Any] = {}
        self._started_at = 0.0
        self._start_at = INFINITY  # when the next run begins
        self._boot_at = INFINITY  # when the current run's program begins
        self._killed_at = INFINITY
        self._stopping = False
        declared = ((port.get("protocol") or "TCP", port["containerPort"]) for port in spec.get("ports") or ())
        self.declared: PortList = frozenset(port for port in declared if port[0] in {"TCP", "UDP"})

    # ---- orders ----------------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        self._start_at = now
        self.poll(now)

    def stop(self) -> None:
        """Ask the program to end; no run follows."""
        self._stopping, self._start_at = True, INFINITY
        if self.process is not None and self._boot_at == INFINITY:
            self.process.terminate()
        elif self.process is not None:
            self.process.finish(0)  # it had not begun

    def kill(self, now: float) -> None:
        if self.process is not None and not self.process.ended and self._killed_at == INFINITY:
            self._killed_at = now
            self.process.kill()

    # ---- time ------------------------------------------------------------------------------------------------------------------

    def poll(self, now: float) -> None:
        """Do what has become due, and notice what the process has done."""
        if self._start_at <= now:
            self._run(now)
        process = self.process
        if process is None:
            return
        if self._boot_at <= now:
            self._boot_at = INFINITY
            process.start()
        if not process.ended and self._killed_at + ABANDON_AFTER <= now and process.stuck_threads:
            self.abandoned += process.stuck_threads
            process.abandon()
            self._exited(process.exit_code or SIGKILL_CODE, now)
        elif process.ended:
            self._exited(process.exit_code or 0, now)

    def poll_at(self) -> float:
        """When `poll` has something to do by itself."""
        return min(self._start_at, self._boot_at, self._killed_at + ABANDON_AFTER)

    def _run(self, now: float) -> None:
        self._start_at, self._killed_at = INFINITY, INFINITY
        self.launch = self._launch()
        if self._state.get("terminated") or self._last_state:
            self.restarts += 1
            self.previous_log, self.log = self.log, Log()
        self.listening = set()
        self.process = self._make(self, self.launch, self.launch.program())
        self._started_at, self._boot_at = now, now + self._boot
        self._state = {"running": {"startedAt": rfc3339(now + self._epoch)}}

    def _exited(self, code: int, now: float) -> None:
        self.process, self._boot_at, self._killed_at = None, INFINITY, INFINITY
        self.log.finish(now + self._epoch)
        ended = {
            "exitCode": code, "reason": "Completed" if code == 0 else "Error",
            "startedAt": rfc3339(self._started_at + self._epoch), "finishedAt": rfc3339(now + self._epoch),
        }  # fmt: skip
        if self._stopping or self.policy == "Never" or (self.policy == "OnFailure" and code == 0):
            self._state = {"terminated": ended}
            return
        self._crashes = 1 if now - self._started_at >= self._backoff.forget else self._crashes + 1
        delay = self._backoff.after(self._crashes)
        self._last_state = {"terminated": ended}
        self._start_at = now + delay
        if delay:
            message = f"back-off {_go_duration(delay)} restarting failed container={self.name}"
            self._state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
        else:
            self._run(now)
            self.poll(now)

    # ---- what others see -------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.process is not None and not self.process.ended

    @property
    def began(self) -> bool:
        """The program itself runs (booting is over)."""
        return self.running and self._boot_at == INFINITY

    @property
    def done(self) -> bool:
        """It has ended and will not run again."""
        return "terminated" in self._state

    @property
    def exit_code(self) -> int | None:
        return self._state["terminated"]["exitCode"] if self.done else None

    @property
    def ended(self) -> bool:
        """Nothing of it runs now."""
        return self.process is None

    @property
    def ready(self) -> bool:
        return self.began and self.launch is not None and (self.launch.ready_at_start or self.declared <= self.listening)

    def status(self, pod: str) -> dict[str, Any]:
        """A ContainerStatus; `pod` is name_namespace(uid), which the kubelet puts into its messages."""
        image = self.spec.get("image", "")
        state = self._state
        if "waiting" in state and "message" in state["waiting"]:
            state = {"waiting": {**state["waiting"], "message": f"{state['waiting']['message']} pod={pod}"}}
        return {
            "name": self.name, "image": image, "imageID": "", "state": state, "lastState": self._last_state, "ready": self.ready,
            "started": self.began, "restartCount": self.restarts,
        }  # fmt: skip


def _go_duration(seconds: float) -> str:
    """As Go prints a duration of whole milliseconds: 500ms, 2.5s, 10s, 1m20s, 5m0s."""
    if seconds < 1.0:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
