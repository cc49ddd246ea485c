"""`Socket.makefile`: files over a pod's socket, for programs that read lines (http.client does).

Decides buffering exactly as the standard library's `socket.makefile`; the socket stays open until its last file is closed.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.pod.socket import Socket


class SocketFile(io.RawIOBase):
    """Unbuffered reading and writing; a timeout surfaces as TimeoutError, as with the standard library's SocketIO."""

    def __init__(self, sock: Socket, mode: str) -> None:
        super().__init__()
        self._sock, self._mode = sock, mode

    def readable(self) -> bool:
        return "r" in self._mode

    def writable(self) -> bool:
        return "w" in self._mode

    def readinto(self, buffer: Any) -> int | None:
        try:
            return self._sock.recv_into(buffer)
        except BlockingIOError:
            return None

    def write(self, data: Any) -> int | None:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return None

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._sock.release_file()


def open_socket(sock: Socket, mode: str, buffering: int, **text: Any) -> Any:
    """The file that `makefile(mode, buffering, …)` returns: raw, buffered or text."""
    if not set(mode) <= {"r", "w", "b"} or not set(mode) & {"r", "w"}:
        raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
    raw = SocketFile(sock, mode)
    if buffering == 0:
        if "b" not in mode:
            raise ValueError("unbuffered streams must be binary")
        return raw
    size = io.DEFAULT_BUFFER_SIZE if buffering < 0 else buffering
    binary: Any
    if raw.readable() and raw.writable():
        binary = io.BufferedRWPair(raw, raw, size)
    else:
        binary = io.BufferedReader(raw, size) if raw.readable() else io.BufferedWriter(raw, size)
    return binary if "b" in mode else io.TextIOWrapper(binary, **text)
