"""Quantities as people write them in files and flags: durations, percentages, rates, and the key they meant. Text to numbers.

Durations are Go's (`1m30s`, `250ms`), percentages and rates are tc's (`2%`, `10mbit`). A wrong one is a ConfigError that names its
path and what would be right. See tc(8), UNITS and PARAMETERS.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from emu.errors import ConfigError

_SECONDS: dict[str, float] = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_DURATION = re.compile(r"(\d+(\.\d+)?)(h|ms|us|m|s)")
_PERCENT = re.compile(r"(\d+(\.\d+)?|\.\d+) ?%?")
_RATE = re.compile(r"(\d+(\.\d+)?)([kmgt]?)(i?)bit", re.IGNORECASE)
_THOUSANDS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def duration(value: Any, where: str, source: str = "") -> float:
    """Seconds of a Go duration such as `40s`, `1m30s` or `250ms`; a number is taken as seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    if value == "0":
        return 0.0
    if not isinstance(value, str) or not re.fullmatch(rf"({_DURATION.pattern})+", value):
        raise ConfigError(f"{value!r} is not a duration such as 40s or 250ms", source=source, where=where)
    return sum(float(amount) * _SECONDS[unit] for amount, _, unit in _DURATION.findall(value))


def percentage(value: Any, where: str, source: str = "") -> float:
    """The chance, 0 to 1, of a percentage such as `2%` or `0.1%`; a number is one of percent too, as tc has it."""
    percent = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if isinstance(value, str) and _PERCENT.fullmatch(value):
        percent = float(value.rstrip("% "))
    if percent is None or not 0 <= percent <= 100:
        raise ConfigError(f"{value!r} is not a percentage from 0 to 100, such as 2% or 0.1%", source=source, where=where)
    return percent / 100


def rate(value: Any, where: str, source: str = "") -> float:
    """Bits a second of a rate such as `10mbit`, `1gbit` or `64kibit`; a number is bits a second. 0 is no limit."""
    bits = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found:
        bits = float(found[1]) * (1024 if found[4] else 1000) ** _THOUSANDS[found[3].lower()]
    if value == "0":
        bits = 0.0
    if bits is None or not 0 <= bits < float("inf"):
        raise ConfigError(f"{value!r} is not a rate such as 10mbit or 1gbit", source=source, where=where)
    return bits


def nearest(key: str, keys: Iterable[str]) -> str:
    """The known key that looks most like a wrong one; letter case does not count."""
    lowered = {known.lower(): known for known in keys}
    return lowered[difflib.get_close_matches(key.lower(), list(lowered), 1, 0.0)[0]]
