"""The house rules as tests: who may import whom, who may touch the machine, how long a file may be, what it must say first."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lower rows know nothing of higher ones, and packages of one row nothing of each other.
RANKS = (
    ("errors", "clock", "trace"),
    ("wire",),
    ("model",),
    ("netfilter", "store", "tcp"),
    ("stack", "registry"),
    ("pod", "overlay", "bus", "observe"),
    ("programs",),
    ("cni", "proxy", "dns", "ingress", "control", "programs"),
    ("api",),
    ("node", "edge", "controller"),
    ("launcher",),
)
RANK = {package: rank for rank, row in enumerate(RANKS) for package in row}
# A program uses the network as a user would, a benchmark what it measures; nobody uses them.
TOP = {"launcher", "benchmarks"}

SHELLS = ("emu/node/", "emu/controller/", "emu/edge/", "emu/overlay/", "emu/bus/", "emu/api/http", "launcher/", "benchmarks/")
MACHINE = (
    # what is used                          who may                                            why nobody else
    ("zmq", ("emu/overlay/", "emu/bus/", "benchmarks/"), "carriers and the broadcast are the only wires"),
    ("threading.Thread", SHELLS, "only shells start threads; others get them through Kernel.spawn"),
    ("threading.Timer", SHELLS, "timers belong to the stack's heap"),
    ("concurrent.futures", SHELLS, "only shells start threads"),
    ("time.", ("emu/clock.py", *SHELLS), "time is an argument"),
    ("datetime.datetime.now", ("emu/clock.py", *SHELLS), "time is an argument"),
    ("datetime.datetime.utcnow", (), "naive, and time is an argument"),
    ("random.random", (), "randomness comes from a seeded source"),
    ("random.choice", (), "randomness comes from a seeded source"),
    ("socket.socket", SHELLS, "pods have sockets of our own stack"),
    ("socket.create_connection", SHELLS, "pods have sockets of our own stack"),
    ("subprocess", ("launcher/", "benchmarks/"), "only the launcher starts processes"),
    ("multiprocessing", (), "nodes are forked from the zygote"),
    ("os.fork", ("launcher/", "benchmarks/"), "only the launcher starts processes"),
    ("os.exec", ("launcher/", "benchmarks/"), "only the launcher starts processes"),
    ("os.posix_spawn", ("launcher/", "benchmarks/"), "only the launcher starts processes"),
    ("os.system", (), "nothing here needs a shell"),
)

FORBIDDEN_NAMES = {"util", "utils", "common", "base", "manager", "managers", "helper", "helpers", "misc"}
LONGEST = {"emu": 400, "launcher": 400, "benchmarks": 400, "tests": 500}


def sources(*tops: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for top in tops for path in (ROOT / top).rglob("*.py"))


CODE = sources("emu", "launcher", "benchmarks")
ALL = sources("emu", "launcher", "benchmarks", "tests")


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name bound here, dotted thing it stands for) of every import, those under TYPE_CHECKING and in functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name if alias.asname else alias.name.split(".")[0]
                yield "", alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide a file's place"
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


@cache
def uses(source: str) -> set[str]:
    """Every dotted name of another module that the source imports or reaches through an import."""
    tree = ast.parse(source)
    bound = dict(imports(tree))
    found = {dotted for _, dotted in imports(tree)}
    for node in ast.walk(tree):
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.append(node.attr)
            node = node.value
        if chain and isinstance(node, ast.Name) and node.id in bound:
            found.add(".".join((bound[node.id], *reversed(chain))))
    return found


def package_of(path: Path) -> str:
    """emu/wire/addr.py → wire, emu/clock.py → clock, launcher/cli.py → launcher."""
    return path.parts[0] if path.parts[0] != "emu" else path.parts[1].removesuffix(".py")


def lawless_imports(package: str, source: str) -> list[str]:
    """Imports of our own packages which the law does not allow to `package`."""
    bad = []
    for dotted in sorted({dotted for _, dotted in imports(ast.parse(source))}):
        parts = dotted.split(".")
        other = parts[1] if parts[0] == "emu" and len(parts) > 1 else parts[0]
        if parts == ["emu"] or other == package or parts[0] not in {"emu", *TOP, "tests"} or package == "benchmarks":
            continue
        allowed = other in RANK and package in RANK and RANK[other] < RANK[package]
        if not allowed and not (package == "launcher" and parts[0] == "benchmarks") and other != "__version__":
            bad.append(dotted)
    return bad


def test_every_package_has_a_rank():
    packages = {path.name for path in (ROOT / "emu").iterdir() if (path / "__init__.py").exists()}
    assert packages <= RANK.keys()


@pytest.mark.parametrize("path", CODE, ids=str)
def test_imports_only_go_down(path):
    if path == Path("emu/__init__.py"):
        return
    assert lawless_imports(package_of(path), (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("package", "source", "bad"),
    [
        ("proxy", "from emu.netfilter.ruleset import Rule", []),
        ("netfilter", "from emu.proxy.names import chain", ["emu.proxy.names.chain"]),
        ("stack", "def f():\n    import emu.registry", ["emu.registry"]),
        ("wire", "from emu.errors import DropReason\nfrom emu import clock", []),
        ("api", "from launcher import cli", ["launcher.cli"]),
    ],
)
def test_the_import_law_itself_tells_right_from_wrong(package, source, bad):
    assert lawless_imports(package, source) == bad


@pytest.mark.parametrize(("what", "who", "why"), MACHINE, ids=[row[0] for row in MACHINE])
def test_only_some_may_touch_the_machine(what, who, why):
    prefix = what if what.endswith(".") else what + "."
    starts = (prefix,) if what != "os.exec" else ("os.exec",)
    offenders = {
        f"{path}: {name}"
        for path in CODE
        if not str(path).startswith(tuple(who))
        for name in uses((ROOT / path).read_text())
        if name == what or name.startswith(starts)
    }
    assert offenders == set(), why


@pytest.mark.parametrize("path", ALL, ids=str)
def test_a_file_is_short_and_opens_by_saying_what_it_decides(path):
    text = (ROOT / path).read_text()
    assert len(text.splitlines()) <= LONGEST[path.parts[0]]
    assert not text.strip() or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", ALL, ids=str)
def test_names_say_what_a_thing_is(path):
    assert not {part.removesuffix(".py") for part in path.parts} & FORBIDDEN_NAMES


def test_tests_mirror_the_tree():
    """A folder of tests is a package of the emulator, or one of the few that cut across it."""
    across = {"kit", "golden", "launcher", "benchmarks", "flow", "contract", "cluster"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= RANK.keys() | across
