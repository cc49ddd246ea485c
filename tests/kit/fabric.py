"""Many nodes in one process: machines on the memory carrier with a manual clock. Deterministic, and as fast as the stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emu.clock import ManualClock
from emu.cni.plugin import NodeAddress
from emu.model.links import Fault, read_fault
from emu.model.objects import ZONE_LABEL
from emu.node.machine import Machine
from emu.overlay.memory import MemoryNetwork
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.syncer import Proxy
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import Waiter
from emu.trace import Hop
from emu.wire.addr import Network, parse_ip

POD_NETWORK = Network.parse("10.244.0.0/16")


class FabricKernel:
    """The `pod.kernel.Kernel` of a single-threaded test: to wait is to let the fabric run until something happens."""

    def __init__(self, fabric: Fabric, machine: Machine) -> None:
        self._fabric, self._machine = fabric, machine

    def enter(self) -> float:
        self._machine.softnet.now = self._fabric.clock.now()
        return self._machine.softnet.now

    def leave(self) -> None:
        self._fabric.settle(self._machine)

    def wait(self, waiter: Waiter, deadline: float | None) -> bool:
        while not waiter.ready:
            self._fabric.run()
            if waiter.ready:
                break
            horizon = self._fabric.horizon()
            if deadline is not None and deadline <= horizon:
                self._fabric.advance_to(deadline)
                break
            assert horizon != float("inf"), "everybody waits for ever"
            self._fabric.advance_to(horizon)
        self.enter()
        ready, waiter.ready = waiter.ready, False
        return ready

    def now(self) -> float:
        return self._fabric.clock.now()

    def spawn(self, name: str, run: object) -> None:
        raise NotImplementedError("a single-threaded test has no threads")


class Fabric:
    """`count` nodes named node-1 … with flannel between them, and the pods that `pod` makes. `zones` are theirs, in order."""

    def __init__(self, count: int = 2, *, seed: int = 0, zones: Sequence[str] = ()) -> None:
        self.clock = ManualClock()
        self.network = MemoryNetwork()
        self.machines: dict[str, Machine] = {}
        self._proxies: dict[str, Proxy] = {}
        self.faults: list[Fault] = []
        records = []
        for index in range(1, count + 1):
            name, ip, cidr = f"node-{index}", f"192.168.0.{index + 1}", f"10.244.{index}.0/24"
            carrier = self.network.carrier(name)
            me = NodeAddress(name, parse_ip(ip), Network.parse(cidr))
            self.machines[name] = Machine(me, carrier, incarnation=1, pod_network=POD_NETWORK, seed=seed, checks=True)
            records.append({"name": name, "ip": ip, "pod_cidr": cidr, "endpoint": name, "incarnation": 1, "ready": True})
            if zones:
                records[-1]["labels"] = {ZONE_LABEL: zones[index - 1]}
        self.records = records
        for machine in self.machines.values():
            machine.softnet.now = self.clock.now()
            machine.set_peers(records)

    def pod(self, node: int, name: str) -> NetNamespace:
        """A pod `default/NAME` on node number `node`."""
        machine = self.machines[f"node-{node}"]
        machine.softnet.now = self.clock.now()
        return machine.cni.add_pod(f"pod/default/{name}")

    def fault(self, **spec: Any) -> None:
        """One more fault on links, as a Scenario's step writes it: `link="node-1->node-2", delay="20ms"`."""
        self._set_faults([*self.faults, read_fault(spec, f"fault-{len(self.faults) + 1}", len(self.faults) + 1)])

    def heal(self) -> None:
        """All links are fair again."""
        self._set_faults([])

    def _set_faults(self, faults: list[Fault]) -> None:
        self.faults = faults
        for machine in self.machines.values():
            machine.softnet.now = self.clock.now()
            machine.set_faults(faults)

    def services(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Give every node's proxy these Services (values of the broadcast's `services` stream), and swap its rules in."""
        config = ProxyConfig.parse("iptables", cluster_cidr=str(POD_NETWORK))
        for name, machine in self.machines.items():
            proxy = self._proxies.setdefault(name, Proxy(config, NodeView(name, (machine.me.ip,), pod_cidrs=(machine.me.pod_cidr,))))
            proxy.on_snapshot(values, self.clock.now())
            result = proxy.sync(max(self.clock.now(), proxy.poll_at() or 0.0))
            if result is not None:
                machine.softnet.now = self.clock.now()
                machine.swap(result.ruleset)

    def kernel(self, node: int) -> FabricKernel:
        return FabricKernel(self, self.machines[f"node-{node}"])

    def settle(self, machine: Machine) -> None:
        """What `leave` does: drain the backlog and run due handlers."""
        softnet = machine.softnet
        softnet.now = self.clock.now()
        softnet.run()
        while softnet.due:
            sock = softnet.due.popleft()
            sock.event_queued = False
            if sock.on_event is not None:
                sock.on_event(sock)
            softnet.run()

    def run(self) -> None:
        """Let packets travel until none is under way; time stands still."""
        for machine in self.machines.values():
            self.settle(machine)
        busy = True
        while busy:
            busy = False
            for machine in self.machines.values():
                while (message := machine.carrier.recv_nowait()) is not None:
                    busy = True
                    machine.softnet.now = self.clock.now()
                    machine.underlay.receive_message(message)
                    self.settle(machine)

    def horizon(self) -> float:
        return min(machine.softnet.horizon for machine in self.machines.values())

    def advance_to(self, at: float) -> None:
        """Move the clock to `at`, stopping at every timer on the way."""
        self.run()
        while True:
            step = min(max(self.horizon(), self.clock.now()), at)
            self.clock.advance(step - self.clock.now())
            for machine in self.machines.values():
                machine.softnet.now = step
                machine.softnet.expire()
            self.run()
            if step >= at:
                return

    def advance(self, seconds: float) -> None:
        self.advance_to(self.clock.now() + seconds)

    def hops(self) -> list[Hop]:
        """All hops recorded so far, in order of time, then of node."""
        return [hop for machine in self.machines.values() for hop in machine.take_hops()]
