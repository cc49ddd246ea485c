"""What target extensions do to a packet: the meaning of every `TargetExtension` that `targets` can spell.

An effect changes the packet or its connection and says whether the walk goes on (None) or ends. Targets that hand the packet to somebody
else (NFQUEUE, TPROXY, SYNPROXY) are asked of the namespace's memory by name, like matches that nobody here can answer.
Spec: iptables-extensions(8), net/netfilter/xt_*.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from emu.netfilter.conn import CtState
from emu.netfilter.forms import FULL_MASK, parse_masked
from emu.netfilter.hooks import Surroundings
from emu.netfilter.ruleset import Accept, Drop, Option, TargetExtension
from emu.netfilter.skb import Skb

Effect = Callable[[Skb, Surroundings], Accept | Drop | None]
Given = Mapping[str, Option]


@lru_cache(maxsize=4096)
def effect_of(target: TargetExtension) -> Effect:
    """What the target does, compiled."""
    make = EFFECTS.get(target.name) if target.known else None
    if make is None:
        return _unknown(target.name)
    return make({option.name: option for option in target.options})


def _unknown(name: str) -> Effect:
    """The memory says whether it ends the walk, and if so, whether by taking the packet."""

    def effect(skb: Skb, around: Surroundings) -> Accept | Drop | None:
        skb.cacheable = False
        if not around.memory.unknown(f"-j {name}: it ends the walk"):
            return None
        return Drop() if around.memory.unknown(f"-j {name}: it takes the packet") else Accept()

    return effect


def _passes(given: Given) -> Effect:
    return lambda skb, around: None


def _untracked(skb: Skb, around: Surroundings) -> None:
    """A packet that has a connection keeps it."""
    if skb.ct is None:
        skb.ct_state = CtState.UNTRACKED


def _ct(given: Given) -> Effect:
    if "--notrack" in given:
        return _untracked
    if any(name.startswith("--zone") for name in given):
        return _unknown_zone
    return lambda skb, around: None  # helpers, events and timeouts change nothing about this packet


def _unknown_zone(skb: Skb, around: Surroundings) -> None:
    """A zone keeps apart connections with the same addresses; the first packet of one meets the same rules in any zone."""
    around.memory.header("CT --zone", holds=True)


def _connmark(given: Given) -> Effect:
    if "--set-xmark" in given:
        value, mask = parse_masked(given["--set-xmark"].values[0])

        def put(skb: Skb, around: Surroundings) -> None:
            if skb.ct is not None:
                _mark_connection(skb, (skb.ct.mark & ~mask) ^ value)

        return put
    packet, connection = (int(given[name].values[0], 16) for name in ("--nfmask", "--ctmask"))

    def save(skb: Skb, around: Surroundings) -> None:
        if skb.ct is not None:
            _mark_connection(skb, (skb.ct.mark & ~connection & FULL_MASK) ^ (skb.mark & packet))

    def restore(skb: Skb, around: Surroundings) -> None:
        if skb.ct is not None:
            skb.mark = (skb.mark & ~packet & FULL_MASK) ^ (skb.ct.mark & connection)

    return save if "--save-mark" in given else restore


def _mark_connection(skb: Skb, mark: int) -> None:
    """A changed mark makes what is remembered of the connection's packets out of date."""
    ct = skb.ct
    if ct is not None and ct.mark != mark:
        ct.mark = mark
        ct.epoch += 1


def _set(given: Given) -> Effect:
    if "--map-set" in given:
        return _unknown("SET --map-set")
    name = "--add-set" if "--add-set" in given else "--del-set"
    which, sides = given[name].values[0], tuple(given[name].values[1].split(","))
    timeout = int(given["--timeout"].values[0]) if "--timeout" in given else None

    def effect(skb: Skb, around: Surroundings) -> None:
        skb.cacheable = False
        around.memory.change_set(which, sides, skb, add=name == "--add-set", timeout=timeout, exist="--exist" in given)

    return effect


def _ttl(given: Given) -> Effect:
    ((name, option),) = given.items()
    number = int(option.values[0])

    def effect(skb: Skb, around: Surroundings) -> None:
        at = 8 if skb.buf[0] >> 4 == 4 else 7
        old = skb.buf[at]
        skb.buf[at] = number if name.endswith("set") else max(0, old - number) if name.endswith("dec") else min(255, old + number)

    return effect


EFFECTS: Mapping[str, Callable[[Given], Effect]] = {
    "LOG": _passes, "NFLOG": _passes, "TRACE": _passes, "AUDIT": _passes, "CHECKSUM": _passes, "CLASSIFY": _passes, "TCPMSS": _passes,
    "IDLETIMER": _passes, "TEE": _passes, "SECMARK": _passes, "CONNSECMARK": _passes, "TOS": _passes, "DSCP": _passes,
    "TCPOPTSTRIP": _passes, "NOTRACK": lambda given: _untracked, "CT": _ct, "CONNMARK": _connmark, "SET": _set, "TTL": _ttl, "HL": _ttl,
}  # fmt: skip
"""Targets that are carried out, or change nothing that a rule or a verdict rests on here; any other is asked of the memory."""
