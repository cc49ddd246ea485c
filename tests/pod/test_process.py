"""What becomes of programs: exit codes, crashes, kills, and threads that do not listen."""

from __future__ import annotations

import threading
import time

import pytest

from emu.pod.process import Process
from emu.pod.program import SOCK_DGRAM, ContainerKilled, Context, Handler
from tests.kit.pods import Node, Run


@pytest.fixture
def node():
    node = Node()
    yield node
    node.close()


def leave(code):
    def main(ctx: Context):
        raise SystemExit(code)

    return main


def ending(value):
    return lambda ctx: value


def crash(ctx: Context):
    return {}["nothing"]


def exit_in_a_call(ctx: Context):
    ctx.exit(7)
    raise AssertionError("exit does not return")


@pytest.mark.parametrize(
    ("program", "code", "stderr"),
    [
        (ending(None), 0, ""),
        (ending(3), 3, ""),
        (ending(256), 0, ""),  # exit(3) keeps eight bits
        (leave(None), 0, ""),
        (leave(4), 4, ""),
        (leave("usage: x"), 1, "usage: x\n"),  # as the interpreter does
        (crash, 1, "KeyError: 'nothing'\n"),
        (exit_in_a_call, 7, ""),
    ],
)
def test_a_program_s_return_value_is_its_exit_code(node, program, code, stderr):
    run = node.run(node.pod("a"), program)
    assert run.join() == code
    assert run.stderr.endswith(stderr)
    assert bool(run.stderr) == bool(stderr)


def test_a_traceback_shows_the_program_s_frames_and_none_of_ours(node):
    run = node.run(node.pod("a"), crash)
    run.join()
    assert "in crash" in run.stderr
    assert "emu/pod" not in run.stderr


def accepting(ctx):
    sock = ctx.socket()
    sock.bind(("0.0.0.0", 80))
    sock.listen()
    sock.accept()


def receiving(ctx):
    sock = ctx.socket(type=SOCK_DGRAM)
    sock.bind(("0.0.0.0", 80))
    sock.recv(1)


def connecting(ctx):
    ctx.create_connection(("10.244.1.250", 80))


def sleeping(ctx):
    ctx.sleep(3600)


def reading(ctx):
    ctx.stdin.read()


def pinging(ctx):
    with ctx.ping_socket() as sock:
        sock.receive()


@pytest.mark.parametrize("program", [accepting, receiving, connecting, sleeping, reading, pinging])
def test_a_kill_ends_every_blocked_call(node, program):
    run = node.run(node.pod("a"), program, stdin=True)
    time.sleep(0.01)
    run.process.kill()
    assert run.join() == 137


@pytest.mark.parametrize(
    "call",
    [
        lambda ctx, sock: sock.recv(1),
        lambda ctx, sock: sock.send(b"x"),
        lambda ctx, sock: ctx.socket(),
        lambda ctx, sock: ctx.sleep(0),
        lambda ctx, sock: ctx.create_connection(("127.0.0.1", 1)),
        lambda ctx, sock: ctx.start_thread(len),
        lambda ctx, sock: sock.getsockname(),
    ],
)
def test_every_call_after_a_kill_is_told(node, call):
    met: list[BaseException] = []
    ready, killed = threading.Event(), threading.Event()

    def stubborn(ctx):
        sock = ctx.socket(type=SOCK_DGRAM)
        sock.connect(("127.0.0.1", 9))
        ready.set()
        killed.wait(5)
        try:
            call(ctx, sock)
        except BaseException as error:
            met.append(error)
        raise ValueError("ends otherwise")

    run = node.run(node.pod("a"), stubborn)
    ready.wait(5)
    run.process.kill()
    killed.set()
    run.join()
    assert isinstance(met[0], ContainerKilled)


def test_except_exception_does_not_outlive_a_kill(node):
    def swallowing(ctx):
        while True:
            try:
                ctx.sleep(3600)
            except Exception:
                continue

    run = node.run(node.pod("a"), swallowing)
    run.process.kill()
    assert run.join() == 137


def test_a_kill_resets_connections(node):
    a, b = node.pod("a"), node.pod("b")
    server = node.run(b, hold)
    while ("TCP", 80) not in server.ports:
        time.sleep(0.001)

    def main(ctx):
        sock = ctx.create_connection((server.process.pod.ip, 80))
        ctx.start_thread(server.process.kill)
        return sock.recv(1)

    with pytest.raises(ConnectionResetError):
        node.call(a, main)
    with pytest.raises(ConnectionRefusedError):
        node.call(a, lambda ctx: ctx.create_connection((server.process.pod.ip, 80)))


def hold(ctx):
    sock = ctx.socket()
    sock.bind(("0.0.0.0", 80))
    sock.listen()
    conns = []
    while True:
        conns.append(sock.accept())


def test_an_exit_closes_what_the_program_left_open(node):
    a, b = node.pod("a"), node.pod("b")

    def careless(ctx):
        sock = ctx.socket()
        sock.bind(("0.0.0.0", 80))
        sock.listen()
        conn, _ = sock.accept()
        conn.sendall(b"last words")

    server = node.run(b, careless)
    while ("TCP", 80) not in server.ports:
        time.sleep(0.001)
    assert node.call(a, lambda ctx: ctx.create_connection((server.process.pod.ip, 80)).makefile("rb").read()) == b"last words"


def test_sigterm_ends_sleeps_and_leaves_the_rest_to_the_program(node):
    def polite(ctx):
        slept = ctx.sleep(3600)
        assert ctx.terminating
        return 5 if slept is False else 6

    run = node.run(node.pod("a"), polite)
    time.sleep(0.01)
    run.process.terminate()
    assert run.join() == 5


def test_a_thread_that_never_calls_is_abandoned_and_cut_off(node):
    release = threading.Event()

    def deaf(ctx):
        release.wait(5)
        ctx.socket()

    run = node.run(node.pod("a"), deaf)
    run.process.kill()
    assert run.process.stuck_threads == 1
    assert not run.process.ended
    run.process.abandon()
    assert run.process.exit_code == 137
    release.set()
    run.join()
    assert run.process.stuck_threads == 0


def test_an_exception_in_a_second_thread_ends_the_process(node):
    def main(ctx):
        ctx.start_thread(crash, ctx)
        ctx.sleep(3600)

    run = node.run(node.pod("a"), main)
    assert run.join() == 1
    assert "KeyError" in run.stderr


def test_a_return_ends_the_other_threads(node):
    def main(ctx):
        ctx.start_thread(ctx.sleep, 3600)
        return 2

    assert node.run(node.pod("a"), main).join() == 2


class Blocking(Handler):
    def on_start(self, ctx):
        ctx.sleep(1)


class Receiving(Handler):
    def on_start(self, ctx):
        sock = ctx.socket(type=SOCK_DGRAM)
        sock.bind(("0.0.0.0", 5))
        sock.recv(1)


@pytest.mark.parametrize("handler", [Blocking, Receiving])
def test_a_handler_that_would_block_is_an_error(node, handler):
    run = node.run(node.pod("a"), handler())
    assert run.join() == 1
    assert "a handler must not block" in run.stderr


def test_blocking_code_has_no_events(node):
    with pytest.raises(RuntimeError, match="only handler programs"):
        node.call(node.pod("a"), lambda ctx: ctx.listen_tcp(1))


class Far(Handler):
    """Asks for what is no port, in one way or another."""

    def __init__(self, ask):
        self.ask = ask

    def on_start(self, ctx):
        self.ask(ctx)


@pytest.mark.parametrize(
    "ask",
    [
        lambda ctx: ctx.listen_tcp(99999),
        lambda ctx: ctx.listen_udp(-1),
        lambda ctx: ctx.connect_tcp(("127.0.0.1", 65536)),
        lambda ctx: ctx.listen_udp(5).send_to(b"x", ("127.0.0.1", 65536)),
    ],
)
def test_what_is_no_port_is_an_error_of_the_program_s(node, ask):
    run = node.run(node.pod("a"), Far(ask))
    assert run.join() == 1
    assert "OverflowError: port must be 0-65535." in run.stderr


class Recorder(Handler):
    """Writes down its events."""

    def __init__(self):
        self.events: list[str] = []
        self.running = 0

    def _note(self, event):
        self.running += 1
        assert self.running == 1, "handlers never overlap"
        self.events.append(event)
        self.running -= 1

    def on_start(self, ctx):
        ctx.listen_tcp(7)
        ctx.call_later(0.01, lambda: self._note("alarm"))

    def on_connect(self, ctx, conn):
        self._note("connect")

    def on_data(self, ctx, conn, data):
        self._note(data.decode())
        conn.send(data)
        if data == b"stop":
            conn.close()
        if data == b"abort":
            conn.abort()

    def on_eof(self, ctx, conn):
        self._note("eof")
        conn.close()

    def on_close(self, ctx, conn):
        self._note(f"close {conn.error}")


@pytest.mark.parametrize(
    ("does", "events"),
    [
        (lambda sock: sock.close(), ["connect", "eof", "close 0"]),
        (lambda sock: (sock.sendall(b"stop"), sock.makefile("rb").read(), sock.close()), ["connect", "stop", "close 0"]),
        (lambda sock: sock.sendall(b"abort"), ["connect", "abort", "close 0"]),
        (
            lambda sock: (sock.sendall(b"a"), sock.recv(1), sock.sendall(b"b"), sock.recv(1), sock.close()),
            ["connect", "a", "b", "eof", "close 0"],
        ),
        (lambda sock: (sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0"), sock.close()), ["connect", "close 104"]),
    ],
)
def test_a_handler_is_told_of_each_event_once(node, does, events):
    a, b = node.pod("a"), node.pod("b")
    recorder = Recorder()
    server = node.run(b, recorder)
    node.call(a, lambda ctx: (does(ctx.create_connection((server.process.pod.ip, 7))), ctx.sleep(0.02)))
    assert [event for event in recorder.events if event != "alarm"] == events
    assert recorder.events.count("alarm") == 1


def test_what_a_slow_reader_has_not_taken_holds_up_its_sender_only(node):
    """Flow control: an echo to a client that does not read stops reading too, so its memory stays bounded."""
    a, b = node.pod("a"), node.pod("b")
    server = node.run(b, Recorder())

    def main(ctx):
        sock = ctx.create_connection((server.process.pod.ip, 7))
        sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            sock.sendall(b"z" * 30_000_000)
        other = ctx.create_connection((server.process.pod.ip, 7))
        other.sendall(b"hello")
        return other.recv(5)

    assert node.call(a, main) == b"hello"


def test_a_handler_connects_and_hears_of_failure(node):
    class Client(Handler):
        def __init__(self):
            self.seen = []

        def on_start(self, ctx):
            ctx.connect_tcp((ctx.pod.ip, 7)).state = "good"
            ctx.connect_tcp((ctx.pod.ip, 8)).state = "bad"

        def on_connect(self, ctx, conn):
            self.seen.append(("connect", conn.state))
            conn.send(b"ping")

        def on_data(self, ctx, conn, data):
            self.seen.append((data, conn.state))

        def on_close(self, ctx, conn):
            self.seen.append(("close", conn.state, conn.error))

    a = node.pod("a")
    node.run(a, Recorder())
    client = Client()
    node.run(a, client)
    time.sleep(0.02)
    assert sorted(map(str, client.seen)) == sorted(map(str, [("connect", "good"), (b"ping", "good"), ("close", "bad", 111)]))


def test_output_streams_take_text_and_bytes(node):
    def main(ctx):
        ctx.stdout.write("größe\n")
        ctx.stdout.buffer.write(b"\xff\x00")
        ctx.stderr.write("err")
        ctx.log("line")

    run: Run = node.run(node.pod("a"), main)
    run.join()
    assert run.out == {"stdout": "größe\n".encode() + b"\xff\x00", "stderr": b"errline\n"}


def test_standard_input_is_a_pipe(node):
    def main(ctx):
        parts = []
        while data := ctx.stdin.read(4):
            parts.append(data)
        ctx.stdout.buffer.write(b"|".join(parts))

    run = node.run(node.pod("a"), main, stdin=True)
    run.process.stdin.feed(b"abcdef")
    run.process.stdin.feed(b"gh")
    run.process.stdin.feed_eof()
    run.join()
    assert run.stdout == "abcd|ef|gh"


def test_without_an_attached_input_it_is_empty(node):
    assert node.call(node.pod("a"), lambda ctx: ctx.stdin.read()) == b""


def test_a_process_that_nobody_starts_costs_no_thread(node):
    before = threading.active_count()
    for _ in range(20):
        node.run(node.pod(f"p{_}"), Handler())
    assert threading.active_count() == before
    assert isinstance(node.processes[0], Process)
