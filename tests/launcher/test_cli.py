"""The command line without a cluster: what it refuses, in which words, with which status; and how fast it answers."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.cli import main

SHOP = str(Path(__file__).parents[2] / "configs" / "shop")

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{type: NodePort, selector: {{app: x}}, ports: [{{port: 80, {more}}}]}}
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  selector: {matchLabels: {app: d}}
  template: {metadata: {labels: {app: other}}, spec: {containers: [{name: c, image: nginx}]}}
"""
BROKEN = {
    "unknown field": (
        SERVICE.format(name="s", more="colour: red"),
        'Service s: unknown field "spec.ports[0].colour"',
    ),
    "wrong type": (
        SERVICE.format(name="s", more="nodePort: high"),
        'Service s: spec.ports[0].nodePort: Invalid value: "high": must be an integer, not a string',
    ),
    "selector against template": (
        DEPLOYMENT,
        'Deployment d: spec.template.metadata.labels: Invalid value: {"app": "other"}: `selector` does not match template `labels`',
    ),
    "duplicate node port": (
        SERVICE.format(name="s", more="nodePort: 30100") + "---\n" + SERVICE.format(name="t", more="nodePort: 30100"),
        "Service t: spec.ports[0].nodePort: Invalid value: 30100: provided port is already allocated",
    ),
    "no Kubernetes kind": (
        "apiVersion: v1\nkind: Servce\nmetadata: {name: s}\n",
        'Servce s: no matches for kind "Servce" in version "v1" (did you mean Service?)',
    ),
    "no YAML": ("a: [\n", "line 2, column 1: not valid YAML: "),
}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("PODWIRE_RUN_DIR", str(tmp_path))
    monkeypatch.delenv("PODWIRE_NAME", raising=False)
    yield
    assert not any(tmp_path.glob("podwire-*"))  # nothing was started


@pytest.mark.parametrize(("text", "told"), BROKEN.values(), ids=list(BROKEN))
def test_a_broken_manifest_is_told_with_file_object_and_path_before_anything_starts(text, told, tmp_path, capsys):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert main(["up", "-f", str(file)]) == 2
    assert f"error: {file}: {told}" in capsys.readouterr().err


def test_every_fault_of_a_set_is_told_at_once(tmp_path, capsys):
    for i, (text, _) in enumerate(list(BROKEN.values())[:3]):
        (tmp_path / f"{i}.yaml").write_text(text.replace("name: s", f"name: s{i}"))
    assert main(["up", "-f", str(tmp_path)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].rpartition("/")[2] for line in told[:-1]] == ["0.yaml", "1.yaml", "2.yaml"]
    assert told[-1] == "error: nothing was applied"


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (["up", "--nodes", "0"], 2, "nodes: must be a number from 1 to 4096, not 0"),
        (["up", "--nodes", "few"], 2, "Invalid value for '--nodes': 'few' is not a valid integer. (see podwire up --help)"),
        (["up", "--cni", "calico"], 2, "cni: calico is not emulated yet; flannel is"),
        (["up", "--proxy", "ipvs"], 2, "proxy.mode: mode ipvs is not emulated yet; iptables and nftables are"),
        (["up", "--config", "/nowhere.yaml"], 2, "/nowhere.yaml: No such file or directory"),
        (["up", "-f", "/nowhere.yaml"], 2, "/nowhere.yaml: No such file or directory"),
        (["up", "--config", "{tmp}/c.yaml"], 2, "{tmp}/c.yaml: podCIDR: '10.244.0.1/16' is not a CIDR: 10.244.0.1/16 has host bits set"),
        (["up", "--config", "{tmp}/d.yaml"], 2, "{tmp}/d.yaml: line 2, column 1: not valid YAML"),
        (["frobnicate"], 2, "No such command 'frobnicate'. (see podwire --help)"),
        (["apply"], 2, "say which manifests: -f FILE (see podwire apply --help)"),
        (["exec", "pod"], 2, "Missing argument '-- PROGRAM [ARGS...]'. (see podwire exec --help)"),
        (["fault", "node", "node-1", "tickle"], 2, "Invalid value for 'kill|pause|resume|restart|start': "),
        (["bench", "nothing"], 2, "there is no benchmark 'nothing'; there are: "),
        (["demo", "--nodes", "2"], 2, "--nodes: the demo kills a node and goes on with the others: it takes at least 3"),
        (["status"], 1, "no cluster named 'podwire' is up; start one with: podwire up"),
        (["down", "--name", "x"], 1, "no cluster named 'x' is up; start one with: podwire up"),
        (["down", "--name", ".."], 2, "--name: '..' is no name of a cluster: lower case letters, digits and -, at most 32"),
        (["up", "--name", "a/b"], 2, "name: 'a/b' is no name: lower case letters, digits and -, starting and ending with "),
        (["get", "pods"], 1, "no cluster named 'podwire' is up; start one with: podwire up"),
    ],
)
def test_what_cannot_be_done_is_one_line_on_stderr_and_a_status(argv, status, told, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("podCIDR: 10.244.0.1/16\n")
    (tmp_path / "d.yaml").write_text("{{\n")
    assert main([word.format(tmp=tmp_path) for word in argv]) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("error: " + told.format(tmp=tmp_path))
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_down_all_of_nothing_is_done(capsys):
    assert main(["down", "--all"]) == 0


def test_the_manifests_of_the_shop_pass_the_trial():
    from emu.model.cluster import ClusterSpec
    from launcher import manifests

    found = manifests.read([SHOP])
    manifests.check(ClusterSpec.from_mapping({"nodes": 3}), found)
    assert len(found) == 6


def test_flags_override_the_cluster_file(tmp_path):
    from launcher import bringup

    file = tmp_path / "c.yaml"
    file.write_text("nodes: 5\nname: a\nproxy: {mode: iptables, iptables: {masqueradeAll: true}}\n")
    spec = bringup.spec({"nodes": 2, "name": None, "proxy": None}, str(file), (), (str(file),))
    assert (len(spec.nodes), spec.name, spec.proxy["iptables"]["masqueradeAll"]) == (2, "a", True)
    assert spec.program_paths == (str(tmp_path),)  # the manifests' directory


def test_the_proxys_settings_are_checked_with_the_file_named(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    file.write_text("proxy: {mode: iptables, iptables: {masqueradeAl: true}}\n")
    assert main(["up", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"error: {file}: proxy.iptables.masqueradeAl: unknown key; did you mean masqueradeAll?\n"


def test_help_imports_neither_yaml_nor_rich_nor_the_emulator():
    program = "import sys; from launcher.cli import main; main(['--help']); print(*{m.split('.')[0] for m in sys.modules}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"yaml", "rich", "zmq", "starlette", "http", "websockets", "psutil"} & set(done.stderr.split())


def test_help_answers_at_once():
    took = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "launcher", "--help"], capture_output=True, check=True)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.3  # 0.1 s on a quiet machine
