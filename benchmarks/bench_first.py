"""From typing `podwire up` for three nodes with the shop to the first answered request to one of its Services.

The request is another command, `podwire exec`, so two starts of the command line are in the time. `ratio` is of the whole to
`podwire --help`: the floor of one command that does nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.cluster import Cluster
from benchmarks.harness import Result, environment, report, tell

SHOP = Path(__file__).resolve().parent.parent / "configs" / "shop"
REQUEST = ("curl", "-s", "--fail", "http://10.96.0.10/hostname")


def run(repeats: int = 3) -> Result:
    """Measure so many clusters, one after the other."""
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        tell(f"cluster {repeat + 1} of {repeats} …")
        rows.append(_once())
    best = sorted(rows, key=lambda row: row["total"])[len(rows) // 2]
    return {
        "bench": "first",
        "title": "podwire up, three nodes with the shop, to the first answered request (s)",
        "headline": "the median total to `podwire --help`",
        "ratio": round(best["total"] / best["help"], 2),
        "measured": {"seconds": best["total"]},
        "reference": {"seconds": best["help"]},
        "rows": rows,
        "environment": environment(),
    }


def _once() -> dict[str, Any]:
    with Cluster("first") as cluster:
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "launcher", "--help"], check=True, capture_output=True)
        helped = time.monotonic()
        cluster.podwire("up", "--nodes", "3", "-f", str(SHOP))
        up = time.monotonic()
        answer = cluster.podwire("exec", "deployment/web", "--", *REQUEST)
        answered = time.monotonic()
        cluster.podwire("down")
        down = time.monotonic()
    assert answer.startswith("order-service"), answer
    seconds = {"up": up - helped, "request": answered - up, "total": answered - helped, "down": down - answered, "help": helped - start}
    return {**{what: round(value, 2) for what, value in seconds.items()}, "answered_by": answer.strip()}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--rounds", default=3, show_default=True, help="Clusters to bring up.")
def main(*, as_json: bool, rounds: int) -> None:
    """From `podwire up` to the first answered request."""
    report(run(rounds), as_json=as_json)


if __name__ == "__main__":
    main()
