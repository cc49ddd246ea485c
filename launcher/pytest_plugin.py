"""pytest and Podwire: scenario files are tests, and a test may have a cluster.

A YAML file under the test paths that holds a Scenario is collected, a test a document, run in this process (`--podwire-real`: on
processes). The fixture `podwire` makes clusters in this process:

    def test_rollout(podwire):
        cluster = podwire(nodes=3, manifests=["shop/"])
        assert cluster.flow("pod/default/web-0", "svc/default/api:80").outcome == "delivered"

Loads nothing of Podwire before a scenario is found or the fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from launcher.scenarios.document import Scenario
    from launcher.scenarios.flow import Fact

SUFFIXES = (".yaml", ".yml")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("podwire")
    group.addoption("--podwire-real", action="store_true", help="run scenarios on real processes instead of in this one")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix not in SUFFIXES:
        return None
    from launcher.scenarios.document import is_scenario

    return ScenarioFile.from_parent(parent, path=file_path) if is_scenario(file_path) else None


class ScenarioFile(pytest.File):
    """A file of scenarios."""

    def collect(self) -> Iterator[pytest.Item]:
        from emu.errors import ConfigError
        from launcher.scenarios import document

        try:
            found = document.read(str(self.path))
        except ConfigError as error:
            raise self.CollectError(str(error)) from None
        for scenario in found:
            yield ScenarioItem.from_parent(self, name=scenario.name, scenario=scenario)


class ScenarioFailed(Exception):
    """What a scenario that did not pass has to say."""


class ScenarioItem(pytest.Item):
    """One scenario."""

    def __init__(self, *, scenario: Scenario, **more: Any) -> None:
        super().__init__(**more)
        self.scenario = scenario

    def runtest(self) -> None:
        from launcher.scenarios import report, runner

        real = bool(self.config.getoption("--podwire-real"))
        result = runner.run(self.scenario, runner.Options(in_process=not real))
        if not result.passed:
            raise ScenarioFailed("\n".join(report.failure(result)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, ScenarioFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"scenario {self.name}"


class Cluster:
    """A cluster in this process, as a test uses it. Time passes only by `advance`, and while something is waited for."""

    def __init__(self, settings: dict[str, Any], manifests: Sequence[str | dict[str, Any]]) -> None:
        from emu.model.cluster import ClusterSpec
        from launcher.scenarios.flow import Asker
        from launcher.scenarios.world import InProcessWorld

        outside = settings.pop("outside", {})
        spec = ClusterSpec.from_mapping({"name": "test", "profile": "kubernetes", **settings}, run_dir="/")
        self.world = InProcessWorld(spec)
        self.client = self.world.client
        self._asker = Asker(self.client, spec, outside)
        if manifests:
            self.apply(*manifests)

    def apply(self, *objects: str | dict[str, Any], namespace: str = "default") -> None:
        """Create or change objects, given themselves or by files and directories; ApiError if one is refused."""
        from emu.model import manifest

        found = [obj for item in objects for obj in ([item] if isinstance(item, dict) else [m.object for m in manifest.read([item])])]
        self.client.podwire("POST", "apply", {"objects": found, "namespace": namespace})
        self.settle()

    def settle(self) -> None:
        """Wait until controllers are idle and all nodes have applied what was written."""
        self.world.settle(frozenset())

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.world.advance(seconds)

    def flow(self, source: str, target: str, **fields: Any) -> Fact:
        """What becomes of a first packet; places and fields as in a scenario's `flow` step."""
        self.settle()
        return self._asker.ask({"from": source, "to": target, **fields}, send=True, where="flow")

    def exec(self, pod: str, *command: str, container: str = "", stdin: str = "") -> tuple[int, str, str]:
        """Run a command in a pod (`NAME` or `NS/NAME`): exit status, stdout, stderr."""
        namespace, _, name = pod.rpartition("/")
        return self.world.execute((namespace or "default", name), container, list(command), stdin)


@pytest.fixture
def podwire() -> Iterator[Callable[..., Cluster]]:
    """Makes clusters: keywords are a cluster file's keys, and `manifests`. They end with the test."""
    made: list[Cluster] = []

    def make(*, manifests: Sequence[str | dict[str, Any]] = (), **settings: Any) -> Cluster:
        made.append(Cluster(settings, manifests))
        return made[-1]

    yield make
    for cluster in made:
        cluster.world.close()
