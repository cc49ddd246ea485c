"""A whole cluster in this process: control plane, nodes and pods on memory carriers, one manual clock, no socket, no child process.

Wires the same parts as the controller's and the nodes' processes do, and drives them in a fixed order, so that a run repeats to
the packet. Time moves only when nothing is left to do at its present value: then it jumps to the next moment at which anybody
(a timer of a stack, a thread that sleeps, a lease, a coroutine of the control plane) has something to do.

Decides order and time, and what killing, pausing and starting a node mean here; what happens then is decided where it always is.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable
from typing import Any, TypeVar

from emu.api.handler import Api
from emu.bus.follower import Follower
from emu.bus.memory import MemoryBus, MemoryNodeLink
from emu.clock import ManualClock
from emu.control.pods import timestamp_of
from emu.controller.plane import ControlPlane
from emu.errors import ApiError, PodwireError
from emu.model.cluster import ClusterSpec, NodeSpec
from emu.node.agent import Agent
from emu.node.baton import Baton, BatonKernel
from emu.node.main import hello, make_machine
from emu.overlay.memory import MemoryNetwork
from emu.registry.bootstrap import bootstrap
from emu.registry.registry import Registry, RegistryConfig
from emu.stack.softnet import INFINITY
from emu.store.store import Store

EPOCH = 1_767_225_600  # 2026-01-01T00:00:00Z: when the clock of every run stands at zero
PATIENCE = 120.0  # seconds of the run's time that a settling cluster may take
MOST_TURNS = 100_000  # at one moment; more is a loop that feeds itself

T = TypeVar("T")


class InProcessNode:
    """One node: what a node's process holds, without the process."""

    def __init__(self, world: InProcess, me: NodeSpec, incarnation: int) -> None:
        self.name, self.incarnation = me.name, incarnation
        self._clock, self._bus = world.clock, world.bus
        carrier = world.network.carrier(f"memory://{me.name}/{incarnation}")
        self.machine = make_machine(world.spec, me, carrier, incarnation)
        self.kernel = BatonKernel(self.machine.softnet, world.baton)
        follower = Follower(hello(me, carrier.endpoint, incarnation))
        self._link: MemoryNodeLink = world.bus.connect(me.name, follower.streams)
        self.kernel.enter()
        self.agent = Agent(world.spec, me, self.machine, self.kernel, self._link, follower, epoch=float(EPOCH))

    def turn(self) -> bool:
        """Do what there is to do now; was there anything?"""
        busy = False
        if self._link.waiting or self.agent.next_at() <= self._clock.now():
            busy = True
            self.agent.look(0.0)
        while (message := self.machine.carrier.recv_nowait()) is not None:
            busy = True
            self.kernel.enter()
            self.machine.underlay.receive_message(message)
            self.kernel.leave()
        if self.machine.softnet.horizon <= self._clock.now():
            busy = True
            self.kernel.expire()
        return busy

    def next_at(self) -> float:
        return min(self.agent.next_at(), self.machine.softnet.horizon)

    def die(self) -> None:
        """As a process that is killed: nothing more is sent, and no program goes on."""
        self._bus.disconnect(self.name)
        self.machine.carrier.close()
        self.kernel.paused = False
        self.agent.kubelet.cut_off()


class _Plane(ControlPlane):
    """The control plane, whose supervisor is the world itself."""

    world: InProcess

    async def fault(self, node: str, state: str) -> dict[str, Any]:
        self.world.fault(node, state)
        return {"node": node, "state": state}


class _Selector(selectors.DefaultSelector):
    """What an event loop sleeps on: instead of sleeping, it lets the world run."""

    def __init__(self, world: InProcess) -> None:
        super().__init__()
        self._world = world

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if not self._world.run() and timeout != 0:
            self._world.leap(INFINITY if timeout is None else self._world.clock.now() + timeout)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    """An event loop on the world's clock."""

    def __init__(self, world: InProcess) -> None:
        self._world = world
        super().__init__(_Selector(world))

    def time(self) -> float:
        return self._world.clock.now()


class InProcess:
    """The world. `close` ends its programs."""

    def __init__(self, spec: ClusterSpec) -> None:
        self.spec = spec
        self.clock = ManualClock(0.0)
        self.baton = Baton(self.clock)
        self.network = MemoryNetwork()
        self.store = Store()
        self.bus = MemoryBus(self.store.revision)
        self.errors: list[str] = []
        self._start_controller()
        self.nodes: dict[str, InProcessNode] = {}
        self._lives = {node.name: 0 for node in spec.nodes}
        self.loop = _Loop(self)
        for node in spec.nodes:
            self._start(node.name)
        self.settle()

    def _start_controller(self) -> None:
        """A control plane's life, from what the store holds."""
        spec = self.spec
        self.registry = Registry(self.store, RegistryConfig.of(spec), self.timestamp)
        bootstrap(self.registry)
        self.plane = _Plane(spec, self.registry, self.bus, self.clock.now, on_error=self._on_error)
        self.plane.world = self
        self.api = Api(self.registry)
        self.controller_runs = True

    def timestamp(self) -> str:
        """Now, as Kubernetes writes it."""
        return timestamp_of(EPOCH + self.clock.now())

    def _on_error(self, controller: str, key: str, error: Exception) -> None:
        self.errors.append(f"{controller} {key}: {error}")

    # ---- time and order ----------------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Let everything happen that happens without time passing; did anything?"""
        for turns in range(MOST_TURNS):
            if not self._turn():
                return turns > 0
        raise PodwireError(f"the cluster does not come to rest at {self.clock.now():g} s")

    def _turn(self) -> bool:
        busy = False
        if self.controller_runs:
            busy = self.bus.waiting
            self.plane.receive()
            busy |= self.plane.turn() <= 0
        for node in [node for node in self.nodes.values() if not node.kernel.paused]:
            busy |= node.turn()
        return self.baton.run() or busy

    def next_at(self) -> float:
        """When something will be due although nothing happens before."""
        times = [node.next_at() for node in self.nodes.values() if not node.kernel.paused]
        if self.controller_runs:
            times.append(self.clock.now() + self.plane.turn())
        return min((*times, self.baton.next_at()))

    def leap(self, limit: float) -> None:
        """Move the clock to the next moment of interest, but not beyond `limit`."""
        at = min(limit, self.next_at())
        if at == INFINITY:
            raise PodwireError("everything waits, and nothing will ever come")
        self.clock.advance(max(0.0, at - self.clock.now()))

    def advance(self, seconds: float) -> None:
        """Let time pass, stopping wherever something happens."""
        end = self.clock.now() + seconds
        self.run()
        while self.clock.now() < end:
            self.leap(end)
            self.run()

    def settle(self, *, besides: frozenset[str] = frozenset()) -> None:
        """Let time pass until controllers are idle and every running node has applied what was published. PodwireError if that takes
        more than `PATIENCE` seconds. `besides` names nodes that are not waited for."""
        end = self.clock.now() + PATIENCE
        self.run()
        while not self._settled(besides):
            if self.clock.now() >= end:
                raise PodwireError(f"the cluster has not settled within {PATIENCE:g} s")
            self.leap(end)
            self.run()

    def _settled(self, besides: frozenset[str]) -> bool:
        if not self.controller_runs:
            return True
        published = self.plane.publisher.sequences
        running = [node for node in self.nodes.values() if not node.kernel.paused and node.name not in besides]
        return self.plane.idle and all(node.agent.up_to_date(published) for node in running)

    def complete(self, work: Awaitable[T]) -> T:
        """Run work of the control plane to its end, on the world's time."""

        async def run() -> T:
            return await work

        asyncio.set_event_loop(self.loop)
        return self.loop.run_until_complete(run())

    # ---- faults ------------------------------------------------------------------------------------------------------------------

    def _start(self, name: str) -> None:
        self._lives[name] += 1
        self.nodes[name] = InProcessNode(self, self.spec.node(name), self._lives[name])

    def fault(self, name: str, state: str) -> None:
        """Bring a node to `killed`, `paused`, `resumed`, `started` or `restarted`; ApiError 409 if that cannot be."""
        node = self.nodes.get(name)
        match state:
            case "killed" if node is not None:
                node.die()
                del self.nodes[name]
            case "started" if node is None:
                self._start(name)
            case "restarted" if node is not None:
                node.die()
                self._start(name)
            case "paused" | "resumed" if node is not None:
                node.kernel.paused = state == "paused"
            case _:
                is_now = "dead" if node is None else "paused" if node.kernel.paused else "running"
                raise ApiError(409, "Conflict", f"node {name} is {is_now} and cannot be {state}")

    def kill_controller(self) -> None:
        """Nothing is decided, stored or broadcast any more; nodes go on. ApiError 409 if it is dead."""
        if not self.controller_runs:
            raise ApiError(409, "Conflict", "the controller is dead already")
        self.controller_runs = False

    def restart_controller(self) -> None:
        """A new life from what the old one had written, killed first if it still runs."""
        self.store = self.store.reopened()
        self.bus.restart(self.store.revision)
        self._start_controller()

    def close(self) -> None:
        """End every program, then the loop."""
        for node in self.nodes.values():
            node.die()
        self.nodes.clear()
        self.baton.run()
        self.complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self.store.close()
