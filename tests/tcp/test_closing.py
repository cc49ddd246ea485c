"""Closing: every state, what the peer or the program does in it, and where that leads (RFC 9293, figure 5)."""

from __future__ import annotations

import errno

import pytest

from emu.tcp import Connection, Event, TcpState
from emu.tcp.segment import ACK, FIN, RST, SYN
from tests.kit.tcp_segments import NOW, craft, established, peer_syn, replies, syn_received, syn_sent


def reach(state: str) -> Connection:
    """A connection in the state, with nothing left to send."""
    if state == "SYN_SENT":
        return syn_sent()
    if state == "SYN_RECV":
        return syn_received()
    end = established()
    acts = {
        "ESTABLISHED": (),
        "FIN_WAIT1": ("shutdown",),
        "FIN_WAIT2": ("shutdown", "acked"),
        "CLOSING": ("shutdown", "fin before our FIN came"),
        "TIME_WAIT": ("shutdown", "acked", "fin"),
        "CLOSE_WAIT": ("fin",),
        "LAST_ACK": ("fin", "shutdown"),
        "CLOSED": ("reset",),
    }[state]
    for act in acts:
        do(end, act)
    assert end.state.name == state
    end.out.clear()
    end.events = 0
    return end


def do(end: Connection, act: str) -> None:
    packets = {
        "acked": (ACK, 0, 0, b""),
        "fin": (ACK | FIN, 0, 0, b""),
        "fin before our FIN came": (ACK | FIN, 0, -1, b""),
        "data": (ACK, 0, 0, b"data"),
        "reset": (RST, 0, 0, b""),
        "syn": (SYN, 0, 0, b""),
    }
    if act == "shutdown":
        end.shutdown_write(NOW)
    elif act in ("close", "abort"):
        getattr(end, act)(NOW)
    else:
        flags, seq, ack, payload = packets[act]
        end.on_packet(craft(end, flags, seq=seq, ack=ack, payload=payload), 20, NOW)


# act: state it is in -> state it leads to, flags of what is sent at once
TRANSITIONS = {
    "shutdown": {
        "SYN_SENT": ("SYN_SENT", []), "SYN_RECV": ("SYN_RECV", []), "ESTABLISHED": ("FIN_WAIT1", [FIN | ACK]),
        "CLOSE_WAIT": ("LAST_ACK", [FIN | ACK]), "FIN_WAIT1": ("FIN_WAIT1", []), "FIN_WAIT2": ("FIN_WAIT2", []),
        "CLOSING": ("CLOSING", []), "LAST_ACK": ("LAST_ACK", []), "TIME_WAIT": ("TIME_WAIT", []), "CLOSED": ("CLOSED", []),
    },
    "close": {
        "SYN_SENT": ("CLOSED", []), "SYN_RECV": ("CLOSED", [RST | ACK]), "ESTABLISHED": ("FIN_WAIT1", [FIN | ACK]),
        "CLOSE_WAIT": ("LAST_ACK", [FIN | ACK]), "FIN_WAIT1": ("FIN_WAIT1", []), "FIN_WAIT2": ("FIN_WAIT2", []),
        "CLOSING": ("CLOSING", []), "LAST_ACK": ("LAST_ACK", []), "TIME_WAIT": ("TIME_WAIT", []), "CLOSED": ("CLOSED", []),
    },
    "abort": {
        "SYN_SENT": ("CLOSED", []), "SYN_RECV": ("CLOSED", [RST | ACK]), "ESTABLISHED": ("CLOSED", [RST | ACK]),
        "CLOSE_WAIT": ("CLOSED", [RST | ACK]), "FIN_WAIT1": ("CLOSED", [RST | ACK]), "FIN_WAIT2": ("CLOSED", [RST | ACK]),
        "CLOSING": ("CLOSED", []), "LAST_ACK": ("CLOSED", []), "TIME_WAIT": ("CLOSED", []), "CLOSED": ("CLOSED", []),
    },
    "acked": {
        "SYN_RECV": ("ESTABLISHED", []), "ESTABLISHED": ("ESTABLISHED", []), "CLOSE_WAIT": ("CLOSE_WAIT", []),
        "FIN_WAIT1": ("FIN_WAIT2", []), "FIN_WAIT2": ("FIN_WAIT2", []), "CLOSING": ("TIME_WAIT", []),
        "LAST_ACK": ("CLOSED", []), "TIME_WAIT": ("TIME_WAIT", []), "CLOSED": ("CLOSED", []),
    },
    "fin": {
        "SYN_RECV": ("CLOSE_WAIT", []), "ESTABLISHED": ("CLOSE_WAIT", []), "FIN_WAIT1": ("TIME_WAIT", [ACK]),
        "FIN_WAIT2": ("TIME_WAIT", [ACK]), "CLOSED": ("CLOSED", []),
    },
    "reset": {
        "SYN_RECV": ("CLOSED", []), "ESTABLISHED": ("CLOSED", []), "CLOSE_WAIT": ("CLOSED", []), "FIN_WAIT1": ("CLOSED", []),
        "FIN_WAIT2": ("CLOSED", []), "CLOSING": ("CLOSED", []), "LAST_ACK": ("CLOSED", []), "TIME_WAIT": ("CLOSED", []),
    },
    "syn": {  # in the window: doubted, never believed (RFC 5961, 4)
        "ESTABLISHED": ("ESTABLISHED", [ACK]), "CLOSE_WAIT": ("CLOSE_WAIT", [ACK]), "FIN_WAIT1": ("FIN_WAIT1", [ACK]),
        "FIN_WAIT2": ("FIN_WAIT2", [ACK]), "CLOSING": ("CLOSING", [ACK]), "LAST_ACK": ("LAST_ACK", [ACK]),
        "TIME_WAIT": ("TIME_WAIT", [ACK]),
    },
}  # fmt: skip
ROWS = [(act, state, after, sent) for act, states in TRANSITIONS.items() for state, (after, sent) in states.items()]


@pytest.mark.parametrize(("act", "state", "after", "sent"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_transitions(act, state, after, sent):
    end = reach(state)
    do(end, act)
    assert end.state.name == after
    assert [reply.flags for reply in replies(end)] == sent


def test_every_state_but_listen_is_in_the_table():
    assert {state for states in TRANSITIONS.values() for state in states} == {state.name for state in TcpState} - {"LISTEN"}


RESETS = {"SYN_RECV": errno.ECONNRESET, "ESTABLISHED": errno.ECONNRESET, "FIN_WAIT1": errno.ECONNRESET, "CLOSE_WAIT": errno.EPIPE}


@pytest.mark.parametrize("state", RESETS)
def test_a_reset_is_told_with_linuxs_errno(state):
    end = reach(state)
    do(end, "reset")
    assert end.error == RESETS[state]
    assert end.events & (Event.ERROR | Event.HANGUP) == Event.ERROR | Event.HANGUP


def test_what_came_before_a_reset_can_still_be_read():
    end = reach("ESTABLISHED")
    do(end, "data")
    do(end, "reset")
    assert end.read(100, NOW) == b"data"
    assert end.read(100, NOW) == b""


@pytest.mark.parametrize("state", ["ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT2"])
def test_closing_with_unread_data_resets(state):
    """RFC 2525, 2.17."""
    end = reach("ESTABLISHED")
    do(end, "data")
    if state == "CLOSE_WAIT":
        do(end, "fin")
    if state == "FIN_WAIT2":
        do(end, "shutdown")
        do(end, "acked")
    end.out.clear()
    end.close(NOW)
    assert end.closed
    assert [reply.flags for reply in replies(end)] == [RST | ACK]


def test_data_for_an_orphan_is_answered_with_a_reset():
    end = reach("ESTABLISHED")
    end.close(NOW)
    end.out.clear()
    do(end, "data")
    assert end.closed
    assert [reply.flags & RST for reply in replies(end)] == [RST]


def test_a_half_closed_connection_still_receives():
    end = reach("FIN_WAIT2")
    do(end, "data")
    assert end.read(10, NOW) == b"data"
    with pytest.raises(BrokenPipeError) as raised:
        end.write(b"x", NOW)
    assert raised.value.errno == errno.EPIPE


def test_the_other_half_still_sends_after_end_of_file():
    end = reach("CLOSE_WAIT")
    assert end.read(10, NOW) == b""
    assert end.write(b"late", NOW) == 4
    assert replies(end)[-1].size == 4


def test_a_fin_waits_for_the_data_before_it():
    end = established()
    end.on_packet(craft(end, ACK | FIN, seq=4, payload=b"last"), 20, NOW)
    assert end.state is TcpState.ESTABLISHED
    end.on_packet(craft(end, ACK, payload=b"frst"), 20, NOW)
    assert end.state is TcpState.CLOSE_WAIT
    assert end.read(10, NOW) == b"frstlast"
    assert end.read(10, NOW) == b""


def test_our_fin_rides_on_the_last_data():
    end = established()
    end.on_packet(craft(end, ACK, window=0), 20, NOW)
    end.write(b"tail", NOW)
    end.shutdown_write(NOW)
    assert not end.out
    end.on_packet(craft(end, ACK, window=512), 20, NOW)
    (sent,) = replies(end)
    assert (sent.size, sent.flags & FIN) == (4, FIN)


def test_only_a_later_syn_may_follow_in_time_wait():
    """RFC 6191: a later sequence number or timestamp; the new ISS lies beyond all that was sent."""
    end = reach("TIME_WAIT")
    assert end.successor_iss(craft(end, SYN, seq=1), 20) == (end.snd_nxt + 65537) % 2**32
    assert end.successor_iss(craft(end, SYN, seq=-5, tsval=1), 20) is not None
    assert end.successor_iss(craft(end, SYN, seq=-5), 20) is None
    assert end.successor_iss(craft(end, ACK, seq=1), 20) is None
    assert reach("ESTABLISHED").successor_iss(peer_syn(), 20) is None
