"""The kernel agrees: in worlds drawn at random, it does with every first packet what we say that our rules do.

A comparison is one question in one world and mode: a packet from somebody to an address and port by some protocol. The kernel has the
rules as we print them; compared are the outcome, the place where the packet was last seen, its destination there and the source that a
backend would see. Where chance picks a backend, the question is asked until the kernel has picked each of ours. Where rules remember
clients, our node learns from each answer of the kernel's, and the next must fit.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from emu.netfilter.nft_text import ruleset_text
from emu.netfilter.ruleset import RuleSet
from emu.netfilter.text import restore_text
from tests.kit.crossroads import SOURCES, End, Question
from tests.kit.emulated_node import EmulatedNode
from tests.kit.kernel_node import Attempt, KernelNode, kernel_node
from tests.kit.netns import missing
from tests.kit.worlds import World, draw, questions, simpler

pytestmark = pytest.mark.kernel


class Judge(NamedTuple):
    """A way to have the kernel take rules: of which mode, printed how, loaded by which command."""

    mode: str
    text: Callable[[RuleSet], str]
    command: tuple[str, ...]


JUDGES = {
    "iptables-nft": Judge("iptables", restore_text, ("iptables-nft-restore",)),
    "iptables-legacy": Judge("iptables", restore_text, ("iptables-legacy-restore",)),
    "nftables": Judge("nftables", lambda rules: "flush ruleset\n" + ruleset_text(rules), ("nft", "-f", "-")),
}
AT_ONCE, MOST = 4, 160  # tries of one question in one batch, and in all
WORLDS, QUESTIONS, SEED = range(32), 40, 5


@dataclass
class Difference:
    """One question that the kernel answers otherwise."""

    question: Question
    ours: dict[End, float]
    kernel: list[End]
    why: str

    def __str__(self) -> str:
        ours = "\n".join(f"    {probability:.3f} {_told(end)}" for end, probability in self.ours.items())
        kernel = "\n".join(f"    {count:5d} {_told(end)}" for end, count in Counter(self.kernel).items())
        return f"{self.question}: {self.why}\n  ours:\n{ours}\n  the kernel's:\n{kernel}"


def _told(end: End) -> str:
    return f"{end.outcome} {end.place} {end.to}" + (f", seen from {end.seen_from}" if end.seen_from else "")


ITSELF = "its own address"


def _plain(end: End, address: str) -> End:
    """The end as told for any of a source's addresses."""
    return end._replace(seen_from=ITSELF) if end.seen_from == address else end


class Comparison:
    """A question under way: what may happen by our account, and what has happened."""

    def __init__(self, node: EmulatedNode, question: Question, *, sticky: bool) -> None:
        self.node, self.question, self.sticky = node, question, sticky
        address = SOURCES[question.source].addresses[0]
        self.ours = {_plain(end, address): probability for end, probability in node.ends(question, address).items()}
        self.kernel: list[End] = []
        self.why = ""

    @property
    def pinned(self) -> bool:
        """Do rules remember the only address that can ask?"""
        return self.sticky and len(SOURCES[self.question.source].addresses) == 1

    @property
    def wanted(self) -> int:
        """Tries still to be made in the next batch."""
        if self.kernel and (self.why or self.pinned or len(self.kernel) >= MOST or self.ours.keys() <= set(self.kernel)):
            return 0
        return AT_ONCE if len(self.ours) > 1 else 1

    def attempts(self) -> list[Attempt]:
        """Where rules remember clients, each is another one, who asks twice."""
        addresses = SOURCES[self.question.source].addresses
        if not self.sticky:
            return [Attempt(self.question, addresses[0])] * self.wanted
        first = len(self.kernel) // 2
        return [Attempt(self.question, addresses[(first + n) % len(addresses)]) for n in range(self.wanted) for _ in range(2)]

    def take(self, attempt: Attempt, end: End) -> None:
        """The kernel's answer to one try."""
        told = _plain(end, attempt.address)
        self.kernel.append(told)
        if self.why:
            return
        if not self.sticky:
            self.why = "" if told in self.ours else f"try {len(self.kernel)} ends as it may not"
        elif end in (possible := self.node.ends(*attempt)):
            self.node.learn(*attempt, end)
        else:
            expected = " or ".join(map(_told, possible))
            self.why = f"try {len(self.kernel)}, from {attempt.address}, ends {_told(end)}; after all before, it may only {expected}"

    def difference(self) -> Difference | None:
        never = [end for end in self.ours if end not in self.kernel]
        if not self.why and never and not self.pinned:
            self.why = f"never seen in {len(self.kernel)} tries: {', '.join(map(_told, never))}"
        return Difference(self.question, self.ours, self.kernel, self.why) if self.why else None


def differences(kernel: KernelNode, judge: Judge, world: World, asked: list[Question]) -> list[Difference]:
    """Load a world and ask."""
    rules = world.rules(judge.mode)
    kernel.load(judge.text(rules))
    node = EmulatedNode(rules)
    under_way = [Comparison(node, question, sticky=world.sticky(question)) for question in asked]
    # Those from the wires and the node's own go apart, since the kernel's order among them would not be ours.
    for ours in (False, True):
        group = [comparison for comparison in under_way if (SOURCES[comparison.question.source].place == "") is ours]
        while tries := [(comparison, attempt) for comparison in group for attempt in comparison.attempts()]:
            for (comparison, attempt), end in zip(tries, kernel.send([attempt for _, attempt in tries]), strict=True):
                comparison.take(attempt, end)
    return [found for comparison in under_way if (found := comparison.difference()) is not None]


def smallest(kernel: KernelNode, judge: Judge, world: World, question: Question) -> tuple[World, Difference]:
    """The poorest world in which the question is still answered otherwise."""
    (found, *_) = differences(kernel, judge, world, [question]) or [Difference(question, {}, [], "does not come back by itself")]
    while True:
        for poorer in simpler(world):
            with contextlib.suppress(AssertionError):
                if again := differences(kernel, judge, poorer, [question]):
                    world, found = poorer, again[0]
                    break
        else:
            return world, found


@pytest.fixture(scope="module")
def kernels() -> Iterator[dict[str, KernelNode]]:
    """A node for each of the judges that this machine has, for all worlds."""
    absent = {name: missing(judge.command[0], "bridge") for name, judge in JUDGES.items()}
    if all(absent.values()):
        pytest.skip(next(iter(absent.values())))
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(kernel_node(name[-6:], judge.command)) for name, judge in JUDGES.items() if not absent[name]}


def compare(kernels: dict[str, KernelNode], worlds: range, count: int, seed: int) -> Counter[str]:
    """Ask `count` questions in each world and mode; AssertionError with the smallest world that differs. How many by whom."""
    told: Counter[str] = Counter()
    for number in worlds:
        world = draw(number, seed)
        asked = questions(world, count, seed)
        iptables = [name for name in kernels if name.startswith("iptables")]
        for name in (*([iptables[number % len(iptables)]] if iptables else []), *(name for name in kernels if name == "nftables")):
            found = differences(kernels[name], JUDGES[name], world, asked)
            if found:
                least, difference = smallest(kernels[name], JUDGES[name], world, found[0].question)
                raise AssertionError(
                    f"world {number} of seed {seed}, {name}: {len(found)} of {len(asked)} differ\n{difference}\n\n"
                    f"the smallest world:\n{least}\n{JUDGES[name].text(least.rules(JUDGES[name].mode))}"
                )
            told[name] += len(asked)
    return told


def test_the_kernel_does_with_a_thousand_packets_what_we_say(kernels, record_property):
    """Seeded, so that the same is asked each time. Afterwards, that this was worth asking."""
    told = compare(kernels, WORLDS, QUESTIONS, SEED)
    record_property("comparisons", told.total())
    assert told.total() >= 1000 or len(kernels) < len(JUDGES)


def test_what_is_asked_is_all_that_may_be_asked():
    """Every source meets every outcome, and every size of a set of backends up to four is there, in both modes."""
    seen: Counter[tuple[str, ...]] = Counter()
    for number in WORLDS:
        world = draw(number, SEED)
        for mode in ("iptables", "nftables"):
            node = EmulatedNode(world.rules(mode))
            for question in questions(world, QUESTIONS, SEED):
                ends = node.ends(question, SOURCES[question.source].addresses[0])
                seen.update({("source", question.source), ("protocol", mode, question.protocol), ("backends", mode, str(len(ends)))})
                translated = any(end.to not in ("", f"{question.to}:{question.port}") for end in ends if end.outcome != "rejected")
                seen.update(("outcome", mode, end.outcome, "translated" if translated else "as it was") for end in ends)
                asks_as = any(end.seen_from != SOURCES[question.source].addresses[0] for end in ends if end.seen_from)
                seen.update([("seen", mode, "masqueraded" if asks_as else "as itself"), ("remembered", mode, str(world.sticky(question)))])
    kinds = Counter(kind for kind, *_ in seen)
    assert kinds == {"source": len(SOURCES), "protocol": 14, "backends": 8, "outcome": 12, "seen": 4, "remembered": 4}, sorted(seen)


PLANTED = {
    "a backend that is not there": ("iptables", r"(-j DNAT --to-destination 10\.244\.\d\.\d:)\d+", r"\g<1>9"),
    "nobody is masqueraded": ("iptables", r".*-j MASQUERADE.*\n", ""),
    "all who are refused are dropped": ("iptables", r"-j REJECT.*", "-j DROP"),
    "the first backend takes all": ("iptables", r"-m statistic \S+ \S+ --probability 0\.5\d*", ""),
    "node ports answer everywhere but here": (
        "iptables",
        r"-m addrtype --dst-type LOCAL (.*-j KUBE-NODEPORTS)",
        r"-m addrtype ! --dst-type LOCAL \1",
    ),
    "a client is forgotten at once": ("iptables", r"-m recent --name \S+ --set.*? -m", "-m"),
    "ranges guard nobody": ("nftables", r"(?m)^.*saddr != .* drop$", ""),
    "one Service less": ("nftables", r"elements = \{ 10\.96\.0\.1\d \. \w+ \. \d+ : goto service-.*?,", "elements = {"),
    "sources are the node's other address": ("nftables", "masquerade fully-random", "snat to 192.168.1.2"),
    "the mark is lost": ("nftables", r"meta mark set meta mark \|.*", "continue"),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_fault_is_seen_and_brought_down_to_one_service(kernels, plant):
    """Who never finds anything may be blind: here the kernel is given other rules than ours."""
    mode, pattern, by = PLANTED[plant]
    name, judge = next((name, judge) for name, judge in JUDGES.items() if judge.mode == mode and name in kernels)
    faulty = judge._replace(text=lambda rules: re.sub(pattern, by, judge.text(rules)))
    for number in WORLDS:
        world = draw(number, SEED)
        if found := differences(kernels[name], faulty, world, questions(world, QUESTIONS, SEED)):
            least, difference = smallest(kernels[name], faulty, world, found[0].question)
            assert len(least.services) == 1 and difference.why, f"{difference}\n{least}"
            return
    raise AssertionError("not seen in any world")


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_and_with_ten_thousand(kernels, record_property):
    told = compare(kernels, range(1000, 1400), QUESTIONS, SEED)
    record_property("comparisons", told.total())
    assert told.total() >= 10_000 or len(kernels) < len(JUDGES)
