"""A TUN device in a network namespace: this machine's kernel as the other end of our packets.

With `offload`, packets cross with a virtio_net_hdr, so that GSO packets of up to 64 KiB go both ways whole and checksums are
left to the kernel, as between our own stacks; without, every packet is one segment with all its checksums filled in.
"""

from __future__ import annotations

import fcntl
import os
import struct

from emu.wire.checksum import fill, internet, wrong
from tests.kit import netns

DEVICE = "tun0"
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x1, 0x1000, 0x4000
_CSUM_AND_TSO4 = 0x1 | 0x2
_VNET = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_NEEDS_CSUM, _GSO_TCPV4 = 1, 1


class Tun:
    """`address` (with prefix length) is the kernel's; whatever else is in its network is ours."""

    def __init__(self, namespace: str, address: str, *, mtu: int, offload: bool, device: str = DEVICE) -> None:
        self.offload, self.device = offload, device
        self.longest_sent = self.longest_received = 0
        self.fd = netns.inside(namespace, self._open)
        netns.configure(namespace, [f"addr add {address} dev {device}", f"link set {device} mtu {mtu} up"])

    def _open(self) -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if self.offload else 0)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", self.device.encode(), flags))
        if self.offload:
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET.size))
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _CSUM_AND_TSO4)
        return fd

    def send(self, packet: bytes, gso_size: int) -> None:
        """Hand the kernel one packet of ours, whose checksum fields are zero."""
        self.longest_sent = max(self.longest_sent, len(packet))
        if not self.offload:
            assert not gso_size
            os.write(self.fd, fill(packet))
            return
        data = bytearray(packet)
        data[10:12] = internet(packet[:20]).to_bytes(2, "big")
        length = len(packet) - 20
        data[36:38] = (0xFFFF - internet(packet[12:20] + struct.pack("!HH", 6, length))).to_bytes(2, "big")
        header = 20 + (packet[32] >> 4 << 2)
        gso_type = _GSO_TCPV4 if gso_size else 0
        os.write(self.fd, _VNET.pack(_NEEDS_CSUM, gso_type, header, gso_size, 20, 16) + data)

    def receive(self) -> bytes | None:
        """The next IPv4 packet that the kernel sent, None if there is none."""
        while True:
            try:
                data = os.read(self.fd, 1 << 17)
            except BlockingIOError:
                return None
            packet = data[_VNET.size :] if self.offload else data
            if packet[0] >> 4 == 4:
                self.longest_received = max(self.longest_received, len(packet))
                assert self.offload or not wrong(packet)
                return packet

    def close(self) -> None:
        os.close(self.fd)
