"""States, events and Linux's constants. Values only: nothing here decides.

The fields of `TcpConfig` carry the names of Linux's `net.ipv4.tcp_*` switches where it has one (Documentation/networking/
ip-sysctl.rst) and else of the constants of include/net/tcp.h; all times are seconds, all sizes bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class TcpState(IntEnum):
    """RFC 9293, 3.3.2, numbered as in Linux's tcp_states.h and /proc/net/tcp. LISTEN is the listener's, never a connection's."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSED = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11


class Event(IntEnum):
    """What a call made happen, as bits of `Connection.events`; the caller clears them. Not IntFlag, which is ten times slower."""

    READABLE = 1  # data or end of file waits
    WRITABLE = 2  # the send buffer has room again
    CONNECTED = 4  # the handshake is complete
    HANGUP = 8  # nothing more will ever be read or written
    ERROR = 16  # `error` was set


class Recovery(IntEnum):
    """Linux's `enum tcp_ca_state`, less the states that only steer undoing (see `recovery`)."""

    OPEN = 0
    RECOVERY = 3  # fast retransmit, until all that was outstanding at its start is acknowledged
    LOSS = 4  # after a retransmission timeout


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """One set of switches serves any number of connections."""

    sndbuf: int = 4 << 20  # tcp_wmem[2]
    rcvbuf: int = 6 << 20  # tcp_rmem[2]: how far the receive window may grow
    rcvbuf_initial: int = 128 << 10  # tcp_rmem[1]
    wscale: int = 7
    sack: bool = True
    timestamps: bool = True
    window_scaling: bool = True
    gso: bool = True  # whether one packet may carry many segments
    nodelay: bool = False  # TCP_NODELAY: Nagle's algorithm off
    init_cwnd: int = 10  # segments; RFC 6928
    syn_retries: int = 6  # 1 + 2 + 4 + ... + 64 = 127 s until ETIMEDOUT
    synack_retries: int = 5
    retries2: int = 15  # 924.6 s with the smallest RTO
    orphan_retries: int = 8  # for a connection that no socket owns any more
    rto_initial: float = 1.0
    rto_min: float = 0.2
    rto_max: float = 120.0
    delack: float = 0.04  # TCP_DELACK_MIN
    quickacks: int = 16  # segments acknowledged at once at the start, when the sender's window is small
    keepalive: bool = False
    keepalive_time: float = 7200.0
    keepalive_intvl: float = 75.0
    keepalive_probes: int = 9
    user_timeout: float = 0.0  # TCP_USER_TIMEOUT (RFC 5482): how long data may go unacknowledged; 0 leaves it to `retries2`
    fin_timeout: float = 60.0  # FIN_WAIT2 of a connection that no socket owns
    timewait: float = 60.0  # TCP_TIMEWAIT_LEN
    invalid_ratelimit: float = 0.5  # at most one ACK in answer to invalid segments in so long

    def patience(self, retries: int) -> float:
        """How long `retries` retransmissions last when each doubles the smallest RTO (Linux's `tcp_model_timeout`)."""
        doublings = int(self.rto_max / self.rto_min).bit_length() - 1
        if retries <= doublings:
            return ((2 << retries) - 1) * self.rto_min
        return ((2 << doublings) - 1) * self.rto_min + (retries - doublings) * self.rto_max


LINUX = TcpConfig()
