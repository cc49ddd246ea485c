"""The words of the annotation `podwire.dev/behaviour`. What they do to a server is `programs.behaviour`'s."""

from __future__ import annotations

import re
from dataclasses import dataclass

ANNOTATION = "podwire.dev/behaviour"
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the annotation says."""

    refuse: bool = False
    close: bool = False
    blackhole: bool = False
    delay: float = 0.0
    status: int = 0

    @classmethod
    def parse(cls, words: str) -> Behaviour:
        """`refuse`, `close`, `blackhole`, `delay=3s`, `status=500`, several with commas; ValueError says what is wrong."""
        found: dict[str, bool | float] = {}
        for word in filter(None, (part.strip() for part in words.split(","))):
            name, _, value = word.partition("=")
            if word in ("refuse", "close", "blackhole"):
                found[word] = True
            elif name == "status" and value.isdecimal() and 100 <= int(value) <= 599:
                found["status"] = int(value)
            elif name == "delay" and (match := re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m)", value)):
                found["delay"] = float(match[1]) * _SECONDS[match[2]]
            else:
                raise ValueError(f"{ANNOTATION}: {word!r} is none of refuse, close, blackhole, delay=3s, status=500")
        return cls(**found)  # type: ignore[arg-type]
