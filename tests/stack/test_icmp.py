"""ICMP as this machine's kernel speaks it: the same packets are given to both, and the same answers must come, byte by byte."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from emu.errors import DropReason
from emu.stack import icmp
from emu.stack.sockets import PingSocket, UdpSocket
from emu.stack.tcp_sockets import TcpSocket
from emu.wire.addr import SockAddr, parse_ip
from emu.wire.checksum import fill
from tests.kit import netns
from tests.kit.rulesets import rules, table
from tests.kit.skbs import ACK, FIN, RST, SYN, echo, ipv4, skb, tcp, udp
from tests.kit.tap import Host
from tests.kit.tun import Tun

ME, PEER, ELSEWHERE = "10.99.0.1", "10.99.0.2", "10.50.0.1"
OPEN = 5000  # a port with a UDP socket that says nothing


def packet(made: bytes, *, ttl: int = 64, tos: int = 0, flags: int = 0x4000) -> bytes:
    data = bytearray(made)
    data[1], data[6:8], data[8] = tos, flags.to_bytes(2, "big"), ttl
    return fill(bytes(data))


def datagram(src: str, dst: str, size: int = 10, **fields: int) -> bytes:
    return packet(bytes(udp(src, dst, b"x" * size).buf), **fields)


def segment(flags: int) -> bytes:
    return packet(bytes(tcp(f"{PEER}:4000", f"{ME}:81", flags).buf))


def quoting(src: str, dst: str, quoted: bytes, kind: int, code: int) -> bytes:
    """An ICMP error that quotes as much as RFC 1812 says."""
    return ipv4(parse_ip(src), parse_ip(dst), 1, bytes((kind, code)) + bytes(6) + quoted[:548])


def about(quoted: bytes, kind: int, code: int) -> bytes:
    """The error with which the peer answers a packet of ours."""
    return packet(quoting(PEER, ME, quoted, kind, code))


ODD = packet(ipv4(parse_ip(PEER), parse_ip(ME), 253, b"payload!"))
CLOSED = f"{ME}:81"
PACKETS = {
    "a datagram to a closed port": datagram(f"{PEER}:4000", CLOSED),
    "a large one, of which 548 bytes are quoted": datagram(f"{PEER}:4000", CLOSED, 1400),
    "one whose type of service is set": datagram(f"{PEER}:4000", CLOSED, tos=0x08),
    "one to an open port": datagram(f"{PEER}:4000", f"{ME}:{OPEN}"),
    "a protocol nobody speaks": ODD,
    "a TTL that ends here": datagram(f"{PEER}:4000", "10.99.0.77:81", ttl=1),
    "a TTL that ends at its goal": datagram(f"{PEER}:4000", CLOSED, ttl=1),
    "an error whose TTL ends here": packet(quoting(PEER, "10.99.0.77", ODD, 3, 3), ttl=1),
    "an error about nothing of ours": packet(quoting(PEER, ME, datagram(f"{ME}:1", f"{PEER}:2"), 3, 3)),
    # each from another source, since ip_error() has a rate limit of its own for each
    "no way on from here": datagram("10.99.0.11:4000", f"{ELSEWHERE}:81"),
    "a first fragment without a way on": datagram("10.99.0.12:4000", f"{ELSEWHERE}:81", flags=0x2000),
    "a later fragment without a way on": datagram("10.99.0.13:4000", f"{ELSEWHERE}:81", flags=0x2001),
    "an error without a way on": packet(quoting("10.99.0.14", ELSEWHERE, ODD, 3, 3)),
    "an echo request without a way on": packet(bytes(echo("10.99.0.15", ELSEWHERE, 7).buf)),
    "an echo reply without a way on": packet(bytes(echo("10.99.0.16", ELSEWHERE, 7, 0).buf)),
    "an unknown message without a way on": packet(bytes(echo("10.99.0.17", ELSEWHERE, 7, 77).buf)),
    "a group without a way on": datagram("10.99.0.18:4000", "224.9.9.9:81"),
    "an unknown message for us": packet(bytes(echo(PEER, ME, 7, 77).buf)),
    "a source that is many hosts": datagram("224.0.0.5:4000", CLOSED),
    "no source": datagram("0.0.0.0:4000", CLOSED),
    "a source that is all hosts": datagram("255.255.255.255:4000", CLOSED),
    "a loopback source": datagram("127.0.0.1:4000", CLOSED),
    "echo": packet(bytes(echo(PEER, ME, 77).buf)),
    "echo, another type of service": packet(bytes(echo(PEER, ME, 77).buf), tos=0x08),
    "echo with a payload": packet(ipv4(parse_ip(PEER), parse_ip(ME), 1, b"\x08\x00\x00\x00\x12\x34\x00\x09" + bytes(range(200)))),
    "a SYN to a closed port": segment(SYN),
    "an ACK to a closed port": segment(ACK),
    "a FIN to a closed port": segment(FIN),
    "a SYN-ACK to a closed port": segment(SYN | ACK),
    "a RST to a closed port": segment(RST),
}
FENCE = packet(bytes(echo(PEER, ME, 0xFEFE).buf))  # its answer says that all before it have been answered


def plain(data: bytes) -> bytes:
    """Without what may differ: identification and checksums."""
    made = bytearray(data)
    made[4:6] = made[10:12] = bytes(2)
    at = {1: 22, 6: 36, 17: 26}[made[9]]
    made[at : at + 2] = bytes(2)
    return bytes(made)


class Kernel:
    """This machine's kernel as the host 10.99.0.1, that forwards but knows no way to anybody else."""

    def __init__(self, space: str) -> None:
        self.space, self.tun = space, Tun(space, f"{ME}/24", mtu=1500, offload=False)
        netns.sysctl(space, {"net.ipv4.ip_forward": 1, "net.ipv4.icmp_ratelimit": 0, "net.ipv4.icmp_msgs_per_sec": 100000})
        netns.sysctl(space, {"net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.tun0.rp_filter": 0})
        self.open = netns.socket_in(space, kind=socket.SOCK_DGRAM)
        self.open.bind((ME, OPEN))

    def ask(self, data: bytes) -> list[bytes]:
        self.tun.send(data, 0)
        self.tun.send(FENCE, 0)
        answers = []
        while (answer := self.receive()) is not None:
            if answer[20] == 0 and answer[24:26] == b"\xfe\xfe":
                return answers
            answers.append(plain(answer))
        raise AssertionError("the kernel did not answer an echo request")

    def receive(self, seconds: float = 2.0) -> bytes | None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (data := self.tun.receive()) is not None:
                return data
            select.select([self.tun.fd], [], [], end - time.monotonic())
        return None

    def close(self) -> None:
        self.open.close()
        self.tun.close()


@contextmanager
def a_kernel(name: str = "icmp") -> Iterator[Kernel]:
    with netns.namespaces(name) as real:
        kernel = Kernel(real[name])
        try:
            yield kernel
        finally:
            kernel.close()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    with a_kernel() as made:
        yield made


@pytest.fixture
def host() -> Host:
    host = Host(f"{ME}/24", gateway="", forwarding=True)
    UdpSocket(host.ns).bind(SockAddr(parse_ip(ME), OPEN))
    return host


@pytest.mark.kernel
@pytest.mark.parametrize("what", PACKETS)
def test_who_is_answered_what(kernel: Kernel, host: Host, what: str) -> None:
    assert [plain(answer) for answer in host.receive(PACKETS[what])] == kernel.ask(PACKETS[what])


@pytest.mark.kernel
@pytest.mark.parametrize("how", [*icmp.REJECT_CODES, "tcp-reset"])
def test_every_type_of_reject_answers_as_iptables_does(how: str) -> None:
    protocol = "-p tcp" if how == "tcp-reset" else "! -p icmp"
    rule = f"INPUT {protocol} -j REJECT --reject-with {how}"
    ours = Host(f"{ME}/24", gateway="", forwarding=True)
    ours.ns.swap(rules(table("filter", rule)))
    with a_kernel("reject") as kernel:
        netns.run(f"ip netns exec {kernel.space} iptables -A {rule}")
        for what in ("a SYN to a closed port", "an ACK to a closed port", "a large one, of which 548 bytes are quoted"):
            answers = [plain(answer) for answer in ours.receive(PACKETS[what])]
            assert answers == kernel.ask(PACKETS[what]), what
    assert ours.ns.drops[DropReason.REJECTED] == (2 if how == "tcp-reset" else 3)


# ---- errors that have come for a socket ------------------------------------------------------------------------------------------

ERRORS = [*((3, code) for code in range(17) if code != 4), (4, 0), (5, 1), (11, 0), (11, 1), (12, 0)]


def kernel_errors(kernel: Kernel, kind: int, code: int) -> tuple[int, int]:
    """What connected UDP and connecting TCP sockets of the kernel make of an error."""
    found = []
    for type_ in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with netns.socket_in(kernel.space, kind=type_) as sock:
            sock.setblocking(False)
            if type_ == socket.SOCK_DGRAM:
                sock.connect((PEER, 7777))
                sock.send(b"question")
            else:
                assert sock.connect_ex((PEER, 7777)) == errno.EINPROGRESS
            while (sent := kernel.receive()) is not None and sent[22:24] != (7777).to_bytes(2, "big"):
                pass  # a retransmission of an earlier socket's
            assert sent is not None
            kernel.tun.send(about(sent, kind, code), 0)
            kernel.ask(FENCE)
            found.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    return found[0], found[1]


@pytest.mark.kernel
@pytest.mark.parametrize(("kind", "code"), ERRORS)
def test_a_socket_is_told_what_linux_tells_it(kernel: Kernel, host: Host, kind: int, code: int) -> None:
    datagrams, stream = UdpSocket(host.ns), TcpSocket(host.ns)
    datagrams.connect(SockAddr(parse_ip(PEER), 7777))
    datagrams.send_to(b"question")
    stream.connect(SockAddr(parse_ip(PEER), 7777))
    host.softnet.run()
    for sent in host.tap.take():
        host.receive(about(sent, kind, code))
    assert (datagrams.take_error(), stream.take_error()) == kernel_errors(kernel, kind, code)


def test_an_error_about_a_segment_that_is_not_under_way_is_not_believed(host: Host) -> None:
    """RFC 5927: whoever does not see the packets cannot reset the connection."""
    stream = TcpSocket(host.ns)
    stream.connect(SockAddr(parse_ip(PEER), 7777))
    host.softnet.run()
    (syn,) = host.tap.take()
    forged = bytearray(syn)
    forged[24:28] = ((int.from_bytes(syn[24:28], "big") + 1000) & 0xFFFFFFFF).to_bytes(4, "big")
    host.receive(about(bytes(forged), 3, 3))
    assert stream.error == 0
    host.receive(about(syn, 3, 3))
    assert stream.error == errno.ECONNREFUSED


@pytest.mark.parametrize(("kind", "code"), [(3, 1), (11, 0)])
def test_a_ping_is_told_of_errors_about_it(host: Host, kind: int, code: int) -> None:
    ping = PingSocket(host.ns)
    ping.send_echo(parse_ip(PEER), 5, b"payload")
    host.softnet.run()
    (request,) = host.tap.take()
    host.receive(about(request, kind, code))
    answer = ping.receive()
    assert answer is not None
    assert (answer.kind, answer.code, answer.seq, answer.sender) == (kind, code, 5, parse_ip(PEER))


@pytest.mark.parametrize("length", range(28))
def test_a_quote_that_is_cut_short_is_counted(host: Host, length: int) -> None:
    quoted = datagram(f"{ME}:1", f"{PEER}:2")[:length]
    assert host.receive(about(quoted, 3, 3)) == []
    assert sum(host.ns.drops.values()) == 1
    assert skb(about(quoted, 3, 3)).proto == 1
