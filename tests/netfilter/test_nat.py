"""Translation: which port is kept or chosen, that replies and errors come back as they must, and that hairpins work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.errors import ConfigError
from emu.netfilter.conn import DST_NAT, SRC_NAT, CtState, parts
from emu.netfilter.hooks import Hook, Verdict
from emu.netfilter.nat import PORT_CLASSES
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.skb import ICMP, Skb
from emu.wire.addr import SockAddr, format_ip
from tests.kit.rulesets import Around, rules, table
from tests.kit.skbs import answer_to, echo, error, quoted, sctp, skb, tcp, udp

CLIENT, VIP, POD, NODE, ROUTER = "10.0.0.1:4000", "10.96.0.1:80", "10.244.1.2:8080", "192.168.0.2", "10.244.1.1"
MASQ = "POSTROUTING -o eth0 -j MASQUERADE"
DNAT = f"PREROUTING -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination {POD}"


class Router:
    """A node between two networks: every packet goes PREROUTING, FORWARD, POSTROUTING and out by `eth0`."""

    def __init__(self, *nat: str, seed: int = 0) -> None:
        self.around = Around(NODE, ROUTER, masquerade={"eth0": NODE, "cni0": ROUTER}, seed=seed)
        self.netfilter = Netfilter(self.around)
        self.netfilter.swap(rules(table("nat", *nat), table("filter")))
        self.table = self.netfilter.conntrack

    def forward(self, packet: Skb, oif: str = "eth0", now: float = 0.0) -> Verdict:
        for hook in (Hook.PREROUTING, Hook.FORWARD, Hook.POSTROUTING):
            packet.oif = "" if hook is Hook.PREROUTING else oif
            verdict = self.netfilter.run(hook, packet, now)
            if verdict is not Verdict.ACCEPT:
                return verdict
        self.table.check()
        in_step(packet)
        return Verdict.ACCEPT


def in_step(packet: Skb) -> None:
    """The mirror fields say what the bytes say."""
    again = skb(bytes(packet.buf))
    assert (again.source, again.destination) == (packet.source, packet.destination)


def ends(packet: Skb) -> tuple[str, str]:
    return str(packet.source), str(packet.destination)


# ---- ports ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tcp, udp, sctp])
def test_masquerade_keeps_the_port_while_it_is_free(make):
    router, packet = Router(MASQ), make(CLIENT, "8.8.8.8:53")
    router.forward(packet)
    assert ends(packet) == (f"{NODE}:4000", "8.8.8.8:53")


@pytest.mark.parametrize("make", [tcp, udp, sctp])
@pytest.mark.parametrize(("port", "first", "last"), [(22, 1, 511), (511, 1, 511), (700, 600, 1023), (1023, 600, 1023), (4000, 1024, 65535)])
def test_a_port_that_is_taken_is_chosen_anew_from_its_own_class(make, port, first, last):
    router = Router(MASQ)
    sources = []
    for host in range(1, 6):
        packet = make(f"10.0.0.{host}:{port}", "8.8.8.8:53")
        assert router.forward(packet) is Verdict.ACCEPT
        sources.append(packet.sport)
    assert sources[0] == port
    assert len(set(sources)) == 5
    assert all(first <= chosen <= last for chosen in sources)


def test_the_port_is_kept_towards_another_server():
    """It is the whole tuple that must be unique."""
    router = Router(MASQ)
    for server in ("8.8.8.8:53", "8.8.4.4:53", "8.8.8.8:54"):
        packet = udp("10.0.0.1:4000", server)
        router.forward(packet)
        assert packet.sport == 4000


def test_random_fully_does_not_keep_the_port():
    router = Router(MASQ + " --random-fully")
    ports = set()
    for host in range(1, 9):
        packet = tcp(f"10.0.0.{host}:4000", "8.8.8.8:53")
        router.forward(packet)
        ports.add(packet.sport)
    assert len(ports) == 8
    assert 4000 not in ports
    assert all(port >= 1024 for port in ports)


def test_an_echo_identifier_stands_for_the_port():
    router = Router(MASQ)
    first, second = echo("10.0.0.1", "8.8.8.8", 7), echo("10.0.0.2", "8.8.8.8", 7)
    router.forward(first)
    router.forward(second)
    assert (first.sport, format_ip(first.src)) == (7, NODE)
    assert second.sport != 7
    back = answer_to(second)
    router.forward(back, "cni0")
    assert ends(back) == ("8.8.8.8:7", "10.0.0.2:7")


def test_without_a_rule_the_port_still_gives_way_to_a_translated_connection():
    """nf_nat_alloc_null_binding: NODE's own connection must not collide with one that was masqueraded to NODE."""
    router = Router(MASQ)
    router.forward(udp("10.0.0.1:4000", "8.8.8.8:53"))
    own = udp(f"{NODE}:4000", "8.8.8.8:53")
    own.iif, own.oif = "", "eth0"
    for hook in (Hook.OUTPUT, Hook.POSTROUTING):
        assert router.netfilter.run(hook, own, 0.0) is Verdict.ACCEPT
    assert own.src == SockAddr.parse(f"{NODE}:0").ip
    assert own.sport != 4000


def test_when_no_port_is_left_the_packet_is_dropped():
    """A class of 511 ports, all of them taken; Linux's search too is not exhaustive, but here it must fail."""
    router = Router(MASQ)
    for number in range(511):
        router.forward(udp(f"10.1.{number >> 8}.{number & 255}:{number + 1}", "8.8.8.8:53"))
    assert len(router.table) == 511
    assert router.forward(udp("10.0.0.1:80", "8.8.8.8:53")) is Verdict.DROP
    assert len(router.table) == 511


def test_port_classes_meet_without_gaps_above_1023():
    assert [below for below, _, _ in PORT_CLASSES] == [512, 1024, 65536]


def test_snat_with_a_port_takes_it_and_a_clash_is_a_drop():
    router = Router(f"POSTROUTING -o eth0 -p udp -j SNAT --to-source {NODE}:9999")
    first, second = udp("10.0.0.1:1", "8.8.8.8:53"), udp("10.0.0.2:1", "8.8.8.8:53")
    assert router.forward(first) is Verdict.ACCEPT
    assert ends(first)[0] == f"{NODE}:9999"
    assert router.forward(second) is Verdict.DROP


def test_masquerade_by_a_device_without_address_drops():
    router = Router("POSTROUTING -j MASQUERADE")
    assert router.forward(tcp(CLIENT, "8.8.8.8:53"), "dummy0") is Verdict.DROP


# ---- both ways ------------------------------------------------------------------------------------------------------------------------


def test_a_vip_answers_as_itself():
    router, packet = Router(DNAT), tcp(CLIENT, VIP)
    router.forward(packet, "cni0")
    assert ends(packet) == (CLIENT, POD)
    back = answer_to(packet)
    router.forward(back)
    assert ends(back) == (VIP, CLIENT)
    assert back.ct_state is CtState.ESTABLISHED


def test_a_destination_without_port_keeps_the_packet_s():
    router, packet = Router("PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 10.244.1.2"), tcp(CLIENT, VIP)
    router.forward(packet)
    assert ends(packet)[1] == "10.244.1.2:80"


def test_a_hairpin_sees_the_router_both_ways():
    """The pod that answers its own request through the VIP must not see itself as the client."""
    router = Router(DNAT, f"POSTROUTING -s {POD.partition(':')[0]}/32 -d {POD.partition(':')[0]}/32 -j MASQUERADE")
    packet = tcp("10.244.1.2:4000", VIP)
    router.forward(packet, "cni0")
    assert ends(packet) == (f"{ROUTER}:4000", POD)
    back = answer_to(packet)
    router.forward(back, "cni0")
    assert ends(back) == (VIP, "10.244.1.2:4000")
    assert len(router.table) == 1


def test_only_the_first_packet_meets_the_rules():
    router, first = Router(DNAT), tcp(CLIENT, VIP)
    router.forward(first)
    router.netfilter.swap(rules(table("nat"), table("filter")))
    second = tcp(CLIENT, VIP)
    before = second.rules
    router.forward(second)
    assert ends(second) == (CLIENT, POD)
    assert second.rules == before == 0


def test_status_bits_tell_what_was_really_changed():
    """nf_nat_setup_info sets them only where the tuple differs; `--ctstate DNAT` asks for that."""
    router = Router(DNAT, f"PREROUTING -d {POD.partition(':')[0]}/32 -p tcp -j DNAT --to-destination {POD}")
    changed, same = tcp(CLIENT, VIP), tcp("10.0.0.9:1", POD)
    router.forward(changed)
    router.forward(same)
    assert changed.ct is not None
    assert same.ct is not None
    assert changed.ct.status & (SRC_NAT | DST_NAT) == DST_NAT
    assert same.ct.status & (SRC_NAT | DST_NAT) == 0


ADDRESSES = st.builds("10.{}.{}.{}".format, st.integers(0, 1), st.integers(0, 3), st.integers(1, 3))
PORTS = st.integers(1, 65535)
RULES = st.lists(
    st.sampled_from(
        [
            DNAT, MASQ, MASQ + " --random-fully",
            "PREROUTING -d 10.0.0.0/16 -p udp -j DNAT --to-destination 10.244.9.9:53",
            "PREROUTING -d 10.1.0.0/16 -j DNAT --to-destination 10.244.9.8",
            "POSTROUTING -s 10.0.0.0/16 -j SNAT --to-source 192.168.7.7",
            "POSTROUTING -s 10.1.0.0/16 -p tcp -j SNAT --to-source 192.168.7.7 --random-fully",
        ]
    ),
    max_size=4,
)  # fmt: skip


@st.composite
def first_packets(draw):
    src, dst, port = draw(ADDRESSES), draw(ADDRESSES | st.just("10.96.0.1")), draw(PORTS)
    if draw(st.integers(0, 3)) == 0:
        return echo(src, dst, port)
    return draw(st.sampled_from([tcp, udp, sctp]))(f"{src}:{port}", f"{dst}:{draw(st.sampled_from([53, 80, 443]))}")


@given(RULES, st.lists(first_packets(), min_size=1, max_size=8), st.integers(0, 9))
def test_what_comes_back_is_the_opposite_of_what_was_sent(nat, packets, seed):
    """Also with clashes, and of whatever the rules make of it."""
    router = Router(*nat, seed=seed)
    for packet in packets:
        sent = bytes(packet.buf)
        if router.forward(packet) is not Verdict.ACCEPT:
            continue
        assert packet.ct is not None
        if not packet.ct.confirmed:  # one key for both directions: nothing is remembered
            continue
        back = answer_to(packet)
        assert router.forward(back) is Verdict.ACCEPT
        original = skb(sent)
        assert (back.source, back.destination) == (original.destination, original.source)
        assert back.ct is packet.ct
        again = skb(sent)
        router.forward(again)
        assert again.buf[12:24] == packet.buf[12:24], "the connection was decided once"


@given(RULES, first_packets(), st.sampled_from([3, 11]), st.booleans(), st.integers(0, 9))
def test_an_icmp_error_quotes_the_packet_that_its_receiver_has_sent(nat, packet, kind, from_the_server, seed):
    """Inside and out: the quote is the sent packet's first bytes again, the outer addresses are the sender's to believe."""
    router = Router(*nat, seed=seed)
    sent = skb(bytes(packet.buf))
    assert router.forward(packet) is Verdict.ACCEPT
    if packet.ct is None or not packet.ct.confirmed:
        return
    who = format_ip(packet.dst) if from_the_server else "172.16.0.1"
    answer = error(packet, who, kind)
    assert router.forward(answer) is Verdict.ACCEPT
    assert (answer.ct, answer.ct_state) == (packet.ct, CtState.RELATED)
    inner = quoted(answer)
    assert (inner.proto, inner.source, inner.destination) == (sent.proto, sent.source, sent.destination)
    assert answer.dst == sent.src
    if from_the_server:
        assert answer.src == sent.dst


@pytest.mark.parametrize("make", [tcp, udp, sctp])
def test_an_error_about_an_answer_finds_the_server(make):
    """The client refuses what the server sent: its error goes to the VIP's place, and the quote names the pod."""
    router = Router(DNAT.replace("-p tcp -m tcp --dport 80 ", ""), MASQ)
    first = make(CLIENT, VIP)
    router.forward(first)
    back = answer_to(first)
    router.forward(back)
    complaint = error(back, CLIENT.partition(":")[0])
    router.forward(complaint)
    assert format_ip(complaint.dst) == POD.partition(":")[0]
    assert format_ip(complaint.src) == NODE
    inner = quoted(complaint)
    assert ends(inner) == (POD, f"{NODE}:4000")


def test_an_error_about_a_ping_is_translated_too():
    router, ping = Router(MASQ), echo("10.0.0.1", "8.8.8.8", 7)
    router.forward(ping)
    answer = error(ping, "172.16.0.1", 11)
    router.forward(answer)
    assert answer.proto == ICMP
    assert format_ip(answer.src) == "172.16.0.1"
    assert ends(quoted(answer)) == ("10.0.0.1:7", "8.8.8.8:7")


# ---- what is refused ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "hook"),
    [
        ("PREROUTING -j MASQUERADE", Hook.PREROUTING),
        ("PREROUTING -j SNAT --to-source 1.2.3.4", Hook.PREROUTING),
        ("POSTROUTING -j DNAT --to-destination 1.2.3.4", Hook.POSTROUTING),
        ("PREROUTING -j REJECT", Hook.PREROUTING),
    ],
)
def test_a_target_at_the_wrong_hook_is_a_mistake_in_the_rules(rule, hook):
    router = Router(rule)
    with pytest.raises(ConfigError, match="nat at"):
        router.forward(tcp(CLIENT, VIP))


def test_the_keys_of_a_translated_connection_are_what_arrives():
    router, packet = Router(DNAT, MASQ), tcp(CLIENT, VIP)
    router.forward(packet)
    assert packet.ct is not None
    src, sport, dst, dport = parts(packet.ct.reply)
    assert (format_ip(src), sport, format_ip(dst), dport) == ("10.244.1.2", 8080, NODE, 4000)
