"""flanneld's iptables rules: what it masquerades, and that it lets all pod traffic through.

Decides the chains FLANNEL-POSTRTG and FLANNEL-FWD and where they are jumped to: at the end of the built-in chains, behind what
kube-proxy has put there. Spec: flannel `pkg/trafficmngr/iptables/iptables.go`, v0.22 and later. Traffic between pods keeps its
addresses; what a pod sends out of the pod network gets the address of its node, and what comes from outside for a pod of another
node that of flannel.1, since nobody else knows the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from emu.netfilter.hooks import Verdict
from emu.netfilter.ruleset import (
    Accept,
    Chain,
    Comment,
    Destination,
    Jump,
    LateTables,
    Mark,
    Masquerade,
    Return,
    Rule,
    RuleSet,
    Source,
    Table,
    Target,
)
from emu.wire.addr import Network

_HOOKS = {"nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), "filter": ("INPUT", "FORWARD", "OUTPUT")}
_BARE = {name: Table(name, MappingProxyType({hook: Chain(hook, (), Verdict.ACCEPT) for hook in hooks})) for name, hooks in _HOOKS.items()}

POSTRTG, FWD = "FLANNEL-POSTRTG", "FLANNEL-FWD"
KUBE_PROXY_MARK = Mark(0x4000, 0x4000)
MULTICAST = Network.parse("224.0.0.0/4")
_MASQ, _FORWARD = Comment("flanneld masq"), Comment("flanneld forward")


class _Beside(Mapping[str, Chain]):
    """Chains with a few more, or others in their place; nothing is copied, for there may be a hundred thousand."""

    def __init__(self, chains: Mapping[str, Chain], ours: Mapping[str, Chain]) -> None:
        self._chains, self._ours = chains, ours

    def __getitem__(self, name: str) -> Chain:
        found = self._ours.get(name)
        return self._chains[name] if found is None else found

    def __iter__(self) -> Iterator[str]:
        yield from self._chains
        yield from (name for name in self._ours if name not in self._chains)

    def __len__(self) -> int:
        return len(self._chains) + sum(name not in self._chains for name in self._ours)


class FlannelRules:
    """What flanneld adds to a node's tables. One instance a node: chains and tables that are the same stay the same objects."""

    def __init__(self, cluster: Network, pods: Network) -> None:
        inside, outside = Source(cluster), Source(cluster, invert=True)
        lines: list[tuple[tuple[Mark | Source | Destination, ...], Target]] = [
            ((KUBE_PROXY_MARK,), Return()),  # kube-proxy masquerades it
            ((Source(pods), Destination(cluster)), Return()),
            ((inside, Destination(pods)), Return()),
            ((outside, Destination(pods)), Return()),
            ((inside, Destination(MULTICAST, invert=True)), Masquerade(random_fully=True)),
            ((outside, Destination(cluster)), Masquerade(random_fully=True)),
        ]
        accepts = tuple(Rule((match, _FORWARD), Accept()) for match in (inside, Destination(cluster)))
        self._added = {  # table: the built-in chain, the jump, the chain
            "nat": ("POSTROUTING", Rule((_MASQ,), Jump(POSTRTG)), Chain(POSTRTG, tuple(Rule((*m, _MASQ), to) for m, to in lines))),
            "filter": ("FORWARD", Rule((_FORWARD,), Jump(FWD)), Chain(FWD, accepts)),
        }
        self._made: dict[str, tuple[Table, Table]] = {}  # table: as it was given, and with ours
        self._built_in: dict[str, tuple[Chain, Chain]] = {}  # likewise

    def beside(self, ruleset: RuleSet) -> RuleSet:
        """The rule set with flanneld's rules in its tables, late if those are; what it lacks is made, once there is any rule at all."""
        tables = ruleset.tables
        if isinstance(tables, LateTables):
            return replace(ruleset, tables=LateTables(tables, lambda: self._all(tables)))
        return replace(ruleset, tables=self._all({**_BARE, **tables} if tables or ruleset.nft is not None else {}))

    def _all(self, tables: Mapping[str, Table]) -> Mapping[str, Table]:
        return MappingProxyType({name: self._table(table) for name, table in tables.items()})

    def _table(self, table: Table) -> Table:
        if table.name not in self._added:
            return table
        given, made = self._made.get(table.name, (None, None))
        if given is not table or made is None:
            where, jump, chain = self._added[table.name]
            built_in = self._extended(table.name, table.chains[where], jump)
            made = Table(table.name, _Beside(table.chains, {where: built_in, chain.name: chain}))
            self._made[table.name] = (table, made)
        return made

    def _extended(self, table: str, chain: Chain, jump: Rule) -> Chain:
        given, made = self._built_in.get(table, (None, None))
        if given is not chain or made is None:
            made = Chain(chain.name, (*chain.rules, jump), chain.policy)
            self._built_in[table] = (chain, made)
        return made
