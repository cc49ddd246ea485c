"""A pod that does with streams what a test at their other end asks for: a line, then bytes that both ends know."""

from __future__ import annotations

import hashlib
import random
import socket as std
import struct

BLOCK = 1 << 20
_PATTERN = random.Random(4).randbytes(BLOCK)


def blocks(size):
    """`size` bytes, a megabyte at a time; no two of the megabytes are the same."""
    for number in range(-(-size // BLOCK)):
        yield (number.to_bytes(8, "big") + _PATTERN[8:])[: min(BLOCK, size - number * BLOCK)]


def digest(size):
    """What the receiver of `size` bytes must have."""
    sha = hashlib.sha256()
    for block in blocks(size):
        sha.update(block)
    return f"{size} {sha.hexdigest()}"


def drain(sock, pause=lambda: None, piece=1 << 18):
    """Everything up to the end of the stream: how much, and its digest."""
    sha, size = hashlib.sha256(), 0
    while data := sock.recv(piece):
        sha.update(data)
        size += len(data)
        pause()
    return f"{size} {sha.hexdigest()}"


def fill(sock, size):
    for block in blocks(size):
        sock.sendall(block)
    sock.shutdown(std.SHUT_WR)


def line(sock):
    text = b""
    while not text.endswith(b"\n"):
        text += sock.recv(1)
    return text.decode().split()


def serve(ctx):
    """One connection after the other: a line says what to do with it."""
    listener = ctx.socket()
    listener.bind(("", 9000))
    listener.listen()
    while True:
        sock, _ = listener.accept()
        try:
            act(ctx, sock, *line(sock))
        except OSError as error:
            ctx.stdout.write(f"{error}\n")
        sock.close()


def act(ctx, sock, verb, *words):
    if verb == "sink":  # what came, once the peer has no more: a half-close
        sock.sendall(drain(sock).encode())
    elif verb == "late":  # nothing is read for so many seconds: the window shuts
        ctx.sleep(float(words[0]))
        sock.sendall(drain(sock).encode())
    elif verb == "slow":  # so many bytes each hundredth of a second
        sock.sendall(drain(sock, lambda: ctx.sleep(0.01), int(words[0])).encode())
    elif verb == "source":
        fill(sock, int(words[0]))
        sock.recv(1)
    elif verb == "reset":  # in the middle, after so many bytes
        drained = 0
        while drained < int(words[0]):
            drained += len(sock.recv(1 << 16))
        sock.setsockopt(std.SOL_SOCKET, std.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        with ctx.create_connection((words[0], int(words[1]))) as other:
            if verb == "push":
                fill(other, int(words[2]))
            sock.sendall(drain(other).encode())
