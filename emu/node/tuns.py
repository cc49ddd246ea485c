"""The TUN devices of one node: which there are, what becomes of each, and the thread that reads what the kernel sends.

Decides what a device's two ends are given: the kernel's an address and routes to all that can be reached through it, ours a route
to the kernel's network. A device goes with its pod or its node; it keeps the kernel's namespace from going, as any open socket
would, but not from losing the device (`ip link del`). `add`, `remove`, `turn` and `listing` run on the control loop alone.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emu.errors import ApiError, DropReason, PodwireError
from emu.model.cluster import ClusterSpec
from emu.model.tun import TunSpec
from emu.node import netns
from emu.node.kernel import LeaderFollower
from emu.node.machine import Machine
from emu.pod.kernel import Kernel
from emu.stack.namespace import NetNamespace
from emu.stack.route import Route
from emu.stack.tun import LONGEST_FRAME, Tun
from emu.wire.addr import Network, format_ip

Body = dict[str, Any]

BATCH = 64  # frames in one entry into the stack: the lock's price is shared, and nobody waits for it longer than a millisecond or so

_REFUSED = {errno.EAGAIN: DropReason.QUEUE_FULL, errno.ENOBUFS: DropReason.QUEUE_FULL, errno.EINVAL: DropReason.MALFORMED}


class Port:
    """An open descriptor and the thread that reads it. `lost` says why there is nothing to read any more."""

    def __init__(self, fd: int, kernel: Kernel, on_lost: Callable[[], None]) -> None:
        self._fd, self._kernel, self._on_lost = fd, kernel, on_lost
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._open = True  # guarded by the kernel's lock
        self.lost = ""

    def write(self, frame: bytes) -> DropReason | None:
        """Hand the kernel a frame; under the node's lock."""
        if not self._open:
            return DropReason.DEVICE_DOWN
        try:
            os.write(self._fd, frame)
        except OSError as error:  # the device may be down, or gone with its namespace
            return _REFUSED.get(error.errno or 0, DropReason.DEVICE_DOWN)
        return None

    def start(self, device: Tun) -> None:
        threading.Thread(target=self._run, args=(device,), name=f"tun {device.name}", daemon=True).start()

    def close(self) -> None:
        """Stop reading; the thread closes the descriptor, and with it the kernel's device. Under the node's lock."""
        if self._open:
            self._open = False
            os.eventfd_write(self._stop, 1)

    def _run(self, device: Tun) -> None:
        """As with the kernel's spare thread: what leaves is a bug, and the process dies of it rather than stand still."""
        try:
            self._read(device)
            self._kernel.enter()
            self._open = False
            self._kernel.leave()
            os.close(self._fd)
            os.close(self._stop)
            if self.lost:
                self._on_lost()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    def _read(self, device: Tun) -> None:
        fd, kernel, from_kernel = self._fd, self._kernel, device.from_kernel
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while not any(ready == self._stop for ready, _ in poll.poll()):
            frames: list[bytes] = []
            try:
                while len(frames) < BATCH:
                    frames.append(os.read(fd, LONGEST_FRAME))
            except BlockingIOError:
                pass
            except OSError as error:
                self.lost = f"the kernel's end is gone ({error.strerror}): its network namespace or its device was deleted"
            kernel.enter()
            try:
                for frame in frames:
                    from_kernel(frame)
            finally:
                kernel.leave()
            if self.lost:
                return


@dataclass(slots=True)
class Entry:
    """A device that was asked for. `state` is "up", or says why it is not."""

    spec: TunSpec
    state: str
    device: Tun | None = None
    port: Port | None = None


class Tuns:
    """`namespace` finds a pod's namespace by pod/NAMESPACE/NAME; `wake` makes the control loop call `turn`, from any thread."""

    def __init__(
        self, cluster: ClusterSpec, machine: Machine, kernel: Kernel, namespace: Callable[[str], NetNamespace | None],
        wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self._machine, self._kernel, self._namespace, self._wake = machine, kernel, namespace, wake
        self._networks = tuple(Network.parse(cidr) for cidr in (cluster.pod_cidr, cluster.service_cidr, cluster.node_cidr))
        self._entries: dict[str, Entry] = {}

    def methods(self) -> dict[str, Callable[[int, Body], Body]]:
        """What the controller may call (`calls.Method`)."""
        return {
            "tun-add": lambda number, params: self.add(TunSpec.from_mapping(params)),
            "tun-restore": lambda number, params: self.restore(TunSpec.from_mapping(params)),
            "tun-remove": lambda number, params: self.remove(params["device"]),
            "tun-list": lambda number, params: {"items": self.listing()},
        }

    def add(self, spec: TunSpec) -> Body:
        """Make a device now; ApiError if that cannot be, and then nothing of it is there."""
        if not isinstance(self._kernel, LeaderFollower):
            raise ApiError(501, "NotImplemented", "a cluster in one process has a clock of its own, which no kernel keeps to")
        if spec.device in self._entries:
            raise ApiError(409, "AlreadyExists", f"node {self._machine.me.name} has a TUN device {spec.device} already")
        ns = self._home(spec)
        if ns is None:
            raise ApiError(404, "NotFound", f"pod {spec.pod} is not running on node {self._machine.me.name}")
        entry = Entry(spec, "")
        self._open(entry, ns)
        self._entries[spec.device] = entry
        return self._shown(entry)

    def restore(self, spec: TunSpec) -> Body:
        """Have the device that an earlier life of this node had; what cannot be had is told by its state."""
        entry = self._entries.get(spec.device)
        if entry is None or entry.spec != spec:
            if entry is not None:
                self._close(entry)
            entry = self._entries[spec.device] = Entry(spec, "waiting")
            self._try(entry)
        return self._shown(entry)

    def remove(self, name: str) -> Body:
        entry = self._entries.pop(name, None)
        if entry is None:
            raise ApiError(404, "NotFound", f"node {self._machine.me.name} has no TUN device {name}")
        self._close(entry)
        return self._shown(entry)

    def listing(self) -> list[Body]:
        return [self._shown(entry) for entry in self._entries.values()]

    def turn(self) -> None:
        """Look whether a pod or a namespace has gone, or a pod come that a device waits for."""
        for name, entry in list(self._entries.items()):
            if entry.state == "waiting":
                self._try(entry)
            elif entry.device is not None and entry.device.ns.closed:
                self._close(entry)
                del self._entries[name]
            elif entry.port is not None and entry.port.lost:
                entry.state = entry.port.lost
                self._close(entry)

    def close(self) -> None:
        for entry in self._entries.values():
            self._close(entry)
        self._entries.clear()

    def _home(self, spec: TunSpec) -> NetNamespace | None:
        """The namespace of ours that gets the device."""
        if not spec.pod:
            return self._machine.node
        ns = self._namespace(f"pod/{spec.pod}")
        if ns is self._machine.node:
            raise ApiError(422, "Invalid", f"pod {spec.pod} is on its host's network: join node {self._machine.me.name} instead")
        return ns

    def _try(self, entry: Entry) -> None:
        """Open a device that is waited for, if its pod is there."""
        try:
            ns = self._home(entry.spec)
            if ns is not None:
                self._open(entry, ns)
        except ApiError as error:
            entry.state = f"failed: {error}"

    def _open(self, entry: Entry, ns: NetNamespace) -> None:
        spec, networks = entry.spec, self._networks
        clash = next((network for network in networks if spec.ip in network or network.address in spec.network), None)
        if clash is not None:
            raise ApiError(422, "Invalid", f"address: Invalid value: {spec.address!r}: overlaps the cluster's {clash}")
        if spec.device in ns.devices or ns.routes.exact(spec.network) is not None:
            what = f"a device {spec.device}" if spec.device in ns.devices else f"a route to {spec.network}"
            raise ApiError(409, "Conflict", f"{ns.name} has {what} already")
        if spec.pod:  # a pod does not forward
            networks = tuple(Network.parse(format_ip(ip)) for ip, _ in ns.devices["eth0"].addresses)
        try:
            fd = netns.open_tun(
                spec.netns, spec.device, mtu=spec.mtu, offload=spec.offload, address=(spec.ip, spec.network.length), routes=networks
            )
        except PodwireError as error:
            raise ApiError(422, "Invalid", str(error)) from None
        port = Port(fd, self._kernel, self._wake)
        device = Tun(ns, spec.device, spec.mtu, port.write, offload=spec.offload)
        self._kernel.enter()
        ns.add_device(device)
        ns.add_route(Route(spec.network, spec.device))
        self._kernel.leave()
        port.start(device)
        entry.device, entry.port, entry.state = device, port, "up"

    def _close(self, entry: Entry) -> None:
        device, port, entry.device, entry.port = entry.device, entry.port, None, None
        if device is None or port is None:
            return
        self._kernel.enter()
        if device.ns.devices.get(device.name) is device:
            device.ns.remove_device(device.name)
        port.close()
        self._kernel.leave()

    def _shown(self, entry: Entry) -> Body:
        device = entry.device
        counters = ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")
        return {
            "node": self._machine.me.name, **entry.spec.to_mapping(), "state": entry.state,
            **{name: getattr(device, name) if device is not None else 0 for name in counters},
        }  # fmt: skip
