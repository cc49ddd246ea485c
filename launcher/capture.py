"""`podwire capture`: what the API streams, to a file or as lines; what was lost, and that nodes went away, to stderr.

Decides where blocks go. A file gets whole blocks as they come, so that it is well-formed whenever it ends, and each device's statistics
once, at its end.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Iterator
from typing import IO, Any, Protocol

import click

from emu.errors import ConfigError, PodwireError
from emu.observe import pcapng
from emu.observe.dissection import Printer, fields
from emu.observe.pcapng import Block
from launcher.client import PODWIRE, Client

DIRECTIONS = {1: "In", 2: "Out"}


class Tally:
    """What has come so far: devices, packets, the last statistics of each device."""

    def __init__(self) -> None:
        self.devices: list[str] = []
        self.packets = 0
        self.statistics: dict[int, Block] = {}

    def take(self, block: Block) -> None:
        """Count a block, and say what it tells people."""
        if block.kind == pcapng.INTERFACE:
            self.devices.append(block.name)
        elif block.kind == pcapng.PACKET:
            self.packets += 1
            return
        elif block.kind == pcapng.STATISTICS:
            previous = self.statistics.get(block.device)
            self.statistics[block.device] = block
            if previous is not None and previous.comment == block.comment:
                return
            if any(other is not block and other.comment == block.comment for other in self.statistics.values()):
                return
        if block.comment:
            click.echo(block.comment, err=True)

    def summary(self) -> str:
        """As tcpdump has it."""
        counts = [block.counts for block in self.statistics.values()]
        accepted = max(self.packets, sum(c.accepted for c in counts))
        lines = (
            (self.packets, "captured"), (accepted, "received by filter"), (sum(c.lost for c in counts), "dropped by the capture"),
        )  # fmt: skip
        return "\n".join(f"{number} packet{'' if number == 1 else 's'} {what}" for number, what in lines)


class Sink(Protocol):
    """Where blocks go."""

    def take(self, block: Block) -> None: ...
    def end(self, tally: Tally) -> None: ...


class File:
    """A pcapng file, or "-" for standard output."""

    def __init__(self, path: str) -> None:
        try:
            self._out: IO[bytes] = sys.stdout.buffer if path == "-" else open(path, "wb")  # noqa: SIM115  # `end` closes it
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", source=path) from error

    def take(self, block: Block) -> None:
        if block.kind != pcapng.STATISTICS:
            self._out.write(block.raw)
            self._out.flush()

    def end(self, tally: Tally) -> None:
        for block in tally.statistics.values():
            self._out.write(block.raw)
        self._out.flush()
        if self._out is not sys.stdout.buffer:
            self._out.close()


class Lines:
    """Text, a line a packet."""

    def __init__(self, tally: Tally) -> None:
        self._tally, self._printer = tally, Printer()

    def take(self, block: Block) -> None:
        if block.kind == pcapng.PACKET:
            sys.stdout.write(self.line(block, self._tally.devices[block.device]) + "\n")
            sys.stdout.flush()

    def line(self, block: Block, device: str) -> str:
        seconds, rest = divmod(block.at, 1_000_000_000)
        at = f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06}"
        comment = f" ({block.comment})" if block.comment else ""
        return f"{at} {device} {DIRECTIONS.get(block.direction, '?'):3} {self._printer.line(block.data)}{comment}"

    def end(self, tally: Tally) -> None:
        """Lines have none."""


class JsonLines(Lines):
    """A JSON object a packet."""

    def line(self, block: Block, device: str) -> str:
        told: dict[str, Any] = {
            "time": block.at / 1e9, "device": device, "direction": DIRECTIONS.get(block.direction, "").lower(), "length": block.length,
            "packet": fields(block.data),
        }  # fmt: skip
        return json.dumps({**told, **({"comment": block.comment} if block.comment else {})})


def run(client: Client, request: dict[str, Any], *, file: str | None, as_json: bool) -> None:
    """Capture until what was asked for is there, or until Ctrl-C. PodwireError if the stream breaks off, ConfigError for a bad file."""
    tally = Tally()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell in the background has the first ignored
        signal.signal(number, signal.default_int_handler)
    blocks = _blocks(client, request)
    first = next(blocks, None)  # a refusal leaves no file behind
    sink: Sink = File(file) if file is not None else JsonLines(tally) if as_json else Lines(tally)
    _announce(request)
    try:
        for block in itertools.chain([first] if first else [], blocks):
            tally.take(block)
            sink.take(block)
    except KeyboardInterrupt:
        click.echo("", err=True)
    finally:
        sink.end(tally)
        click.echo(tally.summary(), err=True)


def _announce(request: dict[str, Any]) -> None:
    place = next((f"{key} {request[key]}" for key in ("node", "pod", "link") if request.get(key)), "all nodes")
    click.echo(f"listening on {place}, link-type IPV4 (Raw IPv4); Ctrl-C ends it", err=True)


def _blocks(client: Client, request: dict[str, Any]) -> Iterator[Block]:
    reader = pcapng.Reader()
    for piece in client.stream(f"{PODWIRE}/captures", method="POST", body=request):
        try:
            yield from reader.feed(piece)
        except pcapng.Malformed as error:
            raise PodwireError(f"the capture's stream is broken: {error}") from error
