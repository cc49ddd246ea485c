"""The retransmit queue against a model of one mark a byte."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from emu.tcp.scoreboard import FIN, LOST, RETRANS, SACKED, Scoreboard, Sent

SIZE = 400
PACKET = bytes(index % 251 for index in range(SIZE))
STEP = st.one_of(
    st.tuples(st.just("sack"), st.integers(0, SIZE), st.integers(0, SIZE)),
    st.tuples(st.just("lost"), st.integers(0, SIZE - 1), st.just(0)),
    st.tuples(st.just("retransmit"), st.integers(0, SIZE - 1), st.just(0)),
    st.tuples(st.just("acknowledge"), st.integers(0, SIZE), st.just(0)),
)


def entry_at(board: Scoreboard, position: int) -> Sent | None:
    return next((entry for entry in board.sent if entry.seq <= position < entry.end), None)


def check(board: Scoreboard, una: int) -> None:
    position = una
    for entry in board.sent:
        assert entry.seq == position
        assert bytes(entry.payload()) == PACKET[entry.seq : entry.end]
        assert not (entry.mark & SACKED and entry.mark & (LOST | RETRANS))
        position = entry.end
    assert position == SIZE
    for mark, count in ((SACKED, board.sacked), (LOST, board.lost), (RETRANS, board.retrans)):
        assert count == sum(entry.end - entry.seq for entry in board.sent if entry.mark & mark)


@given(st.lists(st.integers(1, SIZE - 1), unique=True, max_size=10), st.lists(STEP, max_size=30))
def test_counts_and_payloads_survive_any_order_of_events(cuts, steps):
    board, una, sacked = Scoreboard(), 0, set()
    edges = [0, *sorted(cuts), SIZE]
    for left, right in pairwise(edges):
        board.sent.append(Sent(left, right, PACKET, 0, 0.0))
    for act, first, second in steps:
        if act == "sack":
            left, right = max(min(first, second), una), max(first, second)
            if left < right:
                delivered = board.sack([(left, right)])
                assert delivered == len(set(range(left, right)) - sacked)
                sacked |= set(range(left, right))
        elif act == "acknowledge":
            if first > una:
                assert board.acknowledge(first) == len(set(range(una, first)) - sacked)
                una = first
                sacked -= set(range(una))
        elif (entry := entry_at(board, first)) is not None and not entry.mark & SACKED:
            board.mark_lost(entry) if act == "lost" else board.mark_retransmitted(entry, 1.0)
        check(board, una)
        assert board.sacked == len(sacked)
    board.renege()
    check(board, una)


def test_a_fin_counts_as_a_byte_and_stays_with_the_last_part():
    board = Scoreboard()
    board.sent.append(Sent(100, 111, b"header" + bytes(range(10)), 94, 0.0, FIN))
    board.split(0, 104)
    first, last = board.sent
    assert (bytes(first.payload()), first.mark) == (bytes(range(4)), 0)
    assert (bytes(last.payload()), last.mark) == (bytes(range(4, 10)), FIN)
