"""Writers and watchers of a real API server that may die at any moment, and what they know of it afterwards."""

from __future__ import annotations

import http.client
import json
import random
import threading
from typing import Any
from urllib.parse import urlsplit

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
TIMEOUT = 10.0
TROUBLE = (OSError, http.client.HTTPException, ValueError)


def ask(url: str, method: str, path: str, body: Any = None, content: str = "application/json") -> tuple[int, Any]:
    """Status and decoded body; OSError, HTTPException or ValueError if the server died of it."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": content})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


class Writer(threading.Thread):
    """Creates, updates, patches and deletes ConfigMaps that nobody else touches.

    `acknowledged` is what the server said last of each: resourceVersion and data, or None for one that is deleted. `open` is what an
    unanswered request would have made of one: its data, or None for gone.
    """

    def __init__(self, url: str, number: int) -> None:
        super().__init__(daemon=True)
        self.url, self.number = url, number
        self.chance = random.Random(number)
        self.acknowledged: dict[str, tuple[str, dict[str, str]] | None] = {}
        self.open: dict[str, dict[str, str] | None] = {}
        self.over = threading.Event()
        self.writes = self.unanswered = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        while not self.over.is_set():
            name = f"w{self.number}-{self.chance.randrange(12)}"
            if name in self.open and not self.settle(name):
                self.over.wait(0.02)
                continue
            self.write(name)

    def write(self, name: str) -> None:
        known = self.acknowledged.get(name)
        value = str(self.writes)
        data = {"a": value, "fill": "x" * self.chance.randrange(4000), "z": value}
        meta: dict[str, Any] = {"name": name}
        if known is None:
            act = ("POST", CONFIGMAPS, {"metadata": meta, "data": data})
        else:
            meta["resourceVersion"] = known[0]
            method = self.chance.choice(("PUT", "PUT", "PATCH", "DELETE"))
            act = (method, f"{CONFIGMAPS}/{name}", None if method == "DELETE" else {"metadata": meta, "data": data})
        meant = None if act[0] == "DELETE" else data
        content = "application/merge-patch+json" if act[0] == "PATCH" else "application/json"
        self.open[name] = meant
        try:
            status, answer = ask(self.url, *act, content)
        except TROUBLE:
            self.unanswered += 1
            return  # it may have been done or not
        del self.open[name]
        if status not in (200, 201):
            self.wrong.append(f"{act[0]} {name}: {status} {answer.get('message')}")
            return
        self.writes += 1
        self.acknowledged[name] = None if meant is None else (answer["metadata"]["resourceVersion"], answer["data"])

    def settle(self, name: str) -> bool:
        """Find out what became of an unanswered request; False if nobody answers yet."""
        try:
            status, found = ask(self.url, "GET", f"{CONFIGMAPS}/{name}")
        except TROUBLE:
            return False
        there = None if status == 404 else (found["metadata"]["resourceVersion"], found["data"])
        self.judge(name, there)
        self.acknowledged[name] = there
        self.open.pop(name, None)
        return True

    def judge(self, name: str, there: tuple[str, dict[str, str]] | None) -> None:
        """Is what is there what was acknowledged, or what an unanswered request meant, whole?"""
        known = self.acknowledged.get(name)
        if there == known:
            return
        if (
            name in self.open
            and self.open[name] == (there and there[1])
            and (known is None or there is None or int(there[0]) > int(known[0]))
        ):
            return
        self.wrong.append(f"{name} is {_short(there)}; acknowledged was {_short(known)}, open {name in self.open}")

    def check(self) -> None:
        """Judge everything that was ever written, against one list."""
        _, found = ask(self.url, "GET", CONFIGMAPS)
        there = {obj["metadata"]["name"]: (obj["metadata"]["resourceVersion"], obj["data"]) for obj in found["items"]}
        for name in {*self.acknowledged, *self.open, *(name for name in there if name.startswith(f"w{self.number}-"))}:
            self.judge(name, there.get(name))


def _short(state: tuple[str, dict[str, str]] | None) -> str:
    return "absent" if state is None else f"rv {state[0]} value {state[1].get('a')}/{state[1].get('z')}"


class Watcher(threading.Thread):
    """Lists and watches ConfigMaps as client-go's reflector does: goes on where it was, lists again on 410."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.seen: dict[str, str] = {}  # name -> resourceVersion
        self.version = 0
        self.lists = self.resumed = 0
        self.wrong: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            try:
                if not self.version:
                    self._list()
                self._watch()
            except TROUBLE:
                self.over.wait(0.05)

    def _list(self) -> None:
        status, found = ask(self.url, "GET", CONFIGMAPS)
        if status == 200:
            self.lists += 1
            self.seen = {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in found["items"]}
            self.version = int(found["metadata"]["resourceVersion"])

    def _watch(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=TIMEOUT)
        try:
            connection.request("GET", f"{CONFIGMAPS}?watch=1&resourceVersion={self.version}")
            answer = connection.getresponse()
            if answer.status == 410:
                self.version = 0
                return
            self.resumed += 1
            while line := answer.readline():
                self._take(json.loads(line))
                if not self.version or self.over.is_set():
                    return
        finally:
            connection.close()

    def _take(self, event: dict[str, Any]) -> None:
        obj = event["object"]
        if event["type"] == "ERROR":
            self.version = 0
            return
        version, name = int(obj["metadata"]["resourceVersion"]), obj["metadata"]["name"]
        if version <= self.version:
            self.wrong.append(f"{event['type']} {name} at {version}, after {self.version}")
        self.version = version
        if event["type"] == "DELETED":
            self.seen.pop(name, None)
        else:
            self.seen[name] = obj["metadata"]["resourceVersion"]
