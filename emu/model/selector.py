"""Label and field selectors: which objects they choose.

A selector is a list of requirements that must all hold. `NotIn` and `!=` also choose objects that lack the key, and so does
`DoesNotExist`; an empty selector chooses everything. Spec: "Labels and Selectors" of the Kubernetes documentation and
apimachinery's labels.Parse. A selector that is wrong raises ValueError with Kubernetes' kind of message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Labels = Mapping[str, str]


class Requirement(NamedTuple):
    """One condition: `operator` is In, NotIn, Exists, DoesNotExist, Gt or Lt."""

    key: str
    operator: str
    values: frozenset[str]

    def matches(self, labels: Labels) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case _:  # Gt, Lt: both sides are integers, else no match
                return value is not None and _compares(self.operator, value, next(iter(self.values)))


def _compares(operator: str, value: str, bound: str) -> bool:
    try:
        left, right = int(value), int(bound)
    except ValueError:
        return False
    return left > right if operator == "Gt" else left < right


class Selector(NamedTuple):
    """Requirements that must all hold."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels | None) -> bool:
        labels = labels or {}
        return all(requirement.matches(labels) for requirement in self.requirements)


EVERYTHING = Selector()


def from_map(labels: Labels | None) -> Selector:
    """The selector of a Service or a ReplicationController: a plain map. (An *empty* one of a Service selects nothing: ask first.)"""
    return Selector(tuple(Requirement(key, "In", frozenset((value,))) for key, value in (labels or {}).items()))


def from_label_selector(selector: Mapping[str, Any] | None) -> Selector:
    """A `LabelSelector` of an object: matchLabels and matchExpressions, all of which must hold. ValueError for an unknown operator."""
    selector = selector or {}
    expressions = []
    for expression in selector.get("matchExpressions") or ():
        operator, values = expression.get("operator"), frozenset(expression.get("values") or ())
        if operator not in _TAKES_VALUES:
            raise ValueError(f'"{operator}" is not a valid label selector operator')
        if _TAKES_VALUES[operator] != bool(values):
            need = "must be specified" if _TAKES_VALUES[operator] else "may not be specified"
            raise ValueError(f"values: {need} when `operator` is '{operator}'")
        expressions.append(Requirement(expression["key"], operator, values))
    return Selector(from_map(selector.get("matchLabels")).requirements + tuple(expressions))


_TAKES_VALUES = {"In": True, "NotIn": True, "Exists": False, "DoesNotExist": False}

_KEY = r"(?P<key>[A-Za-z0-9][\w./-]*)"
_FORMS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"{_KEY}\s+in\s*\((?P<set>[^()]*)\)"), "In"),
    (re.compile(rf"{_KEY}\s+notin\s*\((?P<set>[^()]*)\)"), "NotIn"),
    (re.compile(rf"{_KEY}\s*!=\s*(?P<one>[\w.-]*)"), "NotIn"),
    (re.compile(rf"{_KEY}\s*==?\s*(?P<one>[\w.-]*)"), "In"),
    (re.compile(rf"{_KEY}\s*>\s*(?P<one>-?\d+)"), "Gt"),
    (re.compile(rf"{_KEY}\s*<\s*(?P<one>-?\d+)"), "Lt"),
    (re.compile(rf"!\s*{_KEY}"), "DoesNotExist"),
    (re.compile(_KEY), "Exists"),
)
_COMMA_OUTSIDE_PARENTHESES = re.compile(r",(?![^()]*\))")


def parse(text: str) -> Selector:
    """`app=web,tier in (a, b),!canary,zone notin (x),n>3`; ValueError where it does not parse."""
    if not text.strip():
        return EVERYTHING
    return Selector(tuple(_requirement(part.strip()) for part in _COMMA_OUTSIDE_PARENTHESES.split(text)))


def _requirement(part: str) -> Requirement:
    for pattern, operator in _FORMS:
        found = pattern.fullmatch(part)
        if found:
            groups = found.groupdict()
            values = groups["set"].split(",") if groups.get("set") is not None else [groups["one"]] if "one" in groups else []
            return Requirement(groups["key"], operator, frozenset(value.strip() for value in values))
    raise ValueError(f"unable to parse requirement: {part!r}")


class FieldRequirement(NamedTuple):
    """One condition of a field selector: `path` equals `value`, or does not."""

    path: str
    value: str
    equal: bool


def parse_fields(text: str) -> tuple[FieldRequirement, ...]:
    """`metadata.name=web,spec.nodeName!=node-1`; ValueError where it does not parse. Which paths may be asked is the API's to know."""
    requirements = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"([\w.]+)\s*(!=|==?)\s*(.*)", part)
        if not found:
            raise ValueError(f"invalid field selector: {part!r}")
        requirements.append(FieldRequirement(found[1], found[3], found[2] != "!="))
    return tuple(requirements)
