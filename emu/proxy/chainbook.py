"""The chains of one table as a value that shares nearly all of itself with the one before it.

Decides how a table of a hundred thousand chains is kept so that one changed Service costs its own chains and no more: the service
ports' chains lie in shards by a hash of their names, a new book has new shards where something changed and the old ones
elsewhere. Must not know what a chain says. `Draft` is the only way to make the next book.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

C = TypeVar("C")
"""A chain, of iptables or nftables."""

C_co = TypeVar("C_co", covariant=True)


class Part(Protocol[C_co]):
    """What one service port adds."""

    @property
    def chains(self) -> Mapping[str, C_co]: ...


SHARDS = 1024  # a book of 120,000 chains has 117 in each: copying one costs about as much as copying the list of them


class ChainBook(Mapping[str, C]):
    """Chains by name: those every table has first, then the service ports' in their order."""

    __slots__ = ("_fixed", "_own", "_shards")

    def __init__(self, fixed: Mapping[str, C], own: tuple[Part[C], ...], shards: tuple[dict[str, C], ...]) -> None:
        self._fixed, self._own, self._shards = fixed, own, shards

    def __getitem__(self, name: str) -> C:
        found = self._fixed.get(name)
        return self._shards[hash(name) % SHARDS][name] if found is None else found

    def __iter__(self) -> Iterator[str]:
        yield from self._fixed
        for rules in self._own:
            yield from rules.chains

    def __len__(self) -> int:
        return len(self._fixed) + sum(map(len, self._shards))


class Draft(Generic[C]):
    """The service ports' chains under change. Shards that a book has are never touched again."""

    def __init__(self) -> None:
        self._shards: list[dict[str, C]] = [{}] * SHARDS
        self._ours: set[int] = set()  # shards that no book has yet

    def change(self, gone: Iterable[str], there: Mapping[str, C]) -> None:
        """Take chains away by name, then add or replace others."""
        for name in gone:
            if name not in there:
                del self._shard(name)[name]
        for name, chain in there.items():
            self._shard(name)[name] = chain

    def _shard(self, name: str) -> dict[str, C]:
        at = hash(name) % SHARDS
        if at not in self._ours:
            self._ours.add(at)
            self._shards[at] = self._shards[at].copy()
        return self._shards[at]

    def book(self, fixed: Mapping[str, C], own: Sequence[Part[C]]) -> ChainBook[C]:
        """The table as it stands. `own` are those whose chains it has, in order."""
        self._ours.clear()
        return ChainBook(fixed, tuple(own), tuple(self._shards))
