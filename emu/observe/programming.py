"""Network programming, timed: from a change in the store to the rules of a node. Values only; clocks and books are the callers'.

    noted      the publisher has heard of the change          controller
    published  the broadcast has taken it
    heard      the node's control loop has it, taken apart    node
    read       the proxy has read the Services that changed
    built      the rule set is made
    swapped    the rule set is in force

All are seconds of one machine's monotonic clock: stages that begin on one machine and end on another cannot be told from these.
"""

from __future__ import annotations

from typing import NamedTuple

KEPT = 512  # of each kind; older ones are forgotten


class Publication(NamedTuple):
    """One update of one stream. `noted` is of the oldest change in it, `size` the bytes of its values."""

    stream: str
    sequence: int
    revision: int
    noted: float
    published: float
    size: int


class Swap(NamedTuple):
    """One swap of a node's rules: it has all up to `sequence` of the Services' stream. `heard` is of the oldest change in it."""

    sequence: int
    heard: float
    read: float
    built: float
    swapped: float
