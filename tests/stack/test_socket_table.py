"""Who may take which port, and which socket a packet is for: the same as this machine's kernel says, where it can be asked."""

from __future__ import annotations

import errno
import socket

import pytest

from emu.errors import DropReason
from emu.stack.socket_table import EPHEMERAL
from emu.stack.sockets import PingSocket, Socket, UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, SockAddr, format_ip, parse_ip
from tests.kit import netns
from tests.kit.skbs import tcp, udp
from tests.kit.tap import Host

ADDRESSES = ("0.0.0.0", "127.0.0.1", "10.0.0.1", "10.0.0.9")  # the last is not ours
PAIRS = [(first, second) for first in ADDRESSES[:3] for second in ADDRESSES]


@pytest.fixture
def host() -> Host:
    return Host()


def udp_socket(host: Host, address: str) -> UdpSocket:
    sock = UdpSocket(host.ns)
    sock.bind(SockAddr.parse(address))
    return sock


def attempt(host: Host, kind: str, address: str) -> int:
    """0 or the errno of taking an address as a server does."""
    try:
        if kind == "udp":
            udp_socket(host, address)
        else:
            TcpListener(host.ns, SockAddr.parse(address))
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ["udp", "tcp"])
def test_two_sockets_share_a_port_where_the_kernel_lets_them(kind: str) -> None:
    with netns.namespaces("ports") as real:
        space = real["ports"]
        netns.configure(space, ["link add d0 type veth peer d1", "link set d0 up", "addr add 10.0.0.1/24 dev d0"])
        for first, second in PAIRS:
            host = Host()
            type_ = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
            with netns.socket_in(space, kind=type_) as one, netns.socket_in(space, kind=type_) as other:
                theirs = []
                for sock, address in ((one, first), (other, second)):
                    try:
                        sock.bind((address, 5353))
                        if kind == "tcp":
                            sock.listen()
                        theirs.append(0)
                    except OSError as error:
                        theirs.append(error.errno)
            assert [attempt(host, kind, f"{first}:5353"), attempt(host, kind, f"{second}:5353")] == theirs, (first, second)


def test_a_port_is_free_again_after_close(host: Host) -> None:
    for _ in range(3):
        udp_socket(host, "0.0.0.0:53").close()
        TcpListener(host.ns, SockAddr(ANY, 53)).close()
        bound = TcpSocket(host.ns)
        bound.bind(SockAddr(host.ip, 53))
        bound.close()
        killed = TcpSocket(host.ns)
        killed.bind(SockAddr(host.ip, 53))
        killed.abort()
    assert host.ns.sockets.bound == {}
    assert host.ns.sockets.udp == {}


def test_udp_and_tcp_ports_have_nothing_to_do_with_each_other(host: Host) -> None:
    assert attempt(host, "udp", "0.0.0.0:53") == attempt(host, "tcp", "0.0.0.0:53") == 0


def test_a_port_of_the_table_s_choice_is_an_ephemeral_one_and_no_two_are_the_same(host: Host) -> None:
    ports = [udp_socket(host, "0.0.0.0:0").local.port for _ in range(500)]
    assert len(set(ports)) == 500
    assert all(port in EPHEMERAL for port in ports)


def test_when_all_are_taken_there_is_none(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.stack.socket_table.EPHEMERAL", range(40000, 40003))
    for _ in range(3):
        udp_socket(host, "0.0.0.0:0")
        TcpSocket(host.ns).connect(SockAddr.parse("10.0.0.2:80"))
    with pytest.raises(OSError, match="Address already in use"):
        udp_socket(host, "0.0.0.0:0")
    with pytest.raises(OSError, match="Cannot assign requested address"):
        TcpSocket(host.ns).connect(SockAddr.parse("10.0.0.2:80"))
    TcpSocket(host.ns).connect(SockAddr.parse("10.0.0.2:81"))  # four numbers make a connection


def test_a_connected_udp_socket_hears_only_its_peer(host: Host) -> None:
    sock = UdpSocket(host.ns)
    sock.connect(SockAddr.parse("10.0.0.2:53"))
    mine = f"{format_ip(host.ip)}:{sock.local.port}"
    (refused,) = host.receive(bytes(udp("10.0.0.3:53", mine, b"forged").buf))
    assert (refused[20], refused[21]) == (3, 3)
    host.receive(bytes(udp("10.0.0.2:54", mine, b"forged").buf))
    assert host.receive(bytes(udp("10.0.0.2:53", mine, b"true").buf)) == []
    assert sock.receive() == (b"true", SockAddr.parse("10.0.0.2:53"))
    assert sock.receive() is None


def test_the_more_specific_address_gets_the_datagram(host: Host) -> None:
    host.ns.add_address("lo", host.ns.devices["lo"].addresses[0][1], parse_ip("127.0.0.2"))
    mine, loop = udp_socket(host, "10.0.0.1:53"), udp_socket(host, "127.0.0.1:53")
    host.receive(bytes(udp("10.0.0.2:9", "10.0.0.1:53", b"x").buf))
    assert (mine.receive() is not None, loop.receive()) == (True, None)


def test_a_full_buffer_drops_and_counts(host: Host) -> None:
    sock = udp_socket(host, "0.0.0.0:53")
    for _ in range(400):
        host.receive(bytes(udp("10.0.0.2:9", "10.0.0.1:53", b"x" * 1000).buf))
    held = len(sock.queue)
    assert held < 400
    assert host.ns.drops == {DropReason.SOCKET_BUFFER_FULL: 400 - held}
    sock.receive()
    host.receive(bytes(udp("10.0.0.2:9", "10.0.0.1:53", b"x" * 1000).buf))
    assert len(sock.queue) == held


def test_calls_without_a_destination_or_with_too_much_are_refused(host: Host) -> None:
    sock = UdpSocket(host.ns)
    for data, to, number in ((b"", None, errno.EDESTADDRREQ), (b"x" * 65508, SockAddr.parse("10.0.0.2:9"), errno.EMSGSIZE)):
        with pytest.raises(OSError) as caught:
            sock.send_to(data, to)
        assert caught.value.errno == number


def test_identifiers_of_pings_are_their_own(host: Host) -> None:
    pings = [PingSocket(host.ns) for _ in range(300)]
    assert len({ping.ident for ping in pings}) == 300
    for ping in pings:
        ping.close()
    assert host.ns.sockets.pings == {}


# ---- listeners -----------------------------------------------------------------------------------------------------------------


def syn(port: int) -> bytes:
    return bytes(tcp(f"10.0.0.2:{port}", "10.0.0.1:80").buf)


def handshake(host: Host, port: int) -> bool:
    """The other side of one connection; did ours answer the SYN?"""
    answers = host.receive(syn(port))
    if not answers:
        return False
    segment = bytearray(tcp(f"10.0.0.2:{port}", "10.0.0.1:80", 0x10).buf)
    segment[24:28] = (1).to_bytes(4, "big")
    segment[28:32] = (int.from_bytes(answers[0][24:28], "big") + 1 & 0xFFFFFFFF).to_bytes(4, "big")
    host.receive(bytes(segment))
    return True


@pytest.mark.kernel
@pytest.mark.parametrize("backlog", [1, 2, 5])
def test_a_listener_takes_one_more_than_its_backlog_as_the_kernel_does(host: Host, backlog: int) -> None:
    listener = TcpListener(host.ns, SockAddr(ANY, 80), backlog)
    ours = sum(handshake(host, 1000 + number) for number in range(backlog + 5))
    with netns.namespaces("backlog") as real, netns.socket_in(real["backlog"]) as theirs:
        theirs.bind(("127.0.0.1", 80))
        theirs.listen(backlog)
        clients = [netns.socket_in(real["backlog"]) for _ in range(backlog + 5)]
        connected = 0
        for client in clients:
            client.settimeout(0.1)
            try:
                client.connect(("127.0.0.1", 80))
                connected += 1
            except TimeoutError:
                break
        for client in clients:
            client.close()
    assert ours == connected == backlog + 1
    assert host.ns.drops[DropReason.SOCKET_BUFFER_FULL] == 4
    assert len(listener.queue) == ours


@pytest.mark.parametrize("offset", [0x00, 0x40, 0x60, 0xF0])
def test_a_syn_whose_header_cannot_be_is_counted(host: Host, offset: int) -> None:
    listener = TcpListener(host.ns, SockAddr(ANY, 80))
    bad = bytearray(syn(1000))
    bad[32] = offset
    assert host.receive(bytes(bad)) == []
    assert host.ns.drops == {DropReason.TCP_INVALID: 1}
    assert handshake(host, 1000)
    assert (listener.pending, len(listener.queue)) == (0, 1)


def test_room_is_made_by_accept_and_by_those_who_give_up(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emu.stack.tcp_sockets.MAX_SYN_BACKLOG", 2)
    listener = TcpListener(host.ns, SockAddr(ANY, 80), 1)
    assert handshake(host, 1000)
    assert handshake(host, 1001)
    assert not handshake(host, 1002)
    assert listener.accept() is not None
    assert handshake(host, 1002)
    while listener.accept() is not None:
        pass
    for port in (2000, 2001):  # SYNs whose senders are never heard of again
        assert host.receive(syn(port))
    assert host.receive(syn(2002)) == []
    host.at(64.0)  # five retransmissions of the SYN-ACK (net.ipv4.tcp_synack_retries)
    assert listener.pending == 0
    assert handshake(host, 2002)


def test_closing_a_listener_resets_what_nobody_accepted(host: Host) -> None:
    listener = TcpListener(host.ns, SockAddr(ANY, 80))
    handshake(host, 1000)
    half = host.receive(syn(1001))
    listener.close()
    host.softnet.run()
    assert [packet[33] & 4 for packet in host.tap.take()] == [4]
    late = bytearray(tcp("10.0.0.2:1001", "10.0.0.1:80", 0x10).buf)
    late[24:28] = (1).to_bytes(4, "big")
    late[28:32] = (int.from_bytes(half[0][24:28], "big") + 1 & 0xFFFFFFFF).to_bytes(4, "big")
    assert [packet[33] & 4 for packet in host.receive(bytes(late))] == [4]
    assert host.ns.sockets.established == {}


def test_a_new_incarnation_takes_over_from_time_wait(host: Host) -> None:
    """RFC 6191: a SYN with a later sequence number opens a new connection with the same four numbers at once."""
    listener = TcpListener(host.ns, SockAddr(ANY, 80))
    handshake(host, 1000)
    first = listener.accept()
    assert first is not None
    first.close()
    host.softnet.run()
    (fin,) = host.tap.take()
    answer = bytearray(tcp("10.0.0.2:1000", "10.0.0.1:80", 0x11).buf)
    answer[24:28] = (1).to_bytes(4, "big")
    answer[28:32] = (int.from_bytes(fin[24:28], "big") + 1 & 0xFFFFFFFF).to_bytes(4, "big")
    host.receive(bytes(answer))
    assert first.conn.state.name == "TIME_WAIT"
    again = bytearray(syn(1000))
    again[24:28] = (1 << 20).to_bytes(4, "big")
    (synack,) = host.receive(bytes(again))
    assert synack[33] == 0x12
    assert first.closed
    assert len(host.ns.sockets.established) == 1


def test_time_wait_ends_after_a_minute_and_leaves_nothing(host: Host) -> None:
    listener = TcpListener(host.ns, SockAddr(ANY, 80))
    for number in range(20):
        handshake(host, 1000 + number)
        sock = listener.accept()
        assert sock is not None
        sock.abort() if number % 2 else sock.close()
        host.softnet.run()
        host.tap.take()
    host.at(300.0)
    assert host.ns.sockets.established == {}
    listener.close()
    assert host.ns.sockets.bound == {}
    assert host.softnet._timers == []


def test_sockets_of_a_closed_namespace_cannot_be_made(host: Host) -> None:
    sock = udp_socket(host, "0.0.0.0:53")
    host.ns.close()
    assert sock.closed
    for make in (UdpSocket, TcpSocket, PingSocket):
        with pytest.raises(OSError, match="Network is down"):
            make(host.ns)
    assert isinstance(sock, Socket)
