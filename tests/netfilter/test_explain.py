"""Dumps of production nodes, of our own making in the shape of real ones: what becomes of a packet, and what one would have to know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.errors import ConfigError
from emu.netfilter import explain as explaining
from emu.netfilter.backends import fates
from emu.netfilter.conn import CtState
from emu.netfilter.explain import Asked, End, Explanation, explain
from emu.netfilter.facts import Facts, read_addresses, read_routes
from emu.netfilter.first_packet import first_packet
from emu.netfilter.hooks import Verdict
from emu.netfilter.ipset import read_sets
from emu.netfilter.reader import Dump, read_dump
from emu.netfilter.skb import PROTOCOL_NAMES
from emu.netfilter.text import save_text
from emu.wire.addr import SockAddr, format_ip, parse_ip
from tests.kit.rulesets import Around, table

DUMPS = Path(__file__).parent / "dumps"
NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}


def dump(name: str) -> Dump:
    return read_dump((DUMPS / f"{name}.save").read_text(), source=name)


def facts(*, sets: str = "", **more: object) -> Facts:
    """What the files beside the dumps say of the node."""
    addresses = read_addresses(json.loads((DUMPS / "addresses.json").read_text()), source="addresses.json")
    routes = read_routes(json.loads((DUMPS / "routes.json").read_text()), source="routes.json", family=4)
    known = {"addresses": addresses, "routes": routes, **more}
    return Facts(**known, sets=read_sets((DUMPS / f"{sets}.ipset").read_text()) if sets else {})


def packet(source: str, target: str, proto: str = "tcp") -> bytes:
    src, dst = (SockAddr.parse(end) if end.count(":") == 1 or "]" in end else SockAddr(parse_ip(end), 40000) for end in (source, target))
    return first_packet(NUMBERS[proto], src.ip, dst.ip, src.port or 40000, dst.port)


def ask(
    rules: Dump | str, source: str, target: str, known: Facts | None = None, *, proto: str = "tcp", assumed=None, **asked
) -> Explanation:
    found = dump(rules) if isinstance(rules, str) else rules
    return explain(found, Asked(packet(source, target, proto), **asked), known or Facts(), assumed)


def shown(end: End) -> tuple[str, str, str | None, str | None]:
    return end.verdict.value, str(end.destination), None if end.source is None else format_ip(end.source), end.device


# ---- real shapes ---------------------------------------------------------------------------------------------------------------------

WEB = ("10.244.1.10:8080", "10.244.2.20:8080", "10.244.3.30:8080")
CASES = [  # dump, from, to, what else is known or asked, ends: verdict, destination, source, device
    ("kube-proxy", "10.244.1.9", "10.96.1.1:80", {}, [("ACCEPT", to, "10.244.1.9", by) for to, by in
                                                     zip(WEB, ("cni0", "flannel.1", "flannel.1"), strict=True)]),
    ("kube-proxy", "198.51.100.7", "192.168.0.2:30080", {"iif": "eth0"}, [
        ("ACCEPT", WEB[0], "10.244.1.1", "cni0"), ("ACCEPT", WEB[1], "10.244.1.0", "flannel.1"),
        ("ACCEPT", WEB[2], "10.244.1.0", "flannel.1")]),
    ("kube-proxy", "192.168.0.2", "10.96.1.1:80", {"sent": True}, [
        ("ACCEPT", WEB[0], "10.244.1.1", "cni0"), ("ACCEPT", WEB[1], "10.244.1.0", "flannel.1"),
        ("ACCEPT", WEB[2], "10.244.1.0", "flannel.1")]),
    ("kube-proxy", "10.244.1.53", "10.96.0.10:53", {"proto": "udp"}, [("ACCEPT", "10.244.1.53:53", "10.244.1.1", "cni0")]),
    ("kube-proxy", "10.244.1.9", "10.96.7.7:80", {}, [("REJECT", "10.96.7.7:80", "10.244.1.9", "eth0")]),
    ("kube-proxy", "198.51.100.7", "203.0.113.90:80", {"iif": "eth0"}, [("ACCEPT", "10.244.1.70:8080", "10.244.1.1", "cni0")]),
    ("kube-proxy", "198.51.101.7", "203.0.113.90:80", {"iif": "eth0"}, [("DROP", "203.0.113.90:80", "198.51.101.7", "eth0")]),
    ("kube-proxy", "198.51.100.7", "192.168.0.2:30090", {"iif": "eth0"}, [("DROP", "192.168.0.2:30090", "198.51.100.7", "lo")]),
    ("kube-proxy", "10.244.1.9", "192.168.0.2:30090", {}, [("ACCEPT", WEB[2], "10.244.1.9", "flannel.1")]),
    ("kube-proxy", "10.244.1.9", "10.244.4.4:80", {}, [("ACCEPT", "10.244.4.4:80", "10.244.1.9", None)]),
    ("kube-proxy", "10.244.1.9", "8.8.8.8:53", {"state": CtState.INVALID}, [("DROP", "8.8.8.8:53", "10.244.1.9", "eth0")]),
    ("kube-proxy", "10.244.1.9", "8.8.8.8:53", {}, [("ACCEPT", "8.8.8.8:53", "192.168.0.2", "eth0")]),
    ("docker", "198.51.100.7", "192.168.0.2:8080", {"iif": "eth0"}, [("ACCEPT", "172.17.0.2:80", "198.51.100.7", "docker0")]),
    ("docker", "198.51.100.66", "192.168.0.2:8080", {"iif": "eth0"}, [("DROP", "172.17.0.2:80", "198.51.100.66", "docker0")]),
    ("docker", "172.17.0.2", "8.8.8.8:53", {"proto": "udp", "iif": "docker0"}, [("ACCEPT", "8.8.8.8:53", "192.168.0.2", "eth0")]),
    ("calico", "10.244.2.7", "10.244.1.10:5432", {"iif": "eth0", "oif": "caliaaaaaaaaaaa", "sets": "calico"},
     [("ACCEPT", "10.244.1.10:5432", "10.244.2.7", "caliaaaaaaaaaaa")]),
    ("calico", "10.244.9.200", "10.244.1.10:6434", {"iif": "eth0", "oif": "caliaaaaaaaaaaa", "sets": "calico"},
     [("ACCEPT", "10.244.1.10:6434", "10.244.9.200", "caliaaaaaaaaaaa")]),
    ("calico", "10.244.2.8", "10.244.1.10:5432", {"iif": "eth0", "oif": "caliaaaaaaaaaaa", "sets": "calico"},
     [("DROP", "10.244.1.10:5432", "10.244.2.8", "caliaaaaaaaaaaa")]),
    ("calico", "10.244.1.10", "8.8.8.8:4789", {"iif": "caliaaaaaaaaaaa", "sets": "calico", "proto": "udp", "assumed": {"rpfilter": False}},
     [("DROP", "8.8.8.8:4789", "10.244.1.10", "eth0")]),
    ("calico", "10.244.1.10", "8.8.8.8:443", {"iif": "caliaaaaaaaaaaa", "sets": "calico", "assumed": {"13": False}},
     [("ACCEPT", "8.8.8.8:443", "192.168.0.2", "eth0")]),
    ("cilium", "10.0.1.5", "8.8.8.8:443", {"iif": "lxc123"}, [("ACCEPT", "8.8.8.8:443", "10.0.1.5", "eth0")]),
    ("cilium", "198.51.100.7", "10.0.1.5:80", {"iif": "eth0", "assumed": {"socket": False, "set": False}},
     [("DROP", "10.0.1.5:80", "198.51.100.7", "eth0")]),
    ("ipvs", "192.168.0.9", "10.96.1.1:80", {"iif": "eth0", "sets": "ipvs", "node_ips": frozenset([parse_ip("10.96.1.1")])},
     [("ACCEPT", "10.96.1.1:80", "192.168.0.9", "lo")]),
    ("ipvs", "192.168.0.9", "10.96.1.1:81", {"iif": "eth0", "sets": "ipvs", "node_ips": frozenset([parse_ip("10.96.1.1")])},
     [("REJECT", "10.96.1.1:81", "192.168.0.9", "lo")]),
    ("kube-router", "192.168.0.2", "10.244.1.10:8080", {"iif": "eth0"}, [("ACCEPT", "10.244.1.10:8080", "192.168.0.2", "cni0")]),
    ("kube-router", "10.244.2.7", "10.244.1.10:9", {"iif": "flannel.1", "assumed": {"set": False}},
     [("REJECT", "10.244.1.10:9", "10.244.2.7", "cni0")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "target", "more", "wanted"), CASES, ids=[f"{c[0]} {c[1]} {c[2]}" for c in CASES])
def test_what_becomes_of_a_packet_on_a_node_that_is_known(name, source, target, more, wanted):
    about = {key: more[key] for key in more.keys() & {"node_ips", "sets"}}
    asked = {key: more[key] for key in more.keys() - about.keys()}
    found = ask(name, source, target, facts(**about), **asked)
    assert found.open == ()
    assert sorted(map(shown, found.ends), key=str) == sorted(wanted, key=str)
    assert sum(end.probability for end in found.ends) == pytest.approx(1.0)


@pytest.mark.parametrize("path", sorted(DUMPS.glob("*.save")), ids=lambda path: path.stem)
def test_a_dump_is_printed_as_it_was_read(path):
    """But for remarks and counters: iptables-save prints built-in chains in another order, and comments keep their quotes."""
    text = path.read_text()
    lines = [line.partition("] ")[2] if line[0] == "[" else line for line in text.splitlines() if line[0] == "-" or line[0] == "["]
    assert sorted(line for line in save_text(read_dump(text).ruleset).splitlines() if line[0] == "-") == sorted(lines)


def test_the_backends_of_a_service_are_equally_likely_and_each_has_its_walk():
    found = ask("kube-proxy", "10.244.1.9", "10.96.1.1:80")
    assert found.open == (), "whether it is forwarded or delivered, by which device it comes: no rule asks"
    assert [str(end.destination) for end in found.ends] == [*WEB]
    assert [end.probability for end in found.ends] == [pytest.approx(1 / 3)] * 3
    rules = dump("kube-proxy").ruleset.tables
    for end in found.ends:
        (translating,) = [visit for visit in end.walk if visit.chain.startswith("KUBE-SEP")]
        rule = rules["nat"].chains[translating.chain].rules[translating.index]
        assert str(rule.target.to) == str(end.destination)
    assert found.ends[0].walk[-1].note == "policy ACCEPT"


# ---- what is open --------------------------------------------------------------------------------------------------------------------


def opened(found: Explanation) -> list[str]:
    return [question.text for question in found.open]


@pytest.mark.parametrize(
    ("name", "source", "target", "known", "questions", "option"),
    [
        ("kube-proxy", "198.51.100.7", "8.8.8.8:53", {}, ["is 8.8.8.8 an address of the node"], "--addresses"),
        ("kube-proxy", "10.244.1.9", "10.96.1.2:80", {"assumed": {"local": False}},
         [f"is 10.244.1.9 in the recent list KUBE-SEP-{letter * 16} within 10800 s" for letter in "EL"], "--assume recent=yes|no"),
        ("docker", "172.17.0.9", "172.17.0.2:80", {"assumed": {"local": False}},
         ["is the out-interface docker0", "is the in-interface docker0"], "--routes"),
        ("ipvs", "10.244.1.10", "10.96.1.1:81", {"assumed": {"local": True}},
         ["is the packet's dst,dst in the set KUBE-CLUSTER-IP", "is the packet's dst in the set KUBE-HEALTH-CHECK-NODE-PORT",
          "is the packet's dst in the set KUBE-IPVS-IPS"], "--ipset FILE"),
        ("cilium", "10.0.1.5", "8.8.8.8:80", {"iif": "lxc1", "oif": "eth0", "mark": 0x3B0A0200,
                                                "assumed": {"local": False, "set": False, "socket": False}},
         ["is it so that -j TPROXY: it ends the walk", "is it so that -j TPROXY: it takes the packet"], "--assume TPROXY"),
    ],
)  # fmt: skip
def test_what_is_not_known_and_matters_is_asked_for(name, source, target, known, questions, option):
    found = ask(name, source, target, **known)
    assert set(questions) <= set(opened(found))
    assert option in next(question.option for question in found.open if question.text == questions[0])
    assert len({(end.verdict, end.destination, end.source, end.probability) for end in found.ends}) > 1


def test_the_rule_that_asks_is_named():
    found = ask("kube-proxy", "10.244.1.9", "10.96.1.2:80", assumed={"local": False})
    table_, chain, index = found.open[0].asked_by
    assert (table_, chain) == ("nat", "KUBE-SVC-SSSSSSSSSSSSSSSS")
    assert "--rcheck" in str(dump("kube-proxy").ruleset.tables[table_].chains[chain].rules[index])


def test_an_assumption_answers_by_kind_or_by_line():
    rules = dump("kube-proxy")
    (chain,) = [place for name, place in rules.places.items() if name == ("nat", "KUBE-SVC-SSSSSSSSSSSSSSSS")]
    by_kind = ask(rules, "10.244.1.9", "10.96.1.2:80", assumed={"local": False, "recent": False})
    assert [(str(end.destination), end.probability) for end in by_kind.ends] == [("10.244.1.60:8080", 0.5), ("10.244.2.61:8080", 0.5)]
    by_line = ask(rules, "10.244.1.9", "10.96.1.2:80", assumed={"local": False, str(chain.lines[1]): True})
    assert by_line.open == ()
    assert [str(end.destination) for end in by_line.ends] == ["10.244.1.60:8080"]


def both(*rules: str, name: str = "filter", **more: str) -> Dump:
    return read_dump(table(name, *rules, **more))


def test_a_question_whose_answer_changes_nothing_is_not_asked():
    found = ask(both("FORWARD -i eth0 -j DROP", "FORWARD -m limit --limit 5/sec -j DROP", "FORWARD -j DROP"), "10.0.0.1", "10.0.0.2:80",
                assumed={"local": False})  # fmt: skip
    assert found.open == ()
    assert [end.verdict for end in found.ends] == [Verdict.DROP]
    assert found.ways > 1


def test_one_device_has_one_name():
    """Who is eth0 is not eth1, is some eth and no cni: no end may rest on a contradiction."""
    rules = both(
        "FORWARD -i eth0 -j MARK --set-xmark 0x1/0x1", "FORWARD -i eth1 -j MARK --set-xmark 0x2/0x2",
        "FORWARD -i cni+ -m mark ! --mark 0x0 -j DROP",
        "FORWARD -i eth+ -m mark --mark 0x0 -j ACCEPT", "FORWARD -m mark --mark 0x3/0x3 -j DROP",
        "FORWARD -i eth0 -m mark --mark 0x1 -j ACCEPT",
        "FORWARD -i eth0 -j DROP", "FORWARD -i eth1 -j ACCEPT", "FORWARD ! -i eth+ -j ACCEPT", "FORWARD -j DROP",
    )  # fmt: skip
    found = ask(rules, "10.0.0.1", "10.0.0.2:80", assumed={"local": False})
    assert {end.verdict for end in found.ends} <= {Verdict.ACCEPT}
    assert found.open == ()


def test_of_known_devices_only_those_that_are_there_are_possible():
    rules = both("FORWARD -i wlan0 -j DROP")
    assert ask(rules, "10.0.0.1", "10.0.0.2:80", facts()).open == ()
    assert ask(rules, "10.0.0.1", "10.0.0.2:80").open != ()


def test_what_the_packet_itself_did_is_remembered():
    rules = both("PREROUTING -m recent --set --name seen",
                 "PREROUTING -m recent --rcheck --name seen -p tcp -j DNAT --to-destination 10.0.0.9:1", name="nat")  # fmt: skip
    found = ask(rules, "10.0.0.1", "10.0.0.2:80")
    assert (found.open, [str(end.destination) for end in found.ends]) == ((), ["10.0.0.9:1"])


def test_every_nth_packet_is_a_share():
    lines = [
        f"PREROUTING -p tcp -m statistic --mode nth --every {left} --packet 0 -j DNAT --to-destination 10.0.0.{left}:1" for left in (3, 2)
    ]
    found = ask(both(*lines, "PREROUTING -p tcp -j DNAT --to-destination 10.0.0.1:1", name="nat"), "10.0.0.9", "10.0.0.8:80")
    assert {str(end.destination): round(end.probability, 9) for end in found.ends} == {f"10.0.0.{n}:1": round(1 / 3, 9) for n in (1, 2, 3)}


def test_what_was_read_leniently_is_open_when_the_packet_meets_it():
    text = table(
        "filter", "FORWARD -p udp -m psd --psd-weight-threshold 21 -j DROP", "FORWARD -p sctp -j TARPIT --reset", "FORWARD -j ACCEPT"
    )
    rules = read_dump(text, lenient=True)
    assert len(rules.warnings) == 2
    assert ask(rules, "10.0.0.1", "10.0.0.2:80", assumed={"local": False}).open == ()
    assert opened(ask(rules, "10.0.0.1", "10.0.0.2:80", proto="udp", assumed={"local": False})) == ["does -m psd hold"]
    assert opened(ask(rules, "10.0.0.1", "10.0.0.2:80", proto="sctp", assumed={"local": False})) == [
        "is it so that -j TARPIT: it ends the walk", "is it so that -j TARPIT: it takes the packet",
    ]  # fmt: skip


def test_a_header_that_only_the_real_packet_has_is_open():
    assert opened(ask(both("FORWARD -m length --length 0:100 -j DROP"), "10.0.0.1", "10.0.0.2:80", assumed={"local": False})) == [
        "does the packet match -m length"
    ]


def test_too_many_ways_are_said_to_be_too_many(monkeypatch):
    monkeypatch.setattr(explaining, "MOST_WAYS", 8)
    lines = [f"PREROUTING -p tcp -m statistic --mode random --probability 0.1 -j DNAT --to-destination 10.0.0.{n}:1" for n in range(1, 20)]
    assert not ask(both(*lines, name="nat"), "10.0.0.9", "10.0.0.8:80").complete


def test_a_thousand_endpoints_are_a_thousand_ends():
    lines = [
        f"PREROUTING -p tcp -m statistic --mode random --probability {1 / left:.10f} -j DNAT --to-destination "
        f"10.1.{left >> 8}.{left & 255}:1"
        for left in range(1000, 0, -1)
    ]
    found = ask(both(*lines, name="nat"), "10.0.0.9", "10.0.0.8:80", assumed={"local": False})
    assert len(found.ends) == 1000
    assert sum(end.probability for end in found.ends) == pytest.approx(1.0)


def test_the_other_family():
    text = table("nat", "PREROUTING -d fd00:96::1/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00:244::2]:8080",
                 "POSTROUTING -d fd00:244::2/128 -j MASQUERADE")  # fmt: skip
    rules = read_dump(text + table("filter", "FORWARD -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j REJECT"), family=6)
    addresses = read_addresses([{"ifname": "eth0", "addr_info": [{"local": "fd00::2", "prefixlen": 64, "scope": "global"}]}], source="a")
    routes = read_routes([{"dst": "default", "gateway": "fd00::1", "dev": "eth0"}], source="r", family=6)
    known = Facts(addresses, routes)
    (end,) = ask(rules, "[fd00:1::9]:4000", "[fd00:96::1]:80", known).ends
    assert shown(end) == ("ACCEPT", "[fd00:244::2]:8080", "fd00::2", "eth0")
    (end,) = ask(rules, "[fd00:1::9]:4000", "[fd00:96::1]:0", known, proto="icmpv6").ends
    assert (end.verdict, end.reject_with) == (Verdict.REJECT, "icmp6-port-unreachable")


@settings(max_examples=40)
@given(st.lists(st.sampled_from((
    "PREROUTING -m statistic --mode random --probability 0.5 -p tcp -j DNAT --to-destination 10.0.0.7:1",
    "PREROUTING -j MARK --set-xmark 0x1/0x1",
    "PREROUTING -m mark --mark 0x1/0x1 -p tcp -j DNAT --to-destination 10.0.0.8", "POSTROUTING -m mark --mark 0x1/0x1 -j MASQUERADE",
    "PREROUTING -m addrtype --dst-type LOCAL -j RETURN", "POSTROUTING -o eth0 -j SNAT --to-source 10.0.0.99",
)), max_size=6))  # fmt: skip
def test_with_all_facts_the_answer_is_that_of_the_emulated_node(lines):
    """Two callers of the same hooks: an emulated node's surroundings, and a dump's with addresses and routes."""
    rules = read_dump(table("nat", *lines))
    addresses = read_addresses([{"ifname": "eth0", "addr_info": [{"local": "10.0.0.1", "prefixlen": 24}]}], source="a")
    known = Facts(addresses, read_routes([{"dst": "default", "dev": "eth0"}], source="r", family=4))
    for target in ("10.0.0.2:80", "10.0.0.1:80"):  # sums of the same ends, in another order
        found = ask(rules, "10.9.0.1:4000", target, known, iif="eth0")
        around = Around("10.0.0.1", masquerade={"eth0": "10.0.0.1"})
        wanted = fates(rules.ruleset, packet("10.9.0.1:4000", target), around, lambda skb: "eth0", iif="eth0")
        assert found.open == ()
        assert {(shown(end), round(end.probability, 9)) for end in found.ends} == {
            ((fate.verdict.value, str(fate.destination), format_ip(fate.source), fate.device), round(fate.probability, 9))
            for fate in wanted
        }


# ---- facts -----------------------------------------------------------------------------------------------------------------------------


def test_routes_are_chosen_by_length_then_metric():
    rows = [{"dst": "default", "dev": "a"}, {"dst": "10.0.0.0/8", "dev": "b", "metric": 200},
            {"dst": "10.0.0.0/8", "dev": "c", "metric": 100},
            {"dst": "10.1.0.0/16", "dev": "d", "flags": ["linkdown"]}, {"type": "blackhole", "dst": "10.2.0.0/16"},
            {"dst": "10.3.0.0/16", "nexthops": [{"dev": "e", "gateway": "10.0.0.1"}, {"dev": "f"}]}]  # fmt: skip
    known = Facts(routes=read_routes(rows, source="r", family=4))
    wanted = {"9.9.9.9": ("a",), "10.9.9.9": ("c",), "10.1.1.1": ("c",), "10.2.2.2": (), "10.3.3.3": ("e", "f")}
    assert {ip: known.route(parse_ip(ip)).devices for ip in wanted} == wanted
    assert Facts(routes=()).route(parse_ip("1.2.3.4")) is None


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (lambda: read_addresses({"ifname": "eth0"}, source="f"), "this is not what `ip -j addr` prints"),
        (lambda: read_addresses([{"name": "eth0"}], source="f"), "`ip -j addr` would say 'ifname' here"),
        (lambda: read_addresses([{"ifname": "eth0", "addr_info": [{"local": "10.0.0.256"}]}], source="f"), "10.0.0.256"),
        (lambda: read_routes([{"dst": "10.0.0.0/33", "dev": "a"}], source="f", family=4), "prefix length"),
        (lambda: read_routes([{"dst": "10.0.0.0/8"}], source="f", family=4), "a route needs a dev"),
    ],
)
def test_a_file_that_is_another_one_is_refused(read, problem):
    with pytest.raises(ConfigError, match=r"^f: ") as told:
        read()
    assert problem in told.value.problem
