"""Target extensions: which options each has, and what the kernel makes of them when it gives them back.

A table of `-j NAME` for what is no target of its own in `ruleset`, for reading and printing; what a target does is `effects`'.
Spec: iptables-extensions(8); checked against iptables 1.8.9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from emu.netfilter.forms import (
    FULL_MASK,
    Extent,
    Form,
    address,
    choice,
    fully_masked,
    hexadecimal,
    number,
    parse_ends,
    parse_masked,
    parse_network,
    parse_number,
    parse_span,
    several,
    text,
)
from emu.netfilter.modules import dscp_class
from emu.netfilter.ruleset import (
    Accept,
    Dnat,
    Drop,
    Masquerade,
    Netmap,
    Option,
    Redirect,
    Reject,
    Return,
    SetMark,
    Snat,
    Spread,
    Target,
    TargetExtension,
)

REJECTS = frozenset(
    "icmp-net-unreachable icmp-host-unreachable icmp-proto-unreachable icmp-port-unreachable icmp-net-prohibited icmp-host-prohibited "
    "icmp-admin-prohibited tcp-reset icmp6-no-route icmp6-adm-prohibited icmp6-addr-unreachable icmp6-port-unreachable "
    "icmp6-policy-fail icmp6-reject-route".split()
)
"""What `--reject-with` knows, in both families."""

SHORT_REJECTS = {
    4: {"net-unreach": "icmp-net-unreachable", "host-unreach": "icmp-host-unreachable", "proto-unreach": "icmp-proto-unreachable",
        "port-unreach": "icmp-port-unreachable", "net-prohib": "icmp-net-prohibited", "host-prohib": "icmp-host-prohibited",
        "admin-prohib": "icmp-admin-prohibited", "tcp-rst": "tcp-reset"},
    6: {"no-route": "icmp6-no-route", "adm-prohibited": "icmp6-adm-prohibited", "addr-unreach": "icmp6-addr-unreachable",
        "port-unreach": "icmp6-port-unreachable", "policy-fail": "icmp6-policy-fail", "reject-route": "icmp6-reject-route"},
}  # fmt: skip
"""Its short names, by family."""

LEVELS = ("emerg", "alert", "crit", "error", "warning", "notice", "info", "debug")
_OTHER_LEVELS = {"panic": "0", "err": "3", "warn": "4"}
EVENTS = ("new", "related", "destroy", "reply", "assured", "protoinfo", "helper", "mark", "natseqinfo", "secmark", "label")


def _level(word: str) -> str:
    name = word.lower()
    return str(LEVELS.index(name)) if name in LEVELS else _OTHER_LEVELS.get(name) or number(7)(word)


def _class(word: str) -> str:
    major, colon, minor = word.partition(":")
    if not colon:
        raise ValueError(f"{word!r} is not MAJOR:MINOR")
    return f"{int(major or '0', 16):04x}:{int(minor or '0', 16):04x}"


def _tos(word: str) -> str:
    value, slash, mask = word.partition("/")
    return f"{hexadecimal(255, 2)(value)}/{hexadecimal(255, 2)(mask) if slash else '0xff'}"


def _event_list(word: str) -> str:
    return several(EVENTS)(word)


# ---- what is made of a target's options at the end ---------------------------------------------------------------------------------


def _given(options: list[Option]) -> dict[str, Option]:
    return {option.name: option for option in options}


def _one_of(target: str, *names: str) -> Callable[[list[Option], int], list[Option]]:
    def complete(options: list[Option], family: int) -> list[Option]:
        if not any(option.name in names for option in options):
            raise ValueError(f"{target} needs {' or '.join(names)}")
        return options

    return complete


def _log(options: list[Option], family: int) -> list[Option]:
    return [option for option in options if option != Option("--log-level", ("4",))]


def _nflog(options: list[Option], family: int) -> list[Option]:
    return [option for option in options if option != Option("--nflog-group", ("0",))]


def _nfqueue(options: list[Option], family: int) -> list[Option]:
    return options if {"--queue-num", "--queue-balance"} & _given(options).keys() else [*options, Option("--queue-num", ("0",))]


def xmark(spelling: str, argument: str) -> tuple[int, int]:
    """Value and mask of `--set-xmark` for any way to write it: mark = (mark & ~MASK) ^ VALUE."""
    value, mask = parse_masked(argument)
    match spelling:
        case "--set-mark":
            mask |= value
        case "--or-mark":
            mask = value
        case "--xor-mark":
            mask = 0
        case "--and-mark":
            value, mask = 0, ~value & FULL_MASK
        case _:
            pass
    return value, mask


XMARKS = ("--set-xmark", "--set-mark", "--or-mark", "--xor-mark", "--and-mark")


def _connmark(options: list[Option], family: int) -> list[Option]:
    given = _given(options)
    for spelling in XMARKS:
        if spelling in given:
            value, mask = xmark(spelling, given[spelling].values[0])
            return [Option("--set-xmark", (f"{value:#x}/{mask:#x}",))]
    both = f"{parse_number(given['--mask'].values[0]):#x}" if "--mask" in given else f"{FULL_MASK:#x}"
    moving = [option for option in options if option.name in ("--save-mark", "--restore-mark")]
    if not moving:
        raise ValueError(f"CONNMARK needs {', '.join(XMARKS)}, --save-mark or --restore-mark")
    return [*moving, *(given.get(name, Option(name, (both,))) for name in ("--nfmask", "--ctmask"))]


def _tproxy(options: list[Option], family: int) -> list[Option]:
    given = _given(options)
    if "--on-port" not in given:
        raise ValueError("TPROXY needs --on-port")
    defaults = (Option("--on-ip", ("0.0.0.0" if family == 4 else "::",)), Option("--tproxy-mark", ("0x0/0x0",)))
    return [*options, *(default for default in defaults if default.name not in given)]


def _dscp(options: list[Option], family: int) -> list[Option]:
    return [Option("--set-dscp", option.values) for option in options]


_FLAG, _N, _TEXT = Form(), Form((number(),)), Form((text,))
_QUOTED = Form((text,), quoted=True)
_MARK = Form((fully_masked,))

TARGET_EXTENSIONS: dict[str, Extent] = {
    "LOG": Extent({"--log-prefix": _QUOTED, "--log-level": Form((_level,)), "--log-tcp-sequence": _FLAG, "--log-tcp-options": _FLAG,
                   "--log-ip-options": _FLAG, "--log-uid": _FLAG, "--log-macdecode": _FLAG}, complete=_log),
    "NFLOG": Extent({"--nflog-prefix": _QUOTED, "--nflog-group": _N, "--nflog-range": _N, "--nflog-size": _N, "--nflog-threshold": _N},
                    complete=_nflog),
    "TRACE": Extent({}),
    "NOTRACK": Extent({}),
    "CT": Extent({"--notrack": _FLAG, "--helper": _TEXT, "--timeout": _TEXT, "--ctevents": Form((_event_list,)), "--expevents": _TEXT,
                  "--zone-orig": _TEXT, "--zone-reply": _TEXT, "--zone": _TEXT}),
    "CONNMARK": Extent({"--set-xmark": _MARK, "--set-mark": _TEXT, "--or-mark": _TEXT, "--xor-mark": _TEXT, "--and-mark": _TEXT,
                        "--save-mark": _FLAG, "--restore-mark": _FLAG, "--mask": _TEXT, "--nfmask": Form((hexadecimal(),)),
                        "--ctmask": Form((hexadecimal(),))}, complete=_connmark),
    "SET": Extent({"--add-set": Form((text, text)), "--del-set": Form((text, text)), "--map-set": Form((text, text)), "--exist": _FLAG,
                   "--timeout": _N, "--map-mark": _FLAG, "--map-prio": _FLAG, "--map-queue": _FLAG},
                  complete=_one_of("SET", "--add-set", "--del-set", "--map-set")),
    "TCPMSS": Extent({"--clamp-mss-to-pmtu": _FLAG, "--set-mss": Form((number(65535),))},
                     complete=_one_of("TCPMSS", "--clamp-mss-to-pmtu", "--set-mss")),
    "TPROXY": Extent({"--on-port": Form((number(65535),)), "--on-ip": Form((address,)), "--tproxy-mark": _MARK}, complete=_tproxy),
    "NFQUEUE": Extent({"--queue-num": _N, "--queue-balance": _TEXT, "--queue-bypass": _FLAG, "--queue-cpu-fanout": _FLAG},
                      complete=_nfqueue),
    "TTL": Extent({"--ttl-set": _N, "--ttl-dec": _N, "--ttl-inc": _N}),
    "HL": Extent({"--hl-set": _N, "--hl-dec": _N, "--hl-inc": _N}),
    "TOS": Extent({"--set-tos": Form((_tos,)), "--and-tos": _TEXT, "--or-tos": _TEXT, "--xor-tos": _TEXT}),
    "DSCP": Extent({"--set-dscp": Form((hexadecimal(63, 2),)), "--set-dscp-class": Form((dscp_class,))}, complete=_dscp),
    "CLASSIFY": Extent({"--set-class": Form((_class,))}),
    "CHECKSUM": Extent({"--checksum-fill": _FLAG}),
    "AUDIT": Extent({"--type": Form((choice("accept", "drop", "reject"),))}),
    "TEE": Extent({"--gateway": Form((address,)), "--oif": _TEXT}),
    "CONNSECMARK": Extent({"--save": _FLAG, "--restore": _FLAG}),
    "SECMARK": Extent({"--selctx": _TEXT}),
    "IDLETIMER": Extent({"--timeout": _N, "--label": _TEXT, "--alarm": _FLAG, "--send_nl_msg": _TEXT}),
    "TCPOPTSTRIP": Extent({"--strip-options": _TEXT}),
    "SYNPROXY": Extent({"--sack-perm": _FLAG, "--timestamp": _FLAG, "--wscale": _N, "--mss": _N, "--ecn": _FLAG}),
}  # fmt: skip


# ---- names and options as targets --------------------------------------------------------------------------------------------------


def made(name: str, options: list[Option], family: int) -> Target:
    """The target that a name and its options make."""
    names = [option.name for option in options]
    if len(set(names)) != len(names):
        raise ValueError(f"{name} has an option twice")
    make = MADE.get(name)
    if make is None:
        return TargetExtension(name, TARGET_OPTIONS[name].settle(options, family))
    return make({option.name: option.values for option in options}, family)


Given = Mapping[str, tuple[str, ...]]


def _reject(given: Given, family: int) -> Target:
    (how,) = given.get("--reject-with", ("icmp-port-unreachable" if family == 4 else "icmp6-port-unreachable",))
    how = SHORT_REJECTS[family].get(how, how)
    if how not in REJECTS:
        raise ValueError(f"--reject-with {how} is not supported here, only {', '.join(sorted(REJECTS))}")
    return Reject(how)


def _dnat(given: Given, family: int) -> Target:
    if "--to-destination" not in given:
        raise ValueError("DNAT needs its argument --to-destination")
    ends = parse_ends(given["--to-destination"][0])
    spread = Spread(ends.last if ends.last != ends.first else None, "--random" in given, "--persistent" in given, ends.shifted_from)
    return Dnat(ends.first, None if spread == Spread() else spread)


def _snat(given: Given, family: int) -> Target:
    if "--to-source" not in given:
        raise ValueError("SNAT needs its argument --to-source")
    ends = parse_ends(given["--to-source"][0])
    if ends.shifted_from:
        raise ValueError(f"--to-source {given['--to-source'][0]}: only DNAT shifts ports")
    spread = Spread(ends.last if ends.last != ends.first else None, "--random" in given, "--persistent" in given)
    return Snat(ends.first, "--random-fully" in given, None if spread == Spread() else spread)


def _ports(given: Given) -> tuple[int, int] | None:
    return parse_span(given["--to-ports"][0], separator="-") if "--to-ports" in given else None


def _masquerade(given: Given, family: int) -> Target:
    return Masquerade("--random-fully" in given, _ports(given), "--random" in given)


def _redirect(given: Given, family: int) -> Target:
    return Redirect(_ports(given), "--random" in given)


def _netmap(given: Given, family: int) -> Target:
    if "--to" not in given:
        raise ValueError("NETMAP needs its argument --to")
    return Netmap(parse_network(given["--to"][0]))


def _set_mark(given: Given, family: int) -> Target:
    if len(given) != 1:
        raise ValueError(f"MARK needs its argument, one of {', '.join(XMARKS)}")
    ((spelling, (argument,)),) = given.items()
    return SetMark(*xmark(spelling, argument), spelling)


MADE: Mapping[str, Callable[[Given, int], Target]] = {
    "REJECT": _reject, "DNAT": _dnat, "SNAT": _snat, "MASQUERADE": _masquerade, "REDIRECT": _redirect, "NETMAP": _netmap, "MARK": _set_mark,
}  # fmt: skip
TARGET_OPTIONS: Mapping[str, Extent] = {
    **TARGET_EXTENSIONS,
    "REJECT": Extent({"--reject-with": _TEXT}),
    "DNAT": Extent({"--to-destination": _TEXT, "--random": _FLAG, "--persistent": _FLAG}),
    "SNAT": Extent({"--to-source": _TEXT, "--random": _FLAG, "--random-fully": _FLAG, "--persistent": _FLAG}),
    "MASQUERADE": Extent({"--to-ports": _TEXT, "--random": _FLAG, "--random-fully": _FLAG}),
    "REDIRECT": Extent({"--to-ports": _TEXT, "--random": _FLAG}),
    "NETMAP": Extent({"--to": _TEXT}),
    "MARK": Extent(dict.fromkeys(XMARKS, _TEXT)),
}
TARGETS: Mapping[str, Target] = {"ACCEPT": Accept(), "DROP": Drop(), "RETURN": Return()}
