"""Captures on a fabric: what a node's `capture` method would send, gathered, and as a pcapng file."""

from __future__ import annotations

from typing import Any

from emu.node.capture import Capture
from emu.observe import pcapng
from emu.observe.pcapng import Counts
from emu.stack.namespace import NetNamespace
from tests.kit.fabric import Fabric


class Recording:
    """One capture of `params` in a namespace (the node's own by default), which the controller takes in at once."""

    def __init__(self, fabric: Fabric, node: int, ns: NetNamespace | None = None, *, taken: bool = True, **params: Any) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.taken, self.wakes = taken, 0
        machine = fabric.machines[f"node-{node}"]
        kernel = fabric.kernel(node)
        self.capture = Capture(machine, kernel, ns or machine.node, params, self._reply, self._wake)  # type: ignore[arg-type]
        self._fabric = fabric

    def _reply(self, body: dict[str, Any], last: bool) -> None:
        self.bodies.append(body)

    def _wake(self) -> None:
        self.wakes += 1

    def turn(self) -> None:
        """Let the node's control loop do what is due."""
        while not self.capture.over and self.capture.poll_at() == 0.0:
            self.capture.turn(self._fabric.clock.now())
            if self.taken:
                self.capture.input({"taken": 1})

    def stop(self) -> None:
        self.capture.input({"stop": True})
        self.turn()

    @property
    def devices(self) -> list[str]:
        return [name for body in self.bodies for _, name, _ in body.get("devices", ())]

    @property
    def packets(self) -> list[tuple[str, str, bytes]]:
        """(device, in or out, packet), in order."""
        self.turn()
        names = self.devices
        return [
            (names[number], {1: "in", 2: "out"}[way], data)
            for body in self.bodies
            for number, _, way, data, _, _ in body.get("packets", ())
        ]

    @property
    def counts(self) -> dict[str, Counts]:
        self.turn()
        return {self.devices[number]: Counts(*counts) for body in self.bodies for number, *counts in body.get("counts", ())}

    def file(self) -> bytes:
        """All of it as a pcapng file."""
        self.turn()
        blocks = [pcapng.section("test"), *(pcapng.interface(name, 1 << 18) for name in self.devices)]
        for body in self.bodies:
            blocks += [pcapng.packet(number, at, data, length, way) for number, at, way, data, length, _ in body.get("packets", ())]
        return b"".join(blocks)
