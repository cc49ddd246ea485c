"""`ping` for `exec`: ICMP echo with iputils' output and exit codes (0 answered, 1 not, 2 other errors). See ping(8).

Decides pacing, waiting and wording (iputils 20221126); the packets are the stack's. Addresses are printed as numbers or as the
name that was given: there is no reverse resolution.
"""

from __future__ import annotations

import math
import os
import socket as std
import struct
from dataclasses import dataclass, field

from emu.pod.ping_socket import PingSocket, Reply
from emu.pod.program import Context

ECHO_REPLY, DEST_UNREACHABLE, TIME_EXCEEDED = 0, 3, 11
STAMP = struct.Struct("!d")
UNREACHABLE = {
    0: "Destination Net Unreachable", 1: "Destination Host Unreachable", 2: "Destination Protocol Unreachable",
    3: "Destination Port Unreachable", 5: "Source Route Failed", 6: "Destination Net Unknown", 7: "Destination Host Unknown",
    9: "Destination Net Prohibited", 10: "Destination Host Prohibited", 13: "Packet filtered",
}  # fmt: skip
MAX_PAYLOAD = 65507


FIELDS: dict[str, tuple[str, type[int | float]]] = {
    "c": ("count", int), "i": ("interval", float), "W": ("wait", float), "w": ("deadline", float), "t": ("ttl", int), "s": ("size", int),
}  # fmt: skip


class UsageError(Exception):
    """The message after `ping: `, and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Options:
    """What was asked for; seconds where it is time."""

    host: str = ""
    count: int = 0
    interval: float = 1.0
    wait: float = 10.0
    deadline: float = 0.0
    ttl: int = 64
    size: int = 56
    quiet: bool = False


def parse(argv: list[str]) -> Options:
    """`-c -i -W -w -t -s -q -n -4`, together or apart; UsageError with iputils' words."""
    options, rest = Options(), list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            options.host = word
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter == "q":
                options.quiet = True
            elif letter in FIELDS:
                name, kind = FIELDS[letter]
                value, letters = letters or (rest.pop(0) if rest else ""), ""
                if not value:
                    raise UsageError(f"option requires an argument -- '{letter}'", 2)
                try:
                    setattr(options, name, kind(value))
                except ValueError:
                    raise UsageError(f"invalid argument: '{value}'") from None
            elif letter not in "n4":
                raise UsageError(f"invalid option -- '{letter}'", 2)
    if not options.host:
        raise UsageError("usage error: Destination address required")
    if not 0 <= options.size <= MAX_PAYLOAD:
        raise UsageError(f"invalid -s value: '{options.size}': out of range: 0 <= value <= {MAX_PAYLOAD}")
    return options


def ping(ctx: Context) -> int:
    """The command; its exit code."""
    try:
        options = parse(list(ctx.argv[1:]))
        ip = ctx.getaddrinfo(options.host, None)[0][4][0]
    except UsageError as error:
        ctx.log(f"ping: {error}")
        return error.code
    except std.gaierror as error:
        ctx.log(f"ping: {options.host}: {error.strerror}")
        return 2
    with ctx.ping_socket() as sock:
        return Pinger(ctx, options, ip, sock).run()


@dataclass(slots=True)
class Pinger:
    """One run of ping."""

    ctx: Context
    options: Options
    ip: str
    sock: PingSocket
    sent: int = 0
    errors: int = 0
    seen: set[int] = field(default_factory=set)
    duplicates: int = 0
    times: list[float] = field(default_factory=list)
    begun: float = 0.0
    last_sent: float = 0.0
    _reported: set[int] = field(default_factory=set)

    def run(self) -> int:
        ctx, options = self.ctx, self.options
        self.begun = ctx.now()
        end = self.begun + options.deadline if options.deadline else math.inf
        payload = options.size
        ctx.stdout.write("")
        if not self._send():
            return 2
        ctx.stdout.write(f"PING {options.host} ({self.ip}) {payload}({payload + 28}) bytes of data.\n")
        next_at = self.last_sent + options.interval
        while not ctx.terminating:
            done_sending = bool(options.count) and self.sent >= options.count
            answered = len(self.seen) + self.errors
            if done_sending and answered >= self.sent:
                break
            until = min(end, self._linger() if done_sending else next_at)
            reply = self.sock.receive(until)
            if reply is not None:
                self._on_reply(reply)
            elif ctx.now() >= end or done_sending:
                break
            elif ctx.now() >= next_at:
                if not self._send():
                    return 2
                next_at = self.last_sent + options.interval
        return self._finish()

    def _linger(self) -> float:
        """How long to wait for the last answers: `-W`, or twice the longest round trip once something has answered."""
        if self.times and self.options.wait >= 10.0:
            return self.last_sent + max(2 * max(self.times), self.options.interval)
        return self.last_sent + self.options.wait

    def _send(self) -> bool:
        self.sent += 1
        self.last_sent = self.ctx.now()
        stamp = STAMP.pack(self.last_sent) if self.options.size >= STAMP.size + 8 else b""  # ping(8): 16 bytes hold a struct timeval
        payload = stamp + bytes(i & 0xFF for i in range(len(stamp), self.options.size))
        try:
            self.sock.send_echo(self.ip, self.sent, payload, self.options.ttl)
        except OSError as error:
            self.ctx.log(f"ping: connect: {os.strerror(error.errno or 0)}")
            return False
        return True

    def _on_reply(self, reply: Reply) -> None:
        kind, code, seq, payload, sender, ttl = reply
        out = self.ctx.stdout
        shown = sender if sender != self.ip or self.options.host == self.ip else f"{self.options.host} ({sender})"
        if kind != ECHO_REPLY:
            if seq not in self._reported:
                self._reported.add(seq)
                self.errors += 1
            if not self.options.quiet:
                words = "Time to live exceeded" if kind == TIME_EXCEEDED else UNREACHABLE.get(code, f"Dest Unreachable, Bad Code: {code}")
                out.write(f"From {sender} icmp_seq={seq} {words}\n")
            return
        again = seq in self.seen
        self.seen.add(seq)
        self.duplicates += again
        timed = ""
        if len(payload) >= STAMP.size + 8:
            milliseconds = (self.ctx.now() - STAMP.unpack_from(payload)[0]) * 1000
            self.times.append(milliseconds / 1000)
            timed = f" time={_digits(milliseconds)} ms"
        if not self.options.quiet:
            out.write(f"{len(payload) + 8} bytes from {shown}: icmp_seq={seq} ttl={ttl}{timed}{' (DUP!)' if again else ''}\n")

    def _finish(self) -> int:
        out, received = self.ctx.stdout, len(self.seen)
        loss = 100 * (self.sent - received) / self.sent
        parts = [f"{self.sent} packets transmitted", f"{received} received"]
        parts += [f"+{self.duplicates} duplicates"] if self.duplicates else []
        parts += [f"+{self.errors} errors"] if self.errors else []
        parts += [f"{loss:.6g}% packet loss", f"time {max(0, int((self.last_sent - self.begun) * 1000))}ms"]
        out.write(f"\n--- {self.options.host} ping statistics ---\n{', '.join(parts)}\n")
        if self.times:
            low, high, mean = min(self.times), max(self.times), sum(self.times) / len(self.times)
            deviation = math.sqrt(max(0.0, sum(t * t for t in self.times) / len(self.times) - mean * mean))
            out.write("rtt min/avg/max/mdev = " + "/".join(f"{value * 1000:.3f}" for value in (low, mean, high, deviation)) + " ms\n")
        else:
            out.write("\n")
        return 0 if received and (not self.options.deadline or not self.options.count or received >= self.options.count) else 1


def _digits(milliseconds: float) -> str:
    """Iputils prints three significant decimals, fewer for longer times."""
    if milliseconds >= 100:
        return f"{milliseconds:.0f}"
    return f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}" if milliseconds >= 1 else f"{milliseconds:.3f}"
