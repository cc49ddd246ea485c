"""The two byte queues against the plainest of models: concatenation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emu.tcp.receive_buffer import ReceiveBuffer
from emu.tcp.send_buffer import SendBuffer

STEP = st.one_of(st.binary(min_size=1, max_size=50), st.integers(0, 120))


@given(st.lists(STEP, max_size=40))
def test_the_send_buffer_is_a_queue_of_bytes(steps):
    queue, model = SendBuffer(), b""
    for step in steps:
        if isinstance(step, bytes):
            queue.append(bytearray(step + b"beyond"), len(step))
            model += step
        elif 0 < step <= len(model):
            assert bytes(queue.take(step)) == model[:step]
            model = model[step:]
        assert queue.size == len(model)


@given(st.lists(STEP, max_size=40))
def test_the_receive_buffer_is_a_queue_of_bytes(steps):
    queue, model = ReceiveBuffer(), b""
    for step in steps:
        if isinstance(step, bytes):
            queue.append(bytearray(step))
            model += step
        else:
            taken = queue.take(step)
            assert type(taken) is bytes
            assert taken == model[:step]
            model = model[step:]
        assert queue.size == len(model)


def test_bytes_are_kept_without_a_copy_and_returned_as_they_came():
    data = b"immutable" * 100
    received = ReceiveBuffer()
    received.append(data)
    assert received.take(10_000) is data
    waiting = SendBuffer()
    waiting.append(data, len(data))
    taken = waiting.take(len(data))
    assert isinstance(taken, memoryview)
    assert taken.obj is data
