"""64 bytes there and back between pods on two nodes, as a multiple of bare pyzmq's ping-pong in the same minutes.

Rows: {TCP, UDP} x {blocking program, event handler} x {a CPU each, one CPU}; a Service's ClusterIP as a multiple of the
pod's own address; the carrier alone. `ratio` is of the medians; the headline is TCP, blocking, a CPU each.
"""

from __future__ import annotations

import gc
import tempfile
from contextlib import ExitStack
from typing import Any

import click

from benchmarks import two_nodes, wires
from benchmarks.harness import Result, Round, environment, in_turn, percentiles, placements, report, tell

HEADLINE = "tcp blocking"


def run(repeats: int = 8, count: int = 1000) -> Result:
    """Measure; `repeats` rounds of `count` round trips a row, references in turn with them."""
    gc.collect()
    gc.freeze()  # as the zygote does before it forks nodes
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pw-") as directory:
        for name, cpus in placements().items():
            tell(f"{name} …")
            rows += _rows(name, cpus, directory, repeats, count)
    headline = next(row for row in rows if row["path"] == HEADLINE)  # of the first placement: a CPU each, if there are two
    return {
        "bench": "rtt",
        "title": "64-byte round trip between pods on two nodes (p50 p90 p99, µs)",
        "headline": f"{HEADLINE}, {headline['cpus']}, to bare pyzmq",
        "ratio": headline["ratio"],
        "measured": headline["measured"],
        "reference": headline["reference"],
        "rows": rows,
        "environment": environment(),
    }


def _rows(name: str, cpus: tuple[int, int], directory: str, repeats: int, count: int) -> list[dict[str, Any]]:
    """All rows of one placement."""
    with ExitStack() as stack:
        rounds: dict[str, Round] = {"bare": wires.pyzmq(stack, directory, cpus), "carrier": wires.carrier(stack, directory, cpus)}
        nodes = {kind: two_nodes.ping_pong(stack, directory, cpus, kind) for kind in two_nodes.kinds()}
        rounds |= {str(kind): by["pod"] for kind, by in nodes.items()}
        rounds["service"] = nodes[two_nodes.Kind("tcp", "blocking")]["service"]
        try:
            rounds["veth"] = wires.veth(stack, cpus)
        except (OSError, RuntimeError) as error:
            tell(f"no veth pair to compare with: {error}")
        times = {what: percentiles(taken) for what, taken in in_turn(rounds, repeats, count).items()}

    def row(path: str, what: str, against: str = "bare") -> dict[str, Any]:
        measured, reference = times[what], times[against]
        veth = {"to_veth": round(measured["p50"] / times["veth"]["p50"], 2)} if "veth" in times else {}
        ratio = round(measured["p50"] / reference["p50"], 2)
        return {"path": path, "cpus": name, "measured": measured, "reference": reference, "ratio": ratio, **veth}

    return [
        *(row(f"{kind.transport} {kind.program}", str(kind), "bare") for kind in nodes),
        row("tcp ClusterIP ÷ pod", "service", str(two_nodes.Kind("tcp", "blocking"))),
        row("carrier alone", "carrier"),
        *([row("kernel TCP, veth", "veth")] if "veth" in times else []),
    ]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--rounds", default=8, show_default=True, help="Rounds a row, taken in turn.")
@click.option("--count", default=1000, show_default=True, help="Round trips a round.")
def main(*, as_json: bool, rounds: int, count: int) -> None:
    """Round trip between pods on two nodes, by bare pyzmq's."""
    report(run(rounds, count), as_json=as_json)


if __name__ == "__main__":
    main()
