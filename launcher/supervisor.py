"""The supervisor: one process a cluster, which answers for all others and for the run directory.

Holds the directory's lock, the only write end of the life pipe, and the control socket (JSON, a line a request, a line an
answer: `{"status": true}`, `{"node": NAME, "state": STATE}`, `{"controller": STATE}`, `{"stop": true}`). What shall run is
decided in `lives`; here it is carried out. One thread, one selector, no work that can block. It is started by exec, never
by fork from a caller that may have threads, and is the child subreaper: nothing below it can escape being reaped. The process that is
exec'd stays behind as its parent, to clear up should it be killed (`guard`).

While a cluster comes up, the command holds a *leash*: if that ends without a byte, the cluster goes (Ctrl-C, any death).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from emu.errors import PodwireError
from emu.model.cluster import ClusterSpec
from launcher import guard
from launcher.guard import outlast_orphans
from launcher.linux import adopt_orphans, die_with_parent, is_stopped, name_process, raise_file_limit
from launcher.lives import Effect, Lives, Start, State
from launcher.output import open_log, redirect_output
from launcher.rundir import RunDirectory
from launcher.zygote import LIFE_FD, MAX_MESSAGE, SOCKET_FD

GRACE = 1.0  # seconds between SIGTERM and SIGKILL
STOPPING_LOOK = 0.002  # seconds between looks whether a process that was sent SIGSTOP stands still
FORKS_IN_A_MESSAGE = 50  # few enough that the answers never fill the socket
MALLOC = {  # glibc's malloc as hundreds of forked processes want it, mallopt(3)
    "MALLOC_ARENA_MAX": "1",  # an arena a thread would cost a node 0.3 MiB, and Python holds one lock anyway
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the buffers of a TCP stream are recycled instead of mapped anew,
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # and kept: 5 times the bulk rate
}
MAX_REQUEST = 1 << 16
OUTCOMES = {"killed": State.KILLED, "paused": State.PAUSED}  # of faults; all others end in RUNNING


class Client:
    """One connection to the control socket. `waiting` is what it waits for: a process to settle in `state`, or the end."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self.waiting, self.state = "", ""

    def answer(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it did not wait for the answer
            self.connection.sendall(json.dumps(message).encode() + b"\n")


class Supervisor:
    """`lock` is the descriptor that holds the directory's lock, `leash` the read end of the command's, or -1."""

    def __init__(self, run: RunDirectory, spec: ClusterSpec, lock: int, leash: int) -> None:
        self.run, self.spec, self.lock, self.leash = run, spec, lock, leash
        self.lives = Lives(["zygote", "controller", *(f"node/{node.name}" for node in spec.nodes)])
        self.life_read, self._life_write = os.pipe()
        self.zygote: socket.socket | None = None
        self.zygote_ready = False
        self.to_fork: list[Start] = []
        self.asked: set[str] = set()  # forks that the zygote was asked for and has not answered
        self.clients: dict[int, Client] = {}
        self.deadline: float | None = None
        self.selector = selectors.DefaultSelector()
        self.wake, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    # ---- the loop ----

    def serve(self) -> None:
        """Run the cluster until it is told to stop; returns with every process gone and the directory removed."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self.stop())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(self.run.control))
        listener.listen(16)
        self.watch(listener.fileno(), lambda: self.accept(listener))
        self.watch(self.wake, self.wake_up)
        if self.leash >= 0:
            self.watch(self.leash, self.leash_pulled)
        while not (self.lives.stopping and not self.lives.remaining):
            self.carry_out(self.lives.due(time.monotonic()))
            self.answer_settled()
            for key, _ in self.selector.select(self.timeout()):
                if self.selector.get_map().get(key.fileobj) is key:  # an earlier event of this round may have closed it
                    key.data()
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.deadline = None
                self.carry_out(self.lives.kill_all())
        self.finish(listener)

    def watch(self, fd: int, react: Callable[[], object]) -> None:
        self.selector.register(fd, selectors.EVENT_READ, react)

    def wake_up(self) -> None:
        os.read(self.wake, 4096)
        self.reap()

    def timeout(self) -> float | None:
        now = time.monotonic()
        moments = [at for at in (self.lives.next_due(), self.deadline) if at is not None]
        if any(client.waiting and client.state == "paused" for client in self.clients.values()):
            moments.append(now + STOPPING_LOOK)  # nobody tells when a stop has come about
        return max(0.0, min(moments) - now) if moments else None

    def finish(self, listener: socket.socket) -> None:
        """End the zygote, reap whatever is left, remove the directory, tell those who asked."""
        os.close(self._life_write)
        if self.zygote is not None:
            self.zygote.close()
        outlast_orphans()
        listener.close()
        self.run.remove()
        for client in self.clients.values():
            if client.waiting == "end":
                client.answer({"ok": True})
        os.close(self.lock)

    def stop(self) -> None:
        if not self.lives.stopping:
            self.to_fork.clear()
            for life in self.lives.by_name.values():
                if life.ordered and life.name not in self.asked:
                    self.lives.withdraw(life.name)
            self.carry_out(self.lives.stop())
            self.deadline = time.monotonic() + GRACE

    def leash_pulled(self) -> None:
        released = os.read(self.leash, 1)
        self.selector.unregister(self.leash)
        os.close(self.leash)
        self.leash = -1
        if not released:
            self.stop()

    # ---- processes ----

    def carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if not isinstance(effect, Start):
                with contextlib.suppress(ProcessLookupError):  # its exit is on the way to us
                    os.kill(effect.pid, effect.number)
            elif effect.name == "zygote":
                self.start_zygote()
            elif effect.name == "controller":
                self.spawn("controller", "launcher.controller_main", {LIFE_FD: self.life_read})
            else:
                self.to_fork.append(effect)
        self.ask_for_forks()

    def started(self, name: str, pid: int) -> None:
        self.carry_out(self.lives.started(name, pid, time.monotonic()))

    def spawn(self, name: str, module: str, fds: dict[int, int]) -> None:
        """Exec a fresh interpreter with exactly these descriptors (there -> here) beside stdin, stdout and stderr."""
        high = {there: fcntl.fcntl(here, fcntl.F_DUPFD_CLOEXEC, 64) for there, here in fds.items()}  # out of each other's way
        output = open_log(self.run.log(name))
        actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, here, there) for there, here in high.items()]
        arguments = [sys.executable, "-m", module, os.fspath(self.run.path), str(os.getpid())]
        try:
            self.started(name, os.posix_spawn(sys.executable, arguments, {**MALLOC, **os.environ}, file_actions=actions))
        except OSError as error:  # the machine has no process or no memory to spare
            self.lives.not_started(name, f"cannot be started: {error.strerror}", time.monotonic())
        finally:
            for fd in (output, *high.values()):
                os.close(fd)

    def start_zygote(self) -> None:
        self.zygote, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.zygote_ready = False
        self.watch(self.zygote.fileno(), self.hear_zygote)
        with theirs:
            self.spawn("zygote", "launcher.zygote", {LIFE_FD: self.life_read, SOCKET_FD: theirs.fileno()})

    def ask_for_forks(self) -> None:
        """Send what waits for the zygote, a few at a time: it answers before it takes more."""
        if not self.zygote_ready or self.zygote is None or self.asked or not self.to_fork:
            return
        batch, self.to_fork = self.to_fork[:FORKS_IN_A_MESSAGE], self.to_fork[FORKS_IN_A_MESSAGE:]
        self.asked = {start.name for start in batch}
        with contextlib.suppress(OSError):  # it is dying; its exit puts the forks back
            self.zygote.send(json.dumps({"fork": [[start.name.removeprefix("node/"), start.incarnation] for start in batch]}).encode())

    def hear_zygote(self) -> None:
        assert self.zygote is not None
        try:
            message = self.zygote.recv(MAX_MESSAGE)
        except ConnectionResetError:
            message = b""
        if not message:
            return self.lose_zygote()
        match json.loads(message):
            case {"ready": True}:
                self.zygote_ready = True
            case {"forked": [name, _, pid]}:
                self.asked.discard(f"node/{name}")
                self.started(f"node/{name}", pid)
            case {"failed": [name, _, why]}:
                self.asked.discard(f"node/{name}")
                self.lives.not_started(f"node/{name}", why, time.monotonic())
            case {"exited": [pid, status]}:
                self.exited(pid, status)
        return self.ask_for_forks()

    def lose_zygote(self) -> None:
        """Its nodes die with it and come to us as orphans; what it had not forked yet is asked of the next one."""
        if self.zygote is None:
            return
        self.selector.unregister(self.zygote.fileno())
        self.zygote.close()
        self.zygote, self.zygote_ready = None, False
        for name in self.asked:
            self.lives.not_started(name, "the zygote died", time.monotonic())
        self.asked.clear()

    def reap(self) -> None:
        """Take the exits of our own children and of orphans."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if self.exited(pid, status) == "zygote":
                    self.drain_zygote()

    def drain_zygote(self) -> None:
        """Hear what a dead zygote said last. Its end of file may not come: a child stopped as it was forked still holds the other end."""
        if self.zygote is not None:
            self.zygote.setblocking(False)
        while self.zygote is not None:
            try:
                self.hear_zygote()
            except BlockingIOError:
                self.lose_zygote()

    def exited(self, pid: int, status: int) -> str:
        life = self.lives.exited(pid, status, time.monotonic())
        if life is None:
            return ""
        if life.state == State.DEAD and not self.lives.stopping:
            print(f"{life.name} (pid {pid}, incarnation {life.incarnation}) died: {life.last_exit}", file=sys.stderr, flush=True)
        return life.name

    # ---- control socket ----

    def accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        client = Client(connection)
        self.clients[connection.fileno()] = client
        self.watch(connection.fileno(), lambda: self.hear(client))

    def hear(self, client: Client) -> None:
        try:
            data = client.connection.recv(MAX_REQUEST)
        except OSError:
            data = b""
        if not data or len(client.buffer) > MAX_REQUEST:
            self.selector.unregister(client.connection.fileno())
            del self.clients[client.connection.fileno()]
            client.connection.close()
            return
        *lines, client.buffer = (client.buffer + data).split(b"\n")
        for line in lines:
            try:
                self.request(client, json.loads(line))
            except (PodwireError, ValueError) as error:
                client.answer({"ok": False, "message": str(error)})

    def request(self, client: Client, message: Any) -> None:
        match message:
            case {"status": True}:
                client.answer({"ok": True, **self.status()})
            case {"stop": True}:
                client.waiting = "end"
                self.stop()
            case {"node": str(name), "state": str(state)}:
                self.fault(client, f"node/{name}", state)
            case {"controller": str(state)}:
                self.fault(client, "controller", state)
            case _:
                raise PodwireError(f"no such request: {json.dumps(message)}")

    def fault(self, client: Client, name: str, state: str) -> None:
        effects = self.lives.fault(name, state)
        client.waiting, client.state = name, state
        self.carry_out(effects)

    def answer_settled(self) -> None:
        """Answer faults once they have come about: a killed process is gone, a paused one stands still, a started one exists."""
        for client in self.clients.values():
            life = self.lives.by_name.get(client.waiting)
            if life is None or not life.settled or (life.state == State.PAUSED and not is_stopped(life.pid)):
                continue
            client.waiting = ""
            if life.state == OUTCOMES.get(client.state, State.RUNNING):
                client.answer({"ok": True, **life.json()})
            else:  # it died at once, or another fault came in between
                why = f" ({life.last_exit})" if life.last_exit else ""
                client.answer({"ok": False, "message": f"{life.json()['name']} is {life.state}{why} and was not {client.state}"})

    def status(self) -> dict[str, Any]:
        lives = self.lives.by_name
        return {
            "name": self.spec.name, "pid": os.getpid(), "guard": os.getppid(), "run_dir": os.fspath(self.run.path),
            "profile": self.spec.profile,
            "controller": lives["controller"].json(), "zygote": lives["zygote"].json(),
            "nodes": [life.json() for name, life in lives.items() if name.startswith("node/")],
        }  # fmt: skip


def main(argv: list[str]) -> None:
    """`python -m launcher.supervisor RUN LOCK LEASH`, the latter two being inherited descriptors."""
    run, lock, leash = RunDirectory(argv[1]), int(argv[2]), int(argv[3])
    for fd in (lock, leash):
        os.set_inheritable(fd, False)
    redirect_output(run.log("supervisor"))
    parent = os.getpid()
    if (child := os.fork()) != 0:
        if leash >= 0:
            os.close(leash)
        sys.exit(guard.watch(run, child, lock))
    die_with_parent(parent, signal.SIGTERM)
    name_process("pw-supervisor")
    adopt_orphans()
    raise_file_limit()
    os.chdir("/")
    Supervisor(run, ClusterSpec.from_json(run.spec.read_text()), lock, leash).serve()


if __name__ == "__main__":
    main(sys.argv)
