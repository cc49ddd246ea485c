"""Trouble on links: the conditions a link may have, how faults name links, and which fault decides where several do.

    link       A->B, or A<->B for both directions; A and B are a node's name, zone/Z (label topology.kubernetes.io/zone), or *
    condition  delay, jitter, loss, rate, duplicate, reorder, cut: tc-netem's words and meanings (see `emu.overlay.links`)
    partition  groups of nodes, zones or *; every link between two of them is cut, both ways

**One rule decides**, field by field, as a cascade: of all faults whose link is the packet's, each condition is taken from the most
specific one that sets it (two names before a name and a zone, before two zones, before *), of equally specific ones from the
latest; the links of the cluster file stand below all faults. So `*->*` with a loss and `a->b` with a delay give a->b both, and
`cut: false` on a->b opens what `*->*` cuts. Partitions are no conditions and cannot be overruled: a link between two groups is cut
as long as the fault is there. A node is in the group that names it, else in the one that names its zone, else in the one that has *;
a node in no group keeps its links to everybody.

Values only. One parser for the cluster file's `links`, a Scenario's `fault` step and the API; docs: SCENARIO.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from emu.errors import ConfigError
from emu.model.quantities import duration, nearest, percentage, rate

ZONE = "zone/"
EVERY = "*"
DEFAULT = "default"  # the key for every link in the mapping of a cluster file
LONGEST_DELAY = 60.0  # seconds; a packet that takes longer has outlived every timer of the other end


def _flag(value: Any, where: str, source: str = "") -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"must be true or false, not {value!r}", source=source, where=where)
    return value


def _delay(value: Any, where: str, source: str = "") -> float:
    seconds = duration(value, where, source)
    if seconds > LONGEST_DELAY:
        raise ConfigError(f"{value!r} is longer than {LONGEST_DELAY:g}s, the most a link holds a packet", source=source, where=where)
    return seconds


READERS = {
    "delay": _delay, "jitter": _delay, "loss": percentage, "rate": rate, "duplicate": percentage, "reorder": percentage, "cut": _flag,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conditions:
    """What one direction of a link does to packets. Times in seconds, chances 0 to 1, `rate` in bits a second (0: no limit)."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    cut: bool = False

    @property
    def fair(self) -> bool:
        """Nothing is wrong."""
        return self == FAIR


FAIR = Conditions()


class Place(NamedTuple):
    """A node as faults name it; no zone is ""."""

    name: str
    zone: str = ""


def _closeness(word: str, place: Place) -> int:
    """How closely a word names a node: 2 by its name, 1 by its zone, 0 as *; -1 not at all."""
    if word == EVERY:
        return 0
    if word.startswith(ZONE):
        return 1 if place.zone and word == ZONE + place.zone else -1
    return 2 if word == place.name else -1


class Link(NamedTuple):
    """A->B, or A<->B: `both`."""

    source: str
    target: str
    both: bool = False

    @classmethod
    def parse(cls, text: Any, where: str = "link", source: str = "") -> Link:
        """From the text; ConfigError for anything else."""
        if isinstance(text, str):
            for arrow in ("<->", "->"):
                left, found, right = (part.strip() for part in text.partition(arrow))
                if found and _is_word(left) and _is_word(right):
                    return cls(left, right, arrow == "<->")
        wanted = "A->B or A<->B, where A and B are a node's name, zone/ZONE or *"
        raise ConfigError(f"{text!r} is not a link: {wanted}", source=source, where=where)

    def __str__(self) -> str:
        return f"{self.source}{'<->' if self.both else '->'}{self.target}"

    def specificity(self, a: Place, b: Place) -> int:
        """How specifically this names the direction a to b, 0 to 4; -1: not at all."""
        ways = ((self.source, self.target), (self.target, self.source))[: 2 if self.both else 1]
        found = [(_closeness(left, a), _closeness(right, b)) for left, right in ways]
        return max((one + other for one, other in found if one >= 0 and other >= 0), default=-1)


def _is_word(text: str) -> bool:
    return bool(text) and text != ZONE and not any(letter in text for letter in " <>,|")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault on links: either `link` and the conditions it sets, or the `groups` of a partition.

    `order` counts faults as they were made; what the cluster file says has order 0 and no name.
    """

    name: str
    order: int
    link: Link | None = None
    sets: Mapping[str, Any] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()

    def concerns(self, a: Place) -> bool:
        """May this do anything to what node a sends?"""
        if self.link is None:
            return self._group(a) is not None
        return any(_closeness(word, a) >= 0 for word in (self.link.source, self.link.target)[: 2 if self.link.both else 1])

    def parts(self, a: Place, b: Place) -> bool:
        """Does this partition cut the link between the two?"""
        one, other = self._group(a), self._group(b)
        return one is not None and other is not None and one != other

    def _group(self, place: Place) -> int | None:
        found = [(_closeness(word, place), -number) for number, group in enumerate(self.groups) for word in group]
        closest = max(found, default=(-1, 0))
        return -closest[1] if closest[0] >= 0 else None


class Trouble(NamedTuple):
    """The conditions of one direction of a link, and the name of the fault that set each."""

    conditions: Conditions
    blame: Mapping[str, str]


def between(faults: Iterable[Fault], a: Place, b: Place) -> Trouble:
    """What becomes of packets from a to b, by the rule at the top."""
    found: list[tuple[bool, int, int, Fault]] = []
    partitions: list[Fault] = []
    for fault in faults:
        if fault.link is None:
            if fault.parts(a, b):
                partitions.append(fault)
        elif (specificity := fault.link.specificity(a, b)) >= 0:
            found.append((fault.order > 0, specificity, fault.order, fault))
    values: dict[str, Any] = {}
    blame: dict[str, str] = {}
    for *_, fault in sorted(found, key=lambda entry: entry[:3]):
        values.update(fault.sets)
        blame.update(dict.fromkeys(fault.sets, fault.name))
    if partitions:
        values["cut"], blame["cut"] = True, max(partitions, key=lambda fault: fault.order).name
    return Trouble(Conditions(**values), blame)


# ---- reading -----------------------------------------------------------------------------------------------------------------------

CONDITIONS = tuple(condition.name for condition in fields(Conditions))


def conditions(given: Any, where: str = "", source: str = "") -> dict[str, Any]:
    """The conditions that a mapping sets, as `Conditions` has them; ConfigError names the path. No condition at all is an error."""
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"must say at least one of {', '.join(CONDITIONS)}", source=source, where=where)
    made: dict[str, Any] = {}
    for key, value in given.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in READERS:
            raise ConfigError(f"unknown key; did you mean {nearest(str(key), CONDITIONS)}?", source=source, where=path)
        made[key] = READERS[key](value, path, source)
    return made


def read_fault(given: Any, name: str = "", order: int = 1, *, where: str = "", source: str = "") -> Fault:
    """A fault as a Scenario's step and the API have it: `{link: A->B, delay: …}` or `{partition: [[A, …], [B, …]]}`."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"a fault is a mapping with link or partition, not {given!r}", source=source, where=where)
    if ("link" in given) == ("partition" in given):
        raise ConfigError("a fault on links has either link (with its conditions) or partition", source=source, where=where)
    prefix = f"{where}." if where else ""
    rest = {key: value for key, value in given.items() if key not in ("link", "partition")}
    if "link" in given:
        link = Link.parse(given["link"], f"{prefix}link", source)
        return Fault(name, order, link, conditions(rest, where, source))
    if rest:
        raise ConfigError("a partition has no further keys", source=source, where=prefix + str(next(iter(rest))))
    return Fault(name, order, groups=_groups(given["partition"], f"{prefix}partition", source))


def _groups(given: Any, where: str, source: str) -> tuple[tuple[str, ...], ...]:
    if not isinstance(given, list | tuple) or len(given) < 2 or not all(isinstance(group, list | tuple) and group for group in given):
        raise ConfigError("must be a list of two or more groups, such as [[node-1, zone/a], [node-2]]", source=source, where=where)
    seen: set[str] = set()
    for number, group in enumerate(given):
        for index, word in enumerate(group):
            path = f"{where}[{number}][{index}]"
            if not isinstance(word, str) or not _is_word(word):
                raise ConfigError(f"{word!r} is not a node's name, zone/ZONE or *", source=source, where=path)
            if word in seen:
                raise ConfigError(f"{word} is named twice", source=source, where=path)
            seen.add(word)
    return tuple(tuple(group) for group in given)


def read_links(given: Any, where: str = "links", source: str = "") -> list[Fault]:
    """The `links` of a cluster file, `{default: {delay: 1ms}, node-1->node-2: {…}}`, as faults below all others."""
    if not isinstance(given, Mapping):
        raise ConfigError("must be a mapping of links (default, A->B) to conditions", source=source, where=where)
    made = []
    for key, value in given.items():
        path = f"{where}.{key}"
        link = Link(EVERY, EVERY) if key == DEFAULT else Link.parse(key, path, source)
        made.append(Fault("", 0, link, conditions(value, path, source)))
    return made


def words(fault: Fault) -> list[tuple[str, str]]:
    """(path, word) of everything by which a fault names nodes."""
    if fault.link is not None:
        return [("link", fault.link.source), ("link", fault.link.target)]
    return [(f"partition[{number}][{index}]", word) for number, group in enumerate(fault.groups) for index, word in enumerate(group)]


def check_words(fault: Fault, places: Sequence[Place], *, where: str = "", source: str = "") -> None:
    """ConfigError if the fault names a node or a zone that is not there: it would do nothing, which nobody means. `where` is its path."""
    names, zones = {place.name for place in places}, {ZONE + place.zone for place in places if place.zone}
    for path, word in words(fault):
        if word == EVERY or word in names or word in zones:
            continue
        known = zones if word.startswith(ZONE) else names
        what = f"no node has the zone {word.removeprefix(ZONE)!r}" if word.startswith(ZONE) else f"there is no node {word!r}"
        hint = f"; did you mean {nearest(word, known)}?" if known else ""
        raise ConfigError(what + hint, source=source, where=where or path)
