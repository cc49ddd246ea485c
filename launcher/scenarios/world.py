"""What a scenario runs on: a cluster in this process, or real processes. The same questions, by the same API, with the same answers.

Decides how one waits in either (a leap of the manual clock, or the wall clock) and how each kind of fault is carried out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from emu.api.podlinks import exec_in_pod
from emu.api.request import Deferred, Request, Response, refused
from emu.errors import ApiError, PodwireError
from emu.model.cluster import ClusterSpec
from launcher import control, execution, faults, startup
from launcher.client import Client, refusal
from launcher.inprocess import PATIENCE, InProcess

POLL = 0.02  # seconds between looks at a real cluster
EXEC_PATIENCE = 300.0  # seconds of the cluster's time for one command


class World(Protocol):
    """A cluster as a scenario's runner sees it."""

    client: Client

    def settle(self, besides: frozenset[str]) -> None:
        """Wait until controllers are idle and all running nodes but `besides` have applied what was written."""

    def advance(self, seconds: float) -> None:
        """Let time pass."""

    def until(self, met: Callable[[], bool], within: float) -> bool:
        """Let time pass until it is so; False if it is not within these seconds."""

    def execute(self, pod: tuple[str, str], container: str, command: list[str], stdin: str) -> tuple[int, str, str]:
        """Run a command in a pod: exit status, stdout, stderr."""

    def fault_node(self, node: str, state: str) -> None: ...
    def fault_controller(self, state: str) -> None: ...
    def close(self) -> None: ...


class InProcessClient(Client):
    """The API of a cluster in this process, without a socket."""

    def __init__(self, world: InProcess) -> None:
        super().__init__("memory://in-process")
        self._world = world

    def request(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, Any] | None = None, accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Any:  # fmt: skip
        world = self._world
        if not world.controller_runs:
            raise PodwireError("the controller is down")
        given = {key: value for key, value in (query or {}).items() if value not in (None, "")}
        asked = Request.of(method, path, body, accept=accept, content_type=content_type)
        asked = Request(asked.method, asked.path, asked.query + tuple(given.items()), asked.headers, asked.body)
        reply = world.api.handle(asked)
        if isinstance(reply, Deferred):
            try:
                reply = world.complete(reply.run(world.plane))
            except ApiError as error:
                reply = refused(error)
        if not isinstance(reply, Response):
            raise PodwireError(f"{method} {path}: a stream cannot be had this way")
        if reply.status >= 400:
            raise refusal(reply.status, reply.encoded())
        return reply.body


class InProcessWorld:
    """A `World` on the manual clock."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.cluster = InProcess(spec)
        self.client: Client = InProcessClient(self.cluster)

    def settle(self, besides: frozenset[str]) -> None:
        self.cluster.settle(besides=besides)

    def advance(self, seconds: float) -> None:
        self.cluster.advance(seconds)

    def until(self, met: Callable[[], bool], within: float) -> bool:
        end = self.cluster.clock.now() + within
        self.cluster.run()
        while not met():
            if self.cluster.clock.now() >= end:
                return False
            self.cluster.leap(end)
            self.cluster.run()
        return True

    def execute(self, pod: tuple[str, str], container: str, command: list[str], stdin: str) -> tuple[int, str, str]:
        namespace, name = pod
        found = self.client.get(startup.resource("pods"), namespace, name)
        query = (("command", word) for word in command)
        named = (("container", container),) if container else ()
        wanted = exec_in_pod(Request("GET", "", (*query, *named, *((("stdin", "true"),) if stdin else ()))), found)

        async def run() -> tuple[int, str, str]:
            out, status = {"stdout": b"", "stderr": b""}, 0
            stream = self.cluster.plane.stream(wanted.node, "exec", wanted.params)
            if stdin:
                await stream.send({"stdin": stdin.encode()})
                await stream.send({"stdin_eof": True})
            async for piece in stream:
                for name in out:
                    out[name] += piece.get(name) or b""
                status = piece.get("exit", status)
            return status, out["stdout"].decode(errors="replace"), out["stderr"].decode(errors="replace")

        return self.cluster.complete(run())

    def fault_node(self, node: str, state: str) -> None:
        self.cluster.fault(node, state)

    def fault_controller(self, state: str) -> None:
        if state not in ("killed", "restarted", "started"):
            raise PodwireError(f"controller: {state} is not emulated in one process; killed and restarted are")
        if state == "killed":
            self.cluster.kill_controller()
        else:
            self.cluster.restart_controller()

    def close(self) -> None:
        self.cluster.close()


class RealWorld:
    """A `World` of processes: brought up for the scenario and taken down after it, or one that is up already (`name`)."""

    def __init__(self, spec: ClusterSpec, *, name: str | None = None, patience: float = 120.0) -> None:
        from launcher import bringup, rundir
        from launcher.display.progress import Progress

        self._starting: startup.Starting | None = None
        if name is not None:
            self._run = rundir.find(name)
            self.client = Client.of(self._run)
            return
        self._starting = startup.start(spec)
        self._run = self._starting.run
        try:
            deadline = time.monotonic() + patience
            with Progress() as progress:
                self.client = self._starting.client(deadline)
                bringup.wait_nodes(self._starting, self.client, progress, deadline)
        except BaseException:
            self._starting.take_down()
            raise

    def settle(self, besides: frozenset[str]) -> None:
        if not self.until(lambda: self._settled(besides), PATIENCE):
            raise PodwireError(f"the cluster has not settled within {PATIENCE:g} s")

    def _settled(self, besides: frozenset[str]) -> bool:
        seen = control.ask(self._run, {"status": True})
        if seen["controller"]["state"] != "running":
            return True
        running = {node["name"] for node in seen["nodes"] if node["state"] == "running"} - besides
        told = self.client.podwire("GET", "status")
        return told["idle"] and all(
            node["behind"] == 0 and not node["pending"] for node in told["nodes"] if node["ready"] and node["name"] in running
        )

    def advance(self, seconds: float) -> None:
        time.sleep(seconds)

    def until(self, met: Callable[[], bool], within: float) -> bool:
        end = time.monotonic() + within
        while not met():
            if time.monotonic() >= end:
                return False
            time.sleep(POLL)
        return True

    def execute(self, pod: tuple[str, str], container: str, command: list[str], stdin: str) -> tuple[int, str, str]:
        if stdin:
            raise PodwireError("exec: stdin is given in one process only, so far")
        return execution.output(self.client, *pod, command, container=container)

    def fault_node(self, node: str, state: str) -> None:
        faults.node(self._run.name, node, state)

    def fault_controller(self, state: str) -> None:
        faults.controller(self._run.name, state)
        if state != "killed":
            self.client = Client.of(self._run)

    def close(self) -> None:
        if self._starting is not None:
            self._starting.take_down()
