"""What all tests share: hypothesis without deadlines (the machine is shared), and no kernel tests where there is no kernel to ask."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("podwire", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", parent=settings.get_profile("podwire"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "podwire"))


@cache
def why_no_namespaces() -> str:
    """Why network namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("unshare") is None:
        return "no unshare(1)"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `kernel`, with the reason, where no network namespace can be made."""
    if item.get_closest_marker("kernel") and (reason := why_no_namespaces()):
        pytest.skip(f"kernel oracle: {reason}")
