"""Programs that move many bytes from pod to pod, and tell what arrived and how."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator

from emu.pod.program import Context

PORT = 9000
BLOCK = 1 << 20


def blocks(size: int) -> Iterator[bytes]:
    """`size` bytes that repeat nowhere, the same at every call."""
    source = random.Random(size)
    for start in range(0, size, BLOCK):
        yield source.randbytes(min(BLOCK, size - start))


def digest(size: int) -> str:
    """What the bytes of `size` hash to."""
    found = hashlib.sha256()
    for block in blocks(size):
        found.update(block)
    return found.hexdigest()


def serve(ctx: Context) -> int:
    """Send ARGV[0] bytes to whoever connects, one after the other."""
    listener = ctx.socket()
    listener.bind(("", PORT))
    listener.listen()
    while True:
        conn, _ = listener.accept()
        for block in blocks(int(ctx.argv[0])):
            conn.sendall(block)
        conn.close()


def fetch(ctx: Context) -> int:
    """Read all that the host ARGV[0] sends; log bytes, hash, seconds, and the longest time in which nothing came."""
    started = ctx.now()
    sock = ctx.create_connection((ctx.argv[0], PORT))
    found, size, last, gap = hashlib.sha256(), 0, ctx.now(), 0.0
    ctx.stdout.write("connected\n")
    while chunk := sock.recv(1 << 20):
        found.update(chunk)
        size += len(chunk)
        now = ctx.now()
        gap, last = max(gap, now - last), now
    told = {"bytes": size, "sha256": found.hexdigest(), "seconds": round(ctx.now() - started, 3), "gap": round(gap, 3)}
    ctx.stdout.write(json.dumps(told) + "\n")
    ctx.sleep(3600)
    return 0
