"""Programs of a user's: what the tests of the network run in pods, by the annotation podwire.dev/program."""

from __future__ import annotations

import json

from emu.pod.program import Context


def hold(ctx: Context) -> int:
    """Keep one connection to the Service open and tell, once a line comes in, who answers on it."""
    sock = ctx.create_connection((ctx.argv[0], int(ctx.argv[1])))
    requests = ctx.socket()
    requests.bind(("", 9000))
    requests.listen()
    stream = sock.makefile("rb")
    while True:
        asking, _ = requests.accept()
        sock.sendall(b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n")
        length = 0
        while (line := stream.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = stream.read(length)
        asking.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        asking.close()


def spread(ctx: Context) -> int:
    """Connect many times to a Service, and serve the tally of who answered."""
    tally: dict[str, int] = {}
    for _ in range(int(ctx.argv[2])):
        sock = ctx.create_connection((ctx.argv[0], int(ctx.argv[1])))
        sock.sendall(b"GET /hostname HTTP/1.0\r\nHost: x\r\n\r\n")
        answer = b""
        while chunk := sock.recv(4096):
            answer += chunk
        sock.close()
        name = answer.rpartition(b"\r\n\r\n")[2].decode()
        tally[name] = tally.get(name, 0) + 1
    ctx.stdout.write(json.dumps(tally) + "\n")
    listener = ctx.socket()
    listener.bind(("", 9000))
    listener.listen()
    while True:
        listener.accept()[0].close()


def second(ctx: Context) -> int:
    """Try to listen where another container of the pod does."""
    sock = ctx.socket()
    try:
        sock.bind(("", 8080))
        sock.listen()
    except OSError as error:
        ctx.stdout.write(f"{error}\n")
    ctx.sleep(3600)
    return 0


def crash(ctx: Context) -> int:
    """Fail at once, with a traceback."""
    raise RuntimeError("this program always fails")
