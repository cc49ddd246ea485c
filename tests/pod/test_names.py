"""Names as getaddrinfo(3) resolves them; where the answer does not depend on the machine, its own getaddrinfo is the judge."""

from __future__ import annotations

import socket as std

import pytest

from emu.pod.names import address_of, getaddrinfo
from emu.pod.program import PodInfo

POD = PodInfo("web-1", "default", "10.244.1.5", "node-1", hosts={"db.local": "10.9.9.9"})


def ask(host, port=80, family=0, kind=0, proto=0, flags=0, resolver=None):
    return getaddrinfo(host, port, family, kind, proto, flags, POD, resolver, None)


@pytest.mark.parametrize("arguments", [("10.1.2.3", 80), ("127.0.0.1", 0), ("10.1.2.3", "443"), ("10.1.2.3", None)])
def test_numeric_hosts_resolve_as_on_linux(arguments):
    theirs = [row for row in std.getaddrinfo(*arguments, family=std.AF_INET) if row[1] != std.SOCK_RAW]
    assert ask(*arguments) == [tuple(row) for row in theirs]


@pytest.mark.parametrize(
    ("host", "ip"),
    [("localhost", "127.0.0.1"), ("LOCALHOST.", "127.0.0.1"), ("web-1", "10.244.1.5"), ("db.local", "10.9.9.9"), ("127.1", "127.0.0.1")],
)
def test_the_hosts_file_comes_first(host, ip):
    assert [row[4][0] for row in ask(host, kind=std.SOCK_STREAM)] == [ip]


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ({"host": "nowhere"}, std.EAI_NONAME),
        ({"host": "10.0.0.1", "port": "nonsense"}, std.EAI_SERVICE),
        ({"host": "localhost", "flags": std.AI_NUMERICHOST}, std.EAI_NONAME),
        ({"host": "::1"}, std.EAI_ADDRFAMILY),
    ],
)
def test_failures_are_glibc_s(arguments, number):
    with pytest.raises(std.gaierror) as caught:
        ask(**arguments)
    assert caught.value.errno == number


def test_the_message_for_an_unknown_name_is_linux_s():
    with pytest.raises(std.gaierror, match=r"Name or service not known"):
        ask("nowhere")


def test_the_resolver_is_asked_last():
    class Dns:
        def lookup(self, ctx, name):
            return ["10.96.0.10", "10.96.0.11"]

    assert [row[4][0] for row in ask("svc.default", kind=std.SOCK_STREAM, resolver=Dns())] == ["10.96.0.10", "10.96.0.11"]
    assert address_of("svc.default", POD, Dns(), None) == bytes((10, 96, 0, 10))


def test_no_host_is_loopback_or_any():
    assert ask(None, kind=std.SOCK_STREAM)[0][4] == ("127.0.0.1", 80)
    assert ask(None, kind=std.SOCK_STREAM, flags=std.AI_PASSIVE)[0][4] == ("0.0.0.0", 80)
    assert address_of("", POD, None, None) == bytes(4)
