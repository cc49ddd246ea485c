"""Chains whose rules are written when somebody first walks or prints them. Decides only that.

Most nodes never see a packet for most endpoints, and a Service with n of them has 3n rules on every node. Two threads that look at
once write the same twice, and either will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


class LateRules:
    """A mixin for frozen chains with slots: the heir has the slots `_write` and `_subject`, and leaves its slot `rules` empty."""

    __slots__ = ()
    _write: Callable[[Any], Iterable[Any]]
    _subject: object

    def __getattr__(self, name: str) -> tuple[Any, ...]:
        """Python asks here for a slot that holds nothing yet."""
        if name != "rules":
            raise AttributeError(name)
        rules = tuple(self._write(self._subject))
        object.__setattr__(self, "rules", rules)
        return rules
