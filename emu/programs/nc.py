"""`nc` for `exec`: OpenBSD's netcat as Debian has it, for probing ports and moving bytes. See nc(1).

Decides options (`-z -v -w -u -l -p -n -N -q -k`), wording and exit codes. Data goes both ways at once: standard input is pumped
by a thread of its own.
"""

from __future__ import annotations

import os
import socket as std
from dataclasses import dataclass

from emu.pod.program import SOCK_DGRAM, SOCK_STREAM, Context, Socket

USAGE = "usage: nc [-klNnuvz] [-p source_port] [-q seconds] [-s sourceaddr] [-w timeout] [destination] [port]"
SERVICES = {22: "ssh", 53: "domain", 80: "http", 443: "https"}


class UsageError(Exception):
    """The message after `nc: ` (none: just the usage)."""


@dataclass(slots=True)
class Options:
    """The command line."""

    zero: bool = False
    verbose: bool = False
    udp: bool = False
    listen: bool = False
    keep: bool = False
    numeric: bool = False
    shut: bool = False
    timeout: float | None = None
    source_port: int = 0
    source: str = ""
    quit: float | None = None
    words: tuple[str, ...] = ()


FLAGS = {"z": "zero", "v": "verbose", "u": "udp", "l": "listen", "k": "keep", "n": "numeric", "N": "shut", "4": "", "d": ""}
VALUES = {"w": ("timeout", float), "p": ("source_port", int), "s": ("source", str), "q": ("quit", float)}


def parse(argv: list[str]) -> Options:
    """Read the command line; UsageError."""
    options, rest, words = Options(), list(argv), list[str]()
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in FLAGS:
                if FLAGS[letter]:
                    setattr(options, FLAGS[letter], True)
            elif letter in VALUES:
                value, letters = letters or (rest.pop(0) if rest else ""), ""
                name, kind = VALUES[letter]
                try:
                    setattr(options, name, kind(value))
                except ValueError:
                    raise UsageError(f"{'timeout' if letter == 'w' else 'port number'} invalid: {value}") from None
            else:
                raise UsageError(f"invalid option -- '{letter}'")
    options.words = tuple(words)
    return options


def _ports(text: str) -> range:
    first, _, last = text.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise UsageError(f"port number invalid: {text}")
    if int(first) > 65535 or int(last or first) > 65535:
        raise UsageError(f"port number too large: {text}")
    return range(int(first), int(last or first) + 1)


def nc(ctx: Context) -> int:
    """The command; its exit code."""
    try:
        options = parse(list(ctx.argv[1:]))
        if options.listen:
            return _listen(ctx, options)
        if len(options.words) != 2:
            raise UsageError("missing port number" if options.words else "")
        host, ports = options.words[0], _ports(options.words[1])
    except UsageError as error:
        ctx.log(f"nc: {error}" if str(error) else USAGE)
        return 1
    code = 1
    for port in ports:
        sock = _connect(ctx, options, host, port)
        if sock is None:
            continue
        code = 0
        with sock:
            if not options.zero:
                _pump(ctx, options, sock)
    return code


def _connect(ctx: Context, options: Options, host: str, port: int) -> Socket | None:
    kind, name = (SOCK_DGRAM, "udp") if options.udp else (SOCK_STREAM, "tcp")
    try:
        address = ctx.getaddrinfo(host, port, type=kind)[0][4]
    except std.gaierror as error:
        ctx.log(f'nc: getaddrinfo for host "{host}" port {port}: {error.strerror}')
        return None
    sock = ctx.socket(type=kind)
    try:
        if options.source or options.source_port:
            sock.bind((options.source or "0.0.0.0", options.source_port))
        sock.settimeout(options.timeout)
        sock.connect(address)
        if options.udp and options.verbose:
            _probe(ctx, sock)
    except OSError as error:
        sock.close()
        if options.verbose and not options.udp:
            if isinstance(error, TimeoutError) and error.errno is None:
                words = "timed out: Operation now in progress"
            else:
                words = f"failed: {os.strerror(error.errno or 0)}"
            ctx.log(f"nc: connect to {_shown(host, address[0])} port {port} ({name}) {words}")
        return None
    if options.verbose:
        service = "" if options.numeric else f" [{name}/{SERVICES.get(port, '*')}]"
        ctx.log(f"Connection to {_shown(host, address[0])} {port} port{service} succeeded!")
    return sock


def _shown(host: str, ip: str) -> str:
    return host if host == ip else f"{host} ({ip})"


def _probe(ctx: Context, sock: Socket) -> None:
    """Debian's UDP test: four bytes, one after the other; a port that answers with ICMP is not open, silence counts as open."""
    for _ in range(4):
        sock.send(b"X")
        ctx.sleep(0.05)
    timeout = sock.gettimeout()
    sock.settimeout(0.0)
    try:
        sock.send(b"")
    finally:
        sock.settimeout(timeout)


def _pump(ctx: Context, options: Options, sock: Socket) -> None:
    """Standard input to the network, and the network to standard output, until the network ends or the timeout comes."""
    ctx.start_thread(_send_stdin, ctx, options, sock)
    sock.settimeout(options.timeout)
    try:
        while data := sock.recv(65536):
            ctx.stdout.buffer.write(data)
    except TimeoutError:
        return  # -w: idle for so long
    except OSError as error:
        if options.verbose or not options.udp:
            ctx.log(f"nc: read: {os.strerror(error.errno or 0)}")


def _send_stdin(ctx: Context, options: Options, sock: Socket) -> None:
    try:
        while data := ctx.stdin.read():
            sock.sendall(data)
        if options.udp:
            if options.quit is not None:
                ctx.sleep(options.quit)
                ctx.exit(0)
        elif options.shut:
            sock.shutdown(std.SHUT_WR)
        elif options.quit is not None:
            ctx.sleep(options.quit)
            ctx.exit(0)
    except OSError:
        return  # the network has ended: the reader says how


def _listen(ctx: Context, options: Options) -> int:
    words = list(options.words)
    port = options.source_port or (int(words.pop()) if words and words[-1].isdecimal() else 0)
    host = words[0] if words else options.source or "0.0.0.0"
    if not port:
        raise UsageError("missing port number")
    kind = SOCK_DGRAM if options.udp else SOCK_STREAM
    with ctx.socket(type=kind) as sock:
        try:
            sock.bind((host, port))
            if not options.udp:
                sock.listen(1)
        except OSError as error:
            ctx.log(f"nc: {os.strerror(error.errno or 0)}")
            return 1
        if options.verbose:
            ctx.log(f"{'Bound' if options.udp else 'Listening'} on {host} {port}")
        while True:
            if options.udp:
                _serve_udp(ctx, options, sock)
            else:
                conn, peer = sock.accept()
                if options.verbose:
                    ctx.log(f"Connection received on {peer[0]} {peer[1]}")
                with conn:
                    _pump(ctx, options, conn)
            if not options.keep:
                return 0


def _serve_udp(ctx: Context, options: Options, sock: Socket) -> None:
    """The first datagram's sender becomes the peer."""
    data, peer = sock.recvfrom(65536)
    assert peer is not None
    if options.verbose:
        ctx.log(f"Connection received on {peer[0]} {peer[1]}")
    ctx.stdout.buffer.write(data)
    sock.connect(peer)
    _pump(ctx, options, sock)
