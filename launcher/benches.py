"""`podwire bench NAME`: finds the programs of `benchmarks/` and runs one in this process."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from emu.errors import ConfigError

DIRECTORY = Path(__file__).resolve().parent.parent / "benchmarks"


def available() -> list[tuple[str, str]]:
    """Names, and the first line of what each says of itself."""
    found = []
    for path in sorted(DIRECTORY.glob("bench_*.py")):
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        found.append((path.stem.removeprefix("bench_"), said.partition("\n")[0]))
    return found


def run(name: str, arguments: Sequence[str]) -> int:
    """Run the benchmark's `main(arguments)`; its exit status."""
    if not (DIRECTORY / f"bench_{name}.py").exists():
        raise ConfigError(f"there is no benchmark {name!r}; there are: {', '.join(known for known, _ in available()) or 'none'}")
    if str(DIRECTORY.parent) not in sys.path:
        sys.path.insert(0, str(DIRECTORY.parent))
    result = importlib.import_module(f"benchmarks.bench_{name}").main([*arguments])
    return int(result or 0)
