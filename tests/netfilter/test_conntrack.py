"""Connection tracking: what each packet is to its connection, how long that is remembered, and that nothing is left behind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.netfilter.conn import ASSURED, CONFIRMED, DYING, SEEN_REPLY, Conn, CtState, make_key, parts
from emu.netfilter.conntrack import KUBE_PROXY_TIMEOUTS, Conntrack, Timeouts, quoted_tuple
from emu.netfilter.skb import Skb
from emu.netfilter.tcp_states import TcpState
from tests.kit.skbs import ACK, ECHO_REPLY, FIN, RST, SYN, answer_to, echo, error, ipv4, sctp, skb, tcp, udp

A, B = "10.0.0.1:4000", "10.0.0.2:80"
NEW, ESTABLISHED, RELATED, INVALID = CtState.NEW, CtState.ESTABLISHED, CtState.RELATED, CtState.INVALID


def host(end: str) -> str:
    return end.partition(":")[0]


def passed(table: Conntrack, packet: Skb, now: float = 0.0) -> Skb:
    """Let a packet come in and go out again."""
    assert table.ingress(packet, now)
    assert table.confirm(packet, now)
    table.check()
    return packet


def known(table: Conntrack, packet: Skb, now: float = 0.0) -> Conn:
    conn = passed(table, packet, now).ct
    assert conn is not None
    return conn


# ---- states -----------------------------------------------------------------------------------------------------------------

# (what is sent: > from the opener, < from the other side; state expected) ...
STATES = {
    "datagrams are NEW until one is answered": [(">", udp, NEW), (">", udp, NEW), ("<", udp, ESTABLISHED), (">", udp, ESTABLISHED)],
    "echo requests likewise": [(">", "echo", NEW), (">", "echo", NEW), ("<", "echo", ESTABLISHED), (">", "echo", ESTABLISHED)],
    "a SYN is NEW, also the second one": [(">", SYN, NEW), (">", SYN, NEW)],
    "the handshake": [(">", SYN, NEW), ("<", SYN | ACK, ESTABLISHED), (">", ACK, ESTABLISHED)],
    "a refusal belongs to the connection": [(">", SYN, NEW), ("<", RST | ACK, ESTABLISHED)],
    "a SYN with ACK out of the blue is INVALID": [(">", SYN | ACK, INVALID)],
    "so is a FIN, with or without ACK": [(">", FIN | ACK, INVALID), (">", FIN, INVALID)],
    "and a RST": [(">", RST, INVALID), (">", RST | ACK, INVALID)],
    "and a segment without flags": [(">", 0, INVALID)],
    "an ACK out of the blue is picked up, as loose as Linux": [(">", ACK, NEW), ("<", ACK, ESTABLISHED)],
    "an echo reply that nobody asked for is INVALID": [("<", "echo", INVALID)],
    "the opener may not answer its own SYN": [(">", SYN, NEW), (">", SYN | ACK, INVALID), ("<", SYN | ACK, ESTABLISHED)],
    "data before the handshake is INVALID": [(">", SYN, NEW), (">", ACK, INVALID)],
}


def build(way: str, what: object) -> Skb:
    src, dst = (A, B) if way == ">" else (B, A)
    if what is udp:
        return udp(src, dst)
    if what == "echo":
        return echo(host(src), host(dst), 7, kind=8 if way == ">" else ECHO_REPLY)
    assert isinstance(what, int)
    return tcp(src, dst, what)


@pytest.mark.parametrize("steps", STATES.values(), ids=STATES)
def test_what_a_packet_is_to_its_connection(steps):
    table = Conntrack()
    for way, what, state in steps:
        packet = passed(table, build(way, what))
        assert packet.ct_state is state
        assert (packet.ct is None) is (state is INVALID)
        assert packet.cacheable is (state is not INVALID)
        assert packet.ct_reply is (way == "<" and state is not INVALID)


def test_the_reply_flag_follows_who_began_not_who_sends():
    table = Conntrack()
    assert not passed(table, udp(B, A)).ct_reply
    assert passed(table, udp(A, B)).ct_reply
    assert len(table) == 1


@pytest.mark.parametrize("fragment", [0x2000, 0x0010], ids=["first", "later"])
def test_a_fragment_is_invalid(fragment):
    table = Conntrack()
    whole = udp(A, B, bytes(64))
    packet = skb(ipv4(whole.src, whole.dst, 17, bytes(whole.buf[20:]), flags=fragment))
    assert passed(table, packet).ct_state is INVALID
    assert len(table) == 0


def test_a_packet_that_has_a_connection_is_left_alone():
    """A REJECT's ICMP error is attached to the connection of the packet that it is about (nf_ct_attach)."""
    table = Conntrack()
    about = udp(A, B)
    table.ingress(about, 0.0)
    answer = error(about, "10.0.0.9")
    answer.ct, answer.ct_reply, answer.ct_state = about.ct, True, RELATED
    assert table.ingress(answer, 0.0)
    assert (answer.ct, answer.ct_state) == (about.ct, RELATED)


def test_on_loopback_the_second_look_at_a_packet_counts_it_once():
    table = Conntrack()
    out = udp("127.0.0.1:4000", "127.0.0.1:53", iif="")
    conn = known(table, out)
    again = udp("127.0.0.1:4000", "127.0.0.1:53", iif="lo")
    assert passed(table, again).ct is conn
    assert (again.ct_reply, conn.packets) == (False, 1)


# ---- TCP ---------------------------------------------------------------------------------------------------------------------

STORIES = {
    "opened": ("> SYN, < SYN ACK, > ACK", "SYN_SENT SYN_RECV ESTABLISHED"),
    "closed by the opener": ("> SYN, < SYN ACK, > ACK, > FIN ACK, < ACK, < FIN ACK, > ACK",
                             "SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT"),
    "closed by the other side": ("> SYN, < SYN ACK, > ACK, < FIN ACK, > ACK, > FIN ACK, < ACK",
                                 "SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT CLOSE_WAIT LAST_ACK TIME_WAIT"),
    "reset by the opener": ("> SYN, < SYN ACK, > ACK, > RST", "SYN_SENT SYN_RECV ESTABLISHED CLOSE"),
    "reset by the other side": ("> SYN, < SYN ACK, > ACK, < RST ACK", "SYN_SENT SYN_RECV ESTABLISHED CLOSE"),
    "both open at once": ("> SYN, < SYN, > SYN ACK, < SYN ACK, > ACK", "SYN_SENT SYN_SENT2 SYN_RECV SYN_RECV ESTABLISHED"),
    "a SYN amid a connection changes nothing": ("> SYN, < SYN ACK, > ACK, > SYN", "SYN_SENT SYN_RECV ESTABLISHED ESTABLISHED"),
    "the other side had forgotten all, and is opened anew": ("> SYN, < SYN ACK, > ACK, > SYN, < SYN ACK",
                                                             "SYN_SENT SYN_RECV ESTABLISHED ESTABLISHED SYN_RECV"),
    "opened anew out of TIME_WAIT": ("> SYN, < SYN ACK, > ACK, > FIN ACK, < FIN ACK, > ACK, > SYN",
                                     "SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT LAST_ACK TIME_WAIT SYN_SENT"),
    "opened anew by the other side": ("> SYN, < SYN ACK, > ACK, > FIN ACK, < FIN ACK, > ACK, < SYN",
                                      "SYN_SENT SYN_RECV ESTABLISHED FIN_WAIT LAST_ACK TIME_WAIT SYN_SENT"),
    "not opened anew after the other's reset": ("> SYN, < SYN ACK, > ACK, < RST, > SYN", "SYN_SENT SYN_RECV ESTABLISHED CLOSE CLOSE"),
    "opened anew after a reset": ("> SYN, < SYN ACK, > ACK, > RST, > SYN", "SYN_SENT SYN_RECV ESTABLISHED CLOSE SYN_SENT"),
}  # fmt: skip
FLAGS = {"SYN": SYN, "ACK": ACK, "FIN": FIN, "RST": RST}


def segments(story: str) -> list[Skb]:
    found = []
    for step in story.split(", "):
        way, *names = step.split()
        found.append(tcp(*((A, B) if way == ">" else (B, A)), sum(FLAGS[name] for name in names)))
    return found


@pytest.mark.parametrize(("story", "states"), STORIES.values(), ids=STORIES)
def test_a_tcp_connection_s_states(story, states):
    table = Conntrack()
    assert [known(table, segment).state.name for segment in segments(story)] == states.split()
    assert len(table) == 1


def test_a_refused_connection_is_forgotten_at_once():
    table = Conntrack()
    conn = known(table, tcp(A, B))
    passed(table, tcp(B, A, RST | ACK))
    assert len(table) == 0
    assert conn.status & DYING


def test_who_is_assured():
    """Only what both sides have agreed to survives a full table."""
    table = Conntrack()
    conn = known(table, tcp(A, B))
    passed(table, tcp(B, A, SYN | ACK))
    assert not conn.status & ASSURED
    passed(table, tcp(A, B, ACK))
    assert conn.status & ASSURED


# ---- time --------------------------------------------------------------------------------------------------------------------

LIFETIMES = [  # packets, seconds; nf_conntrack-sysctl.rst
    ("> SYN", 120),
    ("> SYN, < SYN ACK", 60),
    ("> SYN, < SYN ACK, > ACK", 432000),
    ("> ACK", 300),
    ("> SYN, < SYN ACK, > ACK, > FIN ACK", 120),
    ("> SYN, < SYN ACK, > ACK, > FIN ACK, < ACK", 60),
    ("> SYN, < SYN ACK, > ACK, > FIN ACK, < FIN ACK", 30),
    ("> SYN, < SYN ACK, > ACK, > FIN ACK, < FIN ACK, > ACK", 120),
    ("> SYN, < SYN ACK, > ACK, < RST", 10),
    ("> SYN, < SYN", 120),
]


@pytest.mark.parametrize(("story", "seconds"), LIFETIMES)
def test_how_long_a_tcp_connection_is_remembered(story, seconds):
    table = Conntrack()
    for segment in segments(story):
        conn = known(table, segment, 5.0)
    assert conn.expires == 5.0 + seconds
    assert table.expire(4.99 + seconds) == 0
    assert table.expire(5.0 + seconds) == 1
    assert len(table) == 0
    assert table.poll_at() is None


@pytest.mark.parametrize(
    ("make", "unanswered", "answered"),
    [(udp, 30, 30), (sctp, 10, 210), (lambda src, dst: echo(host(src), host(dst), 1), 30, 30)],
    ids=["udp", "sctp", "icmp"],
)
def test_how_long_others_are_remembered(make, unanswered, answered):
    table = Conntrack()
    first = make(A, B)
    conn = known(table, first)
    assert conn.expires == unanswered
    passed(table, answer_to(first), 1.0)
    assert conn.expires == 1.0 + answered


def test_a_protocol_without_ports_is_told_apart_by_its_addresses():
    table = Conntrack()
    gre = known(table, skb(ipv4(bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), 47, bytes(8))))
    assert gre.expires == 600
    assert gre.reply == make_key(47, bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1)), 0, 0)


def test_datagrams_become_a_stream_after_two_seconds_of_answers():
    """nf_conntrack_udp_packet: only then 120 s, and assured."""
    table = Conntrack()
    conn = known(table, udp(A, B), 0.0)
    passed(table, udp(B, A), 1.9)
    assert (conn.expires, conn.status & ASSURED) == (31.9, 0)
    passed(table, udp(A, B), 2.0)
    assert (conn.expires, conn.status & ASSURED) == (122.0, ASSURED)


def test_a_flow_turns_into_a_stream_even_if_only_the_fast_path_sees_its_packets():
    table = Conntrack()
    conn = known(table, udp(A, B), 0.0)
    passed(table, udp(B, A), 0.5)
    epoch = conn.epoch
    conn.touch(1.0, 100, False)
    assert table.poll_at() == 2.0
    table.expire(2.0)
    assert conn.epoch > epoch, "the flow cache must ask again"
    table.check()


def test_an_expired_connection_counts_as_gone_before_anybody_has_swept():
    table = Conntrack()
    old = known(table, udp(A, B), 0.0)
    assert table.listing(29.9)
    assert table.listing(30.0) == ""
    young = passed(table, udp(A, B), 30.0)
    assert young.ct is not old
    assert young.ct_state is NEW


def test_each_packet_moves_the_end_and_the_sweep_finds_out():
    table = Conntrack()
    conn = known(table, udp(A, B), 0.0)
    for now in (10.0, 20.0, 29.0):
        conn.touch(now, 100, False)
    assert table.expire(30.0) == 0
    assert table.poll_at() == 59.0
    assert table.expire(59.0) == 1
    assert (conn.packets, conn.bytes) == (4, 328)


def test_kube_proxy_sets_two_of_the_timeouts():
    default = Timeouts().tcp
    assert {state: seconds for state, seconds in KUBE_PROXY_TIMEOUTS.tcp.items() if seconds != default[state]} == {
        TcpState.ESTABLISHED: 86400,
        TcpState.CLOSE_WAIT: 3600,
    }


# ---- in and out of the table -----------------------------------------------------------------------------------------------------


def test_both_keys_come_and_go_together():
    table = Conntrack()
    packet = udp(A, B)
    table.ingress(packet, 0.0)
    conn = packet.ct
    assert conn is not None
    assert not conn.confirmed
    assert not table.taken(conn.original), "unconfirmed: only its packet knows of it"
    table.confirm(packet, 0.0)
    assert conn.status & CONFIRMED
    assert table.lookup(conn.original) == (conn, False)
    assert table.lookup(conn.reply) == (conn, True)
    table.delete(conn)
    assert not table.taken(conn.original)
    assert not table.taken(conn.reply)
    table.delete(conn)
    table.check()
    assert table.stats["delete"] == 1


def test_a_dead_connection_takes_what_was_remembered_of_its_flows_along():
    table = Conntrack()
    conn = known(table, udp(A, B))
    flows = {b"mine": 1, b"other": 2}
    conn.flows.append((flows, b"mine"))
    table.delete(conn)
    assert flows == {b"other": 2}


def test_of_two_first_packets_the_second_joins_the_first():
    """nf_ct_resolve_clash: the same in both directions."""
    table = Conntrack()
    one, two = udp(A, B), udp(A, B)
    table.ingress(one, 0.0)
    table.ingress(two, 0.0)
    assert table.confirm(one, 0.0)
    assert table.confirm(two, 0.0)
    assert two.ct is one.ct
    assert (len(table), table.stats["clash_resolve"]) == (1, 1)


def test_a_first_packet_whose_reply_key_is_taken_is_dropped():
    table = Conntrack()
    passed(table, udp(A, B))
    other = udp("10.0.0.3:4000", B)
    table.ingress(other, 0.0)
    assert other.ct is not None
    other.ct.reply = make_key(17, bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1)), 80, 4000)
    assert not table.confirm(other, 0.0)
    assert table.stats["insert_failed"] == 1
    table.check()


def test_a_full_table_drops_an_unassured_connection_first_and_then_the_newcomer():
    table = Conntrack(max_entries=2)
    for segment in segments("> SYN, < SYN ACK, > ACK"):
        assured = known(table, segment)
    loose = known(table, udp("10.0.0.3:1", B))
    assert len(table) == 2
    for number in (2, 3):
        passed(table, udp(f"10.0.0.3:{number}", B))
    assert loose.status & DYING
    assert not assured.status & DYING
    assert (len(table), table.stats["early_drop"]) == (2, 2)


def test_a_table_full_of_assured_connections_lets_nobody_in():
    table = Conntrack(max_entries=1)
    for segment in segments("> SYN, < SYN ACK, > ACK"):
        passed(table, segment)
    packet = udp(A, B)
    assert not table.ingress(packet, 0.0)
    assert packet.ct is None
    assert table.stats["drop"] == 1


@pytest.mark.parametrize("make", [udp, tcp, sctp], ids=["udp", "tcp", "sctp"])
def test_a_socket_that_writes_to_itself_leaves_nothing_behind(make):
    """Its two keys are one; entered twice, the entry could not be taken out again."""
    table = Conntrack()
    for _ in range(2):
        assert passed(table, make("127.0.0.1:5", "127.0.0.1:5", iif="lo")).ct_state is NEW
    assert len(table) == 0
    assert table.expire(1000.0) == 0


def test_deleting_by_a_predicate():
    table = Conntrack()
    for port in range(10):
        passed(table, udp(f"10.0.0.1:{port}", B))
    assert table.delete_matching(lambda conn: parts(conn.original)[1] < 4) == 4
    assert sorted(parts(conn.original)[1] for conn in table) == [4, 5, 6, 7, 8, 9]
    table.check()


# ---- ICMP errors ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
@pytest.mark.parametrize("make", [udp, tcp, sctp], ids=["udp", "tcp", "sctp"])
def test_an_error_about_a_packet_is_related_and_travels_as_its_answer(make, kind):
    table = Conntrack()
    first = passed(table, make(A, B))
    answer = passed(table, error(first, "10.0.0.9", kind))
    assert (answer.ct, answer.ct_state, answer.ct_reply) == (first.ct, RELATED, True)
    assert first.ct is not None
    assert first.ct.status & SEEN_REPLY == 0, "an error is no answer"


def test_an_error_about_an_answer_travels_in_the_original_direction():
    table = Conntrack()
    passed(table, udp(A, B))
    back = passed(table, udp(B, A))
    answer = passed(table, error(back, "10.0.0.1"))
    assert (answer.ct, answer.ct_reply) == (back.ct, False)


HERE, THERE, HEAD = bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1)), b"\x03\x03" + bytes(6)
UNRELATED = {
    "about an unknown packet": lambda: error(udp("10.0.0.7:1", B), "10.0.0.2"),
    "sent to another than who sent the packet": lambda: skb(
        ipv4(bytes((10, 0, 0, 2)), bytes((10, 0, 0, 5)), 1, HEAD + bytes(udp(A, B).buf[:28]))
    ),
    "about an error": lambda: error(error(udp(A, B), "10.0.0.2"), "10.0.0.1"),
    "quoting too little": lambda: skb(ipv4(HERE, THERE, 1, HEAD + bytes(udp(A, B).buf[:24]))),
    "quoting something else than IPv4": lambda: skb(ipv4(HERE, THERE, 1, HEAD + b"\x60" * 28)),
}


@pytest.mark.parametrize("make", UNRELATED.values(), ids=UNRELATED)
def test_an_error_that_cannot_be_about_a_connection_is_invalid(make):
    table = Conntrack()
    passed(table, udp(A, B))
    answer = passed(table, make())
    assert (answer.ct, answer.ct_state) == (None, INVALID)


def test_the_quote_of_an_echo_request_names_its_identifier():
    table = Conntrack()
    ping = passed(table, echo("10.0.0.1", "10.0.0.2", 77))
    answer = error(ping, "10.0.0.9")
    assert quoted_tuple(answer) == (1, ping.src, ping.dst, 77, 77)
    assert passed(table, answer).ct is ping.ct


# ---- whatever happens ---------------------------------------------------------------------------------------------------------------

ENDS = st.sampled_from(["10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1", "10.0.0.2:2"])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("udp"), ENDS, ENDS, st.booleans()),
        st.tuples(st.just("tcp"), ENDS, ENDS, st.sampled_from([SYN, SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, 0])),
        st.tuples(st.just("sctp"), ENDS, ENDS, st.booleans()),
        st.tuples(st.just("echo"), ENDS, ENDS, st.sampled_from([0, 8])),
        st.tuples(st.just("error"), ENDS, ENDS, st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 2.0, 11.0, 31.0, 121.0])),
        st.tuples(st.just("expire")),
        st.tuples(st.just("delete"), st.integers(0, 7)),
        st.tuples(st.just("touch"), st.integers(0, 7), st.booleans()),
        st.tuples(st.just("forget"), st.integers(0, 7)),
    ),
    max_size=60,
)


class Life:
    """A table of four connections at most, to which anything happens."""

    def __init__(self) -> None:
        self.table, self.now = Conntrack(max_entries=4), 1.0

    def packet(self, made: Skb, *, leaves: bool = True) -> None:
        if self.table.ingress(made, self.now) and leaves:
            self.table.confirm(made, self.now)

    def udp(self, src: str, dst: str, leaves: bool) -> None:
        self.packet(udp(src, dst), leaves=leaves)

    def sctp(self, src: str, dst: str, leaves: bool) -> None:
        self.packet(sctp(src, dst), leaves=leaves)

    def tcp(self, src: str, dst: str, flags: int) -> None:
        self.packet(tcp(src, dst, flags))

    def echo(self, src: str, dst: str, kind: int) -> None:
        self.packet(echo(host(src), host(dst), 5, kind))

    def error(self, src: str, dst: str, leaves: bool) -> None:
        self.packet(error(udp(src, dst), host(dst)), leaves=leaves)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def expire(self) -> None:
        self.table.expire(self.now)
        assert all(conn.expires > self.now for conn in self.table), "what has expired is gone after a sweep"

    def pick(self, number: int) -> Conn | None:
        found = [conn for conn in self.table if conn.expires > self.now]
        return found[number % len(found)] if found else None

    def delete(self, number: int) -> None:
        if conn := self.pick(number):
            self.table.delete(conn)

    def touch(self, number: int, reply: bool) -> None:
        if conn := self.pick(number):
            conn.touch(self.now, 60, reply)

    def forget(self, port: int) -> None:
        self.table.delete_matching(lambda conn: parts(conn.original)[1] == port)


@given(OPERATIONS)
def test_the_table_is_sound_whatever_happens(steps):
    life = Life()
    for verb, *arguments in steps:
        getattr(life, verb)(*arguments)
        life.table.check()
    life.wait(1e6)
    life.expire()
    assert len(life.table) == 0
    assert life.table.next_look == float("inf")
