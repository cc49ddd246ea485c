"""What a program sees of a connection, and what the wire sees of a program's calls."""

from __future__ import annotations

import pytest

from emu.tcp import Event, TcpConfig, TcpInfo
from emu.tcp.segment import ACK
from tests.kit.tcp_segments import NOW, Reply, craft, established, replies
from tests.kit.wire_pair import Pair, Weather

MAX_PACKET = 65485  # what VXLAN's 50 bytes still fit over


def ping_pong(pair: Pair, exchanges: int) -> int:
    """How many packets each exchange of a small request and its response takes, at the end of so many."""
    for _ in range(exchanges):
        before = len(pair.sent)
        for source, sink in ((pair.client, pair.accepted), (pair.accepted, pair.client)):
            source.write(bytes(64), pair.now)
            pair.flush()
            while not sink.readable:
                pair.step()
            assert sink.read(1000, pair.now) == bytes(64)
    return len(pair.sent) - before


def test_a_response_carries_the_ack_and_no_packet_is_sent_for_nothing():
    pair = Pair().establish()
    assert ping_pong(pair, 3) == 2


def test_the_first_exchange_acknowledges_at_once():
    """Quick ACKs at the start (Linux), until the connection is seen to answer requests."""
    pair = Pair().establish()
    assert ping_pong(pair, 1) > 2


def test_bulk_data_is_acknowledged_every_second_segment():
    pair = Pair(config=TcpConfig(gso=False, quickacks=0)).establish()
    data = bytes(1_000_000)
    assert pair.pump(pair.client, pair.accepted, data) == data
    acks = sum(1 for _, name, _, _ in pair.sent if name == "server")
    assert acks < 0.6 * len(data) / pair.client.mss


def test_a_packet_carries_up_to_64_kib_of_whole_segments_with_gso_and_one_without():
    for gso in (True, False):
        pair = Pair(Weather(split=False), config=TcpConfig(gso=gso)).establish()
        data = bytes(3_000_000)
        assert pair.pump(pair.client, pair.accepted, data) == data
        longest = max(len(packet) for _, _, packet, _ in pair.sent)
        for _, _, packet, gso_size in pair.sent:
            payload = len(packet) - 52
            assert len(packet) <= MAX_PACKET
            assert gso_size == (pair.client.mss if payload > pair.client.mss else 0)
        assert longest == (52 + (MAX_PACKET - 52) // 1398 * 1398 if gso else pair.mtu)


def test_nagle_holds_a_second_small_write_until_the_first_is_acknowledged():
    for nodelay, sent in ((False, 1), (True, 3)):
        end = established()
        end.nodelay = nodelay
        for _ in range(3):
            assert end.write(b"x", NOW) == 1
        assert len(end.out) == sent
        end.out.clear()
        end.on_packet(craft(end, ACK), 20, NOW)
        assert [reply.size for reply in replies(end)] == ([] if nodelay else [2])


def test_nagle_does_not_hold_back_full_segments():
    end = established()
    end.write(b"small", NOW)
    end.out.clear()
    end.write(bytes(3 * end.mss + 10), NOW)
    assert sum(reply.size for reply in replies(end)) == 3 * end.mss


def test_the_send_buffer_takes_what_fits_and_says_when_a_third_is_free():
    end = established(TcpConfig(sndbuf=10_000))
    assert end.write(bytes(30_000), NOW) == 10_000
    assert not end.writable
    assert end.write(b"more", NOW) == 0
    end.events = 0
    end.on_packet(craft(end, ACK, ack=-8000), 20, NOW)
    assert not end.writable
    end.on_packet(craft(end, ACK, ack=-6000), 20, NOW)
    assert end.writable
    assert end.events & Event.WRITABLE


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_what_was_written_is_the_callers_no_more(kind):
    """A buffer may be reused as soon as `write` returns."""
    backing = bytearray(b"first" * 1000)
    pair = Pair().establish()
    end = pair.client
    end.write(kind(backing), pair.now)
    end.write(memoryview(backing)[:5], pair.now)
    backing[:] = b"wrong" * 1000
    pair.flush()
    pair.run(1.0)
    expected = b"first" * 1001 if kind is not memoryview else pair.accepted.read(5005, pair.now)
    assert pair.accepted.read(10_000, pair.now) == expected if kind is not memoryview else expected == b"first" * 1001


def test_read_returns_none_data_and_end_of_file():
    end = established()
    assert end.read(10, NOW) is None
    end.on_packet(craft(end, ACK, payload=b"0123456789"), 20, NOW)
    assert end.read(0, NOW) == b""
    assert end.read(4, NOW) == b"0123"
    assert end.readable
    assert end.read(100, NOW) == b"456789"
    assert not end.readable
    assert end.read(10, NOW) is None


def test_reading_tells_of_room_when_the_window_was_shut():
    end = established(TcpConfig(rcvbuf=10_000))
    room = end.rcv_adv - end.rcv_nxt
    while room := min(room, 1448):
        end.on_packet(craft(end, ACK, payload=bytes(room)), 20, NOW)
        room = end.rcv_adv - end.rcv_nxt
    assert TcpInfo.of(end).rcv_window == 0
    end.out.clear()
    end.read(100, NOW)
    assert not end.out, "a silly window"
    end.read(10_000, NOW)
    assert replies(end) == [Reply(ACK, 0, 0, 0)]
    assert TcpInfo.of(end).rcv_window > 5000


def test_the_receive_window_grows_only_if_it_is_what_limits_the_sender():
    """Dynamic right-sizing: a long fat path gets its window, a slow sender does not."""
    fat = Pair(Weather(delay=0.05)).establish()
    fat.pump(fat.client, fat.accepted, bytes(20_000_000))
    assert fat.accepted.rcv_limit > 4 << 20
    slow = Pair(Weather(delay=0.001)).establish()
    at_first = slow.accepted.rcv_limit
    for _ in range(100):
        slow.pump(slow.client, slow.accepted, bytes(3000))
        slow.run(0.1)
    assert slow.accepted.rcv_limit == at_first == 503 << 7  # 46 segments, rounded up to what the window's scale can say


def test_a_long_fat_path_is_filled():
    """100 MB/s over 50 ms needs 5 MB in flight; what an unlimited wire carries in two seconds is far more than 64 KiB windows would."""
    pair = Pair(Weather(delay=0.025)).establish()
    started, data = pair.now, bytes(20_000_000)
    assert pair.pump(pair.client, pair.accepted, data) == data
    assert len(data) / (pair.now - started) > 20_000_000


def test_an_idle_connection_slows_down_again():
    """RFC 2861: what the network took a while ago says little."""
    pair = Pair().establish()
    pair.pump(pair.client, pair.accepted, bytes(3_000_000))
    grown = pair.client.cc.cwnd
    pair.run(60.0)
    pair.client.write(bytes(100_000), pair.now)
    assert pair.client.cc.cwnd == pair.client.cc.initial < grown


def test_timestamps_start_anywhere_and_tick_in_milliseconds():
    pair = Pair().establish()
    other = Pair(iss=(1, 2)).establish()
    assert pair.client.ts_offset != other.client.ts_offset
    assert pair.client.ts_offset != pair.accepted.ts_offset
    stamps = []
    for _ in range(2):
        pair.client.write(bytes(10), pair.now)
        stamps.append(int.from_bytes(pair.client.out[-1][0][44:48], "big"))
        pair.flush()
        pair.run(1.5)
    assert stamps[1] - stamps[0] == 1500


def test_info_is_a_snapshot():
    end = established()
    end.write(b"12345", NOW)
    info = TcpInfo.of(end)
    assert (info.state.name, info.mss, info.in_flight, info.unsent, info.retransmitted) == ("ESTABLISHED", 1448, 5, 0, 0)
