"""A node's copy of one stream. Pure; decides what is old, what is next, and what is a gap.

Subscribe first, then ask for a snapshot, which states its sequence; updates up to it are old, the next one continues it, and any
other is a gap: what is here can no longer be trusted to become right, so a snapshot is asked for again. Meanwhile the old content
stays (a node keeps forwarding), and updates that arrive before the snapshot are kept for it. A snapshot changes only the keys
whose values differ, so a resync disturbs nothing that was right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from emu.bus.messages import SET, Message, Update, unpack

KEPT = 1000  # updates kept while a snapshot is on its way; more of them and the snapshot is asked for once more


class Applied(NamedTuple):
    """What an update or a snapshot did: the keys whose values changed, and whether a snapshot must be asked for now."""

    changed: list[str]
    resync: bool = False


class Mirror:
    """One stream's values, packed as they came. `sequence` is the last one applied, -1 before the first snapshot."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.sequence = -1
        self.revision = 0
        self._values: dict[str, bytes] = {}
        self._early: list[Update] = []
        self._waiting = True  # for a snapshot

    @property
    def synced(self) -> bool:
        """False while a snapshot is awaited; the content may be old then."""
        return not self._waiting

    def apply(self, update: Update) -> Applied:
        """Take in an update: nothing changes for an old one, or one kept for later; a gap asks for a resync."""
        if self._waiting:
            full = len(self._early) >= KEPT
            if full:
                self._early.clear()
            self._early.append(update)
            return Applied([], resync=full)
        if update.sequence <= self.sequence:
            return Applied([])
        if update.sequence != self.sequence + 1:
            self.lose()
            self._early.append(update)
            return Applied([], resync=True)
        self.sequence, self.revision = update.sequence, update.revision
        return Applied(self._change(update.changes))

    def _change(self, changes: Iterable[tuple[str, str, bytes]]) -> list[str]:
        changed = []
        for op, key, value in changes:
            if op == SET:
                self._values[key] = value
            elif self._values.pop(key, None) is None:
                continue
            changed.append(key)
        return changed

    def apply_snapshot(self, message: Message) -> Applied:
        """Take in a snapshot, then the updates kept for it; a gap among those asks for another."""
        values = dict(message["items"])
        changed = dict.fromkeys(key for key, value in values.items() if self._values.get(key) != value)
        changed.update(dict.fromkeys(key for key in self._values if key not in values))
        self._values, self.sequence, self.revision = values, message["sequence"], message["revision"]
        self._waiting, early, self._early = False, self._early, []
        resync = False
        for update in early:
            applied = self.apply(update)
            changed.update(dict.fromkeys(applied.changed))
            resync = resync or applied.resync
        return Applied(list(changed), resync)

    def lose(self) -> None:
        """Trust this content no longer; keep it until a snapshot comes."""
        self._waiting = True
        self._early.clear()

    def get(self, key: str) -> dict[str, Any] | None:
        """The value under a key, decoded anew at each call."""
        packed = self._values.get(key)
        value: dict[str, Any] | None = None if packed is None else unpack(packed)
        return value

    def late(self, key: str) -> Callable[[], Any] | None:
        """The value that is under a key now, for whoever may want it decoded later; None if there is none."""
        packed = self._values.get(key)
        return None if packed is None else partial(unpack, packed)

    def packed(self, key: str) -> bytes | None:
        """The value under a key as it came."""
        return self._values.get(key)

    def items(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All keys and values, decoded one at a time."""
        return ((key, unpack(packed)) for key, packed in list(self._values.items()))

    def keys(self) -> list[str]:
        return list(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values
