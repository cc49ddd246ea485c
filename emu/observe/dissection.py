"""A packet as a line of text, as tcpdump prints it with -n (print-ip.c, print-tcp.c, print-icmp.c), and as fields for scripts.

Decides wording only. VXLAN stands with the packet inside it on one line, as users of a cluster want it. Sequence numbers are
relative to the first ones seen of a connection, hence a `Printer` with a memory, which is bounded.
"""

from __future__ import annotations

from typing import Any

from emu.errors import DropReason
from emu.wire import checksum, vxlan
from emu.wire import packet as packets
from emu.wire.addr import format_ip
from emu.wire.icmp import (
    DEST_UNREACH,
    ECHO,
    ECHO_REPLY,
    FRAG_NEEDED,
    HOST_UNREACH,
    NET_UNREACH,
    PORT_UNREACH,
    PROT_UNREACH,
    TIME_EXCEEDED,
    Icmp,
)
from emu.wire.ipv4 import Ipv4
from emu.wire.packet import Packet
from emu.wire.sctp import Init, Sctp
from emu.wire.tcp import Flags, Mss, NoOp, Option, Sack, SackPermitted, Tcp, Timestamps, WindowScale
from emu.wire.udp import Udp

CONNECTIONS = 1 << 14  # whose first sequence numbers are remembered, at most; then all are forgotten
_LETTERS = (
    (Flags.FIN, "F"), (Flags.SYN, "S"), (Flags.RST, "R"), (Flags.PSH, "P"), (Flags.ACK, "."), (Flags.URG, "U"), (Flags.ECE, "E"),
    (Flags.CWR, "W"),
)  # fmt: skip
_CHUNKS = {
    0: "DATA", 1: "INIT", 2: "INIT ACK", 3: "SACK", 4: "HB REQ", 5: "HB ACK", 6: "ABORT", 7: "SHUTDOWN", 8: "SHUTDOWN ACK",
    9: "OP ERR", 10: "COOKIE ECHO", 11: "COOKIE ACK", 14: "SHUTDOWN COMPLETE",
}  # fmt: skip
_MASK = 0xFFFFFFFF


def flags(value: int) -> str:
    """TCP flags as tcpdump's letters."""
    return "".join(letter for flag, letter in _LETTERS if value & flag) or "none"


class Printer:
    """Prints packets one after the other."""

    def __init__(self) -> None:
        self._first: dict[tuple[bytes, int, bytes, int], int] = {}  # of a direction: what its numbers are relative to

    def line(self, data: bytes) -> str:
        """One packet, from its IP header on."""
        parsed = packets.parse(data)
        if isinstance(parsed, DropReason):
            return f"IP [{parsed.value}, {len(data)} bytes]"
        ip, transport = parsed.ip, parsed.transport
        name = "IP" if isinstance(ip, Ipv4) else "IP6"
        match transport:
            case Tcp():
                told = self._tcp(parsed, transport)
            case Udp():
                told = self._udp(parsed, transport)
            case Icmp() if isinstance(ip, Ipv4):
                told = _icmp(transport, parsed.payload)
            case Sctp():
                told = "sctp" + "".join(
                    f" ({n}) [{_CHUNKS.get(_kind(chunk), _kind(chunk))}]" for n, chunk in enumerate(transport.chunks, 1)
                )
            case _:
                told = checksum.NAMES.get(ip.protocol, f"ip-proto-{ip.protocol}")
        source, destination = format_ip(ip.src), format_ip(ip.dst)
        if isinstance(transport, Tcp | Udp | Sctp):
            source, destination = f"{source}.{transport.sport}", f"{destination}.{transport.dport}"
        return f"{name} {source} > {destination}: {told}"

    def _udp(self, parsed: Packet, header: Udp) -> str:
        if header.dport == vxlan.PORT:
            inside = packets.decapsulate(parsed.payload)
            if not isinstance(inside, DropReason):
                return f"VXLAN, vni {inside[0].vni}, {self.line(inside[2])}"
        return f"UDP, length {len(parsed.payload)}"

    def _tcp(self, parsed: Packet, header: Tcp) -> str:
        here, there = (parsed.ip.src, header.sport), (parsed.ip.dst, header.dport)
        seq, ack, first = header.seq, header.ack, self._first
        ours = theirs = 0
        if header.flags & Flags.ACK:
            known = first.get((*here, *there))
            if known is None or header.flags & Flags.SYN:  # the connection's first numbers are told as they are
                if len(first) >= 2 * CONNECTIONS:
                    first.clear()
                first[*here, *there], first[*there, *here] = seq, ack - 1 & _MASK
            else:
                ours, theirs = known, first[*there, *here]
        seq, ack, length = seq - ours & _MASK, ack - theirs & _MASK, len(parsed.payload)
        parts = [f"Flags [{flags(header.flags)}]"]
        if length or header.flags & (Flags.SYN | Flags.FIN | Flags.RST):
            parts.append(f"seq {seq}" + (f":{seq + length & _MASK}" if length else ""))
        if header.flags & Flags.ACK:
            parts.append(f"ack {ack}")
        parts.append(f"win {header.window}")
        if header.flags & Flags.URG:
            parts.append(f"urg {header.urgent}")
        if header.options:
            base = first.get((*there, *here), 0) if header.flags & Flags.ACK else 0
            parts.append(f"options [{','.join(_option(option, base) for option in header.options)}]")
        return ", ".join([*parts, f"length {length}"])


def _option(option: Option, base: int) -> str:
    match option:
        case Mss(size):
            return f"mss {size}"
        case WindowScale(shift):
            return f"wscale {shift}"
        case SackPermitted():
            return "sackOK"
        case Timestamps(value, echo):
            return f"TS val {value} ecr {echo}"
        case Sack(blocks):
            return f"sack {len(blocks)} " + "".join(f"{{{a - base & _MASK}:{b - base & _MASK}}}" for a, b in blocks)
        case NoOp():
            return "nop"
    return f"unknown-{option.kind}"


def _icmp(message: Icmp, payload: bytes) -> str:
    length = f"length {8 + len(payload)}"
    if message.type in {ECHO, ECHO_REPLY}:
        word = "request" if message.type == ECHO else "reply"
        return f"ICMP echo {word}, id {message.identifier}, seq {message.sequence}, {length}"
    quoted = payload[16:20]
    if message.type == DEST_UNREACH and len(quoted) == 4:
        return f"ICMP {_unreachable(message, payload, format_ip(quoted))}, {length}"
    if message.type == TIME_EXCEEDED:
        return f"ICMP time exceeded in-transit, {length}" if message.code == 0 else f"ICMP ip reassembly time exceeded, {length}"
    return f"ICMP type-#{message.type}, {length}"


def _unreachable(message: Icmp, quote: bytes, ip: str) -> str:
    at = (quote[0] & 15) << 2
    match message.code:
        case code if code == NET_UNREACH:
            return f"net {ip} unreachable"
        case code if code == HOST_UNREACH:
            return f"host {ip} unreachable"
        case code if code == PROT_UNREACH:
            return f"{ip} protocol {quote[9]} unreachable"
        case code if code == PORT_UNREACH:
            name = {checksum.TCP: "tcp port ", checksum.UDP: "udp port "}.get(quote[9], f"protocol {quote[9]} port ")
            return f"{ip} {name}{int.from_bytes(quote[at + 2 : at + 4], 'big')} unreachable"
        case code if code == FRAG_NEEDED:
            return f"{ip} unreachable - need to frag" + (f" (mtu {message.mtu})" if message.mtu else "")
        case 10:
            return f"host {ip} unreachable - admin prohibited"
        case 13:
            return f"host {ip} unreachable - admin prohibited filter"
    return f"{ip} unreachable - #{message.code}"


def _kind(chunk: Any) -> int:
    return chunk.type if hasattr(chunk, "type") else (2 if chunk.ack else 1) if isinstance(chunk, Init) else 6


def fields(data: bytes) -> dict[str, Any]:
    """The packet's headers for scripts: source, destination, protocol, ports, what TCP says, and `inner` for what VXLAN carries."""
    parsed = packets.parse(data)
    if isinstance(parsed, DropReason):
        return {"malformed": parsed.value}
    ip, transport = parsed.ip, parsed.transport
    told: dict[str, Any] = {
        "src": format_ip(ip.src), "dst": format_ip(ip.dst), "proto": checksum.NAMES.get(ip.protocol, str(ip.protocol)),
    }  # fmt: skip
    if isinstance(transport, Tcp | Udp | Sctp):
        told |= {"sport": transport.sport, "dport": transport.dport}
    if isinstance(transport, Tcp):
        told |= {"flags": flags(transport.flags), "seq": transport.seq, "ack": transport.ack, "window": transport.window}
    if isinstance(transport, Icmp):
        told |= {"type": transport.type, "code": transport.code}
    told["length"] = len(parsed.payload)
    if isinstance(transport, Udp) and transport.dport == vxlan.PORT:
        inside = packets.decapsulate(parsed.payload)
        if not isinstance(inside, DropReason):
            told |= {"vni": inside[0].vni, "inner": fields(inside[2])}
    return told
