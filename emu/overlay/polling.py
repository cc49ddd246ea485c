"""How long a reader looks before it sleeps: KVM's halt polling (`halt_poll_ns`) for the carrier.

A sleep costs a wake-up, and on an idle CPU that costs more than all the rest of a round trip. So a reader whose last message came
soon after it began to wait looks for the next one for a while, giving its CPU away between looks (`sched_yield`: libzmq's own
thread and the peer may need it); one that waited in vain sleeps at once the next time. An idle node never polls.
Decides the time only.
"""

from __future__ import annotations

LONGEST = 100e-6  # seconds; a little more than a round trip to another node of this machine takes
SOON = 2 * LONGEST  # a wait that ended by then would have been worth polling, or nearly so


class HaltPolling:
    """`budget` is how long to look now, in seconds: 0 or `LONGEST`."""

    __slots__ = ("budget",)

    def __init__(self) -> None:
        self.budget = 0.0

    def waited(self, seconds: float) -> None:
        """A wait that did not end while polling has taken this long in all."""
        self.budget = LONGEST if seconds <= SOON else 0.0
