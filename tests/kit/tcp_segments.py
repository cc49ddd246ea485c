"""Single segments to and from one TCP end, named by how they stand to what it expects."""

from __future__ import annotations

from typing import NamedTuple

from emu.tcp import Connection, TcpConfig
from emu.tcp import options as tcp_options
from emu.tcp.segment import ACK, SYN, emit, parse, route
from emu.tcp.seq import MASK
from tests.kit.wire_pair import CLIENT, SERVER

NOW = 1000.0
PEER_ISS = 5_000_000


class Reply(NamedTuple):
    """What an end answered: flags and payload, and sequence numbers as distances from what `craft` calls 0."""

    flags: int
    seq: int
    ack: int
    size: int


def craft(
    end: Connection, flags: int, *, seq: int = 0, ack: int = 0, payload: bytes = b"", window: int = 512, tsval: int | None = None
) -> bytes:
    """A packet from the peer of `end`: `seq` from what it expects next, `ack` from what it will send next, `tsval` from the last seen."""
    opts = b""
    if end.ts_on:
        stamp = (end.ts_recent + (tsval or 0)) & MASK
        opts = bytes((1, 1, 8, 10)) + stamp.to_bytes(4, "big") + bytes(4)
    number = (end.snd_nxt + ack) & MASK if flags & ACK else 0
    return emit(route(end.remote, end.local), (end.rcv_nxt + seq) & MASK, number, flags, window, opts, payload)


def replies(end: Connection) -> list[Reply]:
    """What `end` sends, taken off it."""
    out = []
    for packet, _ in end.out:
        segment = parse(packet, 20)
        assert segment is not None
        seq = (segment.seq - end.snd_nxt + 0x80000000 & MASK) - 0x80000000
        ack = (segment.ack - end.rcv_nxt + 0x80000000 & MASK) - 0x80000000 if segment.flags & ACK else 0
        out.append(Reply(segment.flags, seq, ack, segment.end - segment.start))
    end.out.clear()
    return out


def syn_sent(config: TcpConfig | None = None) -> Connection:
    end = Connection.active(CLIENT, SERVER, iss=77, mtu=1500, now=NOW, config=config or TcpConfig())
    end.out.clear()
    return end


def peer_syn(flags: int = SYN, *, ack: int = 0, opts: bytes | None = None, window: int = 65535, source=SERVER, target=CLIENT) -> bytes:
    """The peer's SYN or SYN-ACK, by default with all options."""
    if opts is None:
        opts = tcp_options.emit_syn(1460, wscale=7, sack=True, timestamp=(9000, 0))
    return emit(route(source, target), PEER_ISS, ack & MASK, flags, window, opts)


def syn_received(config: TcpConfig | None = None) -> Connection:
    end = Connection.passive(peer_syn(), 20, iss=77, mtu=1500, now=NOW, config=config or TcpConfig())
    end.out.clear()
    return end


def established(config: TcpConfig | None = None) -> Connection:
    end = syn_received(config)
    end.on_packet(craft(end, ACK), 20, NOW)
    assert end.established
    end.out.clear()
    end.events = 0
    return end
