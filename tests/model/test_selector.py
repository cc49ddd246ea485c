"""Selectors choose what Kubernetes' documentation says they choose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.model import selector

WEB = {"app": "web", "tier": "front", "n": "5"}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("", True), ("app=web", True), ("app==web", True), ("app=api", False), ("app!=api", True), ("missing!=x", True), ("app", True),
        ("!app", False), ("!missing", True), ("missing", False), ("app in (api, web)", True), ("app in (api)", False),
        ("app notin (api)", True), ("missing notin (a,b)", True), ("app=web,tier in (front, back),!x", True), ("app=web,tier=back", False),
        ("n>4", True), ("n<5", False), ("app>4", False), ("missing=", False), ("a.b/c notin (x)", True),
    ],
)  # fmt: skip
def test_string_selectors(text: str, chosen: bool) -> None:
    assert selector.parse(text).matches(WEB) is chosen


@pytest.mark.parametrize("text", ["app=web,", "=web", "app in web", "a b", "app ~ web"])
def test_nonsense_does_not_parse(text: str) -> None:
    with pytest.raises(ValueError, match="unable to parse requirement"):
        selector.parse(text)


@pytest.mark.parametrize(
    ("label_selector", "chosen"),
    [
        (None, True),
        ({}, True),
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["back"]}]}, False),
        ({"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["y"]}]}, True),
        ({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
    ],
)
def test_label_selectors_of_objects(label_selector: dict[str, object] | None, chosen: bool) -> None:
    assert selector.from_label_selector(label_selector).matches(WEB) is chosen


@pytest.mark.parametrize(
    "expression", [{"key": "a", "operator": "Is"}, {"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]}]
)
def test_a_wrong_expression_is_refused(expression: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="operator"):
        selector.from_label_selector({"matchExpressions": [expression]})


LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))


@given(LABELS, LABELS)
def test_a_map_chooses_exactly_the_supersets(wanted: dict[str, str], labels: dict[str, str]) -> None:
    assert selector.from_map(wanted).matches(labels) is (wanted.items() <= labels.items())


@given(LABELS, st.sampled_from("abc"), st.sets(st.sampled_from("xyz"), min_size=1))
def test_notin_is_the_complement_of_in(labels: dict[str, str], key: str, values: set[str]) -> None:
    listed = ",".join(sorted(values))

    assert selector.parse(f"{key} in ({listed})").matches(labels) is not selector.parse(f"{key} notin ({listed})").matches(labels)


def test_field_selectors_parse() -> None:
    assert selector.parse_fields("metadata.name=web,spec.nodeName!=node-1") == (
        ("metadata.name", "web", True),
        ("spec.nodeName", "node-1", False),
    )
    with pytest.raises(ValueError, match="invalid field selector"):
        selector.parse_fields("metadata.name")
