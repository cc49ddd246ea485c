"""The channels of an exec: which byte of a WebSocket message is which stream, and how a program's end is told.

Pure. v5 differs from v4 only in the close message, by which a client ends stdin. Spec: KEP-4006, apimachinery httpstream/wsstream.
"""

from __future__ import annotations

import json
from typing import Any

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
_STREAMS = (("stdout", STDOUT), ("stderr", STDERR))


def parse(message: bytes) -> dict[str, Any] | None:
    """What a client's message means for the node: bytes of stdin, its end, or nothing (a resize: there is no terminal)."""
    if not message:
        return None
    if message[0] == STDIN:
        return {"stdin": message[1:]} if len(message) > 1 else None
    if message[0] == CLOSE and message[1:2] == bytes((STDIN,)):
        return {"stdin_eof": True}
    return None


def emit(piece: dict[str, Any]) -> list[bytes]:
    """A node's answer as messages."""
    messages = [bytes((channel,)) + piece[stream] for stream, channel in _STREAMS if piece.get(stream)]
    if piece.get("exit") is not None:
        messages.append(ending(piece["exit"]))
    return messages


def ending(code: int) -> bytes:
    """The program's end, as the Status from which kubectl takes its own exit status."""
    status: dict[str, Any] = {"metadata": {}, "status": "Success"}
    if code:
        causes = [{"reason": "ExitCode", "message": str(code)}]
        message = f"command terminated with non-zero exit code: exit status {code}"
        status = {"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": message, "details": {"causes": causes}}
    return bytes((ERROR,)) + json.dumps(status).encode()


def failure(status: dict[str, Any]) -> bytes:
    """The call itself failed: an ApiError's Status."""
    return bytes((ERROR,)) + json.dumps(status).encode()
