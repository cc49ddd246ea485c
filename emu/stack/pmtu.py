"""What has been learnt of paths: how long a packet to a destination may be where a device on the way takes less than ours.

Decides how long that is believed: Linux's next-hop exceptions (net/ipv4/route.c `__ip_rt_update_pmtu`), 600 s from the last ICMP
fragmentation needed (`ip_rt_mtu_expires`, ip_rt_min_pmtu 552). A smaller path than 552 bytes Linux would send fragments of 552 to;
here it is taken as told, since nothing of ours fragments what has DF set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emu.stack.softnet import INFINITY
from emu.wire.addr import Ip

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace

MTU_EXPIRES = 600.0
MIN_PMTU = 552  # what a router that tells no MTU (before RFC 1191) is taken to mean
SMALLEST = 68  # RFC 791: every link takes this


class PathMtus:
    """The exceptions of one namespace, by destination."""

    def __init__(self, ns: NetNamespace) -> None:
        self._ns = ns
        self._learnt: dict[Ip, tuple[int, float]] = {}
        self.armed = INFINITY

    def get(self, dst: Ip) -> int | None:
        """The MTU of the path, if one was learnt."""
        found = self._learnt.get(dst) if self._learnt else None
        return found[0] if found is not None else None

    def learn(self, dst: Ip, told: int) -> int:
        """An ICMP error has told the next hop's MTU (0: not even that); the path's MTU now. It only ever shrinks until it expires."""
        known = self.get(dst) or self._ns.mtu_to(dst)
        mtu = min(known, max(told, SMALLEST) if told else MIN_PMTU)
        if mtu < known or dst in self._learnt:
            expires = self._ns.softnet.now + MTU_EXPIRES
            self._learnt[dst] = (mtu, expires)
            self._ns.epoch += 1  # sockets remember how long their packets may be
            self._ns.softnet.arm(self, expires)
        return mtu

    def poll_at(self) -> float:
        return min((expires for _, expires in self._learnt.values()), default=INFINITY)

    def on_timer(self, now: float) -> None:
        """What is not believed any more: connections try longer packets again."""
        gone = [dst for dst, (_, expires) in self._learnt.items() if expires <= now]
        for dst in gone:
            del self._learnt[dst]
        self._ns.epoch += 1
        for sock in [*self._ns.sockets.established.values()]:
            if sock.remote is not None and sock.remote.ip in gone:
                sock.path_changed()
