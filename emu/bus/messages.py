"""What is said on the bus. Decides which messages there are, which fields each must have, and how they lie on the wire.

Two forms, both msgpack, one frame each:

    update    [stream, sequence, revision, [[op, key, packed value], ...]]      broadcast; op is SET or DEL
    message   {"t": type, ...}                                                  between one node and the controller

Behind it stand four bytes of CRC-32: what was cut or changed on the way is none of ours whatever it reads like, so that whoever
takes a value need not ask whether an address in it is one. An update begins with its stream's name, so ZeroMQ's prefix
subscriptions choose streams: a msgpack string carries its length, hence `node/node-1` is no prefix of `node/node-10`. Values stay
packed inside, so that a node holds them as they came (10,000 Services decoded are 43 MB a node, packed 6). Decoding never raises:
what is malformed is None, for the caller to count.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

_SEAL = 4  # bytes

Message = dict[str, Any]

NODES, SERVICES, LINKS = "nodes", "services", "links"
WELCOME = "welcome"  # the stream on which a publisher greets each new subscription socket; its sequence is the publisher's epoch
SET, DEL = "set", "del"

# type -> field -> what it must be. More fields are allowed, so that either side may be newer.
FROM_NODE: Mapping[str, Mapping[str, type]] = {
    "hello": {"name": str, "ip": str, "pod_cidr": str, "endpoint": str, "incarnation": int, "labels": dict, "pid": int},
    "snapshot?": {"stream": str},
    "lease": {"applied": dict, "abandoned": int},  # applied: stream -> last sequence, -1 for none yet
    "pods": {"statuses": list},  # {"namespace", "name", "uid", "status": {...}} or {..., "gone": True}
    "hops": {"hops": list},  # of `observe.hops.pack`
    "answer": {"id": int, "body": dict, "last": bool},  # body {"error": {code, reason, message}} is a failure
    "event": {"object": dict, "type": str, "reason": str, "message": str},  # object: kind, namespace, name, uid
}
FROM_CONTROLLER: Mapping[str, Mapping[str, type]] = {
    "snapshot": {"stream": str, "sequence": int, "revision": int, "items": list},  # items: [key, packed value]
    "resync": {"stream": str},  # drop what you have of it and ask for a snapshot
    "hello?": {},  # the controller does not know you
    "call": {"id": int, "method": str, "params": dict},
    "input": {"id": int, "data": dict},
    "cancel": {"id": int},
}
TYPES: Mapping[str, Mapping[str, type]] = {**FROM_NODE, **FROM_CONTROLLER}


class Update(NamedTuple):
    """Numbered changes of one stream: `changes` are (op, key, packed value); the value of a DEL is b""."""

    stream: str
    sequence: int
    revision: int
    changes: list[tuple[str, str, bytes]]


def node_stream(node: str) -> str:
    """The stream of one node's own pods."""
    return f"node/{node}"


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(data: bytes) -> Any:
    """The value of a packed value of ours; only for what has been through `decode`."""
    return msgpack.unpackb(data)


def topic(stream: str) -> bytes:
    """What a subscriber asks ZeroMQ for to get a stream: the first bytes of its updates."""
    return b"\x94" + pack(stream)  # an array of four, and its first item


def encode_update(update: Update) -> bytes:
    return seal(pack(update))


def seal(data: bytes) -> bytes:
    """The frame of a packed update or message."""
    return data + zlib.crc32(data).to_bytes(_SEAL, "big")


def decode_update(data: bytes) -> Update | None:
    """An update, or None where it is none."""
    value = _unpack(data)
    if not isinstance(value, list) or len(value) != 4:
        return None
    stream, sequence, revision, changes = value
    if not (isinstance(stream, str) and _is(sequence, int) and _is(revision, int) and isinstance(changes, list)):
        return None
    if not all(_is_change(change) for change in changes):
        return None
    return Update(stream, sequence, revision, [(op, key, packed) for op, key, packed in changes])


def _is_change(change: object) -> bool:
    return (
        isinstance(change, list)
        and len(change) == 3
        and change[0] in (SET, DEL)
        and isinstance(change[1], str)
        and isinstance(change[2], bytes)
    )


def encode(message: Message) -> bytes:
    """A message as bytes; AssertionError if it is none of the table's, which is a bug of ours."""
    assert _is_message(message), f"not a message: {message!r}"
    return seal(pack(message))


def decode(data: bytes) -> Message | None:
    """A message, or None where it is none."""
    value: Any = _unpack(data)
    return value if _is_message(value) else None


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    kind = value.get("t")
    fields = TYPES.get(kind) if isinstance(kind, str) else None
    if fields is None or not all(_is(value.get(name), wanted) for name, wanted in fields.items()):
        return False
    return kind != "snapshot" or all(
        isinstance(i, list) and len(i) == 2 and isinstance(i[0], str) and isinstance(i[1], bytes) for i in value["items"]
    )


def _is(value: object, wanted: type) -> bool:
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def _unpack(frame: bytes) -> object:
    data = frame[:-_SEAL]
    if frame[-_SEAL:] != zlib.crc32(data).to_bytes(_SEAL, "big"):
        return None
    try:
        return msgpack.unpackb(data)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):  # all that unpackb documents, and a map as a map's key
        return None
