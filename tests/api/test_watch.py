"""A watch shows every change once, in order, whatever its selector, and says when it cannot."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from emu.api.handler import Api
from emu.api.request import Request
from emu.api.watch import WatchStream
from emu.registry.registry import Registry
from emu.store.store import Change
from tests.kit.apiserver import registry

MAPS = "/api/v1/namespaces/default/configmaps"


def config(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": labels}}


def open_watch(cluster: Registry, query: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(what came first, a list that fills with what comes later)."""
    stream = Api(cluster).handle(Request.of("GET", f"{MAPS}?watch=true&{query}"))
    assert isinstance(stream, WatchStream)
    later: list[dict[str, Any]] = []
    cluster.store.subscribe(lambda changes: later.extend(lines(stream.feed(changes))))
    return lines(stream.start()), later


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def brief(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]


def test_without_a_revision_it_begins_with_what_is_there() -> None:
    cluster = registry()
    cluster.create("configmaps", config("a"))

    first, later = open_watch(cluster, "")
    cluster.create("configmaps", config("b"))
    cluster.create("pods", {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}})

    assert (brief(first), brief(later)) == ([("ADDED", "a")], [("ADDED", "b")])


def test_from_a_revision_it_begins_with_what_was_missed() -> None:
    cluster = registry()
    cluster.create("configmaps", config("a"))
    since = cluster.store.revision
    cluster.create("configmaps", config("b"))
    cluster.delete("configmaps", "default", "a")

    first, _ = open_watch(cluster, f"resourceVersion={since}")

    assert brief(first) == [("ADDED", "b"), ("DELETED", "a")]
    assert first[1]["object"]["metadata"]["resourceVersion"] == str(cluster.store.revision)


def test_a_revision_that_left_the_history_is_an_error_event() -> None:
    cluster = registry()
    cluster.store._floor = 5

    first, _ = open_watch(cluster, "resourceVersion=2")

    assert [(event["type"], event["object"]["code"], event["object"]["reason"]) for event in first] == [("ERROR", 410, "Expired")]


def test_a_revision_that_is_not_there_yet_is_an_error_event() -> None:
    first, _ = open_watch(registry(), "resourceVersion=999")

    assert [(event["type"], event["object"]["code"]) for event in first] == [("ERROR", 504)]


def test_streaming_lists_end_with_a_marked_bookmark() -> None:
    cluster = registry()
    cluster.create("configmaps", config("a"))

    first, _ = open_watch(cluster, "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")

    assert brief(first) == [("ADDED", "a"), ("BOOKMARK", "")]
    assert first[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert first[1]["object"]["metadata"]["resourceVersion"] == str(cluster.store.revision)


def test_an_object_that_leaves_the_selector_is_deleted_for_this_watcher() -> None:
    cluster = registry()
    _, later = open_watch(cluster, "labelSelector=app%3Dweb")
    for labels in ({"app": "web"}, {"app": "web", "x": "y"}, {"app": "api"}, {"app": "web"}):
        present = cluster.store.get("configmaps", "default", "a") is not None
        (cluster.update if present else cluster.create)("configmaps", config("a", **labels), "default")

    assert [event["type"] for event in later] == ["ADDED", "MODIFIED", "DELETED", "ADDED"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["web", "api", "delete"])), max_size=15), st.integers(0, 15))
def test_snapshot_plus_changes_is_always_the_list(steps: list[tuple[str, str]], begin: int) -> None:
    """A client that applies a watch's events holds what a list with the same selector gives, wherever it begins."""
    cluster = registry()
    held: dict[str, Any] = {}

    def apply(events: list[dict[str, Any]]) -> None:
        for event in events:
            name = event["object"]["metadata"]["name"]
            assert (name in held) is (event["type"] != "ADDED"), "added once, and only what is there changes or goes"
            held.pop(name) if event["type"] == "DELETED" else held.update({name: event["object"]})

    stream: WatchStream | None = None
    for number, (name, app) in enumerate([*steps, ("z", "web")]):
        if number == min(begin, len(steps)):
            opened = Api(cluster).handle(Request.of("GET", f"{MAPS}?watch=true&labelSelector=app%3Dweb"))
            assert isinstance(opened, WatchStream)
            stream = opened

            def take(changes: list[Change], stream: WatchStream = opened) -> None:
                apply(lines(stream.feed(changes)))

            cluster.store.subscribe(take)
            apply(lines(opened.start()))
        present = cluster.store.get("configmaps", "default", name) is not None
        if app != "delete":
            (cluster.update if present else cluster.create)("configmaps", config(name, app=app), "default")
        elif present:
            cluster.delete("configmaps", "default", name)

    assert stream is not None
    assert held == {o["metadata"]["name"]: o for o in cluster.store.list("configmaps")[0] if o["metadata"]["labels"]["app"] == "web"}
