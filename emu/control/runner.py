"""Who is asked, and when. Turns store changes into keys of each controller's, and runs them one at a time.

Controllers run in the thread of whoever calls `run` (the controller process's event loop), so none ever sees another's half-done
work. A reconcile that raises is tried again with backoff and told to `on_error`; one bad object must not stop the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from emu.control.queue import WorkQueue
from emu.errors import ApiError
from emu.store.store import Change, Store


class Controller(Protocol):
    """One control loop."""

    name: str

    def affected(self, change: Change) -> Iterable[str]:
        """The keys that a change makes worth a look."""

    def reconcile(self, key: str, now: float) -> float | None:
        """Make what is, what should be; a time (of `now`'s clock) at which to look again even if nothing changes, or None."""


Failure = Callable[[str, str, Exception], None]


def _raise(controller: str, key: str, error: Exception) -> None:
    raise error


class Runner:
    """Runs controllers over a store. `on_error(controller, key, error)` hears of what goes wrong for other reasons than a conflict."""

    def __init__(self, store: Store, controllers: Iterable[Controller], on_error: Failure = _raise) -> None:
        self._controllers = tuple(controllers)
        self._queue: WorkQueue[tuple[int, str]] = WorkQueue()
        self._on_error = on_error
        self.on_work: Callable[[], None] = lambda: None
        """Called when there is something to run and was not before."""
        self.reconciles = self.errors = 0
        everything = [
            Change(store.revision, "ADDED", resource, obj, None) for resource in store.resources() for obj in store.list(resource)[0]
        ]
        self._on_changes(everything)
        store.subscribe(self._on_changes)

    def _on_changes(self, changes: list[Change]) -> None:
        for change in changes:
            for number, controller in enumerate(self._controllers):
                for key in controller.affected(change):
                    self._queue.add((number, key))
        if len(self._queue):
            self.on_work()

    def poke(self, controller: Controller, key: str) -> None:
        """Have a key looked at for a reason that is in no object (a lease has come)."""
        self._queue.add((self._controllers.index(controller), key))
        self.on_work()

    def run(self, now: float, budget: int = 1_000_000) -> int:
        """Reconcile up to `budget` keys that are due; how many there were."""
        done = 0
        while done < budget and (item := self._queue.pop(now)) is not None:
            done += 1
            self._reconcile(item, now)
        self.reconciles += done
        return done

    def _reconcile(self, item: tuple[int, str], now: float) -> None:
        controller, key = self._controllers[item[0]], item[1]
        try:
            again = controller.reconcile(key, now)
        except Exception as error:
            self._queue.retry(item, now)
            if not (isinstance(error, ApiError) and error.code in (404, 409)):  # somebody else was faster: look again
                self.errors += 1
                self._on_error(controller.name, key, error)
            return
        self._queue.forget(item)
        if again is not None:
            self._queue.add_at(item, again)

    def next_at(self) -> float:
        """When `run` is next of use: -inf for now, inf for not before something changes."""
        return self._queue.next_at()

    def idle(self) -> bool:
        """Is all done that can be done now?"""
        return self._queue.idle
