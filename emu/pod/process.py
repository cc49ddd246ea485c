"""A process: a program running in a container, main or `exec`'d, with its sockets, threads, output and exit code.

Decides what starting, stopping, killing, crashing and exiting mean for a program that is a thread or a handler. Threads come
from `Kernel.spawn` and cannot be killed, only told: on a kill every socket is reset and each blocked or later call raises
`ContainerKilled`. When to stop or to kill is `container`'s to say. See signal(7), exit_group(2).
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO
from weakref import WeakSet

from emu.pod.blocking import BlockingSocket, killed
from emu.pod.errors import ContainerKilled
from emu.pod.handlers import Events
from emu.pod.names import Resolver, address_of, getaddrinfo
from emu.pod.output import LineStream, on_this_thread
from emu.pod.program import Context, Handler, PodInfo, Program
from emu.pod.stdin import Stdin
from emu.stack.sockets import Socket as StackSocket
from emu.stack.sockets import Waiter
from emu.stack.tcp_sockets import TcpSocket

if TYPE_CHECKING:
    from emu.pod.blocking import Address
    from emu.pod.kernel import Kernel
    from emu.stack.namespace import NetNamespace

SIGKILL_CODE = 137
Command = Callable[[str], "Program | None"]
"""The program behind a command's name; None if the container has no such file."""


class Process:
    """One running program. `output` takes ("stdout" or "stderr", bytes); `on_exit` and `output` are called without the lock."""

    def __init__(
        self, kernel: Kernel, ns: NetNamespace, pod: PodInfo, program: Program, *, name: str, output: Callable[[str, bytes], None],
        on_exit: Callable[[Process], None], on_listen: Callable[[str, int], None] = lambda protocol, port: None,
        argv: Sequence[str] = (), env: Mapping[str, str] | None = None, resolver: Resolver | None = None,
        commands: Command = lambda name: None, stdin: bool = False,
    ) -> None:  # fmt: skip
        self.kernel, self.ns, self.pod, self.program, self.name = kernel, ns, pod, program, name
        self.argv, self.env = tuple(argv), dict(env or {})
        self._output, self._on_exit, self._on_listen = output, on_exit, on_listen
        self._resolver, self._commands = resolver, commands
        self.enter = kernel.enter
        self.killed = self.terminating = False
        self.kill_code = SIGKILL_CODE
        self.exit_code: int | None = None
        self.handling = 0  # the thread that runs one of our handlers now
        self.threads = 0
        self.sockets: WeakSet[BlockingSocket] = WeakSet()
        self.orphans: deque[StackSocket] = deque()
        self.held: set[StackSocket] = set()
        self._sleepers: list[Waiter] = []
        self._lock = threading.Lock()  # guards `threads` and the passage to `exit_code`
        self._streams: dict[str, LineStream] = {}
        self.stdin = Stdin(self, attached=stdin)
        self.ctx = Context(self)
        self._events = Events(self, program) if isinstance(program, Handler) else None

    # ---- life ------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the program: a handler's `on_start` at once, blocking code in a thread of its own."""
        program = self.program
        if isinstance(program, Handler):
            self.events.post(lambda: program.on_start(self.ctx))
        else:
            self._spawn(lambda: self.finish(int(program(self.ctx) or 0)), self.name)

    def start_thread(self, run: Callable[..., None], *args: object) -> None:
        self.check()
        self._spawn(lambda: run(*args), f"{self.name}+")

    def _spawn(self, run: Callable[[], None], name: str) -> None:
        with self._lock:
            self.threads += 1
        self.kernel.spawn(name, lambda: self._thread(run))

    def _thread(self, run: Callable[[], None]) -> None:
        on_this_thread(self.write)
        try:
            run()
        except ContainerKilled:
            self.finish(self.kill_code)
        except SystemExit as leaving:
            self.finish(_exit_status(leaving, self.write))
        except BaseException as error:
            self.crash(error)
        finally:
            on_this_thread(None)
            with self._lock:
                self.threads -= 1
            if self.exit_code is not None and not self.threads:
                self._on_exit(self)

    def terminate(self) -> None:
        """Ask the program to stop, as SIGTERM does: `ctx.terminating` becomes true, sleeps end, `on_terminate` is called."""
        if self.terminating or self.exit_code is not None:
            return
        self.terminating = True
        self.kernel.enter()
        try:
            self.wake()
        finally:
            self.kernel.leave()
        program = self.program
        if isinstance(program, Handler):
            self.events.post(lambda: program.on_terminate(self.ctx))

    def kill(self) -> None:
        """End the program, as SIGKILL does: its sockets are reset, and it meets ContainerKilled in whatever it calls."""
        if self.exit_code is not None:
            return
        self._cut_off(reset=True)
        if self._events is not None:
            self._events.post(killed)

    def finish(self, code: int) -> None:
        """The program has ended by itself, or has met its kill. The first word counts; sockets are closed, other threads told."""
        with self._lock:
            if self.exit_code is not None:
                return
            self.exit_code = code & 0xFF
        self._flush()
        self._cut_off(reset=False)
        if not self.threads:
            self._on_exit(self)

    def crash(self, error: BaseException) -> None:
        """An exception has left the program: its traceback is the container's last log, and 1 its exit code."""
        if isinstance(error, SystemExit):
            self.finish(_exit_status(error, self.write))
            return
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_globals.get("__name__", "").startswith("emu.pod."):
            frames = frames.tb_next  # the reader wants the program's frames, not ours
        shown = frames or error.__traceback__
        self.write("stderr", "".join(traceback.format_exception(type(error), error, shown)).encode())
        self.finish(1)

    def exit(self, code: int) -> None:
        self.finish(code)
        raise ContainerKilled

    @property
    def ended(self) -> bool:
        """Nothing of the process runs any more."""
        return self.exit_code is not None and not self.threads

    @property
    def stuck_threads(self) -> int:
        """Threads that have not yet noticed the kill."""
        return self.threads + (1 if self.killed and self._events is not None and self._events.busy else 0)

    def abandon(self) -> None:
        """Stop waiting for threads that do not notice the kill: they are cut off from the namespace already."""
        with self._lock:
            if self.exit_code is None:
                self.exit_code = self.kill_code

    def _cut_off(self, *, reset: bool) -> None:
        """Take the network away: every socket is reset (SIGKILL here) or closed as exit(2) does, and every sleeper is told."""
        if self.killed:
            return
        self.kernel.enter()
        try:
            self.killed, self.enter = True, killed
            for sock in list(self.sockets):
                sock.kill(reset=reset)
            for held in [*self.held, *self.orphans]:
                held.on_event = None
                (held.abort if reset and isinstance(held, TcpSocket) else held.close)()
            self.held.clear()
            self.orphans.clear()
            self.wake()
        finally:
            self.kernel.leave()

    # ---- what sockets and handlers ask -----------------------------------------------------------------------------------------

    @property
    def events(self) -> Events:
        if self._events is None:
            raise RuntimeError("only handler programs have events: blocking code has sockets")
        return self._events

    def check(self) -> None:
        """ContainerKilled, if that is so."""
        if self.killed:
            raise ContainerKilled

    def may_block(self) -> None:
        """RuntimeError if the caller is an event handler: it would stop whoever delivers the node's packets."""
        if self.handling and self.handling == threading.get_ident():
            raise RuntimeError("a handler must not block: use ctx.call_later, ctx.connect_tcp or ctx.start_thread")

    def listening(self, protocol: str, port: int) -> None:
        self._on_listen(protocol, port)

    def resolve(self, host: str) -> bytes:
        return address_of(host, self.pod, self._resolver, self.ctx)

    def getaddrinfo(
        self, host: str | None, port: int | str | None, family: int, kind: int, proto: int, flags: int
    ) -> list[tuple[int, int, int, str, Address]]:
        self.check()
        return getaddrinfo(host, port, family, kind, proto, flags, self.pod, self._resolver, self.ctx)

    # ---- waiting -----------------------------------------------------------------------------------------------------------------

    def wait(self, waiter: Waiter, deadline: float | None) -> bool:
        """Sleep until the waiter is set, the process is told something (both True), or time is up. Under the lock."""
        self.may_block()
        if self.killed:
            raise ContainerKilled
        self._sleepers.append(waiter)
        try:
            woken = self.kernel.wait(waiter, deadline)
        finally:
            self._sleepers.remove(waiter)
        if self.killed:
            raise ContainerKilled
        return woken

    def wake(self) -> None:
        """Let every sleeper look again. Under the lock."""
        for waiter in self._sleepers:
            waiter.set()

    def sleep(self, seconds: float) -> bool:
        deadline = self.enter() + max(0.0, seconds)
        try:
            while not self.terminating:
                if not self.wait(Waiter(), deadline):
                    return True
            return False
        finally:
            self.kernel.leave()

    # ---- output and commands -----------------------------------------------------------------------------------------------------

    def write(self, stream: str, data: bytes) -> None:
        """Bytes on "stdout" or "stderr"."""
        if data:
            self._output(stream, data)

    @property
    def stdout(self) -> TextIO:
        return self._stream("stdout")

    @property
    def stderr(self) -> TextIO:
        return self._stream("stderr")

    def _stream(self, name: str) -> TextIO:
        if name not in self._streams:
            self._streams[name] = LineStream(name, self.write)
        text: TextIO = self._streams[name].text
        return text

    def _flush(self) -> None:
        for stream in self._streams.values():
            stream.text.flush()

    def run_command(self, argv: Sequence[str]) -> tuple[int, bytes]:
        """Run another program to its end within this process: (exit code, its output). Blocks."""
        program = self._commands(argv[0])
        if program is None or isinstance(program, Handler):
            raise FileNotFoundError(argv[0])
        output: list[bytes] = []
        done = Waiter()
        child = Process(
            self.kernel, self.ns, self.pod, program, name=argv[0], argv=argv, env=self.env, resolver=self._resolver,
            commands=self._commands, output=lambda _, data: output.append(data), on_exit=lambda _: self._done(done),
        )  # fmt: skip
        child.start()
        self.enter()
        try:
            while not child.ended:
                self.wait(done, None)
        except ContainerKilled:
            self.kernel.leave()
            child.kill()
            self.kernel.enter()
            raise
        finally:
            self.kernel.leave()
        assert child.exit_code is not None
        return child.exit_code, b"".join(output)

    def _done(self, waiter: Waiter) -> None:
        self.kernel.enter()
        try:
            waiter.set()
        finally:
            self.kernel.leave()


def _exit_status(leaving: SystemExit, write: Callable[[str, bytes], None]) -> int:
    """As the interpreter does with sys.exit's argument: None is 0, an integer itself, anything else is printed and 1."""
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code
    write("stderr", f"{leaving.code}\n".encode())
    return 1
