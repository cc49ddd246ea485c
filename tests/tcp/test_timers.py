"""When things happen if nothing comes: the schedules of Linux's TCP, to the millisecond."""

from __future__ import annotations

import errno
from itertools import pairwise
from math import inf

import pytest

from emu.tcp import Connection, TcpConfig, TcpState
from emu.tcp.segment import ACK, FIN
from tests.kit.tcp_segments import NOW, craft, established, replies, syn_received, syn_sent
from tests.kit.wire_pair import Pair


def run_down(end: Connection, limit: float = 1e6) -> list[float]:
    """Call every timer when it is due until none is left: the times, from NOW, at which something was sent."""
    times = []
    while end.deadline <= NOW + limit:
        now = end.deadline
        end.on_timer(now)
        times += [round(now - NOW, 3)] * len(end.out)
        end.out.clear()
    return times


def test_a_syn_goes_out_at_0_1_3_7_15_31_63_seconds_and_times_out_at_127():
    end = syn_sent()
    assert run_down(end, 126.9) == [1, 3, 7, 15, 31, 63]
    assert end.deadline == NOW + 127
    end.on_timer(NOW + 127)
    assert (end.error, end.state) == (errno.ETIMEDOUT, TcpState.CLOSED)
    assert end.deadline == inf


def test_a_syn_ack_goes_out_at_0_1_3_7_15_31_seconds_and_is_given_up_at_63():
    end = syn_received()
    assert run_down(end) == [1, 3, 7, 15, 31]
    assert end.closed


def test_an_icmp_error_during_the_handshake_names_the_timeout():
    end = syn_sent()
    end.on_icmp(errno.EHOSTUNREACH, fatal=False, now=NOW)
    assert not end.error
    run_down(end)
    assert end.error == errno.EHOSTUNREACH


def test_data_is_retransmitted_with_doubling_gaps_up_to_120_s_for_15_minutes():
    """tcp_retries2 = 15 is at least 924.6 s (ip-sysctl.rst); the RTO here begins at its least, 200 ms over the round trip."""
    end = established()
    end.rtt.sample(0.0001, NOW)
    end.write(b"x", NOW)
    end.out.clear()
    times = run_down(end)
    gaps = [round(after - before, 1) for before, after in pairwise(times)]
    assert gaps == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, *[120.0] * 5]
    assert times[0] == pytest.approx(0.2, abs=0.001)
    assert len(times) == 16  # the first is the probe of the tail
    assert end.error == errno.ETIMEDOUT


def test_a_soft_icmp_error_of_an_established_connection_only_names_its_timeout():
    end = established()
    end.write(b"x", NOW)
    end.on_icmp(errno.ECONNREFUSED, fatal=True, now=NOW)
    assert end.established
    assert not end.error
    run_down(end)
    assert end.error == errno.ECONNREFUSED


def test_an_orphan_gives_up_after_8_retries():
    end = established()
    end.rtt.sample(0.0001, NOW)
    end.write(b"x", NOW)
    end.close(NOW)
    assert end.state is TcpState.FIN_WAIT1
    end.out.clear()
    assert len(run_down(end)) == 1 + 8  # the first is the probe of the tail
    assert end.closed


def test_a_delayed_ack_goes_out_after_40_ms():
    end = established(TcpConfig(quickacks=0))
    end.on_packet(craft(end, ACK, payload=b"one way"), 20, NOW)
    assert not end.out
    assert run_down(end) == [0.04]


def test_a_shut_window_is_probed_with_doubling_gaps_for_as_long_as_it_is_answered():
    end = established()
    end.rtt.sample(0.0001, NOW)
    end.on_packet(craft(end, ACK, window=0), 20, NOW)
    assert end.write(b"waits", NOW) == 5
    assert not end.out
    times = []
    for _ in range(20):
        now = end.deadline
        end.on_timer(now)
        (probe,) = replies(end)
        assert (probe.seq, probe.size) == (-1, 0)
        times.append(now)
        end.on_packet(craft(end, ACK, window=0), 20, now)
    gaps = [round(after - before, 1) for before, after in pairwise(times)]
    assert gaps == [0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, *[120.0] * 10]
    end.on_packet(craft(end, ACK, window=512), 20, now)
    assert [reply.size for reply in replies(end)] == [5]


def test_a_shut_window_that_nobody_answers_for_ends_the_connection():
    end = established()
    end.on_packet(craft(end, ACK, window=0), 20, NOW)
    end.write(b"waits", NOW)
    assert len(run_down(end)) == 15
    assert end.error == errno.ETIMEDOUT


def test_a_probe_carries_what_a_nearly_shut_window_has_room_for():
    end = established()
    end.on_packet(craft(end, ACK, payload=b"x", window=1), 20, NOW)  # a window shrinks only with something newer
    end.out.clear()
    end.write(bytes(1000), NOW)
    assert not end.out
    end.on_timer(end.deadline)
    assert [reply.size for reply in replies(end)] == [128]


def test_keepalive_probes_after_7200_s_then_every_75_s_and_gives_up_after_9():
    end = established(TcpConfig(keepalive=True))
    times = run_down(end)
    assert times == [7200 + 75 * n for n in range(9)] + [7200 + 75 * 9]  # the last is the reset
    assert end.error == errno.ETIMEDOUT


def test_keepalive_starts_over_whenever_something_is_heard():
    end = established(TcpConfig(keepalive=True))
    end.on_packet(craft(end, ACK, payload=b"x"), 20, NOW + 5000)
    end.on_timer(NOW + 5000.04)
    end.out.clear()
    end.on_timer(NOW + 7200)
    assert not end.out
    assert end.deadline == NOW + 12_200


def test_keepalive_is_off_unless_asked_for():
    end = established()
    end.on_timer(NOW + 10)
    assert end.deadline == inf
    end.set_keepalive(on=True, now=NOW + 10)
    assert end.deadline == NOW + 7210


def test_time_wait_lasts_60_seconds_and_a_fin_that_comes_again_starts_it_over():
    end = established()
    end.close(NOW)
    end.out.clear()
    end.on_packet(craft(end, ACK | FIN), 20, NOW)
    assert end.state is TcpState.TIME_WAIT
    end.out.clear()
    end.on_packet(craft(end, ACK | FIN, seq=-1), 20, NOW + 30)
    assert len(replies(end)) == 1
    end.on_timer(NOW + 60)
    assert end.state is TcpState.TIME_WAIT
    assert end.deadline == NOW + 90
    end.on_timer(NOW + 90)
    assert end.closed


def test_an_orphan_waits_60_seconds_in_fin_wait2_but_a_half_closed_socket_for_ever():
    for orphan, deadline in ((True, NOW + 60), (False, inf)):
        end = established()
        (end.close if orphan else end.shutdown_write)(NOW)
        end.out.clear()
        end.on_packet(craft(end, ACK), 20, NOW)
        assert end.state is TcpState.FIN_WAIT2
        end.on_timer(NOW + 1)
        assert end.deadline == deadline


def test_a_ping_pong_wakes_nobody():
    """Timers are re-armed lazily: a thousand exchanges move `deadline` no further than the timers' own lengths demand."""
    pair = Pair().establish()
    pair.weather.delay = 0.0001
    calls = 0
    for _ in range(1000):
        for source, sink in ((pair.client, pair.accepted), (pair.accepted, pair.client)):
            source.write(b"ping", pair.now)
            pair.flush()
            while not sink.readable:
                calls += pair.next_event() in (pair.client.deadline, pair.accepted.deadline)
                pair.step()
            sink.read(10, pair.now)
    assert calls <= 2 * (0.2 / 0.04 + 3)
