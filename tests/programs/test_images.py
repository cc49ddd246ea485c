"""What an image runs: the table, users' programs, stand-ins, and misbehaviour by annotation; each as a client meets it."""

from __future__ import annotations

import time

import pytest

from emu.model.behaviour import Behaviour
from emu.pod.runtime import PodRuntime
from emu.programs.commands import COMMANDS, command
from emu.programs.images import ImageTable, image_key
from tests.kit.pods import Node, pod_ip

AGNHOST = "registry.k8s.io/e2e-test-images/agnhost:2.53"


@pytest.fixture(scope="module")
def node():
    node = Node()
    yield node
    node.close()


@pytest.fixture(scope="module")
def client(node):
    return node.pod("client")


@pytest.fixture
def programs(tmp_path):
    """A directory with a user's programs."""
    (tmp_path / "mine_for_test.py").write_text(PROGRAMS)
    return tmp_path


PROGRAMS = '''
from emu.pod.program import Context

def blocking(ctx: Context) -> int:
    sock = ctx.socket()
    sock.bind(("0.0.0.0", 9000))
    sock.listen()
    while True:
        conn, _ = sock.accept()
        conn.sendall(b"mine " + " ".join(ctx.argv).encode())
        conn.close()

class Duck:
    """Does not derive from Handler."""
    def on_start(self, ctx):
        ctx.listen_tcp(9000)
    def on_connect(self, ctx, conn):
        conn.send(b"quack")
        conn.close()

def crashes(ctx):
    raise ValueError("no good")

number = 5
'''


class Pod:
    count = 0

    def __init__(self, node, image, *, ports=(), args=(), annotations=None, path=(), init=(), more=()):
        Pod.count += 1
        name = f"pod-{Pod.count}"
        container = {"name": "main", "image": image, "args": list(args), "ports": [{"containerPort": n, "protocol": p} for p, n in ports]}
        pod = {
            "metadata": {"name": name, "namespace": "default", "uid": "u", "annotations": annotations or {}},
            "spec": {"containers": [container, *more], "initContainers": list(init)},
        }
        ns = node.pod(name)
        self.ip = pod_ip(ns)
        self.runtime = PodRuntime(pod, ns, node.kernel, ImageTable(path), lambda: None, ip=self.ip, node="node-1")
        node.runtimes.append(self.runtime)
        self.runtime.start()
        self.runtime.poll()

    def until_ready(self):
        for _ in range(500):
            self.runtime.poll()
            if self.runtime.ready:
                return self
            time.sleep(0.001)
        raise AssertionError(self.runtime.status())

    @property
    def log(self):
        return b"\n".join(line.data for line in self.runtime.log(None).read()).decode()


def tcp(node, client, ip, port, data=b"", timeout=1.0):
    """What a client gets after sending data and shutting its side."""

    def main(ctx):
        sock = ctx.create_connection((ip, port), timeout)
        sock.sendall(data) if data else None
        sock.shutdown(1)
        return sock.makefile("rb").read()

    return node.call(client, main)


def udp(node, client, ip, port, data):
    def main(ctx):
        sock = ctx.socket(type=2)
        sock.settimeout(0.1)
        sock.connect((ip, port))
        sock.send(data)
        return sock.recv(2048)

    return node.call(client, main)


def curl(node, client, url, *options):
    run = node.run(client, command("curl"), "curl", "-sS", *options, url)
    return run.join(), run.stdout, run.stderr


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (AGNHOST, "e2e-test-images/agnhost"), ("agnhost", "agnhost"), ("registry.k8s.io/pause:3.9", "pause"), ("k8s.gcr.io/pause", "pause"),
        ("localhost:5000/podwire/echo:1", "podwire/echo"), ("podwire/netexec@sha256:abc", "podwire/netexec"), ("nginx:1.25", ""),
        ("someone/pause", ""), ("busybox", ""), ("", ""), ("registry.example:5000/team/shop:v1", ""),
    ],
)  # fmt: skip
def test_the_table_is_read_by_the_last_parts_of_a_name(image, key):
    assert image_key(image) == key


@pytest.mark.parametrize(
    ("image", "args", "ports", "port"),
    [
        (AGNHOST, ["netexec", "--http-port=80"], [], 80),
        (AGNHOST, ["/agnhost", "netexec", "--http-port", "8080"], [("TCP", 8080)], 8080),
        ("podwire/netexec", [], [("TCP", 81), ("UDP", 82)], 81),
        ("podwire/netexec", [], [], 8080),
        (AGNHOST, ["serve-hostname"], [], 9376),
    ],
)
def test_an_image_of_the_table_serves(node, client, image, args, ports, port):
    pod = Pod(node, image, args=args, ports=ports).until_ready()
    assert curl(node, client, f"http://{pod.ip}:{port}/hostname")[:2] == (0, pod.runtime.info.name)
    assert pod.runtime.stand_ins == []


def test_agnhost_without_arguments_pauses(node, client):
    pod = Pod(node, AGNHOST).until_ready()
    assert curl(node, client, f"http://{pod.ip}:8080/")[0] == 7


def test_a_subcommand_that_is_not_emulated_fails_by_name(node):
    pod = Pod(node, AGNHOST, args=["porter"])
    for _ in range(300):
        pod.runtime.poll()
        if "porter" in pod.log:
            break
        time.sleep(0.001)
    assert 'unknown command "porter"' in pod.log


def test_echo_echoes_on_its_declared_ports(node, client):
    pod = Pod(node, "podwire/echo", ports=[("TCP", 70), ("UDP", 71)]).until_ready()
    assert tcp(node, client, pod.ip, 70, b"abc") == b"abc"
    assert udp(node, client, pod.ip, 71, b"abc") == b"abc"
    assert tcp(node, client, Pod(node, "podwire/echo").until_ready().ip, 7, b"x") == b"x"


# ---- stand-ins -----------------------------------------------------------------------------------------------------------------------


def test_any_other_image_becomes_a_stand_in(node, client):
    pod = Pod(node, "nginx:1.25", ports=[("TCP", 80), ("UDP", 53), ("SCTP", 9)]).until_ready()
    assert pod.runtime.stand_ins == ["main"]
    code, body, _ = curl(node, client, f"http://{pod.ip}/some/path?x=1", "-H", "X-Hello: you")
    assert code == 0
    for line in ("Image: nginx:1.25 (stand-in)", "GET /some/path?x=1 HTTP/1.1", "X-Hello: you", f"Client: {pod_ip(client)}:"):
        assert line in body
    assert curl(node, client, f"http://{pod.ip}/hostname")[1] == pod.runtime.info.name
    assert tcp(node, client, pod.ip, 80, b"redis says PING\r\n") == b"redis says PING\r\n"
    assert udp(node, client, pod.ip, 53, b"anything") == b"anything"
    assert pod.log == "stand-in for nginx:1.25: listening on 80/TCP, 53/UDP" or "80/TCP" in pod.log


def test_a_stand_in_opens_what_services_want_as_they_come(node, client):
    pod = Pod(node, "team/undeclared").until_ready()
    assert curl(node, client, f"http://{pod.ip}:8080/")[0] == 7
    pod.runtime.set_service_ports(frozenset({("TCP", 8080)}))
    assert curl(node, client, f"http://{pod.ip}:8080/")[0] == 0
    pod.runtime.set_service_ports(frozenset({("TCP", 8080), ("TCP", 9090)}))
    assert curl(node, client, f"http://{pod.ip}:9090/")[0] == 0


def test_a_port_of_another_container_is_left_to_it(node, client):
    beside = {"name": "beside", "image": "podwire/netexec", "args": ["--http-port=8080"]}
    pod = Pod(node, "team/undeclared", more=[beside]).until_ready()
    pod.runtime.set_service_ports(frozenset({("TCP", 8080)}))
    assert curl(node, client, f"http://{pod.ip}:8080/hostname")[0] == 0
    assert pod.runtime.status()["containerStatuses"][0]["restartCount"] == 0
    assert "taken" in pod.log


def test_an_unknown_init_container_succeeds_at_once(node):
    Pod(node, "nginx", init=[{"name": "migrate", "image": "team/migrations", "command": ["./run"]}]).until_ready()


# ---- users' programs -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "says"), [("blocking", b"mine -x"), ("Duck", b"quack")])
def test_a_user_s_program_runs_in_place_of_the_image(node, client, programs, name, says):
    pod = Pod(
        node,
        "whatever",
        args=["-x"],
        ports=[("TCP", 9000)],
        annotations={"podwire.dev/program": f"mine_for_test:{name}"},
        path=[str(programs)],
    ).until_ready()
    assert tcp(node, client, pod.ip, 9000) == says
    assert pod.runtime.stand_ins == []


@pytest.mark.parametrize(
    ("annotations", "says"),
    [
        ({"podwire.dev/program": "mine_for_test:crashes"}, "ValueError: no good"),
        ({"podwire.dev/program": "mine_for_test:number"}, "neither a function nor a class"),
        ({"podwire.dev/program": "mine_for_test:absent"}, "has no attribute 'absent'"),
        ({"podwire.dev/program": "no_such_module_here:x"}, "No module named 'no_such_module_here'"),
        ({"podwire.dev/program": "nonsense"}, "'nonsense' is not MODULE:NAME"),
        ({"podwire.dev/behaviour": "rude"}, "'rude' is none of refuse, close, blackhole, delay=3s, status=500"),
        ({"podwire.dev/behaviour": "close", "podwire.dev/program": "mine_for_test:blocking"}, "needs a handler"),
    ],
)
def test_what_cannot_run_crashes_with_the_reason_in_its_log(node, programs, annotations, says):
    pod = Pod(node, "podwire/echo", annotations=annotations, path=[str(programs)])
    for _ in range(500):
        pod.runtime.poll()
        if pod.runtime.container(None).restarts:
            break
        time.sleep(0.001)
    assert says in b"\n".join(line.data for line in pod.runtime.log(None, previous=True).read()).decode()


# ---- behaviour -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "behaviour"),
    [
        ("", Behaviour()),
        ("refuse", Behaviour(refuse=True)),
        ("delay=3s", Behaviour(delay=3.0)),
        ("delay=250ms", Behaviour(delay=0.25)),
        ("status=503, delay=1.5s", Behaviour(status=503, delay=1.5)),
        ("close", Behaviour(close=True)),
        ("blackhole", Behaviour(blackhole=True)),
    ],
)
def test_behaviours_are_read(words, behaviour):
    assert Behaviour.parse(words) == behaviour


@pytest.mark.parametrize("words", ["delay", "delay=3", "status=abc", "status=99", "refuse=1", "Refuse", "delay=-1s"])
def test_misspelt_behaviours_are_errors(words):
    with pytest.raises(ValueError, match="is none of"):
        Behaviour.parse(words)


@pytest.mark.parametrize("image", ["nginx", "podwire/netexec"])
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("refuse", 7, "Connection refused"),
        ("close", (52, 56), ""),
        ("blackhole", 28, "Operation timed out"),
        ("status=503", 0, "503 Service Unavailable"),
        ("delay=40ms", 0, ""),
    ],
)
def test_a_server_behaves_as_annotated(node, client, image, words, code, says):
    pod = Pod(node, image, ports=[("TCP", 80)], annotations={"podwire.dev/behaviour": words}).until_ready()
    begun = node.kernel.now()
    got, out, err = curl(node, client, f"http://{pod.ip}/hostname", "-m", "0.2")
    assert got in (code if isinstance(code, tuple) else (code,))
    assert says in out + err
    assert node.kernel.now() - begun >= (0.04 if "delay" in words else 0.0)


def test_status_needs_http(node):
    pod = Pod(node, "podwire/echo", annotations={"podwire.dev/behaviour": "status=500"})
    assert "needs an HTTP server" in b"".join(line.data for line in pod.runtime.log(None, previous=True).read()).decode()


# ---- commands --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "stdout", "stderr"),
    [
        (["true"], 0, "", ""),
        (["false"], 1, "", ""),
        (["echo", "a", "b"], 0, "a b\n", ""),
        (["echo", "-n", "a"], 0, "a", ""),
        (["/bin/hostname"], 0, "client\n", ""),
        (["cat", "/etc/hostname"], 0, "client\n", ""),
        (["cat", "/no/such"], 1, "", "cat: /no/such: No such file or directory\n"),
        (["sleep", "0.001"], 0, "", ""),
        (["sleep", "x"], 1, "", "sleep: invalid time interval 'x'\n"),
        (["sh", "-c", "echo 'a  b' c"], 0, "a  b c\n", ""),
        (["sh", "-c", "exec echo x"], 0, "x\n", ""),
        (["/bin/sh", "-c", "nosuch arg"], 127, "", "sh: 1: nosuch: not found\n"),
        (["sh", "-c", "a; b"], 2, "", "sh: 'a; b' needs a shell, and there is none here: only one plain command\n"),
        (["sh"], 2, "", "sh: there is no shell here: only `sh -c` with one plain command\n"),
    ],
)
def test_small_commands(node, client, argv, code, stdout, stderr):
    run = node.run(client, command(argv[0]), *argv)
    assert (run.join(), run.stdout, run.stderr) == (code, stdout, stderr)


@pytest.mark.parametrize("name", ["", "foo", "/opt/curl", "./curl", "/usr/bin/../bin/curl", "curl/"])
def test_what_no_container_has(name):
    assert command(name) is None


def test_tools_are_found_by_path_too():
    assert command("/usr/bin/curl") is COMMANDS["curl"]
    assert command("/agnhost") is COMMANDS["agnhost"]


@pytest.mark.parametrize(
    ("target", "protocol", "code", "stderr"),
    [("80", "tcp", 0, ""), ("81", "tcp", 1, "REFUSED\n"), ("53", "udp", 0, ""), ("54", "udp", 1, "REFUSED\n")],
)
def test_agnhost_connect_says_one_word(node, client, target, protocol, code, stderr):
    pod = Pod(node, "nginx", ports=[("TCP", 80), ("UDP", 53)]).until_ready()
    run = node.run(client, command("agnhost"), "agnhost", "connect", f"{pod.ip}:{target}", f"--protocol={protocol}", "--timeout=1s")
    assert (run.join(), run.stderr) == (code, stderr)


def test_agnhost_connect_knows_timeouts_and_names(node, client):
    run = node.run(client, command("agnhost"), "agnhost", "connect", "1.1.1.1:80", "--timeout=20ms")
    assert (run.join(), run.stderr) == (1, "TIMEOUT\n")
    run = node.run(client, command("agnhost"), "agnhost", "connect", "nosuch:80")
    assert (run.join(), run.stderr) == (1, "DNS: Name or service not known\n")
