"""Expectation against fact: which parts of an `expect` hold. Pure; a part that is not written is not judged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from emu.errors import ApiError
from launcher.scenarios.flow import Fact

Json = dict[str, Any]
SHARE = 1e-6  # two probabilities that differ by less are one: the kernel itself keeps 31 bits


class Verdict(NamedTuple):
    """What was expected, what is there for each part of it, and which parts do not agree."""

    expected: Json
    actual: Json
    wrong: tuple[str, ...] = ()


def flow(expect: Json, fact: Fact, before: Mapping[str, Fact]) -> Verdict:
    """The verdict on a flow. `before` has earlier steps' facts by name."""
    parts: dict[str, tuple[Any, Any, bool]] = {}
    for key, wanted in expect.items():
        match key:
            case "outcome":
                found: Any = fact.outcome if not fact.detail else f"{fact.outcome} ({fact.detail})"
                parts[key] = wanted, found, found == wanted
            case "backends":
                parts[key] = wanted, _told(fact, wanted), _same_backends(wanted, fact.backends)
            case "backend":
                parts[key] = wanted, fact.backend, fact.backend == wanted
            case "masquerade":
                parts[key] = wanted, fact.masquerade, fact.masquerade == wanted
            case "same_backend_as":
                other = before.get(wanted)
                theirs = other.backend if other is not None else f"there is no earlier flow step named {wanted!r}"
                parts[key] = theirs, fact.backend, fact.backend is not None and fact.backend == theirs
            case "source_seen":
                parts[key] = wanted, sorted(fact.sources), set(wanted) == fact.sources
            case "rules_evaluated":
                parts[key] = wanted, fact.rules, _within(wanted, fact.rules)
            case "hops":
                seen: Any = fact.nodes if isinstance(wanted, list) else len(fact.nodes)
                parts[key] = wanted, seen, seen == wanted
            case _:
                parts[key] = wanted, "not emulated yet", False
    return _verdict(parts)


def _told(fact: Fact, wanted: Any) -> Any:
    return {name: round(share, 6) for name, share in sorted(fact.backends.items())} if isinstance(wanted, dict) else sorted(fact.backends)


def _same_backends(wanted: Any, found: Mapping[str, float]) -> bool:
    """A list is a set whose members are equally likely; a mapping gives each one's share."""
    if set(wanted) != set(found):
        return False
    shares = wanted if isinstance(wanted, dict) else {name: sum(found.values()) / len(found) for name in found}
    return all(abs(found[name] - share) < SHARE for name, share in shares.items())


def _within(wanted: Any, found: int) -> bool:
    if isinstance(wanted, int):
        return found == wanted
    return bool(wanted.get("min", found) <= found <= wanted.get("max", found))


def execution(expect: Json, status: int, stdout: str, stderr: str) -> Verdict:
    """As `flow`, for a command that has ended."""
    found = {"exit": status, "stdout": stdout, "stderr": stderr}
    return _verdict({key: (wanted, found[key], _is(wanted, found[key])) for key, wanted in expect.items()})


def _is(wanted: Any, found: Any) -> bool:
    """A text as it stands (a final newline may be left out), or what it must contain or match."""
    if isinstance(wanted, dict):
        contains = all(part in found for part in wanted.get("contains", ()))
        return contains and all(re.search(pattern, found, re.MULTILINE) for pattern in wanted.get("matches", ()))
    return bool(found in (wanted, f"{wanted}\n"))


def refusal(expect: Json, error: ApiError | None) -> Verdict:
    """As `flow`, for a request that should be refused. A cause's own field and message count as the refusal's."""
    if error is None:
        return Verdict(expect, {"status": "it was accepted"}, ("status",))
    fields = [str(cause.get("field", "")) for cause in error.causes]
    messages = [error.message, *(str(cause.get("message", "")) for cause in error.causes)]
    parts: dict[str, tuple[Any, Any, bool]] = {}
    for key, wanted in expect.items():
        match key:
            case "status":
                parts[key] = wanted, error.code, error.code == wanted
            case "reason":
                parts[key] = wanted, error.reason, error.reason == wanted
            case "field":
                parts[key] = wanted, fields, wanted in fields
            case _:
                parts[key] = wanted, error.message, any(wanted in message for message in messages)
    return _verdict(parts)


def rules(expect: Json, content: str, equals: str | None) -> Verdict:
    """As `flow`, for a rule set's text; `equals` is the content of the file that `expect` names."""
    parts: dict[str, tuple[Any, Any, bool]] = {}
    lines = [line.strip() for line in content.splitlines()]
    for key, wanted in expect.items():
        match key:
            case "contains":
                missing = [part for part in wanted if part not in content]
                parts[key] = wanted, f"not in it: {missing}" if missing else "all in it", not missing
            case "equals":
                differing = next((pair for pair in zip(_plain(equals or ""), _plain(content), strict=False) if pair[0] != pair[1]), None)
                same = _plain(equals or "") == _plain(content)
                parts[key] = differing[0] if differing else wanted, differing[1] if differing else "more or fewer lines", same
            case _:
                chain = [line for line in lines if line.split()[:2] == ["-A", wanted["name"]]]
                expected = wanted.get("rules")
                if expected is None:
                    parts[key] = wanted["name"], "there is no such chain", any(line.startswith(f":{wanted['name']} ") for line in lines)
                elif isinstance(expected, int):
                    parts[key] = expected, len(chain), len(chain) == expected
                else:
                    full = [rule if rule.startswith("-A ") else f"-A {wanted['name']} {rule}" for rule in expected]
                    parts[key] = full, chain, full == chain
    return _verdict(parts)


def _plain(content: str) -> list[str]:
    """A rule set's lines without comments, counters and empty lines."""
    lines = (re.sub(r"\[\d+:\d+\]", "", line).strip() for line in content.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _verdict(parts: Mapping[str, tuple[Any, Any, bool]]) -> Verdict:
    wrong = tuple(key for key, part in parts.items() if not part[2])
    return Verdict({key: part[0] for key, part in parts.items()}, {key: part[1] for key, part in parts.items()}, wrong)
