"""A TUN device: the end of a namespace of ours beyond which there is a namespace of this machine's kernel.

Decides how packets cross: whole, with their gso_size and open checksums beside them (`offload`: virtio_net_hdr), or as the segments
and filled-in checksums that any kernel takes. What comes in is tested as a network card would: malformed packets and wrong
checksums are counted and dropped. Must not know descriptors or threads: `write` is the kernel's side, `from_kernel` ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.skb import TCP
from emu.stack.device import Device
from emu.stack.vxlan import LONGEST
from emu.wire import checksum, gso, virtio
from emu.wire.addr import Ip

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace

LONGEST_FRAME = virtio.HEADER.size + 65535
GSO_MAX_SIZE = LONGEST  # bytes of the kernel's longest packet: a tunnel's headers must still fit over it

Write = Callable[[bytes], DropReason | None]
"""Hands the kernel one frame; says why if it does not take it."""


class Tun(Device):
    """Point to point, without neighbours: every address behind it is taken to answer."""

    kind = "tun"

    def __init__(self, ns: NetNamespace, name: str, mtu: int, write: Write, *, offload: bool) -> None:
        super().__init__(ns, name, mtu)
        self.write, self.offload = write, offload

    def resolve(self, ip: Ip) -> bool:
        return True

    def transmit(self, data: bytes, gso_size: int, trace: int) -> None:
        """Hand the kernel a packet; a datagram over the MTU goes as fragments either way."""
        self.sent(len(data))
        if self.offload and (not gso_size or data[9] == TCP):
            self._hand(virtio.emit(data, gso_size))
            return
        for part in gso.segments(data, gso_size):
            self._hand(virtio.emit(part, 0) if self.offload else checksum.fill(part))

    def _hand(self, frame: bytes) -> None:
        refused = self.write(frame)
        if refused is not None:
            self.ns.count(refused)

    def from_kernel(self, frame: bytes) -> None:
        """Take one frame of the kernel's; whatever it is, nothing is raised."""
        gso_size = 0
        packet: bytes | DropReason
        if self.offload:
            parsed = virtio.parse(frame)
            packet, gso_size = (parsed, 0) if isinstance(parsed, DropReason) else parsed
        else:
            packet = checksum.accept(frame)
        if isinstance(packet, DropReason):
            self.ns.count(packet)
        elif gso_size and len(packet) > GSO_MAX_SIZE:
            self.ns.count(DropReason.TOO_BIG)
        else:
            self.receive(packet, gso_size, 0)
