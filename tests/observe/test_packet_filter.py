"""Filters: the language's rules one by one, errors with their place, and libpcap's verdict on random packets and expressions."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess

import pytest

from emu.observe.filter_words import FilterError
from emu.observe.packet_filter import Filter
from emu.wire import checksum, icmp, ipv4, tcp, udp
from emu.wire.addr import parse_ip
from emu.wire.packet import Packet, emit, encapsulate

needs_tcpdump = pytest.mark.skipif(shutil.which("tcpdump") is None, reason="needs tcpdump")


def made(transport, payload=b"", src="10.0.0.1", dst="10.0.0.2", **header):
    protocol = {tcp.Tcp: checksum.TCP, udp.Udp: checksum.UDP, icmp.Icmp: checksum.ICMP}[type(transport)]
    return emit(Packet(ipv4.Ipv4(parse_ip(src), parse_ip(dst), protocol, **header), transport, payload), checksums=True)


SYN = made(tcp.Tcp(43210, 80, 1, 0, tcp.Flags.SYN, 512))
ANSWER = made(tcp.Tcp(80, 43210, 1, 2, tcp.Flags.ACK | tcp.Flags.PSH, 512), b"hello", "10.0.0.2", "10.0.0.1")
QUERY = made(udp.Udp(5353, 53), b"?", "10.0.0.1", "10.96.0.10")
PING = made(icmp.Icmp.echo(1, 2), b"ping")
FRAGMENT = made(udp.Udp(80, 80), b"x" * 40)[:6] + b"\x00\x02" + made(udp.Udp(80, 80), b"x" * 40)[8:]
TUNNEL = made(udp.Udp(55028, 8472), encapsulate(SYN, 1, bytes(6), bytes(6)), "192.168.0.2", "192.168.0.3")
ALL = {"syn": SYN, "answer": ANSWER, "query": QUERY, "ping": PING, "fragment": FRAGMENT, "tunnel": TUNNEL}


def chosen(text):
    return {name for name, packet in ALL.items() if Filter(text).matches(packet)}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", set(ALL)),
        ("ip", set(ALL)),
        ("tcp", {"syn", "answer"}),
        ("udp", {"query", "fragment", "tunnel"}),
        ("icmp", {"ping"}),
        ("not tcp and not udp", {"ping"}),
        ("proto 17", {"query", "fragment", "tunnel"}),
        ("ip proto \\icmp", {"ping"}),
        ("host 10.96.0.10", {"query"}),
        ("src host 10.0.0.2", {"answer"}),
        ("dst 10.0.0.2", {"syn", "ping", "fragment"}),
        ("src or dst host 10.0.0.2", {"syn", "answer", "ping", "fragment"}),
        ("src and dst net 10.0.0.0/24", {"syn", "answer", "ping", "fragment"}),
        ("net 192.168", {"tunnel"}),
        ("net 10.96.0.0 mask 255.240.0.0", {"query"}),
        ("port 80", {"syn", "answer"}),
        ("tcp src port 80", {"answer"}),
        ("udp port 80", set()),
        ("portrange 50-60", {"query"}),
        ("port 53 or 80", {"query", "syn", "answer"}),
        ("port (53 or 80) and udp", {"query"}),
        ("udp or tcp and port 80", {"syn", "answer"}),  # as it stands: (udp or tcp) and port 80
        ("udp or (tcp and port 80)", {"syn", "answer", "query", "fragment", "tunnel"}),
        ("not port 53 and 8472", {"fragment", "syn", "answer", "ping", "tunnel"} & {"tunnel"}),
        ("tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", {"syn"}),
        ("tcp[13] == 0x18", {"answer"}),
        ("icmp[icmptype] = icmp-echo", {"ping"}),
        ("ip[6:2] & 0x1fff != 0", {"fragment"}),
        ("udp[2:2] = 53", {"query"}),
        ("less 40", {"query", "ping", "syn"}),
        ("greater 80", {"tunnel"}),
        ("len - 8 > 80", {"tunnel"}),
        ("!(tcp || udp) && icmp", {"ping"}),
        ("vxlan", {"tunnel"}),
        ("vxlan 1", {"tunnel"}),
        ("vxlan 2", set()),
        ("vxlan and tcp port 80 and host 10.0.0.1", {"tunnel"}),
        ("host 192.168.0.2 and vxlan and host 192.168.0.2", set()),
        ("port 80 or (vxlan and port 80)", {"syn", "answer", "tunnel"}),
        ("tcp[100] = 0 or tcp", set()),  # the load is beyond the end: the packet is rejected, whatever else it is
    ],
)
def test_an_expression_chooses(text, names):
    assert chosen(text) == names


@pytest.mark.parametrize(
    ("text", "column", "what"),
    [
        ("prot 80", 1, "unknown word"),
        ("tcp prt 80", 5, "'and', 'or' or the end"),
        ("tcp and", 8, "a condition is wanted"),
        ("host web", 6, "IPv4 address"),
        ("host ::1", 6, "IPv4 address"),
        ("net 10.0.0.1/24", 5, "bits beyond its mask"),
        ("port http", 6, "port's number"),
        ("port 70000", 6, "port's number"),
        ("(tcp or udp", 12, "')' is wanted"),
        ("tcp[13:3] = 1", 8, "1, 2 or 4"),
        ("tcp[13", 7, "']' is wanted"),
        ("len > x", 7, "a number is wanted"),
        ("len", 4, "a comparison is wanted"),
        ("arp", 1, "without packets"),
        ("ip6", 1, "IPv6"),
        ("tcp host 10.0.0.1", 1, "host takes no 'tcp'"),
        ("10.0.0.1", 1, "host, net or port"),
        ("tcp $ udp", 5, "of no word"),
        ("1/0 = 1", 3, "division by zero"),
    ],
)
def test_what_is_not_of_the_language_is_refused_with_its_place(text, column, what):
    with pytest.raises(FilterError) as caught:
        Filter(text)
    assert (caught.value.column, what in str(caught.value)) == (column, True), str(caught.value)


@pytest.mark.parametrize(
    ("text", "by_segment"), [("tcp port 80 and host 10.0.0.1", False), ("tcp[13] = 1", True), ("less 10", True), ("len > 1", True)]
)
def test_it_is_known_whether_an_expression_tells_segments_apart(text, by_segment):
    assert Filter(text).by_segment is by_segment


# ---- libpcap as a judge ----------------------------------------------------------------------------------------------------------------


def random_packet(rng):
    ip = lambda: bytes((10, 0, rng.randrange(2), rng.randrange(3)))
    kind = rng.random()
    port = lambda: rng.choice((53, 80, 443, 8080, rng.randrange(65536)))
    if kind < 0.4:
        options = (tcp.Mss(1460),) if rng.random() < 0.5 else ()
        body: object = tcp.Tcp(
            port(), port(), rng.getrandbits(32), rng.getrandbits(32), rng.randrange(256), rng.getrandbits(16), 0, options
        )
        number = checksum.TCP
    elif kind < 0.7:
        body, number = udp.Udp(port(), port()), checksum.UDP
    elif kind < 0.85:
        body, number = icmp.Icmp(rng.choice((0, 3, 8, 11)), rng.randrange(4), rng.getrandbits(32)), checksum.ICMP
    else:
        body, number = udp.Udp(port(), port()), rng.choice((checksum.SCTP, 47, 2))
    flags, offset = (0, rng.randrange(100)) if rng.random() < 0.1 else (ipv4.DF, 0)
    header = ipv4.Ipv4(ip(), ip(), number, id=rng.getrandbits(16), flags=flags, fragment_offset=offset)
    header = ipv4.Ipv4(
        **{
            **{f: getattr(header, f) for f in ("src", "dst", "protocol", "id", "flags", "fragment_offset")},
            "options": b"\1" * rng.choice((0, 0, 0, 4)),
        }
    )
    data = header.emit(len(rest := body.emit(bytes(rng.randrange(30))))) + rest
    if rng.random() < 0.1:
        data = data[: rng.randrange(1, len(data))]
    if rng.random() < 0.1:
        data = bytes((rng.choice([first for first in range(256) if first >> 4 != 6]),)) + data[1:]  # libpcap reads IPv6, we do not
    return data


def random_expression(rng, depth=0):
    if depth < 3 and rng.random() < 0.55:
        left, right = random_expression(rng, depth + 1), random_expression(rng, depth + 1)
        joint = rng.choice(("and", "or", "&&", "||"))
        return rng.choice((f"{left} {joint} {right}", f"({left}) {joint} ({right})", f"not ({left})", f"not {left} {joint} {right}"))
    direction = rng.choice(("", "", "src ", "dst ", "src or dst ", "src and dst "))
    address = f"10.0.{rng.randrange(2)}.{rng.randrange(4)}"
    port = rng.choice((53, 80, 443, 8080))
    number = rng.choice((0, 1, 2, 6, 17, 20, 80, 255, 1500))
    load = rng.choice(("ip", "tcp", "udp", "icmp", "sctp")) + f"[{rng.choice((0, 2, 8, 13, 20, 30))}{rng.choice(('', ':1', ':2', ':4'))}]"
    arithmetic = rng.choice(
        (load, f"{load} & {number}", f"({load} + {number})", f"({load} - 3) * 2", f"{load} >> 2", f"len + {load}", "len", "tcp[tcpflags]")
    )
    return rng.choice(
        (
            f"{direction}host {address}", f"{direction}net {address}/{32}", f"{direction}net 10.0.{rng.randrange(2)}",
            f"{direction}port {port}", f"tcp {direction}port {port}", f"udp {direction}port {port}",
            f"{direction}portrange {port}-{port + 400}", "tcp", "udp", "icmp", "sctp", "ip", f"ip proto {number % 256}", f"less {number}",
            f"greater {number}", f"{arithmetic} {rng.choice(('=', '!=', '<', '>', '<=', '>='))} {number}",
            f"{direction}port {port} or {port + 1}", f"{direction}host {address} or 10.0.0.1",
        )
    )  # fmt: skip


def judged(path, expression):
    """The numbers of the packets that libpcap lets pass, None if it takes no such expression; each packet's time is its number."""
    done = subprocess.run(["tcpdump", "-O", "-r", path, "-w", "-", expression], capture_output=True, check=False, timeout=20)
    if done.returncode:
        return None
    order = "<" if done.stdout[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    at, found = 24, []
    while at < len(done.stdout):
        seconds, _, size, _ = struct.unpack_from(f"{order}IIII", done.stdout, at)
        found.append(seconds)
        at += 16 + size
    return found


@needs_tcpdump
@pytest.mark.parametrize("seed", range(3))
def test_libpcap_chooses_the_same_packets(seed, tmp_path):
    rng = random.Random(seed)
    packets = [*ALL.values(), *(random_packet(rng) for _ in range(300))]
    path = tmp_path / "packets.pcap"
    records = [struct.pack("<IIII", number, 0, len(data), len(data)) + data for number, data in enumerate(packets)]
    path.write_bytes(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 16, 101) + b"".join(records))
    compared = 0
    for _ in range(20):
        expression = random_expression(rng)
        theirs = judged(str(path), expression)
        ours = [number for number, data in enumerate(packets) if Filter(expression).matches(data)]
        if theirs is None:
            assert not ours or len(ours) == len(packets), expression  # it calls what is always true or false an error
            continue
        assert ours == theirs, expression
        compared += 1
    assert compared > 10
