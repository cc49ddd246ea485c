"""Every command against a real cluster with the shop, as a person or a script uses them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
SHOP = str(ROOT / "configs" / "shop")
VIP = "10.96.0.10"


def podwire(*argv, stdin=None, check=True):
    done = subprocess.run([sys.executable, "-m", "launcher", *argv], cwd=ROOT, capture_output=True, text=True, input=stdin, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module", autouse=True)
def shop():
    """A cluster of three nodes with the shop, and its run directory."""
    path = tempfile.mkdtemp(prefix="pw-", dir="/tmp")
    os.environ["PODWIRE_RUN_DIR"], os.environ["PODWIRE_NAME"] = path, "shop"
    podwire("up", "-f", SHOP, "--nodes", "3", "--debug-assertions")
    yield Path(path)
    podwire("down")
    assert list(Path(path).iterdir()) == []
    del os.environ["PODWIRE_RUN_DIR"], os.environ["PODWIRE_NAME"]
    shutil.rmtree(path)


def pods(app):
    listed = json.loads(podwire("get", "pods", "-l", f"app={app}", "-o", "json").stdout)["items"]
    return {pod["metadata"]["name"]: pod for pod in listed}


def eventually(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return result


def test_get_prints_tables_names_and_whole_objects():
    table = podwire("get", "pods", "-o", "wide").stdout.splitlines()
    assert re.split(r"\s{3,}", table[0])[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert len(table) == 7
    assert podwire("get", "svc", "order-service").stdout.splitlines()[1].split()[:4] == ["order-service", "ClusterIP", VIP, "<none>"]
    assert podwire("get", "deploy", "-o", "name").stdout.split() == [
        f"deployment.apps/{n}" for n in ("catalog-service", "order-service", "web")
    ]
    assert json.loads(podwire("get", "svc", "web", "-o", "json").stdout)["spec"]["ports"][0]["nodePort"] == 30080
    assert "nodePort: 30080" in podwire("get", "svc/web", "-o", "yaml").stdout
    assert len(podwire("get", "nodes", "--no-headers").stdout.splitlines()) == 3
    assert podwire("get", "pods", "-l", "app=nobody").stderr == "No resources found in default namespace.\n"
    missing = podwire("get", "pod", "nobody", check=False)
    assert (missing.returncode, missing.stderr) == (1, 'error: pods "nobody" not found\n')


def test_exec_ends_as_its_program_and_keeps_its_streams_apart():
    assert podwire("exec", "deploy/web", "--", "curl", "-s", f"http://{VIP}/hostname").stdout in pods("order-service")
    assert podwire("exec", "deploy/web", "--", "false", check=False).returncode == 1
    assert (
        podwire("exec", "deploy/web", "--", "curl", "-s", "http://127.0.0.1:9", check=False).returncode == 7
    )  # curl's "failed to connect"
    assert podwire("exec", "deploy/web", "-i", "--", "cat", stdin="there and back\n").stdout == "there and back\n"
    assert podwire("exec", "web", "--", "true", check=False).stderr.endswith("did you mean deployment/web?\n")


def test_a_pod_on_another_node_sees_the_clients_own_address():
    client, other = next(
        (a, b) for a in pods("web").values() for b in pods("order-service").values() if a["spec"]["nodeName"] != b["spec"]["nodeName"]
    )
    seen = podwire("exec", client["metadata"]["name"], "--", "curl", "-s", f"http://{other['status']['podIP']}:8080/clientip").stdout
    assert seen.rpartition(":")[0] == client["status"]["podIP"]


def test_logs_tell_what_a_container_wrote():
    assert "8080" in podwire("logs", "deploy/web").stdout


def test_a_trace_through_the_vip_crosses_as_many_nodes_as_one_to_the_pod():
    client = next(iter(pods("web")))
    through = json.loads(podwire("trace", client, "svc/order-service", "--json").stdout)
    assert through["outcome"] == "delivered"
    assert any(hop.get("rule", "").startswith("-A KUBE-SERVICES -d 10.96.0.10/32") for hop in through["request"])
    ip, _, port = through["backend"].rpartition(":")
    straight = json.loads(podwire("trace", client, ip, "--port", port, "--json").stdout)
    nodes = [len({hop["node"] for hop in trace["request"]}) for trace in (through, straight)]
    assert nodes[0] == nodes[1]
    back = through["reply"][-1]["packet"]
    assert (back["src"], back["sport"], back["dst"]) == (VIP, 80, pods("web")[client]["status"]["podIP"])


def test_a_trace_is_done_whatever_became_of_the_packet():
    client = next(iter(pods("web")))
    assert json.loads(podwire("trace", client, "10.244.1.1", "--json").stdout)["outcome"] in ("delivered", "local")  # ICMP without a port
    refused = json.loads(podwire("trace", client, f"pod/{client}", "--port", "9", "--json").stdout)
    assert refused["outcome"] == "rejected"


def test_rules_are_what_iptables_save_prints_and_conntrack_shows_the_translation():
    rules = podwire("rules", "node-1").stdout
    assert rules.count("\nCOMMIT\n") == rules.count("*mangle") + rules.count("*nat") + rules.count("*filter")
    assert "-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp" in rules
    client, pod = next(iter(pods("web").items()))
    podwire("exec", client, "--", "curl", "-s", f"http://{VIP}/hostname")
    entries = podwire("conntrack", pod["spec"]["nodeName"]).stdout
    assert re.search(rf"tcp .* src={pod['status']['podIP']} dst={VIP} sport=\d+ dport=80 src=10\.244\.\d+\.\d+", entries)


def test_routes_name_every_peer():
    answer = json.loads(podwire("routes", "node-1", "--json").stdout)
    assert {"10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink", "10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink"} <= set(
        answer["routes"]
    )
    assert "dst 192.168.0.3 self permanent" in podwire("routes", "node-1").stdout


def test_status_shows_processes_nodes_and_pods():
    answer = json.loads(podwire("status", "--memory", "--json").stdout)
    assert answer["profile"] == "fast"
    assert [(n["name"], n["ready"], n["state"]) for n in answer["nodes"]] == [(f"node-{i}", True, "running") for i in (1, 2, 3)]
    assert sum(n["pods"] for n in answer["nodes"]) == len(pods("web")) + len(pods("order-service")) + len(pods("catalog-service"))
    assert all(0 < n["uss_mib"] < 60 for n in answer["nodes"])
    assert "node-2   Ready   running" in podwire("status").stdout


def test_scale_adds_pods_that_answer_without_a_route_being_touched():
    before = podwire("routes", "node-1", "--json").stdout
    podwire("scale", "deployment/catalog-service", "--replicas", "4")
    eventually(lambda: sum(p["status"].get("phase") == "Running" for p in pods("catalog-service").values()) == 4)
    wanted, seen = set(pods("catalog-service")), set()
    eventually(lambda: seen.add(podwire("exec", "deploy/web", "--", "curl", "-s", "http://10.96.0.20/hostname").stdout) or wanted <= seen)
    assert json.loads(podwire("routes", "node-1", "--json").stdout)["routes"] == json.loads(before)["routes"]
    podwire("scale", "deployment", "catalog-service", "--replicas", "2")
    eventually(lambda: len(pods("catalog-service")) == 2)


def test_apply_is_all_or_nothing_and_delete_waits(tmp_path):
    good = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {a: b}\n"
    taken = "apiVersion: v1\nkind: Service\nmetadata: {name: thief}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n"
    file = tmp_path / "both.yaml"
    file.write_text(f"{good}---\n{taken}")
    refused = podwire("apply", "-f", str(file), check=False)
    assert refused.returncode == 2
    assert f"error: {file}: Service thief: spec.clusterIPs" in refused.stderr
    assert podwire("get", "cm", "settings", check=False).returncode == 1
    file.write_text(good)
    assert podwire("apply", "-f", str(file)).stdout == "configmap/settings created\n"
    assert podwire("apply", "-f", str(file)).stdout == "configmap/settings unchanged\n"
    assert podwire("delete", "-f", str(file)).stdout == 'configmap "settings" deleted\n'
    assert podwire("get", "cm", "settings", check=False).returncode == 1


def test_a_service_that_selects_nothing_and_a_kind_not_emulated_are_accepted_with_one_warning_each(tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: lonely}\nspec: {selector: {app: nobody}, ports: [{port: 80}]}\n---\n"
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: i}\n"
        "spec: {defaultBackend: {service: {name: lonely, port: {number: 80}}}}\n"
    )
    told = podwire("apply", "-f", str(file)).stderr.splitlines()
    assert [line.partition(":")[0] for line in told] == ["warning", "warning"]
    assert "stored, not emulated: Ingress (1 object, as default/i)" in podwire("status").stdout
    podwire("delete", "-f", str(file))


def test_a_node_that_is_killed_paused_resumed_and_started_says_so_and_comes_back_ready():
    def node(name):
        return next(n for n in json.loads(podwire("status", "--json").stdout)["nodes"] if n["name"] == name)

    assert re.fullmatch(r"node-3 paused \(pid \d+, life 1\)\n", podwire("fault", "node", "node-3", "pause").stdout)
    assert podwire("fault", "node", "node-3", "resume").stdout.startswith("node-3 resumed")
    assert podwire("fault", "node", "node-3", "kill").stdout == "node-3 killed\n"
    again = podwire("fault", "node", "node-3", "killed", check=False)
    assert (again.returncode, again.stderr) == (1, "error: node-3 is killed and cannot be killed: only what is not yet killed can\n")
    assert podwire("fault", "node", "node-33", "kill", check=False).stderr == "error: there is no node 'node-33'; did you mean node-3?\n"
    eventually(lambda: node("node-3")["ready"] is False)
    life = json.loads(podwire("fault", "node", "node-3", "start", "--json").stdout)
    assert (life["name"], life["state"], life["incarnation"]) == ("node-3", "running", 2)
    assert node("node-3")["ready"]
    assert json.loads(podwire("fault", "node", "node-3", "restart", "--json").stdout)["incarnation"] == 3
    assert (node("node-3")["ready"], node("node-3")["deaths"]) == (True, 0)


def test_nodes_go_on_without_the_controller_which_comes_back_with_nothing_lost():
    before = podwire("get", "svc", "-o", "name").stdout
    podwire("fault", "controller", "kill")
    silent = podwire("get", "pods", check=False)
    assert (silent.returncode, "does not answer" in silent.stderr) == (1, True)
    podwire("fault", "node", "node-1", "pause")
    told = podwire("status").stdout
    assert "controller: is killed" in told
    assert "controller   killed" in told
    assert re.search(r"^node-1 +- +paused +\d+", told, re.MULTILINE)
    podwire("fault", "node", "node-1", "resume")
    podwire("fault", "controller", "start")
    assert podwire("get", "svc", "-o", "name").stdout == before
    podwire("fault", "controller", "pause")
    began = time.monotonic()
    assert "controller: is paused" in podwire("status").stdout
    assert time.monotonic() - began < 4  # it is not waited for
    assert json.loads(podwire("fault", "controller", "restart", "--json").stdout)["incarnation"] == 3
    assert podwire("get", "svc", "-o", "name").stdout == before
    eventually(
        lambda: podwire("exec", "deploy/web", "--", "curl", "-s", f"http://{VIP}/hostname", check=False).stdout in pods("order-service")
    )


def test_kubectl_finds_the_cluster_by_the_kubeconfig(tmp_path):
    config = tmp_path / "config"
    config.write_text(podwire("kubeconfig").stdout)
    client = pytest.importorskip("kubernetes")
    api = client.client.CoreV1Api(client.config.new_client_from_config(str(config)))
    assert {node.metadata.name for node in api.list_node().items} == {"node-1", "node-2", "node-3"}


@pytest.mark.parametrize("after", [0.05, 0.3, 0.6, 0.9, 1.3, 2.5])
def test_ctrl_c_at_any_moment_of_the_demo_leaves_nothing(after, shop):
    command = subprocess.Popen(
        [sys.executable, "-m", "launcher", "demo"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(after)
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=20)
    assert command.returncode in (130, -signal.SIGINT, 1), errors  # before Python has its handler the signal itself ends it
    parent = shop / f"podwire-{os.getuid()}"
    eventually(lambda: sorted(path.name for path in parent.iterdir()) == ["shop"], seconds=3)


def test_the_demo_holds_all_its_claims_in_under_twenty_seconds():
    done = podwire("demo")
    assert done.stdout.count("✓") >= 12
    assert "✗" not in done.stdout
    assert float(re.search(r"([\d.]+) s in all", done.stdout)[1]) < 20
    assert max(len(line) for line in done.stdout.splitlines()) <= 120
