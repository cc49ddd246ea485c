"""The elements of a verdict map under change, where two service ports may want one key (two Services with one external IP and port).

Decides who has the key: the first by name, as in iptables mode, where his rule comes first. When he goes, the next one has it;
so a map is the same whatever came before. Must not know what a verdict means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from emu.proxy.names import ServicePortName

E = TypeVar("E")
"""What a key leads to."""


class Elements(Generic[E]):
    """One map's elements; `now` is what is in force."""

    __slots__ = ("_owners", "_rivals", "now")

    def __init__(self) -> None:
        self.now: dict[bytes, E] = {}
        self._owners: dict[bytes, ServicePortName] = {}
        self._rivals: dict[bytes, dict[ServicePortName, E]] = {}  # all who want a key, where there are several

    def change(self, name: ServicePortName, before: Mapping[bytes, E], after: Mapping[bytes, E]) -> None:
        """A service port wanted `before`, and wants `after`."""
        for key in before:
            if key not in after:
                self._withdraw(key, name)
        for key, element in after.items():
            self._claim(key, name, element)

    def _claim(self, key: bytes, name: ServicePortName, element: E) -> None:
        owner = self._owners.get(key, name)
        rivals = self._rivals.get(key)
        if rivals is None and owner == name:
            self.now[key], self._owners[key] = element, name
            return
        if rivals is None:
            rivals = self._rivals[key] = {owner: self.now[key]}
        rivals[name] = element
        self._settle(key, rivals)

    def _withdraw(self, key: bytes, name: ServicePortName) -> None:
        rivals = self._rivals.get(key)
        if rivals is None:
            del self.now[key], self._owners[key]
            return
        del rivals[name]
        self._settle(key, rivals)
        if len(rivals) == 1:
            del self._rivals[key]

    def _settle(self, key: bytes, rivals: Mapping[ServicePortName, E]) -> None:
        self._owners[key] = first = min(rivals)
        self.now[key] = rivals[first]
