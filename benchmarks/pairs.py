"""Random pairs of a cluster: a pod asks another pod's address or a Service's, and the answer must come from who may give it.

Every pod runs netexec, whose `/dial` asks on behalf of whoever asks it: a few pods with curl let all the others ask each other.
A pod's address must be answered by that pod, a Service's by one of its endpoints. Used by the benchmarks and by the tests.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from launcher import execution
from launcher.client import Client

BATCH = 100  # pairs by one command: an exec's command line stands in its URL
PORT = 8080  # netexec's, in every pod

Json = dict[str, Any]


class Pair(NamedTuple):
    """The pod at `asker` asks `host:port`; any of `rightly` may answer."""

    asker: str
    host: str
    port: int
    rightly: frozenset[str]

    @property
    def url(self) -> str:
        return f"http://{self.asker}:{PORT}/dial?host={self.host}&port={self.port}&protocol=http&request=hostname&tries=1"


def draw(pods: Sequence[Json], services: Sequence[Json], count: int, seed: int = 1) -> list[Pair]:
    """So many pairs, every other one with a Service; Services have one port and select by the label `app`."""
    chance = random.Random(seed)
    by_app: dict[str, set[str]] = {}
    for pod in pods:
        by_app.setdefault(pod["metadata"]["labels"]["app"], set()).add(pod["metadata"]["name"])
    pairs = []
    for number in range(count):
        asker = chance.choice(pods)["status"]["podIP"]
        if number % 2:
            spec = chance.choice(services)["spec"]
            pairs.append(Pair(asker, spec["clusterIP"], spec["ports"][0]["port"], frozenset(by_app[spec["selector"]["app"]])))
        else:
            pod = chance.choice(pods)
            pairs.append(Pair(asker, pod["status"]["podIP"], PORT, frozenset((pod["metadata"]["name"],))))
    return pairs


def wrong(client: Client, pods: Sequence[Json], pairs: Sequence[Pair], *, at_once: int = 2) -> list[str]:
    """Have all pairs ask, `at_once` commands at a time; what went wrong, in words."""
    batches = [pairs[at : at + BATCH] for at in range(0, len(pairs), BATCH)]
    askers = [pods[index * len(pods) // len(batches)] for index in range(len(batches))]
    with ThreadPoolExecutor(at_once) as threads:
        return [told for found in threads.map(lambda pod, batch: list(_wrong(client, pod, batch)), askers, batches) for told in found]


def _wrong(client: Client, pod: Json, pairs: Sequence[Pair]) -> Iterator[str]:
    meta = pod["metadata"]
    command = ("curl", "-s", *(pair.url for pair in pairs))
    status, out, err = execution.output(client, meta["namespace"], meta["name"], command)
    answers = list(_values(out))
    if status or len(answers) != len(pairs):
        yield f"{meta['name']} had {len(answers)} of {len(pairs)} answers, curl's status {status}: {err.strip()[-200:]}"
        return
    for pair, answer in zip(pairs, answers, strict=True):
        (who,) = answer.get("responses") or [None]
        if who not in pair.rightly:
            yield f"{pair.asker} asked {pair.host}:{pair.port}: {who or answer.get('errors')}, not one of {sorted(pair.rightly)[:3]}"


def _values(text: str) -> Iterator[Json]:
    """The JSON values that stand one behind the other."""
    read, at = json.JSONDecoder().raw_decode, 0
    while at < len(text):
        value, at = read(text, at)
        yield value
        while at < len(text) and text[at].isspace():
            at += 1
