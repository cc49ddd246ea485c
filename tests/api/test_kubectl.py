"""Stock kubectl against our API: the commands people type, and the exit status and words they see."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.apiserver import ApiServer

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")]

SHOP = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: PORT, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: x}]}}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: p}
spec: {nodeName: node-1, containers: [{name: c, image: x}]}
"""

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """Runs kubectl with a home of its own."""
    home: Path = tmp_path_factory.mktemp("home")
    with ApiServer.running() as server:

        def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
            command = ["kubectl", f"--server={server.url}", *args]
            env = {"PATH": os.environ["PATH"], "HOME": str(home), "KUBECONFIG": str(home / "none")}
            return subprocess.run(command, input=stdin, text=True, capture_output=True, timeout=20, env=env, check=False)

        yield run


@pytest.fixture(scope="module")
def shop(kubectl: Kubectl) -> Kubectl:
    """kubectl, where the shop is already."""
    applied = kubectl("apply", "-f", "-", stdin=SHOP.replace("PORT", "80"))
    assert applied.returncode == 0, applied.stderr
    return kubectl


def test_apply_creates_leaves_alone_and_configures(kubectl: Kubectl) -> None:
    mine = SHOP.replace("name: web}", "name: mine}")
    first, second, third = (kubectl("apply", "-f", "-", stdin=mine.replace("PORT", port)) for port in ("80", "80", "81"))

    assert first.stdout == "service/mine created\ndeployment.apps/mine created\n", first.stderr
    assert second.stdout == "service/mine unchanged\ndeployment.apps/mine unchanged\n"
    assert third.stdout == "service/mine configured\ndeployment.apps/mine unchanged\n"
    assert kubectl("get", "svc", "mine", "-o", "jsonpath={.spec.ports[*].port}").stdout == "81", "the old port went"


def test_get_prints_kubectls_columns(shop: Kubectl) -> None:
    assert shop("get", "svc").stdout.splitlines()[0].split() == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"]
    assert shop("get", "deploy", "-o", "wide").stdout.splitlines()[0].split()[-3:] == ["CONTAINERS", "IMAGES", "SELECTOR"]
    assert shop("get", "all").stdout.count("NAME") >= 2
    assert shop("get", "pods").stderr == "No resources found in default namespace.\n"


def test_scale_rollout_restart_and_set_image(shop: Kubectl) -> None:
    assert shop("scale", "deployment", "web", "--replicas=4").stdout == "deployment.apps/web scaled\n"
    assert shop("rollout", "restart", "deploy/web").stdout == "deployment.apps/web restarted\n"
    assert shop("set", "image", "deploy/web", "c=y:2").stdout == "deployment.apps/web image updated\n"
    assert shop("get", "deploy", "web", "-o", "jsonpath={.spec.replicas} {.spec.template.spec.containers[0].image}").stdout == "4 y:2"


def test_describe_explain_and_version(shop: Kubectl) -> None:
    assert "NodePort:                 http" in shop("describe", "svc", "web").stdout
    assert "The port on each node" in shop("explain", "service.spec.ports.nodePort").stdout
    assert "Server Version: v1.35.2" in shop("version").stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("targetPort", 'strict decoding error: unknown field "spec.ports[0].targetPrt" (did you mean "targetPort"?)'),
        ("matchLabels: {app: web}", "`selector` does not match template `labels`"),
    ],
)
def test_what_is_wrong_is_told(kubectl: Kubectl, change: str, words: str) -> None:
    swap = {"targetPort": "targetPrt", "matchLabels: {app: web}": "matchLabels: {app: api}"}[change]
    result = kubectl("create", "-f", "-", stdin=SHOP.replace("PORT", "80").replace("name: web}", "name: bad}").replace(change, swap))

    assert result.returncode == 1
    assert words in result.stderr


def test_warnings_are_printed(kubectl: Kubectl) -> None:
    text = "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: c}\nspec: {controller: example.com/x}\n"

    assert "Warning: kind IngressClass is stored but not emulated" in kubectl("apply", "-f", "-", stdin=text).stderr


def test_a_pods_logs_exec_wait_and_deletion(kubectl: Kubectl) -> None:
    assert kubectl("create", "-f", "-", stdin=POD).stdout == "pod/p created\n"
    assert kubectl("logs", "p").stdout == "first line\nsecond line\n"
    assert kubectl("exec", "p", "--", "echo", "hi").stdout == "echo hi\n"
    assert kubectl("exec", "-i", "p", "--", "cat", stdin="typed").stdout == "typed"
    failed = kubectl("exec", "p", "--", "exit", "7")
    assert (failed.returncode, failed.stderr) == (7, "leaving\ncommand terminated with exit code 7\n")
    assert "does not answer" in kubectl("exec", "p", "--", "silent").stderr
    assert kubectl("label", "pod", "p", "a=b").stdout == "pod/p labeled\n"
    assert kubectl("wait", "--for=jsonpath={.metadata.labels.a}=b", "pod/p", "--timeout=5s").stdout == "pod/p condition met\n"
    assert "force deleted" in kubectl("delete", "pod", "p", "--force", "--grace-period=0").stdout


def test_namespaces_come_and_go(kubectl: Kubectl) -> None:
    assert kubectl("create", "-f", "-", stdin="apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n").returncode == 0
    assert kubectl("delete", "ns", "shop").returncode == 0
    assert "kube-system" in kubectl("get", "ns", "-o", "name").stdout
