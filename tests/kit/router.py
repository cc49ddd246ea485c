"""A real router between a client and a server, whose first packets and answers can be told as our netfilter tells them.

     client                       router                       server
    10.1.0.1-3 c0 ------ c0 10.1.0.254   10.2.0.254 s0 ------ s0 10.2.0.1, and all of 10.9.0.0/16

Client and server send whatever they do not know to the router. Router and server answer on every port of `PORTS`, on any address.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.kit.netns import configure, inside, namespaces, run, socket_in, sysctl

PORTS = (53, 80, 8080)
IP_PKTINFO, IP_RECVERR = 8, 11  # linux/in.h; the socket module does not have them everywhere
SETTLED = 0.03  # seconds after which what has not arrived will not


class Probe(NamedTuple):
    protocol: str
    src: str
    sport: int
    dst: str
    dport: int


class Seen(NamedTuple):
    """What became of a probe: who got it, under which addresses, and what the client was told ("answered", an errno's name, "")."""

    where: str = ""
    dst: tuple[str, int] = ("", 0)
    src: tuple[str, int] = ("", 0)
    told: str = ""


class Host:
    """The sockets of the router or the server."""

    def __init__(self, name: str, netns: str, stack: contextlib.ExitStack) -> None:
        self.name = name
        self.udp = [stack.enter_context(socket_in(netns, kind=socket.SOCK_DGRAM)) for _ in PORTS]
        self.tcp = [stack.enter_context(socket_in(netns)) for _ in PORTS]
        for port, udp, tcp in zip(PORTS, self.udp, self.tcp, strict=True):
            udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for sock in (udp, tcp):
                sock.bind(("0.0.0.0", port))
                sock.setblocking(False)
            tcp.listen(64)

    def datagrams(self) -> Iterator[tuple[int, Seen]]:
        """What has arrived, each datagram being answered: the probe's number, where it was sent to and came from."""
        for port, sock in zip(PORTS, self.udp, strict=True):
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, ancillary, _, source = sock.recvmsg(64, 256)
                    info = next(value for level, kind, value in ancillary if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO))
                    address = info[8:12]
                    from_there = [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("i4s4s", 0, address, bytes(4)))]
                    sock.sendmsg([data], from_there, 0, source)
                    yield int(data), Seen(self.name, (socket.inet_ntoa(address), port), source)

    def connections(self) -> Iterator[tuple[int, Seen]]:
        for sock in self.tcp:
            with contextlib.suppress(BlockingIOError):
                while True:
                    accepted, source = sock.accept()
                    with accepted:
                        where = accepted.getsockname()
                        ready, _, _ = select.select([accepted], [], [], SETTLED)
                        yield int(accepted.recv(64)) if ready else -1, Seen(self.name, where, source)


class Router:
    """The namespaces, and the way to ask them."""

    def __init__(self, netns: dict[str, str], stack: contextlib.ExitStack) -> None:
        self._netns = netns
        self._hosts = [Host(name, netns[name], stack) for name in ("router", "server")]

    def load(self, rules: str) -> None:
        run(f"ip netns exec {self._netns['router']} iptables-restore", stdin=rules)

    def ask(self, probes: Sequence[Probe]) -> list[Seen]:
        """Send all probes in order, and tell what became of each."""
        with contextlib.ExitStack() as stack:
            sockets = inside(self._netns["client"], lambda: [stack.enter_context(_socket(probe)) for probe in probes])
            for number, (probe, sock) in enumerate(zip(probes, sockets, strict=True)):
                if probe.protocol == "udp":
                    sock.connect((probe.dst, probe.dport))
                    sock.send(b"%d" % number)
                else:
                    sock.connect_ex((probe.dst, probe.dport))
            time.sleep(SETTLED)
            for number, (probe, sock) in enumerate(zip(probes, sockets, strict=True)):
                if probe.protocol == "tcp":
                    with contextlib.suppress(OSError):  # not connected; what it was told instead is read below
                        sock.getpeername()
                        sock.send(b"%d" % number)
            time.sleep(SETTLED)
            found = dict(pair for host in self._hosts for pair in (*host.datagrams(), *host.connections()))
            time.sleep(SETTLED)
            return [
                found.get(n, Seen())._replace(told=_told(probe, sock)) for n, (probe, sock) in enumerate(zip(probes, sockets, strict=True))
            ]


def _socket(probe: Probe) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if probe.protocol == "udp" else socket.SOCK_STREAM)
    sock.setblocking(False)
    if probe.protocol == "udp":
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.bind((probe.src, probe.sport))
    return sock


def _told(probe: Probe, sock: socket.socket) -> str:
    try:
        if probe.protocol == "udp":
            sock.recv(64)
            return "answered"
        problem = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            return errno.errorcode[problem]
        sock.getpeername()
        return "answered"
    except BlockingIOError:
        return ""
    except OSError as error:
        return "" if error.errno == errno.ENOTCONN else errno.errorcode[error.errno or 0]


@contextlib.contextmanager
def router() -> Iterator[Router]:
    """The drawing above; gone afterwards."""
    with contextlib.ExitStack() as stack:
        netns = stack.enter_context(namespaces("client", "router", "server"))
        middle = netns["router"]
        for device, other in (("c0", netns["client"]), ("s0", netns["server"])):
            configure(middle, [f"link add {device} type veth peer name {device} netns {other}"])
        configure(middle, ["addr add 10.1.0.254/16 dev c0", "addr add 10.2.0.254/16 dev s0", "link set c0 up", "link set s0 up",
                           "route add default via 10.2.0.1"])  # fmt: skip
        configure(netns["client"], [*(f"addr add 10.1.0.{n}/16 dev c0" for n in (1, 2, 3)), "link set c0 up",
                                    "route add default via 10.1.0.254"])  # fmt: skip
        configure(netns["server"], ["addr add 10.2.0.1/16 dev s0", "link set s0 up", "route add local 10.9.0.0/16 dev lo",
                                    "route add default via 10.2.0.254"])  # fmt: skip
        # Without a limit on ICMP errors, or what was rejected looks as if it was dropped.
        sysctl(middle, {"net.ipv4.ip_forward": 1, "net.ipv4.icmp_ratelimit": 0, "net.ipv4.icmp_ratemask": 0})
        for name in netns.values():
            sysctl(name, {"net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.default.rp_filter": 0})
        yield Router(netns, stack)
