"""eth0 of a node: the device whose wire is a carrier. Decides batching, and what of the carrier is too old or not for us.

What is queued for a peer goes as one message when the outermost entry into the stack returns, so packets that are ready
together travel together and a lone packet never waits; the shell may let several entries pass in a rush. Messages for another
incarnation of this node, and inside one host those older than `MAX_AGE`, are dropped and counted: a restarted node never
delivers to a new owner of an address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from emu.errors import DropReason
from emu.netfilter.skb import Skb
from emu.stack.device import Device
from emu.stack.shortcut_entry import entry_key, join_entry
from emu.stack.tap import IN, OUT
from emu.wire.addr import Ip, format_ip
from emu.wire.message import FIRST, PREAMBLE, RECORD, VERSION

if TYPE_CHECKING:
    from emu.stack.namespace import NetNamespace

MAX_AGE = 1.0  # seconds; no link inside one host holds a packet longer
MAX_BATCH = 1 << 17  # bytes in one message
_FIRST = PREAMBLE.size + RECORD.size


class Wire(Protocol):
    """All that the device needs of a carrier."""

    def send(self, ip: Ip, message: bytes) -> bool: ...


class Underlay(Device):
    """The node's link to all other nodes. `incarnations` says which life of a peer its address means now.

    It has the peers that were sent to; `introduce` is called with the address of another one before its first packet.
    `gateway` is the router to the outside, whose packets leave the emulation: they are counted and gone.
    """

    kind = "underlay"

    def __init__(self, ns: NetNamespace, name: str, mtu: int, wire: Wire, incarnation: int, *, same_host: bool = True) -> None:
        super().__init__(ns, name, mtu)
        self.wire, self.incarnation = wire, incarnation
        self.max_age = int(MAX_AGE * 1e6) if same_host else 1 << 63
        self.gateway: Ip | None = None
        self.incarnations: dict[Ip, int] = {}
        self.introduce: Callable[[Ip], None] = lambda ip: None
        self._lone: tuple[Ip, bytes] | None = None  # the only message queued, while it is the only one
        self._pending: dict[Ip, list[bytes | memoryview]] = {}  # the pieces of a message

    def resolve(self, ip: Ip) -> bool:
        if ip not in self.incarnations:
            self.introduce(ip)
        return True  # an absent node is silence, not an ARP failure: nodes are reached over a network, not a link

    def xmit(self, skb: Skb, next_hop: Ip) -> None:
        if next_hop == self.gateway:
            self.seen(OUT, bytes(skb.buf), skb.gso_size, skb.trace)
            self.ns.drop(skb, DropReason.OUTSIDE, self.name)
            return
        data = bytes(skb.buf)
        self.sent(len(data))
        if skb.trace:
            self.ns.hop(skb, "wire", note=f"to {format_ip(next_hop)}")
        self.ns.remember(skb, self.mtu, lambda data, head, gso_size: self._forward(next_hop, data, head, gso_size))
        self.queue(next_hop, self._message(next_hop, len(data), skb.gso_size, skb.trace) + data)

    def _forward(self, peer: Ip, data: bytes, head: bytes, gso_size: int) -> None:
        """The fast path out, for packets that no tunnel carries."""
        self.sent(len(data))
        self.queue(peer, self._message(peer, len(data), gso_size, 0) + data[:6] + head + data[24:])

    def _message(self, peer: Ip, size: int, gso_size: int, trace: int) -> bytes:
        """What stands before a packet in a message of its own."""
        return FIRST.pack(VERSION, 0, 0, self.incarnations.get(peer, 0), int(self._softnet.now * 1e6), size, gso_size, trace)

    def queue(self, peer: Ip, message: bytes) -> None:
        """Take a message with one packet; it leaves as it is, or in one batch with what else is queued for the peer by then."""
        softnet = self._softnet
        if softnet.flush is None:
            softnet.flush = self.flush
            softnet.queued_at, softnet.queued_bytes = softnet.now, len(message)
            self._lone = (peer, message)
            return
        self._join_lone()
        batch = self._pending.get(peer)
        if batch is None:
            self._pending[peer] = [message]
        else:
            batch.append(message[PREAMBLE.size :])  # the first one's preamble is for all
        softnet.queued_bytes += len(message)
        if softnet.queued_bytes > MAX_BATCH:
            self.flush()

    def queue_record(self, peer: Ip, record: bytes) -> None:
        """Take one packet as a record without a preamble."""
        batch = self._pending.get(peer)
        if batch is None or self._lone is not None:
            self.queue_records(peer, [record], len(record))
            return
        batch.append(record)
        softnet = self._softnet
        softnet.queued_bytes += len(record)
        if softnet.queued_bytes > MAX_BATCH:
            self.flush()

    def queue_records(self, peer: Ip, records: Sequence[bytes | memoryview], size: int) -> None:
        """Take packets as records without a preamble, `size` bytes in all; a record may go on in a memoryview after its start."""
        softnet = self._softnet
        if softnet.flush is None:
            softnet.flush = self.flush
            softnet.queued_at, softnet.queued_bytes = softnet.now, 0
        self._join_lone()
        batch = self._pending.get(peer)
        if batch is None:
            head = PREAMBLE.pack(VERSION, 0, 0, self.incarnations.get(peer, 0), int(softnet.now * 1e6))
            self._pending[peer] = [head, *records]
        else:
            batch += records
        softnet.queued_bytes += size
        if softnet.queued_bytes > MAX_BATCH:
            self.flush()

    def stand_ins(self) -> Mapping[str, Callable[..., None]]:
        def queue(peer: Ip, message: bytes) -> None:  # the others are not used while a node is tapped
            gso_size, trace = FIRST.unpack_from(message)[-2:]
            self.seen(OUT, message[_FIRST:], gso_size, trace)
            Underlay.queue(self, peer, message)

        return {"receive": self._hearing(IN, Underlay.receive), "queue": queue}

    def _join_lone(self) -> None:
        """The message that was alone is not any more."""
        if self._lone is not None:
            peer, message = self._lone
            self._lone = None
            self._pending[peer] = [message]

    def flush(self) -> None:
        """Hand every batch to the carrier; a full queue drops, as a network card does."""
        softnet = self._softnet
        softnet.flush = None
        lone = self._lone
        if lone is not None:
            self._lone = None
            if not self.wire.send(*lone):
                self._lost(lone[0], 1)
            return
        pending, self._pending = self._pending, {}
        for peer, pieces in pending.items():
            if not self.wire.send(peer, b"".join(pieces)):
                self._lost(peer, sum(isinstance(piece, bytes) for piece in pieces) - (len(pieces[0]) == PREAMBLE.size))

    def _lost(self, peer: Ip, packets: int) -> None:
        """The carrier has dropped a message."""
        self.ns.count(DropReason.QUEUE_FULL if peer in self.incarnations else DropReason.UNKNOWN_PEER, packets)

    def receive_message(self, message: bytes) -> None:
        """Take one message of the carrier apart. Never raises: what does not hold together is counted and dropped."""
        size = len(message)
        if size < _FIRST:
            self.ns.count(DropReason.BAD_MESSAGE)
            return
        version, _flags, _reserved, incarnation, sent, length, gso_size, trace = FIRST.unpack_from(message)
        if version != VERSION:
            self.ns.count(DropReason.BAD_MESSAGE)
            return
        if incarnation != self.incarnation:
            self.ns.count(DropReason.STALE_INCARNATION)
            return
        if self._softnet.now * 1e6 - sent > self.max_age:
            self.ns.count(DropReason.STALE_AGE)
            return
        if _FIRST + length == size and not trace:  # a lone packet: the common case
            key = entry_key(message, _FIRST)
            shortcut = self._softnet.shortcuts.get(key)
            if shortcut is None:
                join_entry(self._softnet, self, message, _FIRST, key)
            elif shortcut.take(message, _FIRST, length, gso_size):
                return
            elif shortcut.outdated:
                del self._softnet.shortcuts[key]  # the next packet joins it anew, from what this one leaves behind
            self.receive(message[_FIRST:], gso_size, trace)
            return
        self._receive_batch(message, size)

    def _receive_batch(self, message: bytes, size: int) -> None:
        """Many packets: those of one flow, one after the other, take its shortcut in one go."""
        softnet = self._softnet
        at = PREAMBLE.size
        while at + RECORD.size <= size:
            length, gso_size, trace = RECORD.unpack_from(message, at)
            start = at + RECORD.size
            end = start + length
            if end > size:
                at = 0
                break
            if not trace and not softnet.backlog:  # what went the long way before must not be overtaken
                key = entry_key(message, start)
                shortcut = softnet.shortcuts.get(key)
                if shortcut is None:
                    join_entry(softnet, self, message, start, key)
                else:
                    taken = shortcut.take_run(message, at, size)
                    if taken > at:
                        at = taken
                        continue
                    if shortcut.outdated:
                        del softnet.shortcuts[key]
            self.receive(message[start:end], gso_size, trace)
            at = end
        if at != size:
            self.ns.count(DropReason.BAD_MESSAGE)
