"""Loss: found without waiting for a timer, repaired without sending what arrived, at the rate the network takes."""

from __future__ import annotations

import pytest

from emu.tcp import Connection, TcpConfig
from emu.tcp.config import Recovery
from emu.tcp.segment import ACK, emit, parse, route
from emu.tcp.seq import MASK
from tests.kit.tcp_segments import NOW, craft, established, replies
from tests.kit.wire_pair import Pair, Weather

SEGMENT = 1448
RTT = 0.01


def sending(segments: int, **switches) -> Connection:
    """A connection with so many full segments in flight, sent a microsecond apart."""
    end = established(TcpConfig(gso=False, **switches))
    end.rtt.srtt = end.rtt.min_rtt = RTT
    for index in range(segments):
        assert end.write(bytes(SEGMENT), NOW + index * 1e-6) == SEGMENT
    assert len(end.out) == segments
    end.out.clear()
    return end


def acknowledge(end: Connection, segments: int, *blocks: tuple[int, int], now: float = NOW + RTT) -> list[int]:
    """The peer acknowledges so many segments of all sent so far, and SACKs the blocks: which segments are then sent."""
    first = end.iss + 1
    opts = bytes((1, 1, 8, 10)) + end.ts_recent.to_bytes(4, "big") + bytes(4) if end.ts_on else b""
    if blocks:
        opts += bytes((1, 1, 5, 2 + 8 * len(blocks)))
        for left, right in blocks:
            opts += (first + left * SEGMENT & MASK).to_bytes(4, "big") + (first + right * SEGMENT & MASK).to_bytes(4, "big")
    ack = first + segments * SEGMENT & MASK
    end.on_packet(emit(route(end.remote, end.local), end.rcv_nxt & MASK, ack, ACK, 60000, opts), 20, now)
    sent = []
    for packet, _ in end.out:
        segment = parse(packet, 20)
        assert segment is not None
        sent.append((segment.seq - first & MASK) // SEGMENT)
    end.out.clear()
    return sent


def test_the_third_segment_sacked_beyond_a_hole_repairs_it():
    end = sending(8)
    assert acknowledge(end, 1, (2, 3)) == []
    assert acknowledge(end, 1, (2, 4)) == []
    assert acknowledge(end, 1, (2, 5)) == [1]
    assert end.recovery is Recovery.RECOVERY


def test_only_the_holes_are_sent_again():
    end = sending(10)
    sent = acknowledge(end, 1, (9, 10), (6, 7), (2, 4))
    sent += acknowledge(end, 1, (8, 10), (6, 7), (2, 4))
    assert sent == [1, 4, 5, 7, 8][: len(sent)]
    sent += acknowledge(end, 2, (8, 10), (6, 7), (2, 4), now=NOW + 2 * RTT)
    sent += acknowledge(end, 4, (8, 10), (6, 7), now=NOW + 2 * RTT)
    assert sent == [1, 4, 5, 7, 8]


def test_a_lost_retransmission_is_noticed_without_a_timeout():
    """RACK (RFC 8985): what was sent after it has arrived."""
    end = sending(10)
    assert acknowledge(end, 1, (2, 6)) == [1]
    end.write(bytes(SEGMENT), NOW + RTT + 0.001)
    later = acknowledge(end, 1, (2, 10), now=NOW + 1.5 * RTT)
    later += acknowledge(end, 1, (2, 11), now=NOW + 2.5 * RTT)
    assert 1 in later


def test_reordering_within_a_quarter_round_trip_is_not_loss_once_it_was_seen():
    end = sending(10)
    end.reordering = True
    assert acknowledge(end, 1, (2, 8)) == []
    assert end.reo_at < NOW + RTT + 0.3 * RTT
    assert acknowledge(end, 8, now=NOW + RTT + 0.0001) == []
    assert end.recovery is Recovery.OPEN


def test_the_reordering_timer_repairs_what_never_comes():
    end = sending(4)
    assert acknowledge(end, 1, (2, 3)) == []
    end.on_timer(end.reo_at)
    assert [reply.size for reply in replies(end)] == [SEGMENT]


def test_limited_transmit_sends_new_data_on_the_first_two_sacks():
    """RFC 3042: the window is full, yet each segment that has left the network lets one in."""
    end = sending(10)
    end.write(bytes(5 * SEGMENT), NOW)
    assert not end.out
    assert acknowledge(end, 0, (1, 2)) == [10]
    assert acknowledge(end, 0, (1, 3)) == [11]


def test_three_duplicate_acks_repair_without_sack():
    end = sending(8, sack=False)
    assert acknowledge(end, 1) == []
    assert acknowledge(end, 1) == []
    assert acknowledge(end, 1) == []
    assert acknowledge(end, 1) == [1]


def test_a_partial_ack_repairs_the_next_hole_without_sack():
    """RFC 6582, 3.2 step 3."""
    end = sending(8, sack=False)
    for _ in range(5):
        acknowledge(end, 1)
    assert acknowledge(end, 4, now=NOW + 2 * RTT) == [4]
    assert end.recovery is Recovery.RECOVERY
    assert acknowledge(end, 8, now=NOW + 3 * RTT) == []
    assert end.recovery is Recovery.OPEN


def test_recovery_ends_at_ssthresh_which_is_seven_tenths():
    """RFC 9438, 4.6: beta of CUBIC."""
    end = sending(10)
    before = end.cc.cwnd
    acknowledge(end, 1, (2, 5))
    acknowledge(end, 10, now=NOW + 2 * RTT)
    assert end.recovery is Recovery.OPEN
    assert end.cc.cwnd <= end.cc.ssthresh == int(before * 0.7)


def test_a_timeout_starts_again_from_one_segment():
    end = sending(8)
    end.on_timer(end.rto_at)
    assert [reply.seq for reply in replies(end)] == [-SEGMENT], "the tail is probed first"
    end.on_timer(end.rto_at)
    assert [reply.seq for reply in replies(end)] == [-8 * SEGMENT]
    assert end.cc.cwnd == SEGMENT
    assert end.recovery is Recovery.LOSS
    assert acknowledge(end, 1, now=NOW + 1) == [1, 2]
    assert acknowledge(end, 8, now=NOW + 1 + RTT) == []
    assert end.recovery is Recovery.OPEN


def test_a_lost_tail_is_found_within_two_round_trips_and_repaired_without_a_timeout():
    """RFC 8985, 7: the probe's SACK tells of what was lost before it."""
    end = sending(8)
    acknowledge(end, 5)
    assert end.rto_at == pytest.approx(NOW + RTT + 2 * end.rtt.srtt + 0.002)
    end.on_timer(end.rto_at)
    assert [reply.seq for reply in replies(end)] == [-SEGMENT]
    assert acknowledge(end, 5, (7, 8), now=NOW + 5 * RTT)[:1] == [5]
    assert end.recovery is Recovery.RECOVERY


def test_a_probe_that_repaired_the_loss_shrinks_the_window_and_one_that_came_twice_does_not():
    """RFC 8985, 7.4."""
    for twice in (True, False):
        end = sending(4)
        before = end.cc.cwnd
        end.on_timer(end.rto_at)
        end.out.clear()
        acknowledge(end, 4, now=NOW + 4 * RTT)
        if twice:
            acknowledge(end, 4, (3, 4), now=NOW + 4 * RTT)
        end.write(bytes(SEGMENT), NOW + 5 * RTT)
        acknowledge(end, 5, now=NOW + 6 * RTT)
        assert (end.cc.cwnd < before) is not twice
        assert end.tail_seq is None


def timed_out(segments: int = 8) -> Connection:
    """So many in flight, the tail probed in vain, and the first sent again after a timeout a quarter of a second later."""
    end = sending(segments)
    end.on_timer(end.rto_at)
    end.on_timer(end.rto_at)
    assert end.recovery is Recovery.LOSS
    end.out.clear()
    return end


def test_a_timeout_that_was_needless_is_taken_back_when_the_original_arrives():
    """F-RTO (RFC 5682): what was never sent again is acknowledged."""
    end = timed_out()
    assert end.cc.cwnd <= 2 * SEGMENT
    assert acknowledge(end, 3, now=NOW + 1) == []
    assert end.recovery is Recovery.OPEN
    assert end.cc.cwnd >= 10 * SEGMENT
    assert not end.board.lost


def test_after_a_timeout_new_data_is_preferred_until_it_is_known_to_be_real():
    """F-RTO, steps 2b and 3a; the timestamps here tell nothing."""
    end = sending(8)
    end.write(bytes(20 * SEGMENT), NOW)
    for _ in range(2):
        end.on_timer(end.rto_at)
    last = -(-(end.snd_nxt - end.iss - 1) // SEGMENT)
    end.out.clear()
    assert acknowledge(end, 1, now=NOW + 1) == [last, last + 1]
    assert acknowledge(end, 1, (last, last + 1), now=NOW + 1 + RTT)[:1] == [1]
    assert end.recovery is Recovery.LOSS


def test_a_recovery_whose_every_retransmission_came_twice_is_taken_back():
    """RFC 3708: D-SACKs tell; the reordering window widens (RFC 8985)."""
    end = sending(10)
    before = end.cc.cwnd
    assert acknowledge(end, 1, (2, 5)) == [1]
    assert acknowledge(end, 10, now=NOW + RTT + 0.001) == []
    assert acknowledge(end, 10, (1, 2), now=NOW + 2 * RTT) == []
    assert end.recovery is Recovery.OPEN
    assert end.cc.cwnd >= before


def test_an_echo_from_before_the_retransmission_takes_the_recovery_back():
    """Eifel (RFC 3522)."""
    end = sending(10)
    before = end.cc.cwnd
    assert acknowledge(end, 1, (2, 5)) == [1]
    stamp = (end.retrans_stamp - 1) & MASK
    opts = bytes((1, 1, 8, 10)) + end.ts_recent.to_bytes(4, "big") + stamp.to_bytes(4, "big")
    ack = end.iss + 1 + 6 * SEGMENT & MASK
    end.on_packet(emit(route(end.remote, end.local), end.rcv_nxt & MASK, ack, ACK, 60000, opts), 20, NOW + 2 * RTT)
    acknowledge(end, 10, now=NOW + 2 * RTT)
    assert end.recovery is Recovery.OPEN
    assert end.cc.cwnd >= before


def test_the_reordering_window_grows_with_d_sacks_once_a_round_trip():
    end = sending(10)
    end.reordering = True
    end.retransmitted = 5
    acknowledge(end, 8)
    acknowledge(end, 8, (1, 2), now=NOW + RTT)
    assert end.reo_steps == 2
    acknowledge(end, 8, (1, 2), now=NOW + RTT)
    assert end.reo_steps == 2


def test_the_work_of_an_ack_does_not_grow_with_what_is_outstanding():
    """Ten thousand segments in flight, every tenth lost: the entries looked at, counted."""
    end = sending(10)
    end.cc.cwnd = end.snd_wnd = 1 << 30
    end.sndbuf = 1 << 30
    looked = 0

    class Counted(dict):
        def __iter__(self):
            nonlocal looked
            for entry in super().__iter__():
                looked += 1
                yield entry

    for index in range(10_000):
        end.write(bytes(SEGMENT), NOW + index * 1e-6)
    end.out.clear()
    end.board.order = Counted.fromkeys(end.sent)
    for index in range(1000):
        acknowledge(end, 1, (index * 10 + 2, index * 10 + 11), now=NOW + RTT + index * 1e-5)
    assert looked < 20 * 1000


def test_a_timeout_takes_back_what_a_reneging_peer_had_sacked():
    """RFC 2018, 8."""
    end = sending(4)
    acknowledge(end, 0, (0, 2))
    end.on_timer(end.rto_at)
    end.out.clear()
    end.on_timer(end.rto_at)
    assert end.board.sacked == 0
    assert len(end.out) == 1


def test_sacks_of_what_was_never_sent_or_long_acknowledged_are_ignored():
    end = sending(4)
    assert acknowledge(end, 1, (6, 9)) == []
    assert acknowledge(end, 1, (0, 1)) == []
    assert acknowledge(end, 1, (3, 2)) == []
    assert end.board.sacked == 0


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "segments"])
@pytest.mark.parametrize("lost", range(3, 40, 6))
def test_one_lost_segment_costs_a_round_trip_and_not_a_timeout(lost, gso):
    pair = Pair(Weather(delay=0.01), config=TcpConfig(gso=gso)).establish()
    seen = 0
    launch = pair._launch

    def drop_one(to: str, packet: bytes) -> None:
        nonlocal seen
        data = len(packet) > 100
        seen += data
        if not data or seen != lost:
            launch(to, packet)

    pair._launch = drop_one
    started = pair.now
    data = bytes(100_000)
    assert pair.pump(pair.client, pair.accepted, data) == data
    assert pair.client.retransmitted == 1
    assert pair.now - started < 0.2, "a retransmission timeout was needed"


@pytest.mark.parametrize("cut", [0.1, 1.0, 5.0, 30.0])
def test_after_a_cut_the_stall_ends_with_the_next_doubled_timeout(cut):
    """RFC 6298, 5.5: a probe of the tail and then the RTO, doubled each time; the first that finds the wire mended ends the stall."""
    pair = Pair(Weather(delay=0.005)).establish()
    pair.pump(pair.client, pair.accepted, bytes(100_000))
    pair.run(1.0)
    rto = pair.client.rtt.rto
    pair.cut, began = True, pair.now
    pair.client.write(b"x", pair.now)
    pair.flush()
    attempts = [rto, *(rto + rto * ((1 << doublings) - 1) for doublings in range(1, 12))]
    pair.run(cut)
    pair.cut = False
    while not pair.accepted.readable:
        assert pair.step()
    expected = next(at for at in attempts if at >= cut)
    assert pair.now - began == pytest.approx(expected + 0.005, abs=1e-3)


def test_two_percent_loss_with_reordering_and_duplicates_leaves_most_of_the_rate():
    """At a round trip of 1 ms, 100 MB must take less than 15 s: here a tenth of that, by the manual clock."""
    pair = Pair(Weather(delay=0.0005), seed=3).establish()
    pair.weather = Weather(delay=0.0005, loss=0.02, duplicate=0.01)
    data, started = bytes(10_000_000), pair.now
    assert pair.pump(pair.client, pair.accepted, data) == data
    assert pair.now - started < 1.5


def test_throughput_under_random_loss_is_what_the_formula_of_mathis_gives():
    """1.22 * MSS / (RTT * sqrt(p)), within a factor of two either way."""
    loss, delay = 0.01, 0.01
    pair = Pair(Weather(delay=delay), seed=5).establish()
    pair.weather = Weather(delay=delay, loss=loss)
    pair.pump(pair.client, pair.accepted, bytes(4_000_000))  # past slow start and what it overshot
    data, started = bytes(2_000_000), pair.now
    assert pair.pump(pair.client, pair.accepted, data) == data
    rate = len(data) / (pair.now - started)
    expected = 1.22 * 1398 / (2 * delay * loss**0.5)
    assert expected / 2 < rate < expected * 2


def test_a_craft_of_a_window_update_is_no_duplicate_ack():
    end = sending(8, sack=False)
    for window in (400, 500, 600, 700, 800):
        end.on_packet(craft(end, ACK, ack=-8 * SEGMENT, window=window), 20, NOW + RTT)
    assert end.dupacks == 0
    assert end.recovery is Recovery.OPEN
