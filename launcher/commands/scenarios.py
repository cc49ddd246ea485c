"""`podwire test`: run scenarios, tell their verdicts."""

from __future__ import annotations

import json

import click


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="FILE|DIR...")
@click.option("--in-process", is_flag=True, help="On the memory carrier and a manual clock: no process, milliseconds a step.")
@click.option("--only", multiple=True, metavar="NAME", help="Only scenarios of this name. May be repeated.")
@click.option("--fail-fast", is_flag=True, help="End with the first scenario that does not pass.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, one line a document.")
@click.option("--trace", type=click.Choice(["always", "failed", "never"]), default="failed", show_default=True)
@click.option("--name", default=None, help="Run on this cluster, which is up, instead of one made for each scenario.")
def test(
    paths: tuple[str, ...], in_process: bool, only: tuple[str, ...], fail_fast: bool, junit: str | None, as_json: bool, trace: str,
    name: str | None,
) -> int:  # fmt: skip
    """Run scenarios: tests of networking in a YAML file.

    Exit status: 0 all passed, 1 an expectation failed, 2 a scenario is invalid or could not be set up.
    """
    from emu.errors import ConfigError
    from launcher.scenarios import document, report, runner

    if in_process and name:
        raise click.UsageError("--in-process and --name exclude each other")
    options = runner.Options(in_process=in_process, name=name, trace=trace)
    results: list[runner.Result] = []

    def told(result: runner.Result) -> bool:
        results.append(result)
        if as_json:
            click.echo(json.dumps(result.json(), ensure_ascii=False))
        else:
            click.echo(report.line(result))
            for line in report.failure(result):
                click.echo(line)
        return result.passed or not fail_fast

    for path in document.find(list(paths)):
        try:
            scenarios = document.read(path)
        except ConfigError as error:
            if not told(runner.Result(path, path, problem=str(error))):
                break
            continue
        wanted = [scenario for scenario in scenarios if not only or scenario.name in only]
        if not all(told(runner.run(scenario, options)) for scenario in wanted):
            break
    if not results:
        raise click.UsageError(f"no scenario is called {' or '.join(only)}")
    if junit:
        report.junit(results, junit)
    if not as_json:
        passed = sum(result.passed for result in results)
        click.echo(f"{passed} of {len(results)} passed")
    return 2 if any(result.problem for result in results) else 0 if all(result.passed for result in results) else 1
