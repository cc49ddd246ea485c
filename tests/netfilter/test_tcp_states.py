"""The TCP transition table, row by row as Linux has it (`tcp_conntracks`, net/netfilter/nf_conntrack_proto_tcp.c of 6.x)."""

from __future__ import annotations

import pytest

from emu.netfilter.tcp_states import IGNORE, INVALID, TRANSITIONS, Segment, TcpState, next_state, segment_of
from tests.kit.skbs import ACK, FIN, RST, SYN

NAMES = {"sNO": 0, "sSS": 1, "sSR": 2, "sES": 3, "sFW": 4, "sCW": 5, "sLA": 6, "sTW": 7, "sCL": 8, "sS2": 9, "sIG": IGNORE, "sIV": INVALID}
LINUX = """
original syn     sSS sSS sIG sIG sIG sIG sIG sSS sSS sS2
original synack  sIV sIV sSR sIV sIV sIV sIV sIV sIV sSR
original fin     sIV sIV sFW sFW sLA sLA sLA sTW sCL sIV
original ack     sES sIV sES sES sCW sCW sTW sTW sCL sIV
original rst     sIV sCL sCL sCL sCL sCL sCL sCL sCL sCL
original none    sIV sIV sIV sIV sIV sIV sIV sIV sIV sIV
reply    syn     sIV sS2 sIV sIV sIV sIV sIV sSS sIV sS2
reply    synack  sIV sSR sIG sIG sIG sIG sIG sIG sIG sSR
reply    fin     sIV sIV sFW sFW sLA sLA sLA sTW sCL sIV
reply    ack     sIV sIG sSR sES sCW sCW sTW sTW sCL sIG
reply    rst     sIV sCL sCL sCL sCL sCL sCL sCL sCL sCL
reply    none    sIV sIV sIV sIV sIV sIV sIV sIV sIV sIV
"""
ROWS = [line.split() for line in LINUX.strip().splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row[:2]) for row in ROWS])
def test_a_row_of_linux_s_table(row):
    direction, segment, *states = row
    found = [next_state(state, direction == "reply", Segment[segment.upper()]) for state in TcpState]
    assert found == [NAMES[name] for name in states]


def test_no_row_is_missing():
    assert len(ROWS) == sum(map(len, TRANSITIONS)) == 2 * len(Segment)


@pytest.mark.parametrize("flags", range(64))
def test_the_class_of_a_segment_is_its_strongest_flag(flags):
    if flags & RST:
        wanted = Segment.RST
    elif flags & SYN:
        wanted = Segment.SYNACK if flags & ACK else Segment.SYN
    elif flags & FIN:
        wanted = Segment.FIN
    else:
        wanted = Segment.ACK if flags & ACK else Segment.NONE
    assert segment_of(flags) is wanted
