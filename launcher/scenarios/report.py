"""Verdicts for people, for programs (a JSON line a document) and for CI (JUnit XML)."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.scenarios.runner import Result, StepResult


def line(result: Result) -> str:
    """One scenario in one line."""
    word = "pass" if result.passed else "invalid" if result.problem else "FAIL"
    return f"{word:7} {result.name}  ({len(result.steps)} steps, {result.seconds * 1000:.0f} ms)"


def failure(result: Result) -> Iterator[str]:
    """Everything one needs to see of what went wrong, expectation and fact side by side."""
    if result.problem:
        yield f"  {result.problem}"
        return
    for step in result.steps:
        if not step.passed:
            yield from _failed(result, step)


def _failed(result: Result, step: StepResult) -> Iterator[str]:
    yield f"  {result.source}: {step.where}: {step.kind}" + (f" {step.name!r}" if step.name else "")
    width = max((len(key) for key in step.wrong), default=0)
    for key in step.wrong:
        yield f"    {key:{width}}  expected  {_text(step.expected.get(key))}"
        yield f"    {'':{width}}  actual    {_text(step.actual.get(key))}"
    for key in step.actual.keys() - step.expected.keys():
        yield f"    {key:{width}}  {_text(step.actual[key])}"
    if step.detail:
        yield f"    {step.detail}"
    if step.trace is not None:
        yield "    the packet:"
        for hop in step.trace["request"]:
            told = [hop["node"], hop["netns"], hop["where"], hop.get("rule") or "", hop.get("note") or "", hop.get("verdict") or ""]
            yield "      " + "  ".join(part for part in told if part)


def _difference(step: StepResult) -> Iterator[str]:
    for key in step.wrong:
        yield f"{key}: expected {_text(step.expected.get(key))}, found {_text(step.actual.get(key))}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def junit(results: Sequence[Result], path: str) -> None:
    """Write the file that CI systems read: a test suite a scenario, a test case a step."""
    root = ET.Element("testsuites")
    for result in results:
        failures = sum(not step.passed for step in result.steps)
        suite = ET.SubElement(root, "testsuite", {
            "name": result.name, "file": result.source, "tests": str(max(1, len(result.steps))), "failures": str(failures),
            "errors": str(int(bool(result.problem))), "time": f"{result.seconds:.3f}",
        })  # fmt: skip
        for step in result.steps:
            named = {"classname": result.name, "name": f"{step.index} {step.name or step.kind}", "time": f"{step.milliseconds / 1000:.3f}"}
            case = ET.SubElement(suite, "testcase", named)
            if not step.passed:
                told = "\n".join(_failed(result, step))
                ET.SubElement(case, "failure", {"message": "; ".join(_difference(step))}).text = told
        if result.problem:
            case = ET.SubElement(suite, "testcase", {"classname": result.name, "name": "set-up"})
            ET.SubElement(case, "error", {"message": result.problem})
    ET.indent(root)
    Path(path).write_bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))
