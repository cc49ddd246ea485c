"""A node's side of the broadcast: its mirrors, and what they make it say. Pure; the node's control loop feeds it.

    for message in link.poll(timeout):
        step = follower.on_message(message)
        for answer in step.send: link.post(answer)
        step.changed                                   stream -> keys whose values changed; read them from follower.mirrors[stream]
        step.message                                   a call, input or cancel: the node's own business
    link.post(follower.lease(abandoned))               each lease period, and when `step.changed` has been acted upon

A welcome says that the broadcast's subscriptions stand with a (new) controller: the node says hello and asks for a snapshot of
each stream, in their order: trouble on links is known before the first peer is. Nothing here needs a timer: an answer that is lost
leaves the lease's numbers low, and the controller orders a resync.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from emu.bus.messages import LINKS, NODES, SERVICES, WELCOME, Message, Update, node_stream
from emu.bus.mirror import Applied, Mirror


@dataclass(slots=True)
class Step:
    """What one incoming message comes to. `welcomed`: report all pods again, the controller may have forgotten."""

    changed: dict[str, list[str]] = field(default_factory=dict)
    send: list[Message] = field(default_factory=list)
    message: Message | None = None
    welcomed: bool = False


class Follower:
    """The mirrors of one node. `hello` is the message by which it registers (`t` included)."""

    def __init__(self, hello: Message, streams: tuple[str, ...] = (LINKS, NODES, SERVICES)) -> None:
        self._hello = hello
        self.mirrors = {stream: Mirror(stream) for stream in (*streams, node_stream(hello["name"]))}
        self.nodes, self.pods = self.mirrors[NODES], self.mirrors[node_stream(hello["name"])]
        self.services, self.links = self.mirrors[SERVICES], self.mirrors[LINKS]
        self.resyncs = 0

    @property
    def streams(self) -> tuple[str, ...]:
        """What to subscribe to."""
        return tuple(self.mirrors)

    @property
    def synced(self) -> bool:
        """Has every stream had its snapshot?"""
        return all(mirror.synced for mirror in self.mirrors.values())

    def on_message(self, message: Message | Update) -> Step:
        if isinstance(message, Update):
            if message.stream == WELCOME:
                return self._on_welcome()
            mirror = self.mirrors.get(message.stream)
            return Step() if mirror is None else self._step(mirror, mirror.apply(message))
        mirror = self.mirrors.get(message.get("stream", ""))
        match message["t"]:
            case "snapshot":
                return Step() if mirror is None else self._step(mirror, mirror.apply_snapshot(message))
            case "resync":
                return Step() if mirror is None else self._lost(mirror)
            case "hello?":
                return Step(send=[self._hello], welcomed=True)
            case _:
                return Step(message=message)

    def _on_welcome(self) -> Step:
        for mirror in self.mirrors.values():
            mirror.lose()
        return Step(send=[self._hello, *(_ask(stream) for stream in self.mirrors)], welcomed=True)

    def _lost(self, mirror: Mirror) -> Step:
        self.resyncs += 1
        mirror.lose()
        return Step(send=[_ask(mirror.stream)])

    def _step(self, mirror: Mirror, applied: Applied) -> Step:
        step = Step(changed={mirror.stream: applied.changed} if applied.changed else {})
        if applied.resync:
            self.resyncs += 1
            step.send.append(_ask(mirror.stream))
        return step

    def lease(self, abandoned: int = 0, **more: object) -> Message:
        """I am alive, and have come so far. `more`: what `status` may show, `stand_ins` (names), `drops` and `faults` (counts)."""
        applied = {stream: mirror.sequence for stream, mirror in self.mirrors.items()}
        return {"t": "lease", "applied": applied, "abandoned": abandoned, **more}


def _ask(stream: str) -> Message:
    return {"t": "snapshot?", "stream": stream}
