"""A scenario from set-up to verdict. Decides order, settling, and what a step that cannot be carried out means.

A step whose expectation fails ends the scenario: what follows would be judged on another cluster than its author meant. What cannot
be set up, and a step that means nothing, is not a failed expectation but an invalid scenario, with an exit status of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from emu.errors import ConfigError, PodwireError
from launcher.scenarios import steps
from launcher.scenarios.document import Scenario, Step
from launcher.scenarios.flow import Asker
from launcher.scenarios.world import InProcessWorld, RealWorld, World

Json = dict[str, Any]


@dataclass(slots=True)
class StepResult:
    """One step's verdict. `milliseconds` are real ones."""

    index: int
    kind: str
    name: str
    where: str
    passed: bool
    expected: Json = field(default_factory=dict)
    actual: Json = field(default_factory=dict)
    wrong: tuple[str, ...] = ()  # the parts of `expected` that do not hold
    detail: str = ""
    milliseconds: float = 0.0
    trace: Json | None = None

    def json(self) -> Json:
        """As the format's JSON has it."""
        told: Json = {
            "index": self.index, "kind": self.kind, "name": self.name, "passed": self.passed, "expected": self.expected,
            "actual": self.actual, "detail": self.detail, "milliseconds": round(self.milliseconds, 3),
        }  # fmt: skip
        return told if self.trace is None else {**told, "trace": self.trace}


@dataclass(slots=True)
class Result:
    """One scenario's verdict. `problem`: why it is invalid or could not be set up, "" if it ran."""

    name: str
    source: str
    steps: list[StepResult] = field(default_factory=list)
    problem: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.problem and all(step.passed for step in self.steps)

    def json(self) -> Json:
        """As the format's JSON has it."""
        told: Json = {"scenario": self.name, "passed": self.passed, "steps": [step.json() for step in self.steps]}
        return {**told, "problem": self.problem} if self.problem else told


@dataclass(frozen=True, slots=True)
class Options:
    """How scenarios are run. `trace`: which steps carry their packet's trace (always, failed, never); `name`: a cluster that is up."""

    in_process: bool = True
    name: str | None = None
    trace: str = "failed"


def run(scenario: Scenario, options: Options, on_step: Callable[[StepResult], None] = lambda step: None) -> Result:
    """Run one scenario; never raises for what is in it."""
    result = Result(scenario.name, scenario.source)
    began = time.perf_counter()
    try:
        world = _world(scenario, options)
        try:
            _adopt(scenario, world)
            run_of = steps.Run(scenario, world, Asker(world.client, scenario.spec, scenario.outside))
            for step in _flattened(scenario.steps):
                told = _step(run_of, step, len(result.steps), options.trace)
                result.steps.append(told)
                on_step(told)
                if not told.passed:
                    break
        finally:
            world.close()
    except ConfigError as error:
        result.problem = str(ConfigError(error.problem, source=error.source or scenario.source, where=error.where))
    except PodwireError as error:
        result.problem = f"{scenario.source}: {error}"
    result.seconds = time.perf_counter() - began
    return result


def _world(scenario: Scenario, options: Options) -> World:
    if options.in_process:
        return InProcessWorld(scenario.spec)
    return RealWorld(scenario.spec, name=options.name)


def _adopt(scenario: Scenario, world: World) -> None:
    """Put the scenario's state in place; whatever is wrong with it names its file."""
    if not scenario.manifests:
        return
    try:
        world.client.podwire("POST", "state", {"objects": [each.object for each in scenario.manifests]})
    except PodwireError as error:
        raise ConfigError(str(error), source=scenario.source, where="spec.manifests") from error
    world.settle(frozenset())


def _flattened(given: tuple[Step, ...]) -> Iterator[Step]:
    for step in given:
        if step.kind == "repeat":
            for _ in range(step.fields["times"]):
                yield from _flattened(step.steps)
        else:
            yield step


def _step(run_of: steps.Run, step: Step, index: int, trace: str) -> StepResult:
    began = time.perf_counter()
    if step.settle and step.kind in steps.JUDGING:
        run_of.world.settle(frozenset(run_of.broken))
    told = steps.ACTS[step.kind](run_of, step)
    passed = not told.wrong
    kept = told.trace if trace == "always" or (trace == "failed" and not passed) else None
    return StepResult(
        index, step.kind, step.name, step.where, passed, told.expected, told.actual, told.wrong, told.detail,
        (time.perf_counter() - began) * 1000, kept,
    )  # fmt: skip
