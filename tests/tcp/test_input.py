"""What an established connection believes: RFC 5961, PAWS and the window, row by row."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.tcp import Event, TcpState
from emu.tcp.info import check
from emu.tcp.segment import ACK, FIN, RST, SYN, URG
from tests.kit.tcp_segments import NOW, PEER_ISS, Reply, craft, established, replies

WINDOW = 65160  # 45 segments
CHALLENGE = Reply(ACK, 0, 0, 0)

RFC5961 = (
    # RST: 3.2
    ("a RST exactly in place resets", (RST, 0, 0), "CLOSED", []),
    ("a RST elsewhere in the window is challenged", (RST, 1, 0), "ESTABLISHED", [CHALLENGE]),
    ("a RST at the window's last byte is challenged", (RST, WINDOW - 1, 0), "ESTABLISHED", [CHALLENGE]),
    ("a RST behind the window is dropped", (RST, WINDOW + 1, 0), "ESTABLISHED", []),
    ("a RST before the window is dropped", (RST, -1, 0), "ESTABLISHED", []),
    ("a RST far away is dropped", (RST, 1 << 30, 0), "ESTABLISHED", []),
    # SYN: 4.2
    ("a SYN in place is challenged", (SYN, 0, 0), "ESTABLISHED", [CHALLENGE]),
    ("a SYN in the window is challenged", (SYN, 1000, 0), "ESTABLISHED", [CHALLENGE]),
    ("a SYN outside the window is challenged too", (SYN, 1 << 30, 0), "ESTABLISHED", [CHALLENGE]),
    ("a SYN-ACK is challenged", (SYN | ACK, 0, 0), "ESTABLISHED", [CHALLENGE]),
    # ACK: 5.2
    ("an ACK of what was never sent is answered and dropped", (ACK, 0, 1), "ESTABLISHED", [CHALLENGE]),
    ("an ACK older than any window is answered and dropped", (ACK, 0, -(1 << 28)), "ESTABLISHED", [CHALLENGE]),
    ("an ACK older than all that was ever acknowledged is answered and dropped", (ACK, 0, -1), "ESTABLISHED", [CHALLENGE]),
)


@pytest.mark.parametrize(("segment", "state", "answer"), [row[1:] for row in RFC5961], ids=[row[0] for row in RFC5961])
def test_blind_attacks(segment, state, answer):
    end = established()
    flags, seq, ack = segment
    end.on_packet(craft(end, flags, seq=seq, ack=ack), 20, NOW)
    assert end.state.name == state
    assert replies(end) == answer
    assert end.error == (errno.ECONNRESET if state == "CLOSED" else 0)


def test_a_rst_at_the_edge_of_what_was_sacked_resets():
    """Linux's refinement: the peer may have sent it after data that has not arrived."""
    end = established()
    end.on_packet(craft(end, ACK, seq=100, payload=bytes(50)), 20, NOW)
    end.on_packet(craft(end, RST, seq=150), 20, NOW)
    assert end.closed


def test_challenges_are_limited_to_two_a_second():
    end = established()
    for tick in range(100):
        end.on_packet(craft(end, SYN), 20, NOW + tick / 100)
    assert len(end.out) == 2


UNACCEPTABLE = (
    ("old data is acknowledged, and named as a duplicate", (ACK, -10, b"0123456789"), [CHALLENGE], b""),
    ("old data with a new tail gives the tail", (ACK, -5, b"0123456789"), [Reply(ACK, 0, 0, 0)], b"56789"),
    ("data beyond the window is refused", (ACK, WINDOW + 1, b"x"), [CHALLENGE], b""),
    ("data across the window's edge is kept while nothing waits to be read", (ACK, WINDOW - 2, b"1234"), [CHALLENGE], b""),
    ("data without ACK is dropped", (0, 0, b"x"), [], b""),
    ("urgent data is data", (ACK | URG, 0, b"x"), [Reply(ACK, 0, 0, 0)], b"x"),
    ("an empty segment in place is silent", (ACK, 0, b""), [], b""),
    ("a keep-alive is answered", (ACK, -1, b""), [CHALLENGE], b""),
)


@pytest.mark.parametrize(("segment", "answer", "got"), [row[1:] for row in UNACCEPTABLE], ids=[row[0] for row in UNACCEPTABLE])
def test_the_window(segment, answer, got):
    end = established()
    flags, seq, payload = segment
    end.on_packet(craft(end, flags, seq=seq, payload=payload), 20, NOW)
    assert replies(end) == answer
    assert (end.read(100, NOW) or b"") == got


PAWS = (
    ("an older timestamp is refused and answered", (0, b"x", -1), [CHALLENGE]),
    ("an equal timestamp is taken", (0, b"x", 0), [Reply(ACK, 0, 0, 0)]),
    ("a newer timestamp is taken, past the wrap too", (0, b"x", 0x7FFFFFFF), [Reply(ACK, 0, 0, 0)]),
    ("half the circle away is old", (0, b"x", 0x80000000), [CHALLENGE]),
    ("an overtaken pure ACK is no sign of a duplicate", (0, b"", -3), []),
)


@pytest.mark.parametrize(("segment", "answer"), [row[1:] for row in PAWS], ids=[row[0] for row in PAWS])
def test_paws(segment, answer):
    end = established()
    seq, payload, tsval = segment
    end.on_packet(craft(end, ACK, seq=seq, payload=payload, tsval=tsval), 20, NOW)
    assert replies(end) == answer


def test_a_reset_is_not_subject_to_paws():
    """RFC 7323, 5.2."""
    end = established()
    end.on_packet(craft(end, RST, tsval=-100), 20, NOW)
    assert end.closed


def test_a_timestamp_of_24_days_ago_is_no_longer_held_against_anyone():
    end = established()
    end.on_packet(craft(end, ACK, payload=b"x", tsval=-5), 20, NOW + 25 * 86400)
    assert end.read(1, NOW) == b"x"


def test_only_segments_in_place_move_the_timestamp_echo():
    """RFC 7323, 4.3: else a reordered segment would make the peer's round trips look short."""
    end = established()
    before = end.ts_recent
    end.on_packet(craft(end, ACK, seq=100, payload=b"late", tsval=50), 20, NOW)
    assert end.ts_recent == before
    end.on_packet(craft(end, ACK, payload=b"x", tsval=60), 20, NOW)
    assert end.ts_recent == before + 60


def test_icmp_is_only_about_what_is_outstanding():
    """RFC 5927, 4.1."""
    end = established()
    end.write(b"12345", NOW)
    first = end.snd_una & 0xFFFFFFFF
    assert [end.outstanding(first + distance) for distance in (-1, 0, 4, 5)] == [False, True, True, False]


def test_a_smaller_mtu_cuts_and_resends_what_is_out():
    """RFC 1191: nothing was lost to congestion, so the window stays."""
    end = established()
    end.write(bytes(4000), NOW)
    end.out.clear()
    cwnd = end.cc.cwnd
    end.on_mtu(1000, NOW)
    packets = list(end.out)
    assert sum(reply.size for reply in replies(end)) == 4000
    assert all(gso in (0, 948) for _, gso in packets)
    assert end.mss == 948
    assert end.cc.cwnd >= cwnd
    end.on_mtu(1400, NOW)
    assert not end.out
    check(end)


SEGMENT = st.tuples(
    st.integers(0, 63),
    st.one_of(st.integers(-5, 5), st.integers(-70000, 70000), st.integers(-(2**31), 2**31)),
    st.one_of(st.integers(-5, 5), st.integers(-(2**31), 2**31)),
    st.binary(max_size=30),
    st.integers(0, 65535),
    st.one_of(st.integers(-3, 3), st.integers(-(2**31), 2**31)),
    st.sampled_from(["", "write", "read", "shutdown_write", "close"]),
)


@given(st.lists(SEGMENT, max_size=30))
def test_nothing_a_peer_sends_breaks_the_machine(segments):
    """Any flags, numbers and payloads: invariants hold, and time always has an end."""
    end = established()
    now = NOW
    for flags, seq, ack, payload, window, tsval, call in segments:
        end.on_packet(craft(end, flags, seq=seq, ack=ack, payload=payload, window=window, tsval=tsval), 20, now)
        if call == "write":
            if end.writable and end.state in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT):
                end.write(bytes(3000), now)
        elif call:
            getattr(end, call)(*((1000,) if call == "read" else ()), now)
        check(end)
        end.out.clear()
        now += 0.01
    assert not end.events & Event.CONNECTED
    for _ in range(100):
        if end.deadline == float("inf"):
            break
        end.on_timer(max(end.deadline, now))
        check(end)
        end.out.clear()


@given(st.binary(max_size=80))
def test_garbage_for_a_header_is_dropped(data):
    end = established()
    packet = craft(end, ACK)[:20] + data
    end.on_packet(packet, 20, NOW)
    check(end)


def test_sequence_numbers_wrap():
    """The peer's numbers pass 2**32 in the middle of the data."""
    end = established()
    end.rcv_nxt += 2**32 - 10 - (end.rcv_nxt & 0xFFFFFFFF)
    end.last_ack_sent = end.rcv_nxt
    end.rcv_adv = end.rcv_nxt + WINDOW
    end.on_packet(craft(end, ACK, payload=bytes(range(20))), 20, NOW)
    end.on_packet(craft(end, ACK, payload=bytes(range(20))), 20, NOW)
    assert end.read(100, NOW) == bytes(range(20)) * 2
    assert PEER_ISS < 2**32 < end.rcv_nxt


def test_a_fin_out_of_order_with_data_is_kept():
    end = established()
    end.on_packet(craft(end, ACK | FIN, seq=3), 20, NOW)
    assert not end.eof
    end.on_packet(craft(end, ACK, payload=b"abc"), 20, NOW)
    assert end.eof
