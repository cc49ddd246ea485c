"""A real cluster for tests of one file, used from outside: the command line, and objects as a user writes them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
AGNHOST = "registry.k8s.io/e2e-test-images/agnhost:2.53"
RUN_DIR, NAME = "PODWIRE_RUN_DIR", "PODWIRE_NAME"


def podwire(*argv, stdin=None, status=0):
    """Run a command; `status` None for whatever exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *argv], cwd=ROOT, capture_output=True, text=True, input=stdin, check=False, timeout=90
    )
    assert status is None or done.returncode == status, (argv, done.returncode, done.stdout, done.stderr)
    return done


@contextmanager
def cluster(name, *up, stdin=None):
    """A cluster in a run directory of its own, of which nothing is left: no file, no process, no socket."""
    path = tempfile.mkdtemp(prefix="pw-", dir="/tmp")
    os.environ[RUN_DIR], os.environ[NAME] = path, name
    try:
        podwire("up", *up, stdin=stdin)
        try:
            yield path
        finally:
            podwire("down")
        assert list(Path(path).iterdir()) == []
        assert processes(path) == []
    finally:
        del os.environ[RUN_DIR], os.environ[NAME]
        shutil.rmtree(path)


def processes(run_dir):
    """The command lines of all processes that belong to clusters in a run directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if any(word.startswith(f"{run_dir}/") for word in words):
            found.append(words)
    return found


def kill(pid):
    """SIGKILL; one killed before may have taken it along already."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def eventually(condition, seconds=15.0):
    """Wait until the condition's value is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return result


def manifests(*objects):
    return "\n---\n".join(json.dumps(item) for item in objects)


def pod(name, *containers, node="", annotations=None, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name.rstrip("0123456789-")}, **({"annotations": annotations} if annotations else {})},
        "spec": {"containers": list(containers), "terminationGracePeriodSeconds": 1, **({"nodeName": node} if node else {}), **spec},
    }


def netexec(name="netexec", port=8080, udp=-1, **more):
    ports = [{"name": f"{name[:10]}-tcp", "containerPort": port}]
    if udp > 0:
        ports.append({"name": f"{name[:10]}-udp", "containerPort": udp, "protocol": "UDP"})
    return {"name": name, "image": AGNHOST, "args": ["netexec", f"--http-port={port}", f"--udp-port={udp}"], "ports": ports, **more}


def service(name, ip, selector, port=80, target=8080, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": ip, "selector": {"app": selector}, "ports": [{"port": port, "targetPort": target}], **spec},
    }


def obj(kind, name):
    return json.loads(podwire("get", kind, name, "-o", "json").stdout)


def ip_of(name):
    return obj("pod", name)["status"]["podIP"]


def curl(source, url, *options, status=0):
    return podwire("exec", source, "--", "curl", "-s", *options, url, status=status).stdout


def trace(source, to, *options):
    return json.loads(podwire("trace", source, to, *options, "--json").stdout)
