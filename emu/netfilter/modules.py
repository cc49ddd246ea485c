"""Match modules: which options each has, and what the kernel makes of them when it gives them back.

A table of `-m NAME`, for reading and printing; what a module asks of a packet is `extensions`'. The protocols' own modules (tcp,
udp, sctp) have their ports in the rule itself. Spec: iptables-extensions(8); checked against iptables 1.8.9.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from emu.netfilter.forms import (
    Extent,
    Form,
    address,
    address_range,
    choice,
    hexadecimal,
    listed,
    masked,
    network,
    number,
    port_list,
    several,
    span,
    text,
)
from emu.netfilter.ruleset import Option

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 50: "esp", 51: "ah", 58: "ipv6-icmp", 132: "sctp", 136: "udplite"}
"""Protocol numbers as iptables names them (/etc/protocols, and its own list)."""
PROTOCOL_NUMBERS = {"all": 0, "icmpv6": 58, **{name: number for number, name in PROTOCOLS.items()}}

STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
"""The order in which `--ctstate` is printed."""
CT_STATUS = ("EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED")
ADDRESS_TYPES = (
    "UNSPEC", "UNICAST", "LOCAL", "BROADCAST", "ANYCAST", "MULTICAST", "BLACKHOLE", "UNREACHABLE", "PROHIBIT", "THROW", "NAT", "XRESOLVE",
)  # fmt: skip
TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
"""Bits of the flags byte, lowest first."""
CHUNKS = (
    "DATA", "INIT", "INIT_ACK", "SACK", "HEARTBEAT", "HEARTBEAT_ACK", "ABORT", "SHUTDOWN", "SHUTDOWN_ACK", "ERROR", "COOKIE_ECHO",
    "COOKIE_ACK", "ECN_ECNE", "ECN_CWR", "SHUTDOWN_COMPLETE", "I_DATA", "RE_CONFIG", "PAD", "ASCONF", "ASCONF_ACK", "FORWARD_TSN",
    "I_FORWARD_TSN",
)  # fmt: skip
_UNREACHABLE = ("network-unreachable host-unreachable protocol-unreachable port-unreachable fragmentation-needed source-route-failed "
                "network-unknown host-unknown - network-prohibited host-prohibited TOS-network-unreachable TOS-host-unreachable "
                "communication-prohibited host-precedence-violation precedence-cutoff").split()  # fmt: skip
ICMP_TYPES = {
    "any": "any", "echo-reply": "0", "pong": "0", "destination-unreachable": "3", "source-quench": "4", "redirect": "5",
    "echo-request": "8", "ping": "8", "router-advertisement": "9", "router-solicitation": "10", "time-exceeded": "11",
    "ttl-exceeded": "11", "ttl-zero-during-transit": "11/0", "ttl-zero-during-reassembly": "11/1", "parameter-problem": "12",
    "ip-header-bad": "12/0", "required-option-missing": "12/1", "timestamp-request": "13", "timestamp-reply": "14",
    "address-mask-request": "17", "address-mask-reply": "18", "network-redirect": "5/0", "host-redirect": "5/1",
    "TOS-network-redirect": "5/2", "TOS-host-redirect": "5/3", **{name: f"3/{code}" for code, name in enumerate(_UNREACHABLE)},
}  # fmt: skip
ICMP6_TYPES = {
    "destination-unreachable": "1", "no-route": "1/0", "communication-prohibited": "1/1", "beyond-scope": "1/2",
    "address-unreachable": "1/3", "port-unreachable": "1/4", "failed-policy": "1/5", "reject-route": "1/6", "packet-too-big": "2",
    "time-exceeded": "3", "ttl-exceeded": "3", "ttl-zero-during-transit": "3/0", "ttl-zero-during-reassembly": "3/1",
    "parameter-problem": "4", "bad-header": "4/0", "unknown-header-type": "4/1", "unknown-option": "4/2", "echo-request": "128",
    "ping": "128", "echo-reply": "129", "pong": "129", "router-solicitation": "133", "router-advertisement": "134",
    "neighbour-solicitation": "135", "neighbor-solicitation": "135", "neighbour-advertisement": "136",
    "neighbor-advertisement": "136", "redirect": "137",
}  # fmt: skip
DSCP_CLASSES = {
    "BE": 0, "EF": 0x2E, **{f"CS{n}": 8 * n for n in range(8)}, **{f"AF{c}{d}": 8 * c + 2 * d for c in range(1, 5) for d in range(1, 4)},
}  # fmt: skip
TOS_NAMES = {
    "Minimize-Delay": 0x10, "Maximize-Throughput": 0x08, "Maximize-Reliability": 0x04, "Minimize-Cost": 0x02, "Normal-Service": 0,
}  # fmt: skip


# ---- words of single modules ---------------------------------------------------------------------------------------------------------


def icmp_type(names: dict[str, str]) -> Callable[[str], str]:
    """A type's name, TYPE or TYPE/CODE."""

    def word_of(word: str) -> str:
        if word in names:
            return names[word]
        kind, slash, code = word.partition("/")
        if not kind.isdigit():
            raise ValueError(f"{word!r} is neither TYPE[/CODE] nor one of {', '.join(sorted(names))}")
        return number(255)(kind) + (f"/{number(255)(code)}" if slash else "")

    return word_of


def protocol_number(word: str) -> str:
    return str(PROTOCOL_NUMBERS[word.lower()]) if word.lower() in PROTOCOL_NUMBERS else number(255)(word)


def chunk_types(word: str) -> str:
    """`INIT,DATA:Be`, by number; ALL and NONE stand alone."""
    names = {chunk.partition(":")[0].upper(): chunk.partition(":")[2] for chunk in word.split(",")}
    if unknown := names.keys() - {*CHUNKS, "ALL", "NONE"}:
        raise ValueError(f"{min(unknown)!r} is not one of {', '.join(CHUNKS)}")
    order = ("ALL", "NONE", *CHUNKS)
    return ",".join(f"{name}:{names[name]}" if names[name] else name for name in order if name in names)


def tos(word: str) -> str:
    """A name has a mask of six bits, a bare number one of eight."""
    if word in TOS_NAMES:
        return f"{TOS_NAMES[word]:#04x}/0x3f"
    value, slash, mask = word.partition("/")
    return f"{hexadecimal(255, 2)(value)}/{hexadecimal(255, 2)(mask) if slash else '0xff'}"


def dscp_class(word: str) -> str:
    if word.upper() not in DSCP_CLASSES:
        raise ValueError(f"{word!r} is not one of {', '.join(DSCP_CLASSES)}")
    return f"0x{DSCP_CLASSES[word.upper()]:02x}"


def probability(word: str) -> str:
    if not re.fullmatch(r"0?\.\d+|[01](\.0*)?", word) or float(word) > 1:
        raise ValueError(f"{word} is not a number from 0 to 1")
    return word


_LONG = {"min": "ute", "sec": "ond"}
_UNITS = (("day", 86400), ("hour", 3600), ("min", 60), ("sec", 1))


def parse_rate(word: str, scale: int = 10000) -> int:
    """`3/hour` as the kernel has it: `scale`ths of a second from one to the next."""
    count, _, unit = word.partition("/")
    seconds = next((length for name, length in _UNITS if unit and f"{name}{_LONG.get(name, '')}".startswith(unit)), 0)
    if not unit:
        seconds = 1
    if not count.isdigit() or int(count) < 1 or not seconds:
        raise ValueError(f"{word!r} is not NUMBER/second, minute, hour or day")
    return scale * seconds // int(count)


def rate_text(period: int, scale: int = 10000) -> str:
    """The rate as it is printed: in the shortest unit in which nothing is lost."""
    best = _UNITS[0]
    for unit in _UNITS[1:]:
        length = unit[1] * scale
        if period > length or length // period < length % period:
            break
        best = unit
    return f"{best[1] * scale // period}/{best[0]}"


def rate(scale: int) -> Callable[[str], str]:
    """Packets a time; hashlimit also takes bytes a second, `1mb/s`, which stay as they are."""
    return lambda word: word if scale != 10000 and re.fullmatch(r"\d+[km]?b/s", word) else rate_text(parse_rate(word, scale), scale)


# ---- what is made of a module's options at the end ---------------------------------------------------------------------------------


def _has(options: list[Option], *names: str) -> bool:
    return any(option.name in names for option in options)


def _conntrack(options: list[Option], family: int) -> list[Option]:
    """Of several options; a lone --ctstate keeps its order, for the restore form."""
    return [Option(o.name, (several(STATES)(o.values[0]),), o.invert) if o.name == "--ctstate" else o for o in options]


def _recent(options: list[Option], family: int) -> list[Option]:
    if not _has(options, "--set", "--rcheck", "--update", "--remove"):
        raise ValueError("-m recent needs --set, --rcheck, --update or --remove")
    mask = "255.255.255.255" if family == 4 else "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    defaults = [Option("--name", ("DEFAULT",)), Option("--mask", (mask,)), *([] if _has(options, "--rdest") else [Option("--rsource")])]
    return [*options, *(default for default in defaults if not _has(options, default.name))]


def _limit(options: list[Option], family: int) -> list[Option]:
    kept = [option for option in options if option != Option("--limit-burst", ("5",))]
    return kept if _has(kept, "--limit") else [Option("--limit", ("3/hour",)), *kept]


def _hashlimit(options: list[Option], family: int) -> list[Option]:
    limit = next((option for option in options if option.name in ("--hashlimit-upto", "--hashlimit-above")), None)
    if limit is None or not _has(options, "--hashlimit-name"):
        raise ValueError("-m hashlimit needs --hashlimit-upto or --hashlimit-above, and --hashlimit-name")
    packets = not limit.values[0].endswith("b/s")
    return options if _has(options, "--hashlimit-burst") or not packets else [*options, Option("--hashlimit-burst", ("5",))]


def _statistic(options: list[Option], family: int) -> list[Option]:
    modes = [option.values[0] for option in options if option.name == "--mode"]
    needed = {"random": ("--probability",), "nth": ("--every", "--packet")}.get(modes[0] if modes else "", ("--mode",))
    if missing := [name for name in needed if not _has(options, name)]:
        raise ValueError(f"-m statistic needs {' and '.join(missing)}")
    if modes == ["random"]:
        return [Option(o.name, (f"{_of_31_bits(o.values[0]):.11f}",), o.invert) if o.name == "--probability" else o for o in options]
    every, packet = (next(int(option.values[0]) for option in options if option.name == name) for name in needed)
    if packet >= every:
        raise ValueError(f"--packet {packet} must be less than --every {every}")
    return options


def _of_31_bits(word: str) -> float:
    return round(float(word) * (1 << 31)) / (1 << 31)


def _dscp(options: list[Option], family: int) -> list[Option]:
    return [Option("--dscp", option.values, option.invert) for option in options]


def _time(options: list[Option], family: int) -> list[Option]:
    """Times have seconds, and a period that has no end ends with 32 bits."""
    whole = [Option(o.name, (f"{o.values[0]}:00",)) if o.name[:6] == "--time" and o.values[0].count(":") == 1 else o for o in options]
    return whole if _has(options, "--datestop") else [*whole, Option("--datestop", ("2038-01-19T03:14:07",))]


def _string(options: list[Option], family: int) -> list[Option]:
    return [option for option in options if option not in (Option("--from", ("0",)), Option("--to", ("65535",)))]


def _needs(module: str, *names: str) -> Callable[[list[Option], int], list[Option]]:
    def complete(options: list[Option], family: int) -> list[Option]:
        if not _has(options, *names):
            raise ValueError(f"-m {module} needs {' or '.join(names)}")
        return options

    return complete


def _connlimit(options: list[Option], family: int) -> list[Option]:
    defaults = [Option("--connlimit-mask", ("32" if family == 4 else "128",))]
    defaults += [] if _has(options, "--connlimit-daddr") else [Option("--connlimit-saddr")]
    return [*options, *(default for default in defaults if not _has(options, default.name))]


def _inv(*words: Callable[[str], str]) -> Form:
    return Form(words, invertible=True)


_FLAG, _N, _BANG = Form(), Form((number(),)), Form((), invertible=True)
_NUMBER = _inv(number())
_STRING = Form((text,), invertible=True, always_quoted=True)
_BYTES = ("original", "reply", "both")

MODULES: dict[str, Extent] = {
    "comment": Extent({"--comment": Form((text,), quoted=True)}, complete=_needs("comment", "--comment")),
    "conntrack": Extent({
        "--ctstate": _inv(listed(STATES)), "--ctproto": _inv(protocol_number),
        **{name: _inv(network) for name in ("--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst")},
        **{name: _inv(span()) for name in ("--ctorigsrcport", "--ctorigdstport", "--ctreplsrcport", "--ctrepldstport")},
        "--ctstatus": _inv(several(CT_STATUS, NONE=())), "--ctexpire": _inv(span(0xFFFFFFFF)),
        "--ctdir": Form((choice("ORIGINAL", "REPLY"),)),
    }, complete=_conntrack),
    "state": Extent({"--state": _inv(several(STATES[:5]))}, complete=_needs("state", "--state")),
    "mark": Extent({"--mark": _inv(masked)}, complete=_needs("mark", "--mark")),
    "connmark": Extent({"--mark": _inv(masked)}, complete=_needs("connmark", "--mark")),
    "addrtype": Extent(
        {"--src-type": _inv(several(ADDRESS_TYPES)), "--dst-type": _inv(several(ADDRESS_TYPES)), "--limit-iface-in": _FLAG,
         "--limit-iface-out": _FLAG}, complete=_needs("addrtype", "--src-type", "--dst-type")),
    "statistic": Extent({"--mode": Form((choice("random", "nth"),)), "--probability": _inv(probability), "--every": _inv(number(least=1)),
                         "--packet": _N}, complete=_statistic),
    "recent": Extent({
        "--set": _BANG, "--rcheck": _BANG, "--update": _BANG, "--remove": _BANG, "--seconds": _N, "--reap": _FLAG, "--hitcount": _N,
        "--rttl": _FLAG, "--name": Form((text,)), "--mask": Form((address,)), "--rsource": _FLAG, "--rdest": _FLAG,
    }, complete=_recent),
    "set": Extent({
        "--match-set": _inv(text, text), "--return-nomatch": _FLAG, "--update-counters": _BANG, "--update-subcounters": _BANG,
        **{f"--{what}-{how}": _NUMBER if how == "eq" else _N for what in ("packets", "bytes") for how in ("eq", "lt", "gt")},
    }, complete=_needs("set", "--match-set")),
    "multiport": Extent({"--sports": _inv(port_list), "--dports": _inv(port_list), "--ports": _inv(port_list)},
                        {"--source-ports": "--sports", "--destination-ports": "--dports"},
                        _needs("multiport", "--sports", "--dports", "--ports")),
    "iprange": Extent({"--src-range": _inv(address_range), "--dst-range": _inv(address_range)},
                      complete=_needs("iprange", "--src-range", "--dst-range")),
    "physdev": Extent({"--physdev-is-in": _BANG, "--physdev-in": _inv(text), "--physdev-is-out": _BANG, "--physdev-out": _inv(text),
                       "--physdev-is-bridged": _BANG}),
    "icmp": Extent({"--icmp-type": _inv(icmp_type(ICMP_TYPES))}, complete=_needs("icmp", "--icmp-type")),
    "icmp6": Extent({"--icmpv6-type": _inv(icmp_type(ICMP6_TYPES))}, complete=_needs("icmp6", "--icmpv6-type")),
    "limit": Extent({"--limit": Form((rate(10000),)), "--limit-burst": Form((number(10000),))}, complete=_limit),
    "hashlimit": Extent({
        "--hashlimit-upto": Form((rate(1000000),)), "--hashlimit-above": Form((rate(1000000),)), "--hashlimit-burst": Form((text,)),
        "--hashlimit-mode": Form((several(("srcip", "srcport", "dstip", "dstport")),)), "--hashlimit-name": Form((text,)),
        **{f"--hashlimit-{what}": _N for what in ("htable-size", "htable-max", "htable-gcinterval", "htable-expire", "srcmask", "dstmask")},
        "--hashlimit-rate-match": _FLAG, "--hashlimit-rate-interval": _N,
    }, {"--hashlimit": "--hashlimit-upto"}, _hashlimit),
    "length": Extent({"--length": _inv(span())}, complete=_needs("length", "--length")),
    "pkttype": Extent({"--pkt-type": _inv(choice("unicast", "broadcast", "multicast"))}),
    "ttl": Extent({"--ttl-eq": _NUMBER, "--ttl-lt": _N, "--ttl-gt": _N}, {"--ttl": "--ttl-eq"}),
    "hl": Extent({"--hl-eq": _NUMBER, "--hl-lt": _N, "--hl-gt": _N}),
    "tos": Extent({"--tos": _inv(tos)}),
    "dscp": Extent({"--dscp": _inv(hexadecimal(63, 2)), "--dscp-class": _inv(dscp_class)}, complete=_dscp),
    "tcpmss": Extent({"--mss": _inv(span())}),
    "mac": Extent({"--mac-source": _inv(text)}),
    "owner": Extent({"--socket-exists": _BANG, "--uid-owner": _inv(text), "--gid-owner": _inv(text), "--suppl-groups": _FLAG}),
    "socket": Extent({"--transparent": _FLAG, "--nowildcard": _FLAG, "--restore-skmark": _FLAG}),
    "rpfilter": Extent({"--loose": _FLAG, "--validmark": _FLAG, "--accept-local": _FLAG, "--invert": _FLAG}),
    "u32": Extent({"--u32": Form((text,), invertible=True, always_quoted=True)}),
    "bpf": Extent({"--bytecode": Form((text,), always_quoted=True), "--object-pinned": Form((text,))}),
    "cgroup": Extent({"--path": _inv(text), "--cgroup": _NUMBER}),
    "quota": Extent({"--quota": _NUMBER}),
    "cpu": Extent({"--cpu": _NUMBER}),
    "helper": Extent({"--helper": _inv(text)}),
    "realm": Extent({"--realm": _inv(hexadecimal())}),
    "devgroup": Extent({"--src-group": _inv(hexadecimal()), "--dst-group": _inv(hexadecimal())}),
    "connlimit": Extent({"--connlimit-upto": _N, "--connlimit-above": _N, "--connlimit-mask": _N, "--connlimit-saddr": _FLAG,
                         "--connlimit-daddr": _FLAG}, complete=_connlimit),
    "connbytes": Extent({"--connbytes": _inv(text), "--connbytes-mode": Form((choice("packets", "bytes", "avgpkt"),)),
                         "--connbytes-dir": Form((choice(*_BYTES),))}),
    "connlabel": Extent({"--label": Form((text,), invertible=True, always_quoted=True), "--set": _FLAG}),
    "nfacct": Extent({"--nfacct-name": Form((lambda word: " " + word.strip(),))}),
    "policy": Extent({"--dir": Form((choice("in", "out"),)), "--pol": Form((choice("none", "ipsec"),)), "--strict": _FLAG,
                      "--reqid": _NUMBER, "--spi": _NUMBER, "--proto": _inv(text), "--mode": _inv(text), "--tunnel-dst": _inv(text),
                      "--tunnel-src": _inv(text)}),
    "esp": Extent({"--espspi": _inv(span(0xFFFFFFFF))}),
    "ah": Extent({"--ahspi": _inv(span(0xFFFFFFFF))}),
    "ipvs": Extent({"--ipvs": _BANG, "--vproto": _inv(text), "--vaddr": _inv(text), "--vport": _NUMBER,
                    "--vdir": Form((choice("ORIGINAL", "REPLY"),)), "--vmethod": _inv(text), "--vportctl": _NUMBER}),
    "time": Extent({name: Form((text,) if name not in {"--kerneltz", "--contiguous"} else (), invertible=name.endswith("days"))
                    for name in ("--timestart", "--timestop", "--monthdays", "--weekdays", "--datestart", "--datestop", "--kerneltz",
                                 "--contiguous")}, complete=_time),
    "string": Extent({"--string": _STRING, "--hex-string": _STRING, "--algo": Form((choice("bm", "kmp"),)), "--from": _N, "--to": _N,
                      "--icase": _FLAG}, complete=_string),
    "rt": Extent({"--rt-type": _NUMBER, "--rt-segsleft": _inv(span(0xFFFFFFFF))}),
    "frag": Extent({"--fragid": _inv(span(0xFFFFFFFF)),
                    **dict.fromkeys(("--fragres", "--fragfirst", "--fragmore", "--fraglast"), _FLAG)}),
    "eui64": Extent({}),
    "ipv6header": Extent({"--header": _inv(text), "--soft": _FLAG}),
}  # fmt: skip

PROTOCOL_OPTIONS: dict[int, dict[str, Form]] = {
    6: {"--tcp-option": _inv(number(255)), "--tcp-flags": _inv(*[several(TCP_FLAGS, ALL=TCP_FLAGS, NONE=())] * 2)},
    132: {"--chunk-types": _inv(choice("all", "any", "only"), chunk_types)},
}
"""What the protocols' own modules have beside ports, in the order in which it is printed after them."""

IMPLICIT = {1: "icmp", 58: "icmp6", 50: "esp", 51: "ah"}
"""Modules that an option of theirs loads by itself after `-p`."""

SYN_ONLY = ("FIN,SYN,RST,ACK", "SYN")
"""What `--syn` stands for."""
