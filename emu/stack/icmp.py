"""ICMP as the stack speaks it: errors about packets, echo, and errors that have come for a socket (RFC 792, RFC 1122).

Decides who is told and what the socket's errno is (net/ipv4/icmp.c: `icmp_err_convert`). Linux's rate limit of errors
(icmp_ratelimit) is off, as conformance suites set it: a refused connection is refused at once, every time.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from emu.errors import DropReason
from emu.netfilter.conntrack import CtState
from emu.netfilter.skb import ICMP, ICMP_ERRORS, TCP, Skb
from emu.tcp.segment import reset_for
from emu.trace import REPLY
from emu.wire.addr import ANY, Ip

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace

ECHO_REPLY, DEST_UNREACHABLE, ECHO_REQUEST, TIME_EXCEEDED, PARAMETER_PROBLEM = 0, 3, 8, 11, 12
NET_UNREACHABLE, HOST_UNREACHABLE, PROTOCOL_UNREACHABLE, PORT_UNREACHABLE, FRAGMENTATION_NEEDED = 0, 1, 2, 3, 4
NR_ICMP_TYPES = 18  # an unknown message may be an error
QUOTE = 548  # bytes of the offending packet that are quoted: 576 in all (RFC 1812)

_HEADER = struct.Struct("!BBHHHBBH4s4sBBHHH")

REJECT_CODES = {  # iptables-extensions(8), REJECT
    "icmp-net-unreachable": 0, "icmp-host-unreachable": 1, "icmp-proto-unreachable": 2, "icmp-port-unreachable": 3,
    "icmp-net-prohibited": 9, "icmp-host-prohibited": 10, "icmp-admin-prohibited": 13,
}  # fmt: skip

ERRNO: dict[int, tuple[int, bool]] = {  # code of "destination unreachable" -> (errno, is a connected UDP socket told?)
    0: (errno.ENETUNREACH, False), 1: (errno.EHOSTUNREACH, False), 2: (errno.ENOPROTOOPT, True), 3: (errno.ECONNREFUSED, True),
    4: (errno.EMSGSIZE, True), 5: (errno.EOPNOTSUPP, False), 6: (errno.ENETUNREACH, True), 7: (errno.EHOSTDOWN, True),
    8: (errno.ENONET, True), 9: (errno.ENETUNREACH, True), 10: (errno.EHOSTUNREACH, True), 11: (errno.ENETUNREACH, False),
    12: (errno.EHOSTUNREACH, False), 13: (errno.EHOSTUNREACH, True), 14: (errno.EHOSTUNREACH, True), 15: (errno.EHOSTUNREACH, True),
}  # fmt: skip
OTHER_ERRNO = {(TIME_EXCEEDED, 0): (errno.EHOSTUNREACH, False), (PARAMETER_PROBLEM, 0): (errno.EPROTO, True)}  # as above, by type and code

TOS_MASK, INTERNETWORK_CONTROL = 0x1E, 0xC0  # an error has its packet's type of service and the precedence of routers


def message(src: Ip, dst: Ip, kind: int, code: int, word1: int, word2: int, payload: bytes, ttl: int = 64, tos: int = 0) -> bytes:
    """A whole IPv4 packet with an ICMP message; `word1`, `word2` are the second half of its header."""
    return _HEADER.pack(0x45, tos, 28 + len(payload), 0, 0, ttl, ICMP, 0, src, dst, kind, code, 0, word1, word2) + payload


def error(ns: NetNamespace, skb: Skb, kind: int, code: int, mtu: int = 0) -> None:
    """Tell the sender of `skb` what became of it, unless it is itself an error, a later fragment, or not from one host."""
    if skb.buf[6] & 0x1F or skb.buf[7] or skb.src == ANY or skb.src[0] >= 224 or skb.dst[0] >= 224:
        return
    if skb.proto == ICMP and (skb.buf[skb.l4] in ICMP_ERRORS or skb.buf[skb.l4] > NR_ICMP_TYPES):
        return
    src = skb.dst if ns.is_local(skb.dst) else ns.source_for(skb.src)
    if src is None:
        return
    tos = skb.buf[1] & TOS_MASK | INTERNETWORK_CONTROL
    _answer(ns, skb, message(src, skb.src, kind, code, 0, mtu, bytes(skb.buf[:QUOTE]), tos=tos))


def _answer(ns: NetNamespace, skb: Skb, data: bytes) -> None:
    """Send a complaint about `skb`. It belongs to the connection, even one never confirmed (nf_ct_attach), so NAT translates it."""
    answer = Skb.parse(data)
    assert isinstance(answer, Skb), answer
    if skb.ct is not None:
        answer.ct, answer.ct_reply, answer.ct_state = skb.ct, not skb.ct_reply, CtState.RELATED
    answer.trace = skb.trace | REPLY if skb.trace else 0
    ns.local_out(answer)


def reject(ns: NetNamespace, skb: Skb) -> None:
    """Answer a packet that a REJECT rule has ended."""
    with_ = skb.reject_with or "icmp-port-unreachable"
    if with_ == "tcp-reset":
        if skb.proto == TCP:
            reset = reset_for(bytes(skb.buf), skb.l4)
            if reset is not None:
                _answer(ns, skb, reset)
        return
    error(ns, skb, DEST_UNREACHABLE, REJECT_CODES[with_])


def receive(ns: NetNamespace, skb: Skb) -> None:
    """An ICMP message for this namespace."""
    kind, code = skb.buf[skb.l4], skb.buf[skb.l4 + 1]
    if kind == ECHO_REQUEST:
        if skb.trace:
            ns.hop(skb, "icmp", note="echo request answered", verdict="delivered")
        body = skb.buf[skb.l4 + 8 :]
        ident, seq = struct.unpack_from("!HH", skb.buf, skb.l4 + 4)
        reply = message(skb.dst, skb.src, ECHO_REPLY, 0, ident, seq, bytes(body), tos=skb.buf[1])
        ns.output(reply, 0, skb.trace | REPLY if skb.trace else 0)
    elif kind == ECHO_REPLY:
        ns.sockets.echo_reply(skb)
    elif kind in ICMP_ERRORS:
        _receive_error(ns, skb, kind, code)
    else:
        ns.drop(skb, DropReason.UNSUPPORTED, "icmp")


def _receive_error(ns: NetNamespace, skb: Skb, kind: int, code: int) -> None:
    quote = skb.buf[skb.l4 + 8 :]
    if len(quote) < 28 or quote[0] >> 4 != 4:
        ns.drop(skb, DropReason.MALFORMED, "icmp")
        return
    told = ERRNO.get(code) if kind == DEST_UNREACHABLE else OTHER_ERRNO.get((kind, code))
    if told is None:  # source quench, redirect and the like concern no socket (icmp_unreach, tcp_v4_err)
        ns.drop(skb, DropReason.UNSUPPORTED, "icmp")
        return
    number, fatal = told
    if skb.trace:
        ns.hop(skb, "icmp", note=f"error type {kind} code {code}", verdict="rejected" if kind == DEST_UNREACHABLE else "dropped")
    mtu = skb.buf[skb.l4 + 6] << 8 | skb.buf[skb.l4 + 7] if kind == DEST_UNREACHABLE and code == FRAGMENTATION_NEEDED else None
    ns.sockets.icmp_error(skb, bytes(quote), number, fatal, mtu)
