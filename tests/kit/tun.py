"""This machine's kernel as the other end of our packets, over a TUN device in a network namespace.

`Tun` is a bare device whose packets the test itself sends and takes; `Junction` joins machines of a fabric to the kernel, on real
time and without a thread: the test pumps. With `offload`, GSO packets cross whole and checksums are left to the kernel.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from emu.errors import DropReason
from emu.node.netns import open_tun
from emu.stack import tun
from emu.stack.namespace import NetNamespace
from emu.stack.route import Route
from emu.wire import checksum, virtio
from emu.wire.addr import Network, parse_ip
from tests.kit.fabric import POD_NETWORK, Fabric

DEVICE = "tun0"


class Tun:
    """`address` (with prefix length) is the kernel's; whatever else is in its network is ours."""

    def __init__(self, namespace: str, address: str, *, mtu: int, offload: bool, device: str = DEVICE) -> None:
        self.offload, self.device = offload, device
        self.longest_sent = self.longest_received = 0
        ip, _, length = address.partition("/")
        self.fd = open_tun(namespace, device, mtu=mtu, offload=offload, address=(parse_ip(ip), int(length)))

    def send(self, packet: bytes, gso_size: int) -> None:
        """Hand the kernel one packet of ours, whose checksum fields are zero."""
        self.longest_sent = max(self.longest_sent, len(packet))
        assert self.offload or not gso_size
        os.write(self.fd, virtio.emit(packet, gso_size) if self.offload else checksum.fill(packet))

    def receive(self) -> bytes | None:
        """The next IPv4 packet that the kernel sent, None if there is none."""
        while True:
            try:
                frame = os.read(self.fd, tun.LONGEST_FRAME)
            except BlockingIOError:
                return None
            packet = frame[virtio.HEADER.size :] if self.offload else frame
            if packet[0] >> 4 == 4:
                self.longest_received = max(self.longest_received, len(packet))
                assert not isinstance(virtio.parse(frame) if self.offload else checksum.accept(frame), DropReason)
                return packet

    def close(self) -> None:
        os.close(self.fd)


class Junction:
    """A fabric on the real clock, one of whose namespaces (the first node's, unless given) has a TUN device into `netns`."""

    def __init__(
        self, fabric: Fabric, netns: str, address: str = "172.31.0.1/24", *, ns: NetNamespace | None = None, offload: bool = True,
        mtu: int = 1500, device: str = "pw0", routes: tuple[Network, ...] = (POD_NETWORK,),
    ) -> None:  # fmt: skip
        self.fabric = fabric
        self.fabric.clock.advance(max(0.0, time.monotonic() - fabric.clock.now()))
        ip, _, length = address.partition("/")
        self.fd = open_tun(netns, device, mtu=mtu, offload=offload, address=(parse_ip(ip), int(length)), routes=routes)
        ns = ns or fabric.machines["node-1"].node
        self.machine = next(machine for machine in fabric.machines.values() if machine.softnet is ns.softnet)
        self.device = tun.Tun(ns, device, mtu, self._write, offload=offload)
        ns.add_device(self.device)
        ns.add_route(Route(Network.parse(address, strict=False), device))

    def _write(self, frame: bytes) -> DropReason | None:
        os.write(self.fd, frame)
        return None

    def turn(self, patience: float = 0.001) -> None:
        """Whatever can be done at once; if that is nothing, wait a moment for the kernel or a timer."""
        fabric = self.fabric
        wait = min(max(0.0, fabric.horizon() - time.monotonic()), patience)
        select.select([self.fd], [], [], wait)
        fabric.advance_to(max(fabric.clock.now(), time.monotonic()))
        while True:
            try:
                frame = os.read(self.fd, tun.LONGEST_FRAME)
            except BlockingIOError:
                break
            self.machine.softnet.now = fabric.clock.now()
            self.device.from_kernel(frame)
            fabric.run()

    def until(self, done: Callable[[], object], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "timed out"
            self.turn()

    def close(self) -> None:
        os.close(self.fd)
