"""Network namespaces of this machine's kernel: how one is found, entered for a moment, and given a TUN device.

Decides which names and paths there are for one, and what a person is told when it cannot be. A thread enters (setns(2)), since
the process must not: its sockets are elsewhere. Either the device stands, configured, or nothing is left of it: it is not
persistent, so it goes with its descriptor, at the latest when the process ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from emu.errors import PodwireError
from emu.node.rtnetlink import Rtnetlink
from emu.stack.tun import GSO_MAX_SIZE
from emu.wire import virtio
from emu.wire.addr import Ip, Network

T = TypeVar("T")

NAMED = "/run/netns"  # where `ip netns` keeps them
CLONE_NEWNET = 0x40000000
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8  # include/uapi/linux/if_tun.h
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x1, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x1, 0x2
_NEEDS_ROOT = "needs root, or a user namespace of one's own: unshare -Urn"


def path_of(netns: str) -> str:
    """The file of a namespace: of NAME as `ip netns add` made it, or a path such as /proc/PID/ns/net itself."""
    return netns if "/" in netns else f"{NAMED}/{netns}"


def inside(netns: str, make: Callable[[], T]) -> T:
    """What `make` returns inside the namespace. PodwireError if it cannot be entered; what `make` raises is raised."""
    path, made, raised = path_of(netns), list[T](), list[Exception]()

    def enter() -> None:
        try:
            _enter(path)
            made.append(make())
        except Exception as problem:
            raised.append(problem)

    thread = threading.Thread(target=enter, name="netns")
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return made[0]


def _enter(path: str) -> None:
    """Move the calling thread; it cannot go back."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = "" if "/" in path and not path.startswith(NAMED) else " (ip netns list tells those with names)"
        raise PodwireError(f"no network namespace at {path}: {error.strerror}{hint}") from None
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            why = f"{_NEEDS_ROOT}" if number == errno.EPERM else f"{os.strerror(number)}; is it a network namespace?"
            raise PodwireError(f"cannot enter {path}: {why}")
    finally:
        os.close(fd)


def open_tun(
    netns: str, device: str, *, mtu: int, offload: bool, address: tuple[Ip, int] | None = None, routes: Sequence[Network] = ()
) -> int:
    """A descriptor (non-blocking) of a new TUN device in a namespace, up, with this address and these routes through it.

    PodwireError in a sentence if anything of it is impossible; then nothing of it is there.
    """
    return inside(netns, lambda: _make(netns, device, mtu, offload, address, routes))


def _make(netns: str, device: str, mtu: int, offload: bool, address: tuple[Ip, int] | None, routes: Sequence[Network]) -> int:
    fd = _attach(netns, device, offload)
    what = ""
    try:
        with Rtnetlink() as kernel:
            what = f"MTU {mtu}"
            index = socket.if_nametoindex(device)
            kernel.set_link(index, mtu=mtu, gso_max_size=GSO_MAX_SIZE)
            if address is not None:
                what = f"address {socket.inet_ntoa(address[0])}/{address[1]}"
                kernel.add_address(index, *address)
            for network in routes:
                what = f"route {network}"
                kernel.add_route(index, network)
    except OSError as error:
        os.close(fd)
        why = "it has one already" if error.errno == errno.EEXIST else error.strerror or str(error)
        raise PodwireError(f"{netns}: cannot give {device} {what}: {why}") from None
    return fd


def _attach(netns: str, device: str, offload: bool) -> int:
    """A new device of that name. The ioctl would attach to an idle persistent one too, which is not ours to take."""
    try:
        socket.if_nametoindex(device)
    except OSError:
        pass
    else:
        raise PodwireError(f"{netns} has a device {device} already")
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        why = _NEEDS_ROOT if error.errno in (errno.EPERM, errno.EACCES) else "this machine's kernel has no TUN devices (modprobe tun)"
        raise PodwireError(f"cannot open /dev/net/tun ({error.strerror}): {why}") from None
    try:
        flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if offload else 0)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        if offload:
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", virtio.HEADER.size))
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    except OSError as error:
        os.close(fd)
        why = _NEEDS_ROOT if error.errno == errno.EPERM else os.strerror(error.errno or 0)
        raise PodwireError(f"{netns}: cannot make a TUN device {device}: {why}") from None
    return fd
