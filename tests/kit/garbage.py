"""Malformed input, seeded: random bytes, and real messages cut, extended, changed, spliced and repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence

EDGES = (0, 1, 2, 0x44, 0x45, 0x4F, 0x7F, 0x80, 0xFE, 0xFF)


class Garbage:
    """Makes bytes that nobody should have sent. `steady` is the share of samples that pass unchanged."""

    def __init__(self, seed: int, *, steady: float = 0.05) -> None:
        self.rng = random.Random(seed)
        self.steady = steady

    def of(self, samples: Sequence[bytes]) -> bytes:
        """One message, mostly made from one of the samples."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.1:
            return rng.randbytes(rng.choice((0, 1, 7, 20, 24, 60, 100, 1500)) + rng.randrange(8))
        data = bytearray(rng.choice(samples))
        if kind < 0.1 + self.steady:
            return bytes(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            self._change(data, samples)
        return bytes(data)

    def _change(self, data: bytearray, samples: Sequence[bytes]) -> None:
        rng = self.rng
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(9):
            case 0:
                del data[at:]
            case 1:
                data += rng.randbytes(rng.randrange(1, 60))
            case 2 | 3 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 4 | 5 if data:
                data[at] = rng.choice(EDGES)
            case 6:
                data[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff", rng.randbytes(2)))
            case 7:
                del data[at : at + rng.randrange(1, 20)]
            case 8:
                other = rng.choice(samples)
                cut = rng.randrange(len(other) + 1)
                data[at:] = other[cut:]
