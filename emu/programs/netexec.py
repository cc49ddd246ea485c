"""`agnhost netexec`: the HTTP and UDP server of Kubernetes' own network tests, answer for answer.

Decides what each path and command answers; HTTP itself is `http`'s. Must behave as the tests in test/e2e/network expect of
registry.k8s.io/e2e-test-images/agnhost. What waits (`/dial`, `/shell`) does so in a thread of its own. SCTP and TLS are not
emulated and are refused at start.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

from emu.pod.blocking import Address
from emu.pod.program import Context, DatagramPort
from emu.programs.dial import dial
from emu.programs.flags import FlagError, Value, parse_flags
from emu.programs.http import REASONS, HttpServer, Request, Respond, Response, json_response, text

FLAGS: dict[str, Value] = {
    "http-port": 8080, "udp-port": 8081, "sctp-port": -1, "udp-listen-addresses": "", "tls-cert-file": "", "tls-private-key-file": "",
    "http-override": "", "delay-shutdown": 0,
}  # fmt: skip
_DURATION = re.compile(r"(?:(\d+(?:\.\d*)?|\.\d+)(h|ms|us|µs|ns|m|s))")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def go_duration(value: str) -> float:
    """Seconds of a Go duration (`1m30s`, `100ms`, `0`); ValueError otherwise."""
    if value in ("0", "+0", "-0"):
        return 0.0
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError(value)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


class NetExec(HttpServer):
    """The server; `argv` are netexec's flags."""

    def __init__(self, argv: tuple[str, ...] = ()) -> None:
        self._argv = argv
        self._udp_ready = False
        self._uploads: dict[str, int] = {}
        self._override = ""
        self._delay_shutdown = 0

    def on_start(self, ctx: Context) -> None:
        try:
            flags = parse_flags(self._argv, FLAGS)
        except FlagError as error:
            ctx.log(f"Error: {error}")
            ctx.exit(1)
            return
        if flags["sctp-port"] != -1 or flags["tls-cert-file"]:
            ctx.log("netexec: --sctp-port and --tls-cert-file are not emulated")
            ctx.exit(1)
        self._override, self._delay_shutdown = str(flags["http-override"]), int(flags["delay-shutdown"])
        if flags["udp-port"] != -1:
            for address in sorted(set(str(flags["udp-listen-addresses"]).split(","))):
                ctx.listen_udp(int(flags["udp-port"]), address or "0.0.0.0")
                ctx.log(f"Started UDP server on port {address} {flags['udp-port']}")
            self._udp_ready = True
        ctx.listen_tcp(int(flags["http-port"]))
        ctx.log(f"Started HTTP server on port {flags['http-port']}")

    def on_terminate(self, ctx: Context) -> None:
        if self._delay_shutdown:
            ctx.call_later(self._delay_shutdown, lambda: ctx.exit(0))
        else:
            ctx.exit(0)

    # ---- UDP -------------------------------------------------------------------------------------------------------------------

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Address) -> None:
        command = data.decode("utf-8", "replace").strip().lower()
        if command == "hostname":
            port.send_to(ctx.gethostname().encode(), address)
        elif command.startswith("echo "):
            port.send_to(command.split(" ", 1)[1].encode(), address)
        elif command == "clientip":
            port.send_to(f"{address[0]}:{address[1]}".encode(), address)
        elif command:
            ctx.log(f"Unknown UDP command received from {address[0]}:{address[1]}: {command}")

    # ---- HTTP ------------------------------------------------------------------------------------------------------------------

    def serve(self, ctx: Context, request: Request, respond: Respond) -> None:
        if self._override:
            parts = urlsplit(self._override)
            query = {key: [value] for key, _, value in (item.partition("=") for item in parts.query.split("&"))}
            request = Request("GET", self._override, parts.path, query, request.headers, b"", request.client)
        ctx.log(f"{request.method} {request.target}")
        waiting = {"/dial": self._dial, "/exit": self._exit, "/shell": self._shell, "/shutdown": self._shutdown}.get(request.path)
        if waiting is not None:
            waiting(ctx, request, respond)
        elif request.path == "/healthz":
            respond(text("", 200 if self._udp_ready else 412))
        elif request.path == "/upload":
            respond(self._upload(request))
        else:
            respond(PLAIN.get(request.path, _root)(ctx, request))

    def _shutdown(self, ctx: Context, request: Request, respond: Respond) -> None:
        ctx.exit(0)  # os.Exit: the connection ends without an answer

    def _exit(self, ctx: Context, request: Request, respond: Respond) -> None:
        seconds = {}
        for name in ("timeout", "wait"):
            value = request.param(name)
            try:
                seconds[name] = go_duration(value) if value else 0.0
            except ValueError:
                respond(text(f"argument '{name}' must be a valid golang duration or empty, got \"{value}\"\n"))
                return
        code = request.param("code")
        if code and not _is_int(code):
            respond(text(f"argument 'code' must be an integer [0-127] or empty, got \"{code}\"\n"))
            return
        if seconds["timeout"]:
            respond(text(""))  # a graceful shutdown lets this request be answered
        ctx.call_later(seconds["wait"], lambda: ctx.exit(int(code or 0)))

    def _dial(self, ctx: Context, request: Request, respond: Respond) -> None:
        self._in_thread(ctx, respond, lambda: dial(ctx, request.query))

    def _shell(self, ctx: Context, request: Request, respond: Respond) -> None:
        command = request.param("shellCommand") or request.param("cmd")

        def run() -> Response:
            code, output = ctx.run(["/bin/sh", "-c", command])
            answer = {"output": output.decode("utf-8", "replace")} if output else {}
            return json_response(answer | ({"error": f"exit status {code}"} if code else {}))

        self._in_thread(ctx, respond, run)

    def _upload(self, request: Request) -> Response:
        data = _form_file(request, "file")
        if data is None:
            return json_response({"error": "Unable to upload file."})
        name = f"/uploads/upload{len(self._uploads):09d}"
        self._uploads[name] = len(data)  # there is no file system to keep it in
        return json_response({"output": name}, 201)

    @staticmethod
    def _in_thread(ctx: Context, respond: Respond, make: Callable[[], Response]) -> None:
        """Make an answer that needs waiting in a thread, and give it among the handler's events."""

        def run() -> None:
            response = make()
            ctx.call_later(0.0, lambda: respond(response))

        ctx.start_thread(run)


def _root(ctx: Context, request: Request) -> Response:
    return text(f"NOW: {datetime.fromtimestamp(ctx.time(), UTC):%Y-%m-%d %H:%M:%S.%f} +0000 UTC m=+{ctx.now():.6f}")


def _hostname(ctx: Context, request: Request) -> Response:
    return text(ctx.gethostname())


def _client_ip(ctx: Context, request: Request) -> Response:
    return text(f"{request.client[0]}:{request.client[1]}")


def _header(ctx: Context, request: Request) -> Response:
    return text(request.header(request.param("key").lower()))


def _echo(ctx: Context, request: Request) -> Response:
    code = request.param("code")
    if code and not _is_int(code):
        return text(f"argument 'code' must be an integer or empty, got \"{code}\"\n")
    return text(request.param("msg"), int(code or 200))


def _redirect(ctx: Context, request: Request) -> Response:
    code, location = request.param("code"), request.param("location")
    if code and not _is_int(code):
        return text(f"argument 'code' must be an integer or empty, got \"{code}\"\n")
    status = int(code or 302)
    body = f'<a href="{location}">{REASONS.get(status, "")}</a>.\n\n' if request.method == "GET" else ""
    return Response(status, body.encode(), (("Content-Type", "text/html; charset=utf-8"), ("Location", location)))


PLAIN: dict[str, Callable[[Context, Request], Response]] = {  # what is answered at once; every other path is the root's
    "/clientip": _client_ip, "/echo": _echo, "/header": _header, "/hostname": _hostname, "/hostName": _hostname, "/redirect": _redirect,
}  # fmt: skip


def _is_int(value: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", value) is not None


def _form_file(request: Request, field: str) -> bytes | None:
    """The content of a file in a multipart form, or None."""
    kind = request.header("content-type")
    boundary = re.search(r'boundary="?([^";]+)"?', kind)
    if not kind.startswith("multipart/form-data") or boundary is None:
        return None
    for part in request.body.split(b"--" + boundary[1].encode())[1:]:
        head, _, content = part.partition(b"\r\n\r\n")
        if f'name="{field}"'.encode() in head and b"filename=" in head:
            return content.removesuffix(b"\r\n")
    return None
