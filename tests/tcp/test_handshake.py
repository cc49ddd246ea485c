"""Opening: RFC 9293, 3.10.7.3 and what Linux does where it leaves a choice."""

from __future__ import annotations

import errno

import pytest

from emu.tcp import Connection, Event, TcpConfig, TcpState
from emu.tcp import options as tcp_options
from emu.tcp.segment import ACK, RST, SYN
from tests.kit.tcp_segments import NOW, Reply, craft, peer_syn, replies, syn_received, syn_sent
from tests.kit.wire_pair import CLIENT, SERVER, Pair

OURS = 78  # the sequence number after our SYN

SYN_SENT = (
    # what comes                                     packet                              then        error               answer
    ("a SYN-ACK establishes", peer_syn(SYN | ACK, ack=OURS), "ESTABLISHED", 0, [Reply(ACK, 0, 0, 0)]),
    ("a SYN alone is a simultaneous open", peer_syn(SYN), "SYN_RECV", 0, [Reply(SYN | ACK, -1, 0, 0)]),
    ("an ACK of nothing is reset", peer_syn(ACK, ack=OURS + 5), "SYN_SENT", 0, [Reply(RST, 5, 0, 0)]),
    ("a SYN-ACK of nothing is reset", peer_syn(SYN | ACK, ack=OURS - 1), "SYN_SENT", 0, [Reply(RST, -1, 0, 0)]),
    ("a RST that acknowledges our SYN refuses", peer_syn(RST | ACK, ack=OURS, opts=b""), "CLOSED", errno.ECONNREFUSED, []),
    ("a RST that does not is ignored", peer_syn(RST | ACK, ack=OURS + 1, opts=b""), "SYN_SENT", 0, []),
    ("a RST without ACK is ignored", peer_syn(RST, opts=b""), "SYN_SENT", 0, []),
    ("an ACK alone tells nothing", peer_syn(ACK, ack=OURS), "SYN_SENT", 0, []),
)


@pytest.mark.parametrize(("packet", "state", "error", "answer"), [row[1:] for row in SYN_SENT], ids=[row[0] for row in SYN_SENT])
def test_in_syn_sent(packet, state, error, answer):
    end = syn_sent()
    end.on_packet(packet, 20, NOW)
    assert (end.state.name, end.error) == (state, error)
    assert replies(end) == answer


def test_establishing_is_told_once():
    end = syn_sent()
    assert not end.established
    assert not end.writable
    assert end.write(b"early", NOW) == 0
    end.on_packet(peer_syn(SYN | ACK, ack=OURS), 20, NOW)
    assert end.events == Event.CONNECTED | Event.WRITABLE
    assert end.established
    assert end.writable
    assert not end.readable


SYN_RECV = (
    ("the final ACK establishes", (ACK, 0, 0), "ESTABLISHED", 0, []),
    ("an ACK of something else is reset", (ACK, 0, 9), "SYN_RECV", 0, [Reply(RST, 9, 0, 0)]),
    ("the SYN again is answered again", (SYN, -1, 0), "SYN_RECV", 0, [Reply(SYN | ACK, -1, 0, 0)]),
    ("a RST in place ends it", (RST, 0, 0), "CLOSED", errno.ECONNRESET, []),
    ("a RST elsewhere in the window is challenged", (RST, 100, 0), "SYN_RECV", 0, [Reply(ACK, 0, 0, 0)]),
    ("a segment without ACK is dropped", (0, 0, 0), "SYN_RECV", 0, []),
)


@pytest.mark.parametrize(("segment", "state", "error", "answer"), [row[1:] for row in SYN_RECV], ids=[row[0] for row in SYN_RECV])
def test_in_syn_recv(segment, state, error, answer):
    end = syn_received()
    flags, seq, ack = segment
    end.on_packet(craft(end, flags, seq=seq, ack=ack), 20, NOW)
    assert (end.state.name, end.error) == (state, error)
    assert replies(end) == answer


def test_data_may_come_with_the_final_ack():
    end = syn_received()
    end.on_packet(craft(end, ACK, payload=b"hello"), 20, NOW)
    assert end.read(10, NOW) == b"hello"


def test_two_ends_that_call_each_other_at_once_meet():
    """RFC 9293, figure 8."""
    one = Connection.active(CLIENT, SERVER, iss=1, mtu=1500, now=NOW)
    two = Connection.active(SERVER, CLIENT, iss=2, mtu=1500, now=NOW)
    for _ in range(4):
        for end, other in ((one, two), (two, one)):
            packets = [packet for packet, _ in end.out]
            end.out.clear()
            for packet in packets:
                other.on_packet(packet, 20, NOW)
    assert one.state is two.state is TcpState.ESTABLISHED
    assert one.write(b"both", NOW) == 4
    two.on_packet(one.out.pop()[0], 20, NOW)
    assert two.read(10, NOW) == b"both"


AGREED = (
    # ours, theirs: MSS option, wscale, sack, timestamps       agreed: payload of a segment, scale, sack, timestamps
    ("everything", {}, (1460, 7, True, True), (1448, 7, True, True)),
    ("a smaller MSS of the peer's", {}, (1000, 7, True, True), (988, 7, True, True)),
    ("no options at all", {}, (None, None, False, False), (536, 0, False, False)),
    ("a peer without timestamps", {}, (1460, 7, True, False), (1460, 7, True, False)),
    ("ourselves without timestamps", {"timestamps": False}, (1460, 7, True, True), (1460, 7, True, False)),
    ("a peer without SACK", {}, (1460, 7, False, True), (1448, 7, False, True)),
    ("ourselves without window scaling", {"window_scaling": False}, (1460, 7, True, True), (1448, 0, True, True)),
    ("a scale beyond 14 is 14 (RFC 7323, 2.3)", {}, (1460, 15, True, True), (1448, 14, True, True)),
    ("an absurd MSS is raised to Linux's least", {}, (1, 7, True, True), (36, 7, True, True)),
)


@pytest.mark.parametrize("passive", [True, False], ids=["passive", "active"])
@pytest.mark.parametrize(("ours", "theirs", "agreed"), [row[1:] for row in AGREED], ids=[row[0] for row in AGREED])
def test_options_are_on_only_when_both_sent_them(ours, theirs, agreed, passive):
    mss, wscale, sack, stamps = theirs
    opts = tcp_options.emit_syn(mss, wscale=wscale, sack=sack, timestamp=(1, 0) if stamps else None) if mss is not None else b""
    config = TcpConfig(**ours)
    if passive:
        end = Connection.passive(peer_syn(opts=opts), 20, iss=77, mtu=1500, now=NOW, config=config)
    else:
        end = syn_sent(config)
        end.on_packet(peer_syn(SYN | ACK, ack=OURS, opts=opts), 20, NOW)
    assert (end.mss, end.snd_shift, end.sack_on, end.ts_on) == agreed


def test_a_passive_connection_needs_a_syn():
    for flags in (SYN | ACK, SYN | RST, ACK):
        with pytest.raises(ValueError, match="SYN"):
            Connection.passive(peer_syn(flags), 20, iss=1, mtu=1500, now=NOW)


def test_a_handshake_survives_the_loss_of_each_of_its_packets():
    for lost in range(3):
        pair = Pair()
        while len(pair.sent) <= lost:
            pair.step()
        pair.cut = len(pair.sent) == lost + 1
        pair._wire.clear()
        pair.cut = False
        pair.run(4.0)
        assert pair.client.established
        if lost == 2:  # the server never saw the last ACK; the first data brings it
            pair.client.write(b"x", pair.now)
            pair.flush()
            pair.run(1.0)
        assert pair.accepted.established
