"""The store against a plain dict, and its promises one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from emu.errors import ApiError
from emu.store.store import Change, Store


def pod(name: str, *, namespace: str = "default", **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, **fields}


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = Store(":memory:" if request.param == "memory" else str(tmp_path / "store.db"))
    yield made
    made.check()
    made.close()


def test_every_change_of_any_kind_takes_the_next_revision(store: Store) -> None:
    store.create("pods", pod("a"))
    store.create("configmaps", pod("a"))
    store.update("pods", pod("a", x=1))
    store.delete("configmaps", "default", "a")

    assert store.revision == 4
    assert [(c.revision, c.type, c.resource) for c in store.changes(0)] == [
        (1, "ADDED", "pods"), (2, "ADDED", "configmaps"), (3, "MODIFIED", "pods"), (4, "DELETED", "configmaps"),
    ]  # fmt: skip
    assert store.changes(0)[-1].object["metadata"]["resourceVersion"] == "4"
    assert store.list("pods") == ([pod("a", x=1) | {"metadata": {"name": "a", "namespace": "default", "resourceVersion": "3"}}], 4)


@pytest.mark.parametrize(
    ("act", "code", "reason", "message"),
    [
        (lambda s: s.create("pods", pod("a")), 409, "AlreadyExists", 'pods "a" already exists'),
        (lambda s: s.update("deployments", pod("b")), 404, "NotFound", 'deployments.apps "b" not found'),
        (lambda s: s.delete("pods", "other", "a"), 404, "NotFound", 'pods "a" not found'),
        (
            lambda s: s.update("pods", pod("a") | {"metadata": {"name": "a", "namespace": "default", "resourceVersion": "77"}}),
            409,
            "Conflict",
            "modified",
        ),
    ],
)
def test_refusals_are_worded_as_kubernetes_words_them(store: Store, act: Any, code: int, reason: str, message: str) -> None:
    store.create("pods", pod("a"))

    with pytest.raises(ApiError) as caught:
        act(store)
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert message in caught.value.message
    assert store.revision == 1


def test_an_update_that_changes_nothing_takes_no_revision(store: Store) -> None:
    store.create("pods", pod("a", x=1))
    store.update("pods", pod("a", x=1))

    assert store.revision == 1


def test_a_failed_transaction_leaves_no_trace(store: Store) -> None:
    store.create("pods", pod("a", x=1))
    seen: list[list[Change]] = []
    store.subscribe(seen.append)

    with pytest.raises(ApiError), store.transaction():
        store.update("pods", pod("a", x=2))
        store.create("pods", pod("b"))
        store.delete("pods", "default", "a")
        store.create("pods", pod("b"))

    assert (store.revision, seen) == (1, [])
    assert [o["x"] for o in store.list("pods")[0]] == [1]


def test_a_failed_inner_transaction_undoes_only_itself(store: Store) -> None:
    with store.transaction():
        store.create("pods", pod("a"))
        with pytest.raises(ApiError), store.transaction():
            store.create("pods", pod("b"))
            store.create("pods", pod("a"))
        store.create("pods", pod("c"))

    assert [o["metadata"]["name"] for o in store.list("pods")[0]] == ["a", "c"]
    assert [c.revision for c in store.changes(0)] == [1, 2]


def test_subscribers_hear_once_a_transaction_after_it_and_in_one_order(store: Store) -> None:
    heard: list[list[int]] = []

    def writes_again(changes: list[Change]) -> None:
        if changes[0].object["metadata"]["name"] == "a":
            store.create("pods", pod("from-subscriber"))

    store.subscribe(writes_again)
    stop = store.subscribe(lambda changes: heard.append([c.revision for c in changes]))
    with store.transaction():
        store.create("pods", pod("a"))
        store.create("pods", pod("b"))
        assert heard == []
    assert heard == [[1, 2], [3]]

    stop()
    store.create("pods", pod("z"))
    assert heard == [[1, 2], [3]]


def test_history_is_bounded_and_says_expired() -> None:
    store = Store(history=3)
    for number in range(5):
        store.create("pods", pod(f"p{number}"))

    assert [c.revision for c in store.changes(2)] == [3, 4, 5]
    assert store.changes(5) == []
    with pytest.raises(ApiError) as caught:
        store.changes(1)
    assert (caught.value.code, caught.value.reason) == (410, "Expired")
    store.check()


def test_reopening_the_file_gives_the_same_state(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    first = Store(path)
    first.create("pods", pod("a", x="ü"))
    first.create("pods", pod("b"))
    first.delete("pods", "default", "b")
    before = first.list("pods")

    second = Store(path)  # the first was never closed: as after a SIGKILL

    assert second.list("pods") == before
    assert second.revision == 3
    with pytest.raises(ApiError, match="too old"):
        second.changes(2)
    second.create("pods", pod("c"))
    assert [c.revision for c in second.changes(3)] == [4]


def test_changing_an_object_one_was_given_is_found_out() -> None:
    store = Store()
    store.create("pods", pod("a"))["x"] = 1

    with pytest.raises(AssertionError, match="differs"):
        store.check()


NAMES = st.sampled_from("abc")


class StoreAgainstDict(RuleBasedStateMachine):
    """Random operations, in and out of failing transactions, on the store and on a dict."""

    @initialize()
    def start(self) -> None:
        self.store = Store(history=5)
        self.model: dict[str, int] = {}
        self.mirror: dict[str, int] = {}
        self.store.subscribe(self.follow)

    def follow(self, changes: list[Change]) -> None:
        for change in changes:
            name = change.object["metadata"]["name"]
            if change.type == "DELETED":
                del self.mirror[name]
            else:
                assert (name in self.mirror) is (change.type == "MODIFIED")
                self.mirror[name] = change.object["x"]

    @rule(names=st.lists(st.tuples(NAMES, st.integers(0, 2))), fails=st.booleans())
    def write_together(self, names: list[tuple[str, int]], fails: bool) -> None:
        model = dict(self.model)
        try:
            with self.store.transaction():
                for name, x in names:
                    (self.store.update if name in model else self.store.create)("pods", pod(name, x=x))
                    model[name] = x
                if fails:
                    raise KeyError
            self.model = model
        except KeyError:
            assert fails

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        try:
            self.store.delete("pods", "default", name)
            del self.model[name]
        except ApiError as error:
            assert error.code == 404 and name not in self.model

    @invariant()
    def same(self) -> None:
        held = {o["metadata"]["name"]: o["x"] for o in self.store.list("pods")[0]}
        assert held == self.model == self.mirror
        self.store.check()


StoreAgainstDict.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestStoreAgainstDict = StoreAgainstDict.TestCase
