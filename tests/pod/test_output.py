"""Container logs: whole lines, bounded, followed without loss."""

from __future__ import annotations

import sys

from emu.pod.output import Log, LogLine, on_this_thread, rfc3339_nano, route_prints


def lines(log, **options):
    return [line.data for line in log.read(**options)]


def test_lines_are_put_together_from_pieces():
    log = Log()
    log.write(1.0, "stdout", b"one\ntw")
    log.write(2.0, "stderr", b"other\n")
    log.write(3.0, "stdout", b"o\nrest")
    assert log.read() == [LogLine(1.0, "stdout", b"one"), LogLine(2.0, "stderr", b"other"), LogLine(3.0, "stdout", b"two")]
    log.finish(4.0)
    assert lines(log)[-1] == b"rest"


def test_the_oldest_lines_go_first():
    log = Log(max_bytes=40)
    for number in range(10):
        log.write(float(number), "stdout", b"line %d...\n" % number)
    assert lines(log) == [b"line 7...", b"line 8...", b"line 9..."] or lines(log) == [
        b"line 6...",
        b"line 7...",
        b"line 8...",
        b"line 9...",
    ]


def test_tail_and_since():
    log = Log()
    for number in range(5):
        log.write(float(number), "stdout", b"%d\n" % number)
    assert lines(log, tail=2) == [b"3", b"4"]
    assert lines(log, tail=0) == []
    assert lines(log, since=3.0) == [b"3", b"4"]


def test_a_follower_hears_the_past_the_present_and_the_end():
    log, heard = Log(), []
    log.write(1.0, "stdout", b"before\n")
    log.follow(heard.append)
    log.write(2.0, "stdout", b"after\n")
    log.finish(3.0)
    log.write(4.0, "stdout", b"nobody listens\n")
    assert [line and line.data for line in heard] == [b"before", b"after", None]


def test_following_stops_when_asked():
    log, heard = Log(), []
    stop = log.follow(heard.append)
    stop()
    log.write(1.0, "stdout", b"x\n")
    assert heard == []


def test_timestamps_are_the_kubelet_s():
    line = LogLine(1_700_000_000.25, "stdout", b"x")
    assert rfc3339_nano(line.at) == "2023-11-14T22:13:20.250000000Z"
    assert line.render(timestamps=True) == b"2023-11-14T22:13:20.250000000Z x\n"
    assert line.render() == b"x\n"


def test_prints_of_a_container_s_thread_reach_its_log(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    route_prints()
    written = []
    on_this_thread(lambda stream, data: written.append((stream, data)))
    print("mine")  # noqa: T201
    print("bad", file=sys.stderr)  # noqa: T201
    on_this_thread(None)
    print("the host's")  # noqa: T201
    assert written == [("stdout", b"mine"), ("stdout", b"\n"), ("stderr", b"bad"), ("stderr", b"\n")]
    assert capsys.readouterr().out == "the host's\n"
