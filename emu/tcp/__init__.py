"""TCP without input or output: bytes, packets and the time go in; packets and events come out.

A `Connection` never reads a clock, never sleeps and owns no socket: the stack hands it packets, drains `out` after every
call and calls `on_timer` at `deadline`. Behaviour and constants are Linux's; the text is RFC 9293 with 5961 (blind attacks),
6298 (RTO), 7323 (timestamps, windows), 2018 and 2883 (SACK), 8985 (RACK, TLP), 6937 (PRR), 5682 (F-RTO), 9438 (CUBIC).
Left out: ECN, TCP Fast Open, SYN cookies, HyStart, probing for the path's MTU (RFC 4821), MSG_OOB.

    connection  what the stack calls; the two fast paths        tcb         the transmission control block they all share
    input       a segment off the fast path                     handshake   SYN_SENT, SYN_RECV and how a connection opens
    output      ACKs, new data, retransmissions                 closing     FIN, TIME_WAIT, reset and failure
    timewait    who only waits                                  undo        which loss was none
    recovery    what is lost, and how fast to mend it           timers      RTO, probes, delayed ACK, keep-alive, last rites
    congestion rtt send_buffer receive_buffer scoreboard reassembly    one concept each, known to no other
    segment options seq config info                                    values

Sequence numbers are widened on arrival (`seq.widen`) and cut to 32 bits on the wire: inside, they only grow and compare as
plain integers.
"""

from __future__ import annotations

from emu.tcp.config import Event, TcpConfig, TcpState
from emu.tcp.connection import Connection
from emu.tcp.info import TcpInfo
from emu.tcp.segment import reset_for

__all__ = ["Connection", "Event", "TcpConfig", "TcpInfo", "TcpState", "reset_for"]
