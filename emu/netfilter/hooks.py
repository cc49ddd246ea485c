"""The five hooks, what runs at each, and in which order.

                          local process
                          ^           |
                        INPUT       OUTPUT
                          |           v
    in -> PREROUTING -> route      (route) -> POSTROUTING -> out
                          |                       ^
                          +------ FORWARD --------+

Decides the order of conntrack and tables only; what a table says is `walk`'s, what a packet does next is the stack's.
Priorities are Linux's (`enum nf_ip_hook_priorities`): lower runs first.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Protocol

from emu.netfilter.skb import Skb
from emu.wire.addr import Ip

if TYPE_CHECKING:
    from emu.netfilter.memory import Memory


class Hook(IntEnum):
    """Where a packet is looked at (`enum nf_inet_hooks`); the built-in chain of each table has the hook's name."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class Verdict(Enum):
    """What a hook says of a packet. REJECT means: drop it and answer as `skb.reject_with` says."""

    ACCEPT = "ACCEPT"
    DROP = "DROP"
    REJECT = "REJECT"


class Surroundings(Protocol):
    """What rules may ask of the namespace they stand in; the stack's NetNamespace is one."""

    memory: Memory

    def is_local(self, ip: Ip) -> bool:
        """Is this an address of the namespace itself (addrtype LOCAL, 127.0.0.0/8 included)?"""

    def is_local_on(self, ip: Ip, device: str) -> bool:
        """Is it an address of this very device?"""

    def is_broadcast(self, ip: Ip) -> bool:
        """Is it the broadcast address of a network that a device is in?"""

    def masquerade_address(self, oif: str, dst: Ip) -> Ip | None:
        """The address MASQUERADE takes for a packet leaving by `oif` towards `dst`; None if the device has none."""

    def random(self) -> float:
        """A number in [0, 1) from the namespace's seeded source."""

    def choose(self, count: int) -> int:
        """A number in [0, count), each as likely, from the same source."""

    def hop(self, skb: Skb, where: str, rule: str | None = None, note: str | None = None, rules: int = 0) -> None:
        """Record one hop of a traced packet; called only when `skb.trace` is not 0."""
