"""What a stranger tries on a cluster in his first hour, from outside: all kinds of pods and Services, faults, other clients.

`test_network` holds the claims about packets; here are those about objects, commands and API clients, on one cluster for all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

from tests.kit.live import cluster, curl, eventually, ip_of, manifests, netexec, obj, pod, podwire, processes, service, trace

pytestmark = pytest.mark.cluster

VIP, PORTS_VIP, DEAD_VIP = "10.96.8.10", "10.96.8.20", "10.96.8.30"
NGINX = {"name": "c", "image": "nginx:1.27", "ports": [{"containerPort": 80}]}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 3,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [netexec()], "terminationGracePeriodSeconds": 1}},
    },
}
PORTS = [
    {"name": "http", "port": 80, "targetPort": "a-tcp"},
    {"name": "echo", "port": 53, "protocol": "UDP", "targetPort": "a-udp"},
    {"name": "admin", "port": 81, "targetPort": "b-tcp"},
]
WORLD = (
    DEPLOYMENT,
    service("web", VIP, "web"),
    pod("client", netexec(), node="node-1"),
    pod("double", netexec("a", 8080, 8081), netexec("b", 9090), node="node-2"),
    service("double", PORTS_VIP, "double", ports=PORTS),
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "headless"}, "spec": {"clusterIP": "None", "selector": {"app": "double"}}},
)
TIMINGS = "timings: {nodeMonitorGracePeriod: 2s, defaultUnreachableTolerationSeconds: 1s}\n"


@pytest.fixture(scope="module", autouse=True)
def run_dir(tmp_path_factory):
    config = tmp_path_factory.mktemp("config") / "cluster.yaml"
    config.write_text(f"nodes: 3\ndebugAssertions: true\n{TIMINGS}")
    with cluster("accept", "--config", str(config), "-f", "-", stdin=manifests(*WORLD)) as path:
        yield path


@pytest.fixture
def applied():
    """Apply objects, and delete them after the test."""
    made = []

    def apply(*objects):
        made.extend(objects)
        return podwire("apply", "-f", "-", stdin=manifests(*objects))

    yield apply
    podwire("delete", "--ignore-not-found", "-f", "-", stdin=manifests(*made))


def status_word(name):
    """What `get pods` says of a pod."""
    return podwire("get", "pod", name, "--no-headers").stdout.split()[2]


def running(name):
    return eventually(lambda: obj("pod", name)["status"].get("phase") == "Running")


# ---- Services ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["node-1", "node-2", "node-3"])
def test_the_address_of_a_service_is_on_no_device(node):
    told = podwire("routes", node, "--json").stdout
    assert "10.244." in told
    assert VIP not in told


@pytest.mark.parametrize("source", ["client", "double"])
def test_a_trace_through_the_service_crosses_as_many_nodes_as_one_to_the_pod_it_chose(source):
    through = trace(source, "svc/web")
    straight = trace(source, through["backend"])
    crossed = [len({hop["node"] for hop in traced[way]}) for traced in (through, straight) for way in ("request", "reply")]
    assert len(set(crossed)) == 1


def test_each_port_of_a_service_leads_to_the_container_port_of_its_name():
    assert curl("client", f"http://{PORTS_VIP}/hostname") == "double"
    assert curl("client", f"http://{PORTS_VIP}:81/hostname") == "double"
    asked = podwire("exec", "-i", "client", "--", "nc", "-u", "-w1", PORTS_VIP, "53", stdin="hostname\n")
    assert asked.stdout.strip() == "double"
    assert trace("client", "svc/double:admin")["backend"] == f"{ip_of('double')}:9090"
    assert trace("client", "svc/double", "--proto", "udp")["backend"] == f"{ip_of('double')}:8081"


def test_a_service_with_several_ports_is_traced_by_icmp_unless_one_is_named():
    assert trace("client", "svc/double")["request"][0]["packet"]["proto"] == "icmp"
    assert trace("client", "svc/double", "--port", "81")["request"][0]["packet"]["dport"] == 81
    refused = podwire("trace", "client", "svc/double", "--port", "nosuch", status=1)
    assert "80 (http), 53 (echo), 81 (admin)" in refused.stderr
    assert "has no cluster IP" in podwire("trace", "client", "svc/headless", status=1).stderr


def test_five_hundred_services_come_and_go_at_once():
    many = [service(f"s{n}", f"10.96.{20 + n // 250}.{n % 250 + 1}", "web") for n in range(500)]
    podwire("apply", "-f", "-", stdin=manifests(*many))
    assert curl("client", "http://10.96.21.250/hostname", "--retry", "3").startswith("web-")
    assert trace("client", "svc/s499")["rules_evaluated"] > 400  # walked in the order of names
    podwire("delete", "-f", "-", stdin=manifests(*many))
    eventually(lambda: "10.96.21.250" not in podwire("rules", "node-1").stdout)
    assert trace("client", "svc/web")["rules_evaluated"] < 100


# ---- pods ----------------------------------------------------------------------------------------------------------------------------


def test_pods_that_end_are_what_their_restart_policy_makes_of_them(applied):
    never = pod("never", {"name": "c", "image": "agnhost", "args": ["connect", f"{VIP}:80"]}, restartPolicy="Never")
    fails = pod("fails", {"name": "c", "image": "agnhost", "args": ["connect", "10.244.1.1:9"]}, restartPolicy="OnFailure")
    initial = pod("initial", NGINX, restartPolicy="Never", initContainers=[{**fails["spec"]["containers"][0], "name": "i"}])
    ready = pod("ready", NGINX, initContainers=[{"name": "i", "image": "busybox", "command": ["sh", "-c", "exit 0"]}])
    applied(never, fails, initial, ready)
    eventually(lambda: status_word("never") == "Completed")
    eventually(lambda: status_word("initial") == "Init:Error")
    eventually(lambda: int(podwire("get", "pod", "fails", "--no-headers").stdout.split()[3]) > 0)
    running("ready")
    assert "REFUSED" in podwire("logs", "fails").stdout


def test_a_pod_goes_to_the_node_that_holds_the_address_it_asks_for(applied):
    applied(pod("fixed", NGINX, annotations={"podwire.dev/address": "10.244.3.77"}))
    running("fixed")
    assert (ip_of("fixed"), obj("pod", "fixed")["spec"]["nodeName"]) == ("10.244.3.77", "node-3")
    assert curl("client", "http://10.244.3.77/", "-o", "/dev/null", "-w", "%{http_code}") == "200"


def test_a_pod_on_its_node_s_network_answers_on_the_node_s_address(applied):
    done = applied(pod("host", netexec(port=8090), node="node-2", hostNetwork=True))
    assert "not emulated" not in done.stderr
    eventually(lambda: status_word("host") == "Running")
    # a node's address is outside the pod network, so flanneld masquerades: node-1's, where the client is
    assert curl("client", "http://192.168.0.3:8090/clientip", "--retry", "3").startswith("192.168.0.2:")
    assert trace("client", "pod/host", "--port", "8090")["outcome"] == "local"


BEHAVIOURS = {  # and curl's exit status; whether an end or a reset comes first is a race, as in Linux
    "refuse": {7}, "close": {52, 56}, "blackhole": {28}, "delay=200ms,status=503": {22},
}  # fmt: skip


def test_pods_misbehave_as_they_are_told(applied):
    names = {word: f"mis-{number}" for number, word in enumerate(BEHAVIOURS)}
    applied(*(pod(name, NGINX, annotations={"podwire.dev/behaviour": word}) for word, name in names.items()))
    for word, codes in BEHAVIOURS.items():
        running(names[word])
        assert podwire("exec", "client", "--", "curl", "-fs", "-m", "1", f"http://{ip_of(names[word])}/", status=None).returncode in codes


# ---- commands ------------------------------------------------------------------------------------------------------------------------


def test_exec_hands_over_standard_input_and_the_exit_status():
    assert podwire("exec", "-i", "client", "--", "cat", stdin="one\ntwo\n").stdout == "one\ntwo\n"
    assert podwire("exec", "client", "--", "false", status=1).stdout == ""
    assert podwire("exec", "double", "-c", "b", "--", "hostname", "-i").stdout.strip() == ip_of("double")


def test_the_same_set_applied_again_is_unchanged_for_us_and_for_kubectl(applied, tmp_path):
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a.b": "ß\n" * 1000}}
    applied(config)
    assert applied(config).stdout == "configmap/settings unchanged\n"
    if shutil.which("kubectl"):
        (tmp_path / "set.json").write_text(json.dumps(config))
        kubectl = kubectl_for(tmp_path)
        kubectl("apply", "-f", tmp_path / "set.json")
        assert kubectl("apply", "-f", tmp_path / "set.json") == "configmap/settings unchanged\n"


def test_what_is_in_a_namespace_goes_with_it():
    inside = [
        {**item, "metadata": {**item["metadata"], "namespace": "shop"}} for item in (pod("p", NGINX), service("s", "10.96.8.40", "p"))
    ]
    podwire("apply", "-f", "-", stdin=manifests(*inside, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
    eventually(lambda: "Running" in podwire("get", "pods", "-n", "shop").stdout)
    podwire("delete", "namespace", "shop")
    assert "shop" not in podwire("get", "pods,services", "-A").stdout
    eventually(lambda: "10.96.8.40" not in podwire("rules", "node-2").stdout)


def test_a_node_that_nothing_runs_harms_no_other(applied):
    made = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "odd"}, "spec": {"podCIDR": "10.244.99.0/24"}}
    applied(made)
    wrong = {**made, "metadata": {"name": "wrong"}, "spec": {"podCIDR": "10.244.99.0/aa"}}
    assert "spec.podCIDR" in podwire("apply", "-f", "-", stdin=manifests(wrong), status=2).stderr
    assert curl("client", f"http://{VIP}/hostname").startswith("web-")
    states = {row.split()[0]: row.split()[1] for row in podwire("get", "nodes", "--no-headers").stdout.splitlines()}
    assert states.pop("odd") != "Ready"
    assert set(states.values()) == {"Ready"}


def test_published_kinds_and_fields_without_effect_are_told_once_each_and_listed(applied):
    ingress = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}, "spec": {"defaultBackend": {
        "service": {"name": "web", "port": {"number": 80}}}}}  # fmt: skip
    probe = {"tcpSocket": {"port": 80}}
    rich = pod(
        "rich", {**NGINX, "livenessProbe": probe}, {**NGINX, "name": "d", "ports": [], "livenessProbe": probe}, volumes=[{"name": "v"}]
    )
    told = applied(ingress, rich, service("nobody", "10.96.8.50", "nobody")).stderr.splitlines()
    assert [line for line in told if "not emulated" in line] == [
        "warning: ingress.networking.k8s.io/i: kind Ingress is stored but not emulated",
        "warning: pod/rich: spec.volumes is stored but not emulated",
        "warning: pod/rich: spec.containers[*].livenessProbe is stored but not emulated",
    ]
    assert [line for line in told if "matches no Pod" in line] == [
        "warning: service/nobody: selector app=nobody matches no Pod and no workload's template"
    ]
    listed = podwire("status").stdout
    assert listed.count("Ingress") == listed.count("livenessProbe") == 1


# ---- clients of the API ----------------------------------------------------------------------------------------------------------------


def kubectl_for(directory):
    file = directory / "kubeconfig"
    file.write_text(podwire("kubeconfig").stdout)

    def run(*argv, stdin=None, status=0):
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={file}", *map(str, argv)],
            capture_output=True, text=True, input=stdin, check=False, timeout=60, env={**os.environ, "HOME": str(directory)},
        )  # fmt: skip
        assert done.returncode == status, (argv, done.stdout, done.stderr)
        return done.stdout

    return run


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here to ask")
def test_kubectl_gets_scales_runs_and_reads(tmp_path):
    kubectl = kubectl_for(tmp_path)
    assert "3/3" in kubectl("get", "deployments")
    assert re.search(r"client +1/1 +Running.* 10\.244\.1\.\d+ +node-1", kubectl("get", "pods", "-o", "wide"))
    kubectl("scale", "deployment/web", "--replicas=4")
    kubectl("rollout", "status", "deployment/web", "--timeout=20s")
    kubectl("scale", "deployment/web", "--replicas=3")
    assert kubectl("exec", "client", "--", "curl", "-s", f"http://{VIP}/hostname").startswith("web-")
    assert kubectl("exec", "-i", "client", "--", "cat", stdin="in\n") == "in\n"
    kubectl("exec", "client", "--", "nosuch", status=127)
    assert "HTTP server" in kubectl("logs", "client")
    kubectl("get", "pod", "nosuch", status=1)


def test_the_official_client_watches_what_it_does(tmp_path):
    kubernetes = pytest.importorskip("kubernetes")
    file = tmp_path / "kubeconfig"
    file.write_text(podwire("kubeconfig").stdout)
    core = kubernetes.client.CoreV1Api(kubernetes.config.new_client_from_config(str(file)))
    config = kubernetes.client.V1ConfigMap(metadata=kubernetes.client.V1ObjectMeta(name="watched"), data={"a": "1"})
    since = core.list_namespaced_config_map("default").metadata.resource_version
    made = core.create_namespaced_config_map("default", config)
    core.patch_namespaced_config_map("watched", "default", {"data": {"a": "2"}})
    with pytest.raises(kubernetes.client.ApiException) as stale:
        core.replace_namespaced_config_map("watched", "default", made)
    assert (stale.value.status, json.loads(stale.value.body)["reason"]) == (409, "Conflict")
    core.delete_namespaced_config_map("watched", "default")
    watch = kubernetes.watch.Watch()
    seen = []
    for event in watch.stream(core.list_namespaced_config_map, "default", resource_version=since, timeout_seconds=5):
        seen.append((event["type"], event["object"].data["a"]))
        if event["type"] == "DELETED":
            watch.stop()
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")]


def test_a_plain_http_client_is_told_off_in_kubernetes_words():
    url = json.loads(podwire("status", "--json").stdout)["url"]
    request = urllib.request.Request(
        f"{url}/api/v1/namespaces/default/services?fieldValidation=Strict",
        data=b'{"metadata": {"name": "x"}, "spec": {"port": 1}}',
        method="POST",
    )
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    body = json.load(refused.value)
    assert (refused.value.code, body["kind"], body["status"], body["reason"]) == (400, "Status", "Failure", "BadRequest")
    assert 'unknown field "spec.port"' in body["message"]


# ---- sets that are wrong, and other clusters ---------------------------------------------------------------------------------------


WRONG = {
    "a policy's CIDR": (
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "odd"}, "spec": {
            "podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/40"}}]}]}},
        "NetworkPolicy odd: spec.ingress[0].from[0].ipBlock.cidr",
    ),
    "a node port used twice in the set": (
        [service(f"n{n}", f"10.96.9.{n}", "x", type="NodePort", ports=[{"port": 80, "nodePort": 30999}]) for n in (1, 2)],
        "Service n2: spec.ports[0].nodePort: Invalid value: 30999: provided port is already allocated",
    ),
    "no object": ({"services": {"web": {"image": "nginx"}}}, "document 2: apiVersion: Required value"),
    "bad YAML": ("kind: [", "not valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("command", ["apply", "up"])
def test_a_set_with_one_fault_is_refused_whole_by_apply_and_by_up(command, what, tmp_path, run_dir):
    wrong, told = WRONG[what]
    texts = [wrong] if isinstance(wrong, str) else [json.dumps(item) for item in (wrong if isinstance(wrong, list) else [wrong])]
    set_ = [json.dumps(service("before", "10.96.9.8", "x")), *texts, json.dumps(service("after", "10.96.9.9", "x"))]
    (tmp_path / "set.yaml").write_text("\n---\n".join(set_))
    options = () if command == "apply" else ("--name", "second")
    refused = podwire(command, "-f", str(tmp_path / "set.yaml"), *options, status=2)
    assert "set.yaml: " in refused.stderr
    assert told in refused.stderr
    if command == "apply":
        assert not {"before", "after"} & set(re.split(r"[/\s]", podwire("get", "services", "-o", "name").stdout))
    else:
        assert len(processes(f"{run_dir}/podwire-{os.getuid()}/second")) == 0


def test_a_second_cluster_over_tcp_stands_beside_the_first_and_leaves_it_alone(tmp_path, run_dir):
    """One of its pods is over, badly, before anybody looks: it is nothing to wait for."""
    (tmp_path / "c.yaml").write_text("transport: tcp\nnodes: 2\nserviceCIDR: 10.80.0.0/16\npodCIDR: 10.81.0.0/16\n")
    there = pod("there", netexec(), node="node-2")
    over = pod("over", {"name": "c", "image": "agnhost", "args": ["connect", "10.81.1.1:9"]}, restartPolicy="Never")
    world = manifests(over, pod("here", netexec(), node="node-1"), there, service("there", "10.80.0.9", "there"))
    podwire("up", "--name", "beside", "--config", str(tmp_path / "c.yaml"), "-f", "-", stdin=world)
    try:
        asked = podwire("exec", "--name", "beside", "here", "--", "curl", "-s", "http://10.80.0.9/clientip").stdout
        assert asked.startswith("10.81.1.")
        assert "here" not in podwire("get", "pods").stdout
    finally:
        podwire("down", "--name", "beside")
    assert curl("client", f"http://{VIP}/hostname").startswith("web-")
    assert processes(f"{run_dir}/podwire-{os.getuid()}/beside") == []


# ---- faults: last, for they move pods -----------------------------------------------------------------------------------------------


def test_a_dead_node_s_pods_time_out_are_moved_and_the_node_comes_back():
    on = {item["spec"]["nodeName"]: item for item in json.loads(podwire("get", "pods", "-l", "app=web", "-o", "json").stdout)["items"]}
    lost = on["node-3"]["status"]["podIP"]
    podwire("fault", "node", "node-3", "kill")
    began = time.monotonic()
    curl("client", f"http://{lost}:8080/", "-m", "1", status=28)
    traced = trace("client", lost, "--port", "8080")
    assert traced["outcome"] == "dropped"
    assert traced["request"][-1]["note"].startswith("lost after node-1 node wire to 192.168.0.4")
    eventually(lambda: obj("deployment", "web")["status"].get("readyReplicas") == 3 and "node-3" not in _nodes_of("web"), 20)
    assert time.monotonic() - began < 15
    assert {curl("client", f"http://{VIP}/hostname", "-m", "2").startswith("web-") for _ in range(5)} == {True}
    podwire("fault", "node", "node-3", "start")
    eventually(lambda: "NotReady" not in podwire("get", "nodes").stdout)
    assert {hop["node"] for hop in trace("client", "node/node-3")["request"]} == {"node-1", "node-3"}
    assert (
        podwire("fault", "node", "node-3", "resume", status=1).stderr
        == "error: node-3 is running and cannot be resumed: only what is paused can\n"
    )


def _nodes_of(app):
    listed = json.loads(podwire("get", "pods", "-l", f"app={app}", "-o", "json").stdout)["items"]
    return {item["spec"].get("nodeName") for item in listed if not item["metadata"].get("deletionTimestamp")}
