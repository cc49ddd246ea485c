"""netexec's `/dial`: requests made on behalf of whoever asks, over HTTP or UDP, and their answers as JSON.

Decides parameters, tries and error texts as agnhost does; blocking, so it runs in a thread.
"""

from __future__ import annotations

import socket as std
from http.client import HTTPConnection, HTTPException

from emu.pod.program import SOCK_DGRAM, Context
from emu.programs.http import Response, json_response, text

TIMEOUT = 5.0  # seconds a try
UDP_BUFFER = 2048


class DialError(Exception):
    """One try failed; the message is Go's."""


def dial(ctx: Context, query: dict[str, list[str]]) -> Response:
    """`host`, `port`, `request`, `protocol` (http, udp) and `tries` of a query, to {"responses": […], "errors": […]}."""
    host, port, request, protocol, tries = (query.get(name, [""])[0] for name in ("host", "port", "request", "protocol", "tries"))
    if tries and not tries.lstrip("+-").isdecimal():
        return text(f'tries parameter is invalid. strconv.Atoi: parsing "{tries}": invalid syntax\n', 400)
    if not request:
        return text("request parameter not specified. <nil>\n", 400)
    dialer = {"": _dial_http, "http": _dial_http, "udp": _dial_udp}.get(protocol.lower())
    if dialer is None:
        return text(f"unsupported protocol. {protocol}\n", 400)
    try:
        address = ctx.getaddrinfo(host, port or 0)[0][4]
    except std.gaierror as error:
        return text(f"host and/or port param are invalid. lookup {host}: {error.strerror}\n", 400)
    answers: dict[str, list[str]] = {"responses": [], "errors": []}
    answer = ""
    for _ in range(int(tries or 1)):
        try:
            answer = dialer(ctx, request, address)
            answers["responses"].append(answer)
        except DialError as error:
            answer = ""
            answers["errors"].append(str(error))
    if not answer:  # agnhost reports the responses only if the last one was not empty
        answers["responses"] = []
    return json_response({key: values for key, values in answers.items() if values})


def _dial_http(ctx: Context, request: str, address: tuple[str, int]) -> str:
    host, port = address
    url = f"http://{host}:{port}/{request}"
    client = HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        client.sock = ctx.create_connection(address, TIMEOUT)
        client.request("GET", f"/{request}", headers={"User-Agent": "Go-http-client/1.1"})
        return client.getresponse().read().decode("utf-8", "replace")
    except TimeoutError:
        raise DialError(f'Get "{url}": context deadline exceeded (Client.Timeout exceeded while awaiting headers)') from None
    except ConnectionRefusedError:
        raise DialError(f'Get "{url}": dial tcp {host}:{port}: connect: connection refused') from None
    except (OSError, HTTPException) as error:
        raise DialError(f'Get "{url}": {_go_words(error)}') from None
    finally:
        client.close()


def _dial_udp(ctx: Context, request: str, address: tuple[str, int]) -> str:
    with ctx.socket(type=SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        try:
            sock.connect(address)
            local = sock.getsockname()
            sock.send(request.encode())
        except OSError as error:
            raise DialError(f"udp dial failed. err:{_go_words(error)}") from None
        try:
            data = sock.recv(UDP_BUFFER)
        except OSError as error:
            where = f"read udp {local[0]}:{local[1]}->{address[0]}:{address[1]}"
            why = "i/o timeout" if isinstance(error, TimeoutError) else f"read: {_go_words(error)}"
            raise DialError(f"reading from udp connection failed. err:'{where}: {why}'") from None
        if not data:
            raise DialError("reading from udp connection failed. err:'<nil>'")
        return data.decode("utf-8", "replace")


def _go_words(error: Exception) -> str:
    """An errno in Go's words, which are Linux's without the capital."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "EOF"
    return words[:1].lower() + words[1:]
