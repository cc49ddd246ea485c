"""`podwire explain`: files and flags in; the walk, the verdict and an exit status of its own out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main

DUMPS = Path(__file__).parents[1] / "netfilter" / "dumps"
KNOWN = ("--addresses", str(DUMPS / "addresses.json"), "--routes", str(DUMPS / "routes.json"))


def explain(name: str, *arguments: str) -> int:
    return main(["explain", "--iptables-save", str(DUMPS / f"{name}.save"), *arguments])


def test_a_service_is_walked_to_all_its_backends(capsys):
    assert explain("kube-proxy", "--from", "10.244.1.9", "--to", "10.96.1.1:80", *KNOWN) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "10.244.1.9:40000 -> 10.96.1.1:80 tcp, NEW, in by cni0"
    assert any(line.split()[:4] == ["120", "nat", "[60:3600]", "-A"] and line.endswith("-j KUBE-SVC-WWWWWWWWWWWWWWWW") for line in lines)
    assert lines[-4:] == [
        "verdict  ACCEPT",
        "   33.33 %  ACCEPT to 10.244.1.10:8080 by cni0 (line 107)",
        "   33.33 %  ACCEPT to 10.244.2.20:8080 by flannel.1 (line 109)",
        "   33.33 %  ACCEPT to 10.244.3.30:8080 by flannel.1 (line 111)",
    ]


def test_all_walks_are_printed_if_one_wants_them(capsys):
    explain("kube-proxy", "--from", "10.244.1.9", "--to", "10.96.1.1:80", *KNOWN, "--all")
    told = capsys.readouterr().out
    assert [line for line in (107, 109, 111) if f"\n     {line}  nat" in told] == [107, 109, 111]


def test_the_node_s_own_packets(capsys):
    assert explain("kube-proxy", "--from", "local", "--to", "10.96.1.1:80", *KNOWN, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["packet"]["source"], told["packet"]["sent"]) == ("192.168.0.2:40000", True)
    assert {end["masqueraded"] for end in told["ends"]} == {True}
    assert told["ends"][0]["walk"][0]["chain"] == "OUTPUT"


def test_an_undetermined_answer_has_its_own_status_and_says_what_is_missing(capsys):
    assert explain("kube-proxy", "--from", "198.51.100.7", "--to", "192.168.0.2:30080") == 3
    told = capsys.readouterr().out
    assert "UNDETERMINED" in told
    assert "is 192.168.0.2 an address of the node?" in told
    assert "asked by line 124, table nat: -A KUBE-SERVICES" in told
    assert "tell it by --addresses FILE (or --node-ip 192.168.0.2 if so)" in told
    assert (
        explain("kube-proxy", "--from", "198.51.100.7", "--to", "192.168.0.2:30080", "--node-ip", "192.168.0.2", "--assume", "local=no")
        == 0
    )


def test_json_has_everything_by_name(capsys):
    assert explain("kube-proxy", "--from", "10.244.1.9", "--to", "10.96.1.2:80", "--assume", "local=no", "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["determined"] is False
    assert told["open"][0] == {
        "question": "is 10.244.1.9 in the recent list KUBE-SEP-EEEEEEEEEEEEEEEE within 10800 s", "option": "--assume recent=yes|no",
        "line": 130, "table": "nat", "chain": "KUBE-SVC-SSSSSSSSSSSSSSSS",
    }  # fmt: skip
    end = told["ends"][0]
    assert {"verdict", "probability", "destination", "source", "masqueraded", "rejectWith", "device", "conditions", "walk"} <= end.keys()
    assert end["walk"][1]["counters"] == "[3:180]"


def test_ipsets_and_marks_and_states_are_flags(capsys):
    calico = ("calico", "--from", "10.244.2.7", "--to", "10.244.1.10:5432", "-i", "eth0", "-o", "caliaaaaaaaaaaa", "--assume", "local=no")
    assert explain(*calico, "--ipset", str(DUMPS / "calico.ipset")) == 0
    assert explain(*calico) == 3
    assert explain("kube-proxy", "--from", "1.2.3.4", "--to", "8.8.8.8", "--ctstate", "INVALID", *KNOWN) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("DROP to the destination as it is (line 46)")
    assert explain("kube-proxy", "--from", "1.2.3.4", "--to", "8.8.8.8:1", "--mark", "0x4000", *KNOWN, "-i", "eth0") == 0
    assert "from 192.168.0.2 by eth0" in capsys.readouterr().out


def test_an_unknown_match_is_refused_by_its_line_or_warned_of(tmp_path, capsys):
    file = tmp_path / "dump"
    rules = "-A FORWARD -p udp -m psd --psd-delay-threshold 300 -j DROP\n" * 2
    file.write_text(f"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n")
    asked = ["explain", "--iptables-save", str(file), "--from", "10.0.0.1", "--to", "10.0.0.2:80"]
    assert main(asked) == 2
    assert capsys.readouterr().err == f"error: {file}: line 5: -m psd is not supported\n"
    assert main([*asked, "--lenient"]) == 0
    assert capsys.readouterr().out.startswith(f"warning: {file}: line 5: -m psd is not supported (and 1 more like it)\n")
    assert main([*asked, "--lenient", "--proto", "udp"]) == 3


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--from", "10.0.0.1", "--to", "10.0.0.300:80"), "--to: '10.0.0.300' does not appear to be"),
        (("--from", "10.0.0.1", "--to", "10.0.0.3", "--proto", "tcp"), "--to: '10.0.0.3' needs a port"),
        (("--from", "10.0.0.1", "--to", "[fd00::1]:80"), "--from: 10.0.0.1 and [fd00::1]:80 are of different families"),
        (("--from", "local", "--to", "10.0.0.3"), "--from: local needs --node-ip"),
        (("--from", "10.0.0.1", "--to", "10.0.0.3", "--mark", "red"), "--mark: 'red' is not a number"),
        (("--from", "10.0.0.1", "--to", "10.0.0.3", "--assume", "local"), "--assume: 'local' is not WHAT=yes or WHAT=no"),
        (("--from", "10.0.0.1", "--to", "10.0.0.3", "--assume", "1=no"), "--assume: no rule stands in line 1"),
        (("--from", "10.0.0.1", "--to", "10.0.0.3", "--out", "-i", "eth0"), "--out, --in-interface: a packet that the node itself sends"),
        (("--from", "10.0.0.1", "--to", "10.0.0.3", "--routes", str(DUMPS / "calico.ipset")), "calico.ipset: line 1: this is not JSON"),
        (
            ("--from", "10.0.0.1", "--to", "10.0.0.3", "--ipset", str(DUMPS / "calico.save")),
            "calico.save: line 1: '*raw' is neither `create",
        ),
        (("--from", "10.0.0.1", "--to", "10.0.0.3", "--addresses", "/nowhere/addr"), "/nowhere/addr: No such file or directory"),
    ],
)
def test_what_is_wrong_is_named(arguments, problem, capsys):
    assert explain("kube-proxy", *arguments) == 2
    assert problem in capsys.readouterr().err
