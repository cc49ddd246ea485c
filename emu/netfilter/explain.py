"""What a node's rules make of one packet, read from a dump: every end it may come to, and what would have to be known to say more.

The packet is taken through the real hooks once for each way in which chance and open questions may fall (`oracle`), so that there is no
second reading of the rules. Chance multiplies out; a question matters only if the ends differ by its answer. What is open then
is the answer "undetermined", with the rule that asks. Existing connections are not considered: the packet is a first one, unless
the caller says what conntrack takes it for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from emu.netfilter.conn import SEEN_REPLY, CtState, Status
from emu.netfilter.conntrack import Conntrack
from emu.netfilter.facts import Facts
from emu.netfilter.hooks import Surroundings, Verdict
from emu.netfilter.journey import Fate, Journey
from emu.netfilter.match import Step
from emu.netfilter.netfilter import Netfilter
from emu.netfilter.oracle import UNKNOWN_ADDRESS, Oracle, Question, RulePlace, Turn, UnknownDevice
from emu.netfilter.reader import Dump
from emu.netfilter.ruleset import Chain, Rule, Table
from emu.netfilter.skb import Skb
from emu.netfilter.walk import Search, Walk, compile_chain
from emu.wire.addr import Ip, SockAddr

MOST_WAYS = 4096
"""Ways tried before it is said that there are too many; a Service of a thousand endpoints has a thousand."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One packet. `sent` says that the node itself sends it; `iif`, `oif` and `physin` are "" where they are not known."""

    packet: bytes
    sent: bool = False
    iif: str = ""
    oif: str = ""
    physin: str = ""
    mark: int = 0
    state: CtState = CtState.NEW


@dataclass(frozen=True, slots=True)
class Visit:
    """A rule that matched, or (`index` None) a built-in chain's policy that decided. `rules` were evaluated since the last visit."""

    table: str
    chain: str
    index: int | None
    note: str | None
    rules: int


@dataclass(frozen=True, slots=True)
class End:
    """One end, with its probability among those that share its conditions, and one walk that leads there.

    `source` is None if the packet is masqueraded to an address that is not known; `device` is "lo" for the node itself, None where there
    is no route, "?" where it is not known. `conditions` are the answers that this end takes for granted.
    """

    verdict: Verdict
    destination: SockAddr
    source: Ip | None
    masqueraded: bool
    reject_with: str | None
    device: str | None
    probability: float
    walk: tuple[Visit, ...] = field(compare=False)
    rules: int = field(compare=False, default=0)
    conditions: tuple[tuple[Question, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """`open` is empty if the answer is determined: then the probabilities of `ends` sum to 1."""

    ends: tuple[End, ...]
    open: tuple[Question, ...]
    ways: int
    complete: bool = True


def explain(dump: Dump, asked: Asked, facts: Facts, assumed: Mapping[str, bool] | None = None) -> Explanation:
    """What becomes of the packet. `assumed` answers questions: by a rule's line number, or by the name of what is asked."""
    index = _Lines(dump)
    ways: list[tuple[tuple[Turn, ...], End]] = []
    for turns, end in _ways(dump, asked, facts, assumed or {}, index):
        ways.append((turns, end))
        if len(ways) >= MOST_WAYS:
            break
    ends = _common(_tree(ways))
    questions = dict.fromkeys(question for end in ends.values() for question, _ in end.conditions)
    ordered = sorted(ends.values(), key=lambda end: -end.probability)
    return Explanation(tuple(ordered), tuple(questions), len(ways), len(ways) < MOST_WAYS)


# ---- the ways ------------------------------------------------------------------------------------------------------------------------


def _ways(dump: Dump, asked: Asked, facts: Facts, assumed: Mapping[str, bool], lines: _Lines) -> Iterator[tuple[tuple[Turn, ...], End]]:
    """Every way once, depth first."""
    pending: list[tuple[bool, ...]] = [()]
    while pending:
        script = pending.pop()
        oracle = Oracle(facts, script, assumed, lines)
        end = _end(dump, asked, oracle)
        yield tuple(oracle.turns), end
        taken = [turn.holds for turn in oracle.turns]
        pending.extend((*taken[:at], not taken[at]) for at in range(len(script), len(taken)) if oracle.turns[at].forks)


def _end(dump: Dump, asked: Asked, oracle: Oracle) -> End:
    skb = Skb.parse(asked.packet)
    assert isinstance(skb, Skb), f"a first packet must be whole: {skb}"
    if not asked.sent:
        skb.iif = asked.iif or UnknownDevice.of(oracle, "in")
        skb.physin = asked.physin or UnknownDevice.of(oracle, "physdev-in")
    skb.mark, skb.trace = asked.mark, 1
    visits: list[Visit] = []
    netfilter = _Telling(oracle, asked.state, visits)
    netfilter.swap(dump.ruleset)
    journey = Journey(netfilter, partial(_is_local, oracle), lambda packet: _device(packet, asked, oracle))
    fate = journey.take(skb)
    return _told(fate, skb, visits)


def _is_local(oracle: Oracle, ip: Ip) -> bool:
    """The routing decision's own question."""
    oracle.standing = None
    return oracle.is_local(ip)


def _device(skb: Skb, asked: Asked, oracle: Oracle) -> str | None:
    """Where the packet leaves: as told, by the routes if they are known, else by a device that is decided when a rule asks for it."""
    oracle.standing = None
    if asked.oif:
        return asked.oif
    if oracle.facts.routes is None:
        return UnknownDevice.of(oracle, "out")
    route = oracle.facts.route(skb.dst)
    if route is None or not route.devices:
        return None
    return route.devices[0] if len(route.devices) == 1 else UnknownDevice.of(oracle, "out")


def _told(fate: Fate, skb: Skb, visits: list[Visit]) -> End:
    unknown = fate.source == UNKNOWN_ADDRESS[len(fate.source)] and fate.masqueraded
    device = "?" if isinstance(fate.device, UnknownDevice) else fate.device
    source = None if unknown else fate.source
    told = tuple(visits)
    return End(fate.verdict, fate.destination, source, fate.masqueraded, fate.reject_with, device, 1.0, told, skb.rules)


class _Telling(Netfilter):
    """Netfilter whose walks are remembered, and whose connections are what the caller says."""

    def __init__(self, oracle: Oracle, state: CtState, visits: list[Visit]) -> None:
        self.visits = visits

        class Told(_ToldWalk):
            told = visits

        super().__init__(oracle, _As(state), Told)


class _As(Conntrack):
    """Conntrack that takes the first packet for what it is told to be."""

    def __init__(self, state: CtState) -> None:
        super().__init__()
        self._as = state

    def ingress(self, skb: Skb, now: float) -> bool:
        passed = super().ingress(skb, now)
        if self._as is CtState.NEW or skb.ct_state is CtState.UNTRACKED or (skb.ct is not None and skb.ct.confirmed):
            return passed
        skb.ct_state = self._as
        if self._as in (CtState.INVALID, CtState.UNTRACKED):
            skb.ct = None
        elif self._as is CtState.ESTABLISHED and skb.ct is not None:  # whatever NAT decided, it decided for an earlier packet
            skb.ct.status |= SEEN_REPLY | Status.SRC_NAT_DONE | Status.DST_NAT_DONE
        return passed


class _ToldWalk(Walk):
    """A walk that remembers each rule that matched, and tells the oracle which rule is being asked."""

    __slots__ = ("_starts", "_within")
    told: list[Visit]

    def __init__(self, table: Table, skb: Skb, around: Surroundings) -> None:
        super().__init__(table, skb, around)
        self._starts: dict[int, int] = {}
        self._within = ""

    def chain(self, chain: Chain) -> object:  # type: ignore[override]
        start = 0
        for _, _, steps, rules in chain.program or compile_chain(chain):
            self._starts[id(steps)] = start
            start += len(rules)
        outside, self._within = self._within, chain.name
        outcome = super().chain(chain)
        self._within = outside
        return outcome

    def find(self, search: Search | None, key: bytes, steps: tuple[Step, ...], at: int) -> int:
        oracle = self.around
        assert isinstance(oracle, Oracle)
        start, end = self._starts[id(steps)], len(steps)
        while at < end:
            if search is not None:
                try:
                    at = search(key, at)
                except ValueError:
                    return end
            elif steps[at].key != self.keys[steps[at].kind]:
                at += 1
                continue
            oracle.standing = self.table.name, self._within, start + at
            if all(test(self.skb, oracle) for test in steps[at].tests):
                return at
            at += 1
        return end

    def report(self, chain: Chain, rule: Rule | None, note: str | None = None) -> None:
        oracle = self.around
        assert isinstance(oracle, Oracle)
        index = oracle.standing[2] if rule is not None and oracle.standing is not None else None
        self.told.append(Visit(self.table.name, chain.name, index, note, self.skb.rules - self.reported))
        self.reported = self.skb.rules


class _Lines:
    """The line of a rule by its place."""

    def __init__(self, dump: Dump) -> None:
        self._places = dump.places

    def __call__(self, place: RulePlace) -> int:
        table, chain, index = place
        return self._places[table, chain].lines[index]


# ---- what the ways have in common ----------------------------------------------------------------------------------------------------

Conditions = tuple[tuple[Question, bool], ...]
Outcome = tuple[Conditions, Verdict, SockAddr, Ip | None, bool, str | None]
Ends = dict[Outcome, End]


class _Fork:
    """All ways that agree so far: where they fork next, by the turn's two answers, or the one end that they come to."""

    __slots__ = ("end", "sides")

    def __init__(self) -> None:
        self.sides: dict[bool, tuple[Turn, _Fork]] = {}
        self.end: End | None = None


def _tree(ways: list[tuple[tuple[Turn, ...], End]]) -> _Fork:
    root = _Fork()
    for turns, end in ways:
        fork = root
        for turn in turns:
            side = fork.sides.get(turn.holds)
            if side is None:
                side = fork.sides[turn.holds] = (turn, _Fork())
            fork = side[1]
        fork.end = end
    return root


def _common(root: _Fork) -> Ends:
    """The ends of all ways, those that are alike as one. From the leaves to the root, without recursion: a Service may have a thousand
    endpoints, one fork each.
    """
    order, waiting = [], [root]
    while waiting:
        fork = waiting.pop()
        order.append(fork)
        waiting.extend(below for _, below in fork.sides.values())
    ends: dict[_Fork, Ends] = {}
    for fork in reversed(order):
        if fork.end is not None:
            ends[fork] = {_outcome(fork.end): fork.end}
            continue
        sides = [(turn, ends.pop(below)) for turn, below in fork.sides.values()]
        ends[fork] = _by_chance(sides) if sides[0][0].question is None else _by_answer(sides)
    return ends[root]


def _outcome(end: End) -> Outcome:
    """What must be alike for two ends to be one: not the device, which no verdict is about."""
    return end.conditions, end.verdict, end.destination, end.source, end.masqueraded, end.reject_with


def _by_chance(sides: list[tuple[Turn, Ends]]) -> Ends:
    mixed: Ends = {}
    for turn, ends in sides:
        for outcome, end in ends.items():
            share = turn.probability * end.probability
            known = mixed.get(outcome)
            mixed[outcome] = replace(end, probability=share) if known is None else _joined(known, end, known.probability + share)
    return mixed


def _by_answer(sides: list[tuple[Turn, Ends]]) -> Ends:
    """A question whose answer changes nothing is forgotten; otherwise each end has it among its conditions."""
    (_, first), *others = sides
    if not others:
        return first
    ((_, second),) = others
    if first.keys() == second.keys() and all(abs(end.probability - second[outcome].probability) < 1e-9 for outcome, end in first.items()):
        return {outcome: _joined(end, second[outcome], end.probability) for outcome, end in first.items()}
    parted: Ends = {}
    for turn, ends in sides:
        assert turn.question is not None, "only questions have answers"
        for end in ends.values():
            conditioned = replace(end, conditions=((turn.question, turn.holds), *end.conditions))
            parted[_outcome(conditioned)] = conditioned
    return parted


def _joined(one: End, other: End, probability: float) -> End:
    """Two ends that are alike, with the walk of the first."""
    device = one.device if one.device == other.device else "?"
    return replace(one, probability=probability, device=device, rules=max(one.rules, other.rules))
