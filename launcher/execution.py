"""`podwire exec`: a program in a pod, its streams over a WebSocket (v5.channel.k8s.io), its exit status as ours."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any
from urllib.parse import urlencode

from emu.api import channels
from emu.errors import ApiError, PodwireError
from emu.model.kinds import BY_RESOURCE
from launcher.client import Client, path_of

TEXT_LIMIT = 1 << 24


def run(
    client: Client, namespace: str, pod: str, command: Sequence[str], *, container: str = "", stdin: bool = False,
    stdout: IO[bytes] | None = None, stderr: IO[bytes] | None = None,
) -> int:  # fmt: skip
    """Run to the end; the program's exit status. ApiError if it could not be started, PodwireError if its node went away."""
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect
    from websockets.typing import Subprotocol

    out, err = stdout or sys.stdout.buffer, stderr or sys.stderr.buffer
    query = [("command", word) for word in command] + [("stdout", "true"), ("stderr", "true")]
    query += [("container", container)] if container else []
    query += [("stdin", "true")] if stdin else []
    url = f"ws://{client.host}{path_of(BY_RESOURCE['pods'], namespace, pod, 'exec')}?{urlencode(query)}"
    try:
        socket = connect(url, subprotocols=[Subprotocol(channels.PROTOCOLS[0])], max_size=TEXT_LIMIT, compression=None, proxy=None)
    except InvalidStatus as refused:
        raise _refusal(refused.response.status_code, bytes(refused.response.body or b"")) from None
    except OSError as error:
        raise PodwireError(f"the API at {client.url} does not answer: {error.strerror or error}") from error
    ending: dict[str, Any] | None = None
    with socket:
        if stdin:
            threading.Thread(target=_send_input, args=(socket, sys.stdin.buffer), daemon=True).start()
        try:
            for message in socket:
                ending = _take(message if isinstance(message, bytes) else message.encode(), out, err) or ending
        except ConnectionClosed:
            pass  # the ending, or its absence, says what happened
    if ending is None:
        raise PodwireError(f"the connection to pod {pod!r} was lost before its program ended")
    return _status(ending)


def output(client: Client, namespace: str, pod: str, command: Sequence[str], *, container: str = "") -> tuple[int, str, str]:
    """As `run`, with exit status, stdout and stderr as text."""
    import io

    out, err = io.BytesIO(), io.BytesIO()
    status = run(client, namespace, pod, command, container=container, stdout=out, stderr=err)
    return status, out.getvalue().decode(errors="replace"), err.getvalue().decode(errors="replace")


def _take(message: bytes, out: IO[bytes], err: IO[bytes]) -> dict[str, Any] | None:
    """Write one message to its stream; the Status that ends it all, if it is that."""
    if not message:
        return None
    channel, data = message[0], message[1:]
    if channel == channels.ERROR:
        ending: dict[str, Any] = json.loads(data)
        return ending
    stream = {channels.STDOUT: out, channels.STDERR: err}.get(channel)
    if stream is not None:
        stream.write(data)
        stream.flush()
    return None


def _send_input(socket: Any, source: IO[bytes]) -> None:
    from websockets.exceptions import ConnectionClosed

    try:
        while data := source.raw.read(1 << 15) if hasattr(source, "raw") else source.read(1 << 15):
            socket.send(bytes((channels.STDIN,)) + data)
        socket.send(bytes((channels.CLOSE, channels.STDIN)))
    except ConnectionClosed:
        pass  # the program did not want to hear the rest


def _status(ending: dict[str, Any]) -> int:
    if ending.get("status") == "Success":
        return 0
    for cause in (ending.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise ApiError(ending.get("code", 500), ending.get("reason", ""), ending.get("message", "the program could not be run"))


def _refusal(status: int, body: bytes) -> ApiError:
    try:
        told = json.loads(body)
        return ApiError(told["code"], told.get("reason", ""), told["message"])
    except (ValueError, KeyError, TypeError):
        return ApiError(status, "", body.decode(errors="replace") or f"HTTP status {status}")
