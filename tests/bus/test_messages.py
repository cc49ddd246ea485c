"""What lies on the wire: no bytes make a decoder raise, and what one side encodes the other reads."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.bus.messages import DEL, SET, TYPES, Update, decode, decode_update, encode, encode_update, pack, seal, topic

SAMPLES = {str: "node-1", int: 7, dict: {"a": 1}, list: [], bool: True}
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=64))
def test_garbage_is_none_and_never_an_exception(data):
    assert decode(data) is None
    assert decode_update(data) is None or data[0] == 0x94


@given(JSONISH)
def test_well_formed_msgpack_of_the_wrong_shape_is_none_or_valid(value):
    message = decode(seal(msgpack.packb(value)))
    assert message is None or message["t"] in TYPES
    update = decode_update(seal(msgpack.packb(value)))
    assert update is None or isinstance(update, Update)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_survives_the_wire_and_misses_each_of_its_fields(kind):
    message = {"t": kind, **{name: SAMPLES[wanted] for name, wanted in TYPES[kind].items()}}
    assert decode(encode(message)) == message
    for name in TYPES[kind]:
        assert decode(seal(pack({key: value for key, value in message.items() if key != name}))) is None
        assert decode(seal(pack({**message, name: None}))) is None


@pytest.mark.parametrize(
    "data",
    [
        msgpack.packb({"t": "lease", "applied": {}, "abandoned": True}),  # a bool is no number here
        msgpack.packb({"t": "snapshot", "stream": "nodes", "sequence": 1, "revision": 1, "items": [["a"]]}),
        msgpack.packb({"t": "snapshot", "stream": "nodes", "sequence": 1, "revision": 1, "items": [["a", "text, not bytes"]]}),
        msgpack.packb({"t": "made-up"}),
        msgpack.packb({"t": 5}),
        msgpack.packb({"t": []}),
        b"\xc1",
        b"\x94" * 3000,  # nested beyond any stack
        b"",
    ],
)
def test_near_misses_are_none(data):
    assert decode(seal(data)) is None


@pytest.mark.parametrize(
    "value",
    [
        ["nodes", 1, 1],
        ["nodes", True, 1, []],
        ["nodes", 1, 1, [["set", "k"]]],
        ["nodes", 1, 1, [["put", "k", b""]]],
        ["nodes", 1, 1, [["set", "k", "text"]]],
    ],
)
def test_an_update_of_the_wrong_shape_is_none(value):
    assert decode_update(seal(msgpack.packb(value))) is None


def test_an_update_starts_with_its_topic_and_with_no_other_node_s():
    update = Update("node/node-10", 3, 9, [(SET, "default/a", b"\x80"), (DEL, "default/b", b"")])
    data = encode_update(update)
    assert decode_update(data) == update
    assert data.startswith(topic("node/node-10"))
    assert not data.startswith(topic("node/node-1"))
