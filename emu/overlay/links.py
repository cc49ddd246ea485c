"""Link conditions: a carrier around a carrier, at the sender's end, that holds packets back, loses, copies and reorders them.

Decides what is held, for how long and how much of it; what befalls a segment is `netem`'s. Conditions act on every record of a
message, and on every segment of a GSO packet; segments that share a fate go on as one. What is held is stamped anew when it is let
go, so the receiver's age limit counts the carrier's time only; but what the link should have let go longer ago than that (this
node was paused), or what is meant for a life of the peer that is known to be over, is dropped: its address may be another's by
then. A link that becomes fair lets go at once of all it held, in order; one that is cut loses it. What all links of a node hold is
bounded by `MAX_HELD`.

Runs under the node's lock, like everything that sends. Time comes with each message (`sent`) and each timer. Nothing here is on a
packet's way while no link of the node has a condition: the underlay's wire is the bare carrier then.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import inf
from typing import NamedTuple

from emu.errors import DropReason
from emu.model.links import Trouble
from emu.overlay.carrier import Carrier
from emu.overlay.netem import Netem, Share, Tally
from emu.stack.underlay import MAX_AGE, MAX_BATCH
from emu.wire import gso
from emu.wire.addr import Ip
from emu.wire.message import Record, decode, encode, preamble

MAX_HELD = 64 << 20  # bytes of packets that all links of one node hold; beyond it they overflow
SLACK = 50e-6  # seconds between looks at what is due, at least: Linux's timer slack

Dropped = Callable[[DropReason, int, bytes, int], None]
"""Told of each drop: why, how many segments, of which packet, and its trace id."""


class Leg(NamedTuple):
    """One direction of a link that is in trouble: its name (a->b), and what is wrong with it."""

    name: str
    trouble: Trouble


class _Parcel:
    """A packet of which some segments are held; `left` of them."""

    __slots__ = ("count", "gso_size", "incarnation", "ip", "left", "packet", "trace")

    def __init__(self, ip: Ip, packet: bytes, gso_size: int, trace: int, incarnation: int, count: int) -> None:
        self.ip, self.packet, self.gso_size, self.trace, self.incarnation = ip, packet, gso_size, trace, incarnation
        self.count, self.left = count, 0


_Held = tuple[float, int, _Parcel, int, int]  # when, in which order, first segment of the parcel, how many
_Runs = list[tuple[_Parcel, int, int]]


class Links:
    """The links of one node; a `Carrier`. `arm` asks for `on_timer` at a time (`Softnet.arm`), `incarnations` is the underlay's."""

    def __init__(
        self, carrier: Carrier, arm: Callable[[Links, float], None], incarnations: Mapping[Ip, int], dropped: Dropped, *, seed: int = 0
    ) -> None:
        self._carrier, self._arm, self._incarnations, self._dropped, self._seed = carrier, arm, incarnations, dropped, seed
        self.armed = inf
        self.held_bytes = 0
        self.tallies: dict[str, Tally] = {}  # by fault
        self._leg_of: Callable[[Ip], Leg | None] = lambda ip: None
        self._legs: dict[Ip, Leg | None] = {}  # of the peers that something has been sent to
        self._netems: dict[str, Netem] = {}  # by the link's name; made when it is first used
        self._peers: set[Ip] = set()
        self._held: list[_Held] = []
        self._order = 0
        self._looked = -inf

    def set(self, leg_of: Callable[[Ip], Leg | None], now: float) -> None:
        """From now on `leg_of` tells what is wrong with the link to an address, None if nothing is; asked at the first message to it,
        and again for all that have been sent to by `review`."""
        self._leg_of = leg_of
        self.review(now)

    def review(self, now: float) -> None:
        """Something may have changed: look at every link again."""
        self._legs = {ip: self._leg_of(ip) for ip in self._legs}
        named = {leg.name: leg for leg in self._legs.values() if leg is not None}
        blamed = {fault for leg in named.values() for fault in leg.trouble.blame.values()}
        self.tallies = {fault: tally for fault, tally in self.tallies.items() if fault in blamed}
        self._netems = {name: netem for name, netem in self._netems.items() if name in named}
        for name, netem in self._netems.items():
            self._set_one(netem, named[name])
        if self._held:
            fair = [entry for entry in self._held if self._legs.get(entry[2].ip) is None]
            self._held = [entry for entry in self._held if self._legs.get(entry[2].ip) is not None]
            heapq.heapify(self._held)
            self._let_go(now, fair)

    def _netem(self, leg: Leg) -> Netem:
        netem = self._netems.get(leg.name)
        if netem is None:
            netem = self._netems[leg.name] = Netem(f"{self._seed}/{leg.name}")
            self._set_one(netem, leg)
        return netem

    def _set_one(self, netem: Netem, leg: Leg) -> None:
        tallies = {what: self.tallies.setdefault(fault, Tally()) for what, fault in leg.trouble.blame.items()}
        netem.set(leg.trouble.conditions, tallies)

    def counters(self) -> dict[str, dict[str, int]]:
        """What each fault has done here, by its name; only those that have done anything."""
        found = {fault: {what: count for what, count in asdict(tally).items() if count} for fault, tally in self.tallies.items()}
        return {fault: counts for fault, counts in found.items() if counts}

    # ---- sending -------------------------------------------------------------------------------------------------------------------

    def send(self, ip: Ip, message: bytes) -> bool:
        try:
            leg = self._legs[ip]
        except KeyError:
            leg = self._legs[ip] = self._leg_of(ip)
        if leg is None:
            return self._carrier.send(ip, message)
        if ip not in self._peers:
            return False
        records, head = decode(message), preamble(message)
        if isinstance(records, DropReason) or isinstance(head, DropReason):
            self._dropped(DropReason.BAD_MESSAGE, 1, b"", 0)
            return True
        netem, now = self._netem(leg), head.sent / 1e6
        onward: list[Record] = []
        for record in records:
            onward += self._pass(netem, ip, record, head.incarnation, now)
        if not onward:
            return True
        return self._carrier.send(ip, message if onward == records else encode(head.incarnation, head.sent, onward))

    def _pass(self, netem: Netem, ip: Ip, record: Record, incarnation: int, now: float) -> list[Record]:
        """One packet meets the conditions: what goes on at once. The rest is held, or has ended here."""
        packet, gso_size, trace = record
        count = gso.segment_count(packet, gso_size) if gso_size else 1
        divisible = count == 1 or gso.divisible(packet, gso_size)
        segment, last = _lengths(packet, gso_size, count, divisible=divisible) if netem.conditions.rate else (0, 0)
        shares, drops = netem.offer(count, segment, last, now, divisible=divisible)
        for reason, number in drops:
            self._dropped(reason, number, packet, 0 if shares else trace)
        later = [share for share in shares if share[2] > now]
        if later:
            if self.held_bytes + len(packet) > MAX_HELD:
                number = sum(share[1] for share in later)
                netem.overflow(number)
                self._dropped(DropReason.LINK_OVERFLOW, number, packet, trace if len(later) == len(shares) else 0)
            else:
                self._hold(_Parcel(ip, packet, gso_size, trace, incarnation, count), later)
        return [_cut_out(record, count, first, number) for first, number, at in shares if at <= now]

    def _hold(self, parcel: _Parcel, shares: list[Share]) -> None:
        self.held_bytes += len(parcel.packet)
        for first, number, at in shares:
            self._order += 1
            parcel.left += number
            heapq.heappush(self._held, (at, self._order, parcel, first, number))
        self._arm(self, self.poll_at())

    # ---- letting go ----------------------------------------------------------------------------------------------------------------

    def poll_at(self) -> float:
        """When the next packet that is held is due."""
        return max(self._held[0][0], self._looked + SLACK) if self._held else inf

    def on_timer(self, now: float) -> None:
        """Let go of what is due."""
        self._looked = now
        held, due = self._held, []
        while held and held[0][0] <= now:
            due.append(heapq.heappop(held))
        self._let_go(now, due)

    def _let_go(self, now: float, entries: list[_Held]) -> None:
        leaving: dict[Ip, _Runs] = {}
        for at, _, parcel, first, number in sorted(entries):
            self._forget(parcel, number)
            reason = self._over(parcel, at, now, number)
            if reason is not None:
                self._dropped(reason, number, parcel.packet, parcel.trace)
                continue
            runs = leaving.setdefault(parcel.ip, [])
            if runs and runs[-1][0] is parcel and runs[-1][1] + runs[-1][2] == first:
                runs[-1] = parcel, runs[-1][1], runs[-1][2] + number
            else:
                runs.append((parcel, first, number))
        for ip, runs in leaving.items():
            self._launch(ip, runs, now)

    def _forget(self, parcel: _Parcel, number: int) -> None:
        parcel.left -= number
        if not parcel.left:
            self.held_bytes -= len(parcel.packet)

    def _over(self, parcel: _Parcel, at: float, now: float, number: int) -> DropReason | None:
        """Why what was held until `at` must not go on."""
        if parcel.incarnation != self._incarnations.get(parcel.ip, 0):
            return DropReason.STALE_INCARNATION
        if now - at > MAX_AGE:
            return DropReason.STALE_AGE
        leg = self._legs.get(parcel.ip)
        if leg is not None and leg.trouble.conditions.cut:
            self._netem(leg).cut(number)
            return DropReason.LINK_CUT
        return None

    def _launch(self, ip: Ip, runs: _Runs, now: float) -> None:
        batch: list[Record] = []
        size = 0
        for parcel, first, number in runs:
            batch.append(_cut_out((parcel.packet, parcel.gso_size, parcel.trace), parcel.count, first, number))
            size += len(batch[-1][0])
            if size > MAX_BATCH:
                self._launch_batch(ip, batch, now)
                batch, size = [], 0
        if batch:
            self._launch_batch(ip, batch, now)

    def _launch_batch(self, ip: Ip, batch: list[Record], now: float) -> None:
        if not self._carrier.send(ip, encode(self._incarnations.get(ip, 0), int(now * 1e6), batch)):
            for packet, _, trace in batch:
                self._dropped(DropReason.QUEUE_FULL, 1, packet, trace)

    # ---- the rest of a carrier -------------------------------------------------------------------------------------------------------

    def add_peer(self, ip: Ip, endpoint: str, public_key: bytes = b"") -> None:
        self._peers.add(ip)
        self._carrier.add_peer(ip, endpoint, public_key)

    def remove_peer(self, ip: Ip) -> None:
        """Also of what is held for it nothing is sent."""
        self._peers.discard(ip)
        self._legs.pop(ip, None)
        self._carrier.remove_peer(ip)
        lost = [entry for entry in self._held if entry[2].ip == ip]
        if lost:
            self._held = [entry for entry in self._held if entry[2].ip != ip]
            heapq.heapify(self._held)
        for _, _, parcel, _, number in lost:
            self._forget(parcel, number)
            self._dropped(DropReason.UNKNOWN_PEER, number, parcel.packet, parcel.trace)

    def close_idle(self) -> int:
        return self._carrier.close_idle()

    def recv(self) -> bytes:
        return self._carrier.recv()

    def recv_for(self, seconds: float) -> bytes:
        return self._carrier.recv_for(seconds)

    def wait_forever(self) -> None:
        self._carrier.wait_forever()

    def recv_nowait(self) -> bytes | None:
        return self._carrier.recv_nowait()

    def kick(self) -> None:
        self._carrier.kick()

    def close(self) -> None:
        """What is held is gone."""
        self._held.clear()
        self._carrier.close()


def _lengths(packet: bytes, gso_size: int, count: int, *, divisible: bool) -> tuple[int, int]:
    """The bytes of each segment but the last, and of the last; of fragments the headers are not counted again."""
    if count == 1:
        return 0, len(packet)
    if not divisible:
        return gso_size, len(packet) - (count - 1) * gso_size
    return len(gso.run(packet, gso_size, 0, 1)[0]), len(gso.run(packet, gso_size, count - 1, 1)[0])


def _cut_out(record: Record, count: int, first: int, number: int) -> Record:
    """A run of segments of a packet that has `count`."""
    packet, gso_size, trace = record
    return record if number == count else (*gso.run(packet, gso_size, first, number), trace)
