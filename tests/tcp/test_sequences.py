"""What a TCP endpoint answers to each sequence of packets and calls in `sequences.txt`: Linux's answers, asked of Linux again, are ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit import netns
from tests.kit.tcp_script import KernelSide, OurSide, sections, transcript

ATTEMPTS = 4
BOOK = sections(Path(__file__).with_name("sequences.txt").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelSide]:
    with netns.namespaces("sequences") as names:
        side = KernelSide(names["sequences"])
        yield side
        side.close()


@pytest.mark.parametrize("title", BOOK)
def test_we_answer_as_it_is_written(title):
    assert transcript(OurSide(), BOOK, title, 8080) == BOOK[title]


@pytest.mark.kernel
@pytest.mark.parametrize("title", BOOK)
def test_the_kernel_answers_as_it_is_written(title, kernel):
    """Its timers run on real time: where a busy machine let one fire in the middle, the sequence is played again."""
    for attempt in range(ATTEMPTS):
        answers = transcript(kernel, BOOK, title, 10_000 + attempt * len(BOOK) + list(BOOK).index(title))
        if answers == BOOK[title]:
            return
    assert answers == BOOK[title]
