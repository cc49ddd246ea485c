"""What a program in a container may use: the public and stable module, the only one that users' programs import.

A program is either blocking code, `def main(ctx: Context) -> int | None`, which has a thread of its own, or an event handler,
a class derived from `Handler`, which has none. Its return value, or 1 after an exception, is the container's exit code.
Decides the programs' surface only; `process` gives it life. The global `socket` and `time` modules are never patched: what a
program wants from its container it asks of `ctx`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from emu.pod.blocking import AF_INET, SOCK_DGRAM, SOCK_STREAM, Address
from emu.pod.errors import ContainerKilled
from emu.pod.handlers import Connection, DatagramPort
from emu.pod.ping_socket import PingSocket
from emu.pod.socket import Socket

if TYPE_CHECKING:
    from emu.pod.process import Process
    from emu.pod.stdin import Stdin

__all__ = [
    "AF_INET", "SOCK_DGRAM", "SOCK_STREAM", "Connection", "ContainerKilled", "Context", "DatagramPort", "Handler", "Main", "PingSocket",
    "PodInfo", "Program", "Socket",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class PodInfo:
    """Who the program is: what the downward API would tell it."""

    name: str
    namespace: str
    ip: str
    node: str
    uid: str = ""
    hostname: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)  # hostAliases: name -> address, as in /etc/hosts
    epoch: float = 0.0  # Unix time at the kernel clock's zero


class Context:
    """A program's world. Blocking calls raise `ContainerKilled` once the container is killed; let it pass."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.pod: PodInfo = process.pod
        self.argv: tuple[str, ...] = process.argv
        self.env: Mapping[str, str] = process.env
        self.stdin: Stdin = process.stdin

    # ---- the network, blocking -------------------------------------------------------------------------------------------------

    def socket(self, family: int = AF_INET, type: int = SOCK_STREAM, proto: int = 0) -> Socket:  # noqa: A002
        """As `socket.socket`: IPv4 TCP or UDP."""
        return Socket(self._process, family, type, proto)

    def ping_socket(self) -> PingSocket:
        """ICMP echo, as Linux's unprivileged ping socket."""
        return PingSocket(self._process)

    def create_connection(self, address: Address, timeout: float | None = None, source_address: Address | None = None) -> Socket:
        """As `socket.create_connection`: every address of the host is tried in turn, and the last error raised."""
        error: OSError | None = None
        for family, kind, proto, _, target in self.getaddrinfo(address[0], address[1], type=SOCK_STREAM):
            sock = self.socket(family, kind, proto)
            try:
                sock.settimeout(timeout)
                if source_address is not None:
                    sock.bind(source_address)
                sock.connect(target)
            except OSError as failed:
                error = failed
                sock.close()
            else:
                return sock
        assert error is not None, "getaddrinfo never returns nothing"
        raise error

    def getaddrinfo(
        self, host: str | None, port: int | str | None, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0,  # noqa: A002
    ) -> list[tuple[int, int, int, str, Address]]:  # fmt: skip
        """As `socket.getaddrinfo`, with the pod's own /etc/hosts and resolver; `socket.gaierror` for an unknown name."""
        return self._process.getaddrinfo(host, port, family, type, proto, flags)

    def gethostname(self) -> str:
        return self.pod.hostname or self.pod.name

    # ---- the network, by events ------------------------------------------------------------------------------------------------

    def listen_tcp(self, port: int, ip: str = "0.0.0.0") -> int:
        """Accept connections for the handler: `on_connect`, `on_data`, `on_close`. Port 0 takes any; returns the port."""
        return self._process.events.listen_tcp(ip, port)

    def listen_udp(self, port: int, ip: str = "0.0.0.0") -> DatagramPort:
        """Receive datagrams for the handler's `on_datagram`."""
        return self._process.events.listen_udp(ip, port)

    def connect_tcp(self, address: Address) -> Connection:
        """Open a connection for the handler: `on_connect` follows, or `on_close` with `conn.error` set."""
        return self._process.events.connect_tcp(address)

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Run `call` among the handler's events, `seconds` from now."""
        self._process.events.call_later(seconds, call)

    # ---- time and life -----------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds on the node's clock, which never goes back."""
        return self._process.kernel.now()

    def time(self) -> float:
        """Seconds since 1970, on the same clock."""
        return self._process.kernel.now() + self.pod.epoch

    def sleep(self, seconds: float) -> bool:
        """Sleep; False if the container was asked to stop meanwhile (or had been before)."""
        return self._process.sleep(seconds)

    @property
    def terminating(self) -> bool:
        """The container has been asked to stop, as by SIGTERM; after the grace period it is killed."""
        return self._process.terminating

    def start_thread(self, run: Callable[..., None], *args: Any) -> None:
        """Run `run(*args)` in another thread of the container. An exception there ends the whole process, as would a crash."""
        self._process.start_thread(run, *args)

    def exit(self, code: int = 0) -> None:
        """End the process, from any of its threads or handlers; does not return in a thread."""
        self._process.exit(code)

    # ---- files -------------------------------------------------------------------------------------------------------------------

    @property
    def stdout(self) -> TextIO:
        """Text goes to the container's log; `stdout.buffer` takes bytes."""
        return self._process.stdout

    @property
    def stderr(self) -> TextIO:
        return self._process.stderr

    def log(self, message: str) -> None:
        """One line on standard error."""
        self._process.write("stderr", message.encode() + b"\n")

    def become(self, program: Main, argv: Sequence[str]) -> int:
        """Run another program in place of this one, as exec(2) does; its exit code."""
        self.argv = tuple(argv)
        return int(program(self) or 0)

    def run(self, argv: list[str]) -> tuple[int, bytes]:
        """Run one of the container's commands to its end, as `subprocess.run` would: (exit code, stdout and stderr together)."""
        return self._process.run_command(argv)


class Handler:
    """An event handler. Override what is of interest; nothing here may block, and nothing runs at the same time.

    `conn.state` is free for the program's use.
    """

    def on_start(self, ctx: Context) -> None:
        """The container starts: call `ctx.listen_tcp`, `ctx.listen_udp`."""

    def on_connect(self, ctx: Context, conn: Connection) -> None:
        """A connection is established."""

    def on_data(self, ctx: Context, conn: Connection, data: bytes) -> None:
        """Bytes have come. No more come while what was sent has not gone out."""

    def on_eof(self, ctx: Context, conn: Connection) -> None:
        """The peer will send no more; the default closes once everything sent is out."""
        conn.close()

    def on_close(self, ctx: Context, conn: Connection) -> None:
        """The connection is over, by whichever side; `conn.error` is an errno, or 0. Called once."""

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Address) -> None:
        """A datagram has come from `address`, answered by `port.send_to(data, address)`."""

    def on_service_ports(self, ctx: Context, ports: frozenset[tuple[str, int]]) -> None:
        """The ports, ("TCP", 80) and so on, that Services want of the pod and nobody declares; called before `on_start` too.

        Only stand-ins are asked, which open them.
        """

    def on_terminate(self, ctx: Context) -> None:
        """The container is asked to stop; the default exits at once."""
        ctx.exit(0)


Main = Callable[[Context], int | None]
Program = Main | Handler
