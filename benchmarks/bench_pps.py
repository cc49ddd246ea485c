"""UDP packets of 64 bytes from pod to ClusterIP to a pod on another node, by bare pyzmq's one-frame messages of 64 bytes.

64 bytes are the datagram's payload, as they are the message's. Rows: how the program sends (one `sendto` a packet, `sendmmsg` of 64)
x how the other reads (`recvfrom`, `recvmmsg` of 64, an event handler). A packet counts when the program has read it; what a
queue on the way or the socket's buffer had no room for does not, and `sent to read` tells how much that was. `cpu` is µs a packet
of the sender's process and of the reader's, all threads. The headlines are `sendto` and, read by its counterpart, `sendmmsg`;
`ratio` is the median of ratios taken round by round.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from contextlib import ExitStack
from typing import Any

import click

from benchmarks import floods
from benchmarks.floods import SILENCE, Round, Some, row
from benchmarks.harness import Result, answer, commands, environment, placements, report, tell
from benchmarks.two_nodes import PORT, SERVICE, SIZE, Target, start_pod
from emu.pod.datagrams import MSG_WAITFORONE
from emu.pod.program import SOCK_DGRAM, Context, DatagramPort, Handler, Socket

BATCH = 64
HEADLINES = (("sendto", "recvfrom"), ("sendmmsg", "recvmmsg"))
WAYS = (*HEADLINES, ("sendto", "recvmmsg"), ("sendmmsg", "recvfrom"), ("sendmmsg", "handler"))


def run(repeats: int = 8, milliseconds: int = 500) -> Result:
    """Measure; `repeats` rounds of so long a row, reference in turn with them."""
    gc.collect()
    gc.freeze()  # as the zygote does before it forks nodes
    with tempfile.TemporaryDirectory(prefix="pw-") as directory:
        name, cpus = next(iter(placements().items()))
        tell(f"{name} …")
        rows = _rows(cpus, directory, repeats, milliseconds)
    first, batched = rows[: len(HEADLINES)]
    return {
        "bench": "pps",
        "title": "64-byte UDP packets from pod to ClusterIP to a pod on another node (1,000/s: p10 p50 p90)",
        "headline": f"sendto to bare pyzmq, {name}; {batched['ratios']['p50']:g} is that of sendmmsg of {BATCH}",
        "ratio": first["ratios"]["p50"],
        "measured": {"sendto": first["measured"], "sendmmsg": batched["measured"]},
        "reference": first["reference"],
        "ratios": {"sendto": first["ratios"], "sendmmsg": batched["ratios"]},
        "rows": rows,
        "environment": environment(),
    }


def _rows(cpus: tuple[int, int], directory: str, repeats: int, milliseconds: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        rounds: dict[str, Round] = {"bare": floods.bare(stack, directory, cpus, SIZE, 1)}
        rounds |= {f"{send} {read}": _pods(stack, f"{directory}/{index}-", cpus, send, read) for index, (send, read) in enumerate(WAYS)}
        rates = floods.in_turn(rounds, repeats, milliseconds)
    measured = [row(f"{send}, {read}", rates[f"{send} {read}"], rates["bare"], 1e3, 1e3) for send, read in WAYS]
    return [*measured, row("bare pyzmq", rates["bare"], rates["bare"], 1e3, 1e3)]


def _pods(stack: ExitStack, prefix: str, cpus: tuple[int, int], send: str, read: str) -> Round:
    """Two nodes, and in their pods a sender and a reader of these kinds."""

    def reader(orders: int, out: int) -> None:
        if read == "handler":
            counting = Counting(orders, out)
            start_pod(prefix, 2, counting).run()
        start_pod(prefix, 2, lambda ctx: _read(ctx, orders, out, read)).run()

    def sender(orders: int, out: int) -> None:
        start_pod(prefix, 1, lambda ctx: _send(ctx, orders, out, send)).run()

    return floods.start(stack, cpus, sender, reader)


def _send(ctx: Context, orders: int, out: int, how: str) -> int:
    sock = ctx.socket(type=SOCK_DGRAM)
    os.write(out, b"+")
    floods.send_on(orders, out, SENDERS[how](sock, bytes(SIZE)))
    return 0


def _sendto(sock: Socket, payload: bytes) -> Some:
    def some() -> int:
        for _ in range(BATCH):
            sock.sendto(payload, SERVICE)
        return BATCH

    return some


def _sendmmsg(sock: Socket, payload: bytes) -> Some:
    batch = [(payload, SERVICE)] * BATCH
    return lambda: sock.sendmmsg(batch)


SENDERS = {"sendto": _sendto, "sendmmsg": _sendmmsg}


def _read(ctx: Context, orders: int, out: int, how: str) -> int:
    sock = ctx.socket(type=SOCK_DGRAM)
    sock.bind(("0.0.0.0", PORT))

    def recvfrom() -> int:
        for _ in range(BATCH):
            sock.recvfrom(SIZE)
        return BATCH

    def recvmmsg() -> int:
        return len(sock.recvmmsg(BATCH, SIZE, MSG_WAITFORONE))

    def drain() -> None:
        sock.settimeout(SILENCE)
        try:
            while True:
                sock.recvmmsg(BATCH, SIZE, MSG_WAITFORONE)
        except TimeoutError:
            sock.settimeout(None)

    os.write(out, b"+")
    floods.read_on(orders, out, {"recvfrom": recvfrom, "recvmmsg": recvmmsg}[how], drain)
    return 0


class Counting(Handler):
    """Reads by events. Another thread carries out the commands, asleep while packets come."""

    def __init__(self, orders: int, out: int) -> None:
        self._orders, self._out = orders, out
        self._read = 0

    def on_start(self, ctx: Context) -> None:
        ctx.listen_udp(PORT)
        ctx.start_thread(self._obey)
        os.write(self._out, b"+")

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Target) -> None:
        self._read += 1

    def _obey(self) -> None:
        for milliseconds, _ in commands(self._orders):
            answer(self._out, floods.count(milliseconds, self._some))
            while self._some():
                pass
            os.write(self._out, b"+")

    def _some(self) -> int:
        before = self._read
        time.sleep(SILENCE)
        return self._read - before


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--rounds", default=8, show_default=True, help="Rounds a row, taken in turn.")
@click.option("--milliseconds", default=500, show_default=True, help="Length of a round.")
def main(*, as_json: bool, rounds: int, milliseconds: int) -> None:
    """64-byte UDP packets a second between pods on two nodes, by bare pyzmq's messages."""
    report(run(rounds, milliseconds), as_json=as_json)


if __name__ == "__main__":
    main()
