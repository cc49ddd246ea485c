"""The connection states that conntrack gives TCP: Linux's transition table and nothing else.

Decides the next state from who sent which flags; knows neither sequence numbers nor time. There is no window tracking, as
with `nf_conntrack_tcp_be_liberal`: a segment outside the window is never INVALID here. Rows, columns and the two answers
that are no states (IGNORE, INVALID) are those of `tcp_conntracks` in net/netfilter/nf_conntrack_proto_tcp.c.
"""

from __future__ import annotations

from enum import IntEnum

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10


class TcpState(IntEnum):
    """`enum tcp_conntrack`; names are what `conntrack -L` prints."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9  # both sides have sent a SYN (simultaneous open)


class Segment(IntEnum):
    """What of a segment's flags counts, in this order of precedence: RST, SYN with ACK, SYN, FIN, ACK."""

    SYN = 0
    SYNACK = 1
    FIN = 2
    ACK = 3
    RST = 4
    NONE = 5  # no flag that may stand alone (RFC 9293, 3.10.7)


IGNORE, INVALID = -1, -2
"""The segment changes nothing · the segment does not belong to the connection."""

_COLUMNS = {"NO": 0, "SS": 1, "SR": 2, "ES": 3, "FW": 4, "CW": 5, "LA": 6, "TW": 7, "CL": 8, "S2": 9, "IG": IGNORE, "IV": INVALID}


def _row(text: str) -> tuple[int, ...]:
    return tuple(_COLUMNS[name] for name in text.split())


#      in state:  NO SS SR ES FW CW LA TW CL S2
TRANSITIONS = (
    {  # from the side that opened the connection
        Segment.SYN: _row("SS SS IG IG IG IG IG SS SS S2"),  # a SYN retransmitted, or a closed connection opened anew
        Segment.SYNACK: _row("IV IV SR IV IV IV IV IV IV SR"),  # simultaneous open only
        Segment.FIN: _row("IV IV FW FW LA LA LA TW CL IV"),
        Segment.ACK: _row("ES IV ES ES CW CW TW TW CL IV"),  # in NONE: picked up in mid-stream (nf_conntrack_tcp_loose)
        Segment.RST: _row("IV CL CL CL CL CL CL CL CL CL"),
        Segment.NONE: _row("IV IV IV IV IV IV IV IV IV IV"),
    },
    {  # from the other side
        Segment.SYN: _row("IV S2 IV IV IV IV IV SS IV S2"),
        Segment.SYNACK: _row("IV SR IG IG IG IG IG IG IG SR"),
        Segment.FIN: _row("IV IV FW FW LA LA LA TW CL IV"),
        Segment.ACK: _row("IV IG SR ES CW CW TW TW CL IG"),
        Segment.RST: _row("IV CL CL CL CL CL CL CL CL CL"),
        Segment.NONE: _row("IV IV IV IV IV IV IV IV IV IV"),
    },
)


def segment_of(flags: int) -> Segment:
    """Class of a segment by its flags byte (`get_conntrack_index`)."""
    if flags & RST:
        return Segment.RST
    if flags & SYN:
        return Segment.SYNACK if flags & ACK else Segment.SYN
    if flags & FIN:
        return Segment.FIN
    return Segment.ACK if flags & ACK else Segment.NONE


def next_state(state: TcpState, reply: bool, segment: Segment) -> int:
    """The state after a segment, or IGNORE or INVALID."""
    return TRANSITIONS[reply][segment][state]
