"""A program that never stops asking a Service, over one TCP connection and by UDP, and tells the longest time without an answer."""

from __future__ import annotations

import json
from http.client import HTTPException, HTTPResponse

from emu.pod.program import Context

EVERY, PATIENCE, TELL = 0.02, 1.0, 0.5  # seconds


class Tally:
    """What one kind of ping has seen."""

    def __init__(self) -> None:
        self.answers = self.failed = 0
        self.longest, self.last = 0.0, 0.0  # the time starts with the first answer: before it there may be nobody to ask yet

    def answered(self, now: float) -> None:
        self.answers += 1
        self.longest = max(self.longest, now - (self.last or now))
        self.last = now


def ping(ctx: Context) -> int:
    """ADDRESS TCP-PORT UDP-PORT: netexec's HTTP server and its UDP server. Tells [answers, failures, longest gap] of each."""
    address, tcp_port, udp_port = ctx.argv[0], int(ctx.argv[1]), int(ctx.argv[2])
    tcp, udp = Tally(), Tally()
    ctx.start_thread(_by_udp, ctx, (address, udp_port), udp)
    ctx.start_thread(_tell, ctx, tcp, udp)
    while True:
        try:
            sock = ctx.create_connection((address, tcp_port), timeout=5 * PATIENCE)
            while True:
                sock.sendall(b"GET /hostname HTTP/1.1\r\nHost: x\r\n\r\n")
                response = HTTPResponse(sock)
                response.begin()
                response.read()
                tcp.answered(ctx.now())
                ctx.sleep(EVERY)
        except (OSError, HTTPException):
            tcp.failed += 1
            ctx.sleep(EVERY)


def _by_udp(ctx: Context, to: tuple[str, int], tally: Tally) -> None:
    import socket

    sock = ctx.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE)
    while True:
        try:
            sock.sendto(b"hostname\n", to)
            sock.recvfrom(1000)
            tally.answered(ctx.now())
        except OSError:
            tally.failed += 1
        ctx.sleep(EVERY)


def _tell(ctx: Context, tcp: Tally, udp: Tally) -> None:
    while ctx.sleep(TELL):
        seen = {"tcp": [tcp.answers, tcp.failed, round(tcp.longest, 3)], "udp": [udp.answers, udp.failed, round(udp.longest, 3)]}
        ctx.stdout.write(json.dumps(seen) + "\n")
