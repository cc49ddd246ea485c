"""The kernel's sendmmsg(2) and recvmmsg(2), which Python does not wrap, in the shape of the pod API's."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(_Iovec)), ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int),
    )  # fmt: skip


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", _Msghdr), ("len", ctypes.c_uint))


class KernelSocket(socket.socket):
    """A socket of the standard library that can do both."""

    def sendmmsg(self, messages: Sequence[tuple[bytes, tuple[str, int] | None]], flags: int = 0) -> int:
        vector = (_Mmsghdr * len(messages))()
        kept = []
        for entry, (data, address) in zip(vector, messages, strict=True):
            _point(entry, ctypes.create_string_buffer(data, len(data)), kept)
            if address is not None:
                _name(entry, ctypes.create_string_buffer(_sockaddr_in(address), 16), kept)
        return _checked(_LIBC.sendmmsg(self.fileno(), vector, len(messages), flags))

    def recvmmsg(self, vlen: int, bufsize: int, flags: int = 0) -> list[tuple[bytes, tuple[str, int]]]:
        vector = (_Mmsghdr * vlen)()
        kept: list[Any] = []
        for entry in vector:
            _point(entry, ctypes.create_string_buffer(bufsize), kept)
            _name(entry, ctypes.create_string_buffer(16), kept)
        count = _checked(_LIBC.recvmmsg(self.fileno(), vector, vlen, flags, None))
        found = []
        for index in range(count):
            buffer, name = kept[2 * index].raw, kept[2 * index + 1].raw
            port, ip = struct.unpack_from("!2xH4s", name)
            found.append((buffer[: vector[index].len], (socket.inet_ntoa(ip), port)))
        return found


def _point(entry: _Mmsghdr, buffer: Any, kept: list[Any]) -> None:
    iovec = _Iovec(ctypes.cast(buffer, ctypes.c_void_p), len(buffer))
    entry.hdr.iov, entry.hdr.iovlen = ctypes.pointer(iovec), 1
    kept.append(buffer)


def _name(entry: _Mmsghdr, buffer: Any, kept: list[Any]) -> None:
    entry.hdr.name, entry.hdr.namelen = ctypes.cast(buffer, ctypes.c_void_p), 16
    kept.append(buffer)


def _sockaddr_in(address: tuple[str, int]) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", address[1], socket.inet_aton(address[0]))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
