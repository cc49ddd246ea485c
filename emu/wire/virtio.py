"""virtio_net_hdr: what a kernel's TUN device says of a packet beside its bytes (virtio 1.2, 5.1.6; include/uapi/linux/virtio_net.h).

Decides how our packets (checksum fields zero, gso_size beside them) become frames for a kernel, and how a kernel's frames become
ours. TCP and UDP checksums are left to the kernel, which is given the pseudo-header's sum; what the kernel left to us stays open.
Native byte order, as a device without VIRTIO_NET_F_VERSION_1 has it.
"""

from __future__ import annotations

import struct

from emu.errors import DropReason
from emu.wire import checksum

HEADER = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
NEEDS_CSUM, DATA_VALID = 1, 2  # flags
GSO_NONE, GSO_TCPV4, GSO_ECN = 0, 1, 0x80  # gso_type
_FIELD = {checksum.TCP: 16, checksum.UDP: 6}
_PSEUDO = struct.Struct("!HH")


def emit(packet: bytes, gso_size: int) -> bytes:
    """The frame of an IPv4 packet of ours; `gso_size` (0: one segment) is for TCP only."""
    size, l4, proto = len(packet), (packet[0] & 15) << 2, packet[9]
    offset = _FIELD.get(proto, 0)
    if not offset or packet[6] & 0x3F or packet[7] or size < l4 + offset + 2:
        return HEADER.pack(0, GSO_NONE, 0, 0, 0, 0) + checksum.fill(packet)
    at = l4 + offset
    partial = 0xFFFF - checksum.internet(packet[12:20] + _PSEUDO.pack(proto, size - l4))
    header = l4 + (packet[l4 + 12] >> 4 << 2) if proto == checksum.TCP else l4 + 8
    segmented = gso_size and size - header > gso_size
    return b"".join((
        HEADER.pack(NEEDS_CSUM, GSO_TCPV4 if segmented else GSO_NONE, header, gso_size if segmented else 0, l4, offset),
        packet[:10], checksum.internet(packet[:10] + b"\0\0" + packet[12:l4]).to_bytes(2, "big"), packet[12:at],
        partial.to_bytes(2, "big"), packet[at + 2 :],
    ))  # fmt: skip


def parse(frame: bytes) -> tuple[bytes, int] | DropReason:
    """The packet of a frame as `checksum.accept` leaves it, and its gso_size; transport sums are tested unless the kernel vouches."""
    if len(frame) < HEADER.size:
        return DropReason.TRUNCATED
    flags, gso_type, _, gso_size, _, _ = HEADER.unpack_from(frame)
    if gso_type & ~GSO_ECN not in (GSO_NONE, GSO_TCPV4):
        return DropReason.UNSUPPORTED
    if bool(gso_type & ~GSO_ECN) != bool(gso_size):
        return DropReason.MALFORMED
    packet = checksum.accept(frame[HEADER.size :], vouched=bool(flags & (NEEDS_CSUM | DATA_VALID)))
    return packet if isinstance(packet, DropReason) else (packet, gso_size)
