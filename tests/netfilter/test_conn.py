"""A connection's keys, and the line by which a listing shows it (the form is conntrack-tools')."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emu.netfilter.conn import invert, make_key, parts
from emu.netfilter.conntrack import Conntrack
from tests.kit.skbs import ACK, SYN, echo, tcp, udp

A, B = "10.0.0.1:40", "10.0.0.2:80"


@given(
    st.integers(0, 255),
    st.sampled_from([4, 16]).flatmap(lambda n: st.tuples(st.binary(min_size=n, max_size=n), st.binary(min_size=n, max_size=n))),
    st.integers(0, 65535),
    st.integers(0, 65535),
)
def test_a_key_of_either_family_comes_apart_again_and_its_inverse_swaps_the_ends(proto, ends, sport, dport):
    src, dst = ends
    key = make_key(proto, src, dst, sport, dport)
    assert parts(key) == (src, sport, dst, dport)
    assert invert(key) == make_key(proto, dst, src, dport, sport)
    assert invert(invert(key)) == key


LISTING = """\
tcp      6 431990 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=40 dport=80 src=10.0.0.2 dst=10.0.0.1 sport=80 dport=40 [ASSURED] mark=0 use=1
udp      17 20 src=10.0.0.3 dst=10.0.0.4 sport=53 dport=5353 [UNREPLIED] src=10.0.0.4 dst=10.0.0.3 sport=5353 dport=53 mark=0 use=1
icmp     1 20 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=9 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=9 mark=0 use=1
"""


def test_a_listing_reads_as_conntrack_prints_it():
    table = Conntrack()
    for packet in (tcp(A, B), tcp(B, A, SYN | ACK), tcp(A, B, ACK), udp("10.0.0.3:53", "10.0.0.4:5353"), echo("10.0.0.1", "10.0.0.2", 9)):
        table.ingress(packet, 1.0)
        table.confirm(packet, 1.0)
    assert table.listing(11.0) == LISTING
