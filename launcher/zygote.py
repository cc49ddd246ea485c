"""The zygote: a warm process that has imported all a node needs and opened nothing, from which nodes are forked.

Single-threaded by construction: no thread and no ZeroMQ context exists before a fork (1.7 ms and 1.7 MB a node, against
36 ms and 9.3 MB for a fresh interpreter). It decides nothing: the supervisor, at the other end of one socket, says whom to fork and
is told of every death. Messages are JSON, one a datagram: in `{"fork": [[NAME, INCARNATION]...]}`, out `{"ready": true}`,
`{"forked": [NAME, INCARNATION, PID]}`, `{"failed": [NAME, INCARNATION, WHY]}`, `{"exited": [PID, STATUS]}` (a wait status).

It dies with the supervisor and its nodes die with it, by the kernel's death signal, which a paused process heeds too.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable

from emu.model.cluster import ClusterSpec
from launcher.linux import die_with_parent, name_process
from launcher.output import outlast_full_disk, redirect_output
from launcher.rundir import RunDirectory

LIFE_FD, SOCKET_FD = 3, 4  # where the supervisor puts them
MAX_MESSAGE = 1 << 17

NodeMain = Callable[[ClusterSpec, str, int, int], None]


def entry(dotted: str) -> Callable[..., None]:
    """The function that `module:function` names."""
    module, _, name = dotted.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(module), name)
    return found


class Zygote:
    """`socket` is the supervisor's, `wake` the read end of the pipe that signals write to."""

    def __init__(self, run: RunDirectory, spec: ClusterSpec, channel: socket.socket, main: NodeMain) -> None:
        self.run, self.spec, self.channel, self.main = run, spec, channel, main
        self.children: set[int] = set()
        self.wake, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)

    def loop(self) -> None:
        """Serve until the supervisor's end of the socket is closed."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        poll.register(self.wake, select.POLLIN)
        self.tell({"ready": True})
        while True:
            for fd, _ in poll.poll():
                if fd == self.wake:
                    os.read(fd, 4096)
                    self.reap()
                    continue
                message = self.channel.recv(MAX_MESSAGE)
                if not message:
                    return
                for name, incarnation in json.loads(message)["fork"]:
                    self.fork(name, incarnation)

    def tell(self, message: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the supervisor is gone: the loop will see it
            self.channel.send(json.dumps(message).encode())

    def fork(self, name: str, incarnation: int) -> None:
        zygote = os.getpid()  # asked here: the child of a zygote that dies meanwhile has another parent by then
        try:
            pid = os.fork()
        except OSError as error:  # no process or no memory to spare: the others must not die of it
            self.tell({"failed": [name, incarnation, f"cannot be forked: {error.strerror}"]})
            return
        if not pid:
            self.become_node(name, incarnation, zygote)
        self.children.add(pid)
        self.tell({"forked": [name, incarnation, pid]})

    def reap(self) -> None:
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self.children.discard(pid)
            self.tell({"exited": [pid, status]})

    def become_node(self, name: str, incarnation: int, zygote: int) -> None:
        """In the child: forget the zygote, run the node, never return."""
        status = 1
        try:
            die_with_parent(zygote)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for fd in (self.wake, self._wake_write, self.channel.fileno()):
                os.close(fd)
            redirect_output(self.run.log(name))
            name_process(name)
            gc.enable()
            self.main(self.spec, name, incarnation, LIFE_FD)
            status = 0
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)  # the zygote's exit handlers are not the node's


def plug_holes() -> list[object]:
    """Fill the free places of the interpreter's own allocator (obmalloc: a size class every 16 bytes up to 512).

    What a node allocates then lies together on pages of its own, instead of one here and one there on pages that it would
    have to copy for it. 0.2 MiB a node; the plugs themselves are copied by nobody.
    """
    header, share = sys.getsizeof(b""), 64 << 10
    plugs: list[object] = [bytes(size - header) for size in range(48, 513, 16) for _ in range(share // size)]
    plugs += [float(number) for number in range(share // 32)]
    plugs += [object() for _ in range(share // 16)]
    return plugs


def main(argv: list[str]) -> None:
    """`python -m launcher.zygote RUN SUPERVISOR-PID`."""
    run, supervisor = RunDirectory(argv[1]), int(argv[2])
    die_with_parent(supervisor)
    outlast_full_disk()
    name_process("pw-zygote")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(LIFE_FD, False)
    spec = ClusterSpec.from_json(run.spec.read_text())
    zygote = Zygote(run, spec, socket.socket(fileno=SOCKET_FD), entry(spec.node_main))
    gc.disable()
    gc.collect()
    plugs = plug_holes()
    gc.freeze()  # so that no collection in a node touches, and thereby copies, the pages all share
    zygote.loop()
    del plugs


if __name__ == "__main__":
    main(sys.argv)
