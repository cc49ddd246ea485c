"""The seam between a node and whatever carries its packets.

A carrier takes opaque messages (see `wire.message`) to a peer, best effort, in order per peer, and never blocks in `send`.
It must not know what a packet is. Loss, delay and capture are carriers wrapping carriers.
"""

from __future__ import annotations

from typing import Protocol

from emu.wire.addr import Ip


class Carrier(Protocol):
    """One node's end of the underlay. `send` is called under the node's lock; `recv` by one thread at a time, without it."""

    def add_peer(self, ip: Ip, endpoint: str, public_key: bytes = b"") -> None:
        """Name the endpoint of a peer's underlay address. Connects at the first send; a changed endpoint drops the old pipe."""

    def remove_peer(self, ip: Ip) -> None:
        """Close the pipe to a peer and forget what is queued in it; no error if there is none."""

    def send(self, ip: Ip, message: bytes) -> bool:
        """Queue one message for a peer; False if it was dropped (unknown peer, full queue)."""

    def close_idle(self) -> int:
        """Close the pipes that nothing was sent to since the last call, if pipes cost anything; how many. Under the lock, as `send`."""

    def recv(self) -> bytes:
        """The next message; blocks. An empty message is a kick: somebody wants the caller to look up."""

    def recv_for(self, seconds: float) -> bytes:
        """As `recv`, but an empty message when the time is up. The limit stays set until `wait_forever`; setting it costs 1 µs."""

    def wait_forever(self) -> None:
        """Take the limit of `recv_for` away, before another thread calls `recv`."""

    def recv_nowait(self) -> bytes | None:
        """The next message if one has arrived."""

    def kick(self) -> None:
        """Make the thread in `recv` return at once; callable from any thread that holds the node's lock."""

    def close(self) -> None:
        """Close all pipes and remove what was bound; `recv` in another thread must have returned."""
