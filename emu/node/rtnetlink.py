"""rtnetlink(7), as much of it as a device needs to be of use: link up, address, routes. Decides the messages' layout.

Spoken directly, because a node's process starts no other programs, and because the answer is an errno and not a text.
"""

from __future__ import annotations

import os
import socket
import struct
from types import TracebackType
from typing import Self

from emu.wire.addr import Ip, Network

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
_NEWLINK, _NEWADDR, _NEWROUTE, _NLMSG_ERROR = 16, 20, 24, 2
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_IFF_UP = 0x1
_IFLA_MTU, _IFLA_GSO_MAX_SIZE, _IFA_ADDRESS, _IFA_LOCAL, _RTA_DST, _RTA_OIF = 4, 41, 1, 2, 1, 4
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST = 254, 4, 253, 1


class Rtnetlink:
    """A conversation with the kernel about the network namespace of the thread that opens it. Every refusal is an OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def set_link(self, index: int, *, mtu: int, gso_max_size: int) -> None:
        """`ip link set DEVICE mtu MTU gso_max_size SIZE up`."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
        self._ask(_NEWLINK, 0, body + _number(_IFLA_MTU, mtu) + _number(_IFLA_GSO_MAX_SIZE, gso_max_size))

    def add_address(self, index: int, ip: Ip, length: int) -> None:
        """`ip addr add IP/LENGTH dev DEVICE`."""
        body = _ADDRESS.pack(socket.AF_INET, length, 0, 0, index)
        self._ask(_NEWADDR, _CREATE | _EXCL, body + _attribute(_IFA_LOCAL, ip) + _attribute(_IFA_ADDRESS, ip))

    def add_route(self, index: int, network: Network) -> None:
        """`ip route add NETWORK dev DEVICE proto static scope link`; EEXIST if it has another way already."""
        body = _ROUTE.pack(socket.AF_INET, network.length, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST, 0)
        self._ask(_NEWROUTE, _CREATE | _EXCL, body + _attribute(_RTA_DST, network.address) + _number(_RTA_OIF, index))

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        """One request, and the kernel's answer: an error number, 0 for done."""
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _ACK | flags, self._sequence, 0) + body)
        while True:
            answer = self._socket.recv(1 << 16)
            _, answered, _, sequence, _ = _HEADER.unpack_from(answer)
            if answered == _NLMSG_ERROR and sequence == self._sequence:
                number: int = -_ERROR.unpack_from(answer, _HEADER.size)[0]
                if number:
                    raise OSError(number, os.strerror(number))
                return


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) & 3)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))
