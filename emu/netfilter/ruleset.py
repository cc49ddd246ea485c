"""Rule sets as immutable values: the one seam where the control journey meets the data journey.

Decides what a rule can say, not what it does (`walk`) nor how it is spelt (`text`). A sync builds a new `RuleSet`, sharing
the chains that did not change, and the stack swaps one reference, as `iptables-restore` commits atomically.
Vocabulary and defaults are iptables(8)'s and iptables-extensions(8)'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from types import MappingProxyType
from typing import TYPE_CHECKING

from emu.netfilter.hooks import Verdict
from emu.wire.addr import Network, SockAddr

if TYPE_CHECKING:
    from emu.netfilter.match import Step
    from emu.netfilter.nft import Table as NftTable
    from emu.netfilter.walk import Program

# ---- matches: every one of a rule's must hold; their order is kept for printing --------------------------------------


@dataclass(frozen=True, slots=True)
class Comment:
    """`-m comment --comment TEXT`; matches everything."""

    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """`[!] -s CIDR`."""

    network: Network
    invert: bool = False


@dataclass(frozen=True, slots=True)
class Destination:
    """`[!] -d CIDR`."""

    network: Network
    invert: bool = False


@dataclass(frozen=True, slots=True)
class InInterface:
    """`[!] -i NAME`; a trailing `+` is a prefix."""

    name: str
    invert: bool = False


@dataclass(frozen=True, slots=True)
class OutInterface:
    """`[!] -o NAME`; a trailing `+` is a prefix."""

    name: str
    invert: bool = False


@dataclass(frozen=True, slots=True)
class Protocol:
    """`[!] -p NUMBER`, by IP protocol number (6 is tcp).

    `module` says whether a protocol with ports also loads its match module (`-m tcp -p tcp`), as kube-proxy always writes;
    it changes nothing but the text.
    """

    number: int
    invert: bool = False
    module: bool = True


@dataclass(frozen=True, slots=True)
class DestinationPort:
    """`-m PROTO [!] --dport FIRST[:LAST]`; `proto` is the match module's protocol number."""

    proto: int
    first: int
    last: int
    invert: bool = False


@dataclass(frozen=True, slots=True)
class SourcePort:
    """`-m PROTO [!] --sport FIRST[:LAST]`."""

    proto: int
    first: int
    last: int
    invert: bool = False


@dataclass(frozen=True, slots=True)
class ConntrackState:
    """`-m conntrack [!] --ctstate LIST`; states are NEW, ESTABLISHED, RELATED, INVALID, UNTRACKED, SNAT, DNAT."""

    states: tuple[str, ...]
    invert: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """`-m mark [!] --mark VALUE/MASK`."""

    value: int
    mask: int = 0xFFFFFFFF
    invert: bool = False


@dataclass(frozen=True, slots=True)
class AddressType:
    """`-m addrtype [!] --dst-type LOCAL` (`side` "dst") or `--src-type` ("src"); with more than that it is an `Extension`."""

    side: str
    kind: str = "LOCAL"
    invert: bool = False


@dataclass(frozen=True, slots=True)
class Statistic:
    """`-m statistic --mode random --probability P`."""

    probability: float


@dataclass(frozen=True, slots=True)
class Fragment:
    """`[!] -f`: second and further fragments."""

    invert: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One option of an extension as the kernel gives it back: `--match-set`, ("hosts", "src,dst"), inverted or not."""

    name: str
    values: tuple[str, ...] = ()
    invert: bool = False


@dataclass(frozen=True, slots=True)
class HeaderOption:
    """What a protocol's own match module asks beside ports: `-m tcp --tcp-flags SYN,ACK SYN`, `-m sctp --chunk-types any INIT`."""

    proto: int
    option: Option


@dataclass(frozen=True, slots=True)
class Extension:
    """`-m MODULE OPTIONS`: any other match module. What it may hold is `modules`', what it means `extensions`'.

    `known` is False for what was read over leniently: then `options` is one, whose values are the words as they stood.
    """

    module: str
    options: tuple[Option, ...] = ()
    known: bool = True


Match = (
    Comment | Source | Destination | InInterface | OutInterface | Protocol | DestinationPort | SourcePort | ConntrackState
    | Mark | AddressType | Statistic | Fragment | HeaderOption | Extension
)  # fmt: skip

# ---- targets: a rule without one only counts ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Jump:
    """`-j CHAIN`, or `-g CHAIN` with `goto`."""

    chain: str
    goto: bool = False


@dataclass(frozen=True, slots=True)
class Accept:
    """`-j ACCEPT`."""


@dataclass(frozen=True, slots=True)
class Drop:
    """`-j DROP`."""


@dataclass(frozen=True, slots=True)
class Return:
    """`-j RETURN`."""


@dataclass(frozen=True, slots=True)
class Reject:
    """`-j REJECT --reject-with TYPE` (iptables-extensions(8); `tcp-reset` for TCP only)."""

    reject_with: str = "icmp-port-unreachable"


@dataclass(frozen=True, slots=True)
class Spread:
    """What a translation may hold beside one address and port: the last ones of its range (port 0: no range of ports), `--random`,
    `--persistent`, and the port from which a shifted range counts (`:80-90/8080`; 0: not shifted).
    """

    last: SockAddr | None = None
    random: bool = False
    persistent: bool = False
    shifted_from: int = 0


@dataclass(frozen=True, slots=True)
class Dnat:
    """`-j DNAT --to-destination IP:PORT`; port 0 keeps the packet's, and an empty address its address."""

    to: SockAddr
    spread: Spread | None = None


@dataclass(frozen=True, slots=True)
class Snat:
    """`-j SNAT --to-source IP`; port 0 lets the kernel keep or choose it."""

    to: SockAddr
    random_fully: bool = False
    spread: Spread | None = None


@dataclass(frozen=True, slots=True)
class Masquerade:
    """`-j MASQUERADE [--to-ports FIRST-LAST] [--random] [--random-fully]`: SNAT to the outgoing device's address."""

    random_fully: bool = False
    ports: tuple[int, int] | None = None
    random: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """`-j REDIRECT [--to-ports FIRST-LAST] [--random]`: DNAT to the incoming device's address, or to 127.0.0.1 at OUTPUT."""

    ports: tuple[int, int] | None = None
    random: bool = False


@dataclass(frozen=True, slots=True)
class Netmap:
    """`-j NETMAP --to NETWORK`: the network part of the address changes, its host part stays."""

    network: Network


@dataclass(frozen=True, slots=True)
class SetMark:
    """`-j MARK --set-xmark VALUE/MASK`: mark = (mark & ~MASK) ^ VALUE. `spelling` is how kube-proxy writes it, for the restore form."""

    value: int
    mask: int
    spelling: str = "--set-xmark"


@dataclass(frozen=True, slots=True)
class TargetExtension:
    """`-j NAME OPTIONS`: any other target. What it may hold is `targets`', what it does `effects`'. `known` as in `Extension`."""

    name: str
    options: tuple[Option, ...] = ()
    known: bool = True


Target = Jump | Accept | Drop | Return | Reject | Dnat | Snat | Masquerade | Redirect | Netmap | SetMark | TargetExtension


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a chain. `step` is where `match` keeps its compiled form: rules outlive the rule sets they stand in."""

    matches: tuple[Match, ...]
    target: Target | None = None
    step: Step | None = field(default=None, init=False, repr=False, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A built-in chain has a policy, a user-defined one has None and returns at its end. Identity is what makes chains shareable.

    `program` is where `walk` keeps its compiled form, made when the first packet comes by.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    policy: Verdict | None = None
    program: Program | None = field(default=None, init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Table:
    """`filter`, `nat`, … with its chains by name. Jumps to chains that do not exist are refused by `RuleSet.check`."""

    name: str
    chains: Mapping[str, Chain]

    def loop(self) -> tuple[str, ...]:
        """The chains of a loop of jumps, in order; empty if there is none, as the kernel insists."""
        try:
            TopologicalSorter({chain.name: _jumps(chain) for chain in self.chains.values()}).prepare()
        except CycleError as found:
            return tuple(reversed(found.args[1][1:]))
        return ()


def _jumps(chain: Chain) -> list[str]:
    return [rule.target.chain for rule in chain.rules if isinstance(rule.target, Jump)]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All tables of one namespace and family; a table that is not there costs nothing and matches nothing."""

    tables: Mapping[str, Table] = field(default_factory=lambda: MappingProxyType({}))
    nft: NftTable | None = None  # beside them, as on a node whose kube-proxy uses nftables and whose network plugin does not

    def check(self) -> None:
        """Assert what `iptables-restore` insists on: every jump leads to a chain of the same table, none to a built-in or in a circle."""
        for table in self.tables.values():
            for chain in table.chains.values():
                for rule in chain.rules:
                    if isinstance(rule.target, Jump):
                        target = table.chains.get(rule.target.chain)
                        assert target is not None, f"{table.name}: {chain.name} jumps to {rule.target.chain}, which does not exist"
                        assert target.policy is None, f"{table.name}: {chain.name} jumps to the built-in {target.name}"
            loop = table.loop()
            assert not loop, f"{table.name}: {' jumps to '.join((*loop, loop[0]))}: a circle"


EMPTY = RuleSet()


class LateTables(Mapping[str, Table]):
    """Tables that are made when somebody first walks or prints one: most nodes of a big cluster never see a packet between two syncs.

    `looked_at` says whether they have been. Making them is the maker's business, and so is who may look at the same time.
    """

    def __init__(self, names: Iterable[str], make: Callable[[], Mapping[str, Table]]) -> None:
        self._names, self._make = tuple(names), make
        self._made: Mapping[str, Table] | None = None

    @property
    def looked_at(self) -> bool:
        return self._made is not None

    def __getitem__(self, name: str) -> Table:
        made = self._made
        if made is None:
            made = self._made = self._make()
        return made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
