"""Pods on one real node without processes: the machine on the memory carrier, real threads, and a clock that may run fast."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from emu.cni.plugin import NodeAddress
from emu.node.machine import Machine
from emu.overlay.memory import MemoryNetwork
from emu.pod.process import Process
from emu.pod.program import Context, PodInfo, Program
from emu.pod.runtime import PodRuntime
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import Waiter
from emu.stack.softnet import Softnet
from emu.wire.addr import Network, format_ip, parse_ip


class ThreadedKernel:
    """The plainest thing that satisfies `emu.pod.kernel.Kernel`: one lock; whoever waits also runs the timers.

    `speed` is how many of its seconds pass in one of ours.
    """

    def __init__(self, softnet: Softnet, speed: float = 1.0) -> None:
        self.softnet, self._speed = softnet, speed
        self._skipped = 0.0
        self._start = monotonic()
        self._changed = threading.Condition(threading.Lock())
        self._handling = False
        self.threads: list[threading.Thread] = []

    def now(self) -> float:
        return 1000.0 + self._skipped + (monotonic() - self._start) * self._speed

    def skip(self, seconds: float) -> None:
        """Let time pass at once."""
        self._skipped += seconds
        self.enter()
        self.leave()

    def enter(self) -> float:
        self._changed.acquire()
        self.softnet.now = self.now()
        return self.softnet.now

    def leave(self) -> None:
        self._settle()
        self._changed.release()

    def _settle(self) -> None:
        self.softnet.expire()
        self.softnet.run()
        self._changed.notify_all()
        if self._handling:
            return
        self._handling = True
        while self.softnet.due:
            sock = self.softnet.due.popleft()
            sock.event_queued = False
            if sock.on_event is not None:
                self._changed.release()
                try:
                    sock.on_event(sock)
                finally:
                    self._changed.acquire()
        self._handling = False

    def wait(self, waiter: Waiter, deadline: float | None) -> bool:
        while True:
            self._settle()
            self.softnet.now = now = self.now()
            if waiter.ready:
                return True
            if deadline is not None and deadline <= now:
                return False
            until = min(self.softnet.horizon, deadline if deadline is not None else now + 3600)
            self._changed.wait(min(3600.0, max(0.0, until - now) / self._speed))

    def spawn(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self.threads.append(thread)
        thread.start()


class Node:
    """node-1 with flannel; `pod` makes namespaces on it, `run` programs in them."""

    def __init__(self, speed: float = 1.0) -> None:
        me = NodeAddress("node-1", parse_ip("192.168.0.2"), Network.parse("10.244.1.0/24"))
        self.machine = Machine(me, MemoryNetwork().carrier("node-1"), 1, pod_network=Network.parse("10.244.0.0/16"), checks=True)
        self.kernel = ThreadedKernel(self.machine.softnet, speed)
        self.processes: list[Process] = []
        self.runtimes: list[PodRuntime] = []

    def pod(self, name: str) -> NetNamespace:
        self.kernel.enter()
        try:
            return self.machine.cni.add_pod(f"pod/default/{name}")
        finally:
            self.kernel.leave()

    def run(self, ns: NetNamespace, program: Program, *argv: str, **more: Any) -> Run:
        """Start a program in a pod's namespace."""
        return Run(self, ns, program, argv, more)

    def call(self, ns: NetNamespace, main: Callable[[Context], Any], *argv: str, **more: Any) -> Any:
        """Run blocking code in a pod to its end, and return what it returns (or raise what it raises)."""
        outcome: list[Any] = []

        def program(ctx: Context) -> int:
            try:
                outcome.append(main(ctx))
            except Exception as error:
                outcome.append(error)
            return 0

        self.run(ns, program, *argv, **more).join()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def close(self) -> None:
        for runtime in self.runtimes:
            runtime.stop(0)
        for process in self.processes:
            process.kill()
        for thread in self.kernel.threads:
            thread.join(2)
            assert not thread.is_alive(), f"{thread.name} outlived its kill"


class Run:
    """A running program, with its output so far."""

    def __init__(self, node: Node, ns: NetNamespace, program: Program, argv: tuple[str, ...], more: dict[str, Any]) -> None:
        self.out: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self.ports: set[tuple[str, int]] = set()
        self._exited = threading.Event()
        info = PodInfo(ns.name.rpartition("/")[2], "default", pod_ip(ns), "node-1")
        self.process = Process(
            node.kernel, ns, info, program, name=info.name, argv=argv, output=self._output,
            on_exit=lambda _: self._exited.set(), on_listen=lambda *port: self.ports.add(port), **more,
        )  # fmt: skip
        node.processes.append(self.process)
        self.process.start()

    def _output(self, stream: str, data: bytes) -> None:
        self.out[stream] += data

    def join(self, seconds: float = 5.0) -> int:
        """Wait for the program's end; its exit code."""
        assert self._exited.wait(seconds), f"{self.process.name} still runs: {self.out}"
        assert self.process.exit_code is not None
        return self.process.exit_code

    @property
    def stdout(self) -> str:
        return self.out["stdout"].decode()

    @property
    def stderr(self) -> str:
        return self.out["stderr"].decode()


def pod_ip(ns: NetNamespace) -> str:
    """A pod's own address."""
    return format_ip(ns.devices["eth0"].addresses[0][0])
