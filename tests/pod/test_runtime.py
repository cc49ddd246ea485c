"""Pods as the kubelet runs them: order, readiness, restarts, stopping, and the status that is reported. Time stands still but by hand."""

from __future__ import annotations

import threading
import time

import pytest

from emu.pod.container import Backoff, Launch
from emu.pod.program import Handler
from emu.pod.runtime import ExecError, PodRuntime
from emu.pod.status import qos_class
from tests.kit.pods import Node, pod_ip

EPOCH = 1_700_000_000.0 - 1000.0  # the kernel's clock starts at 1000


class Table:
    """Images by name, for tests: what the key says is what runs."""

    def __init__(self, **images):
        self.images, self.started = images, []

    def launch(self, pod, container, *, init):
        def program():
            self.started.append(container["name"])
            return self.images[container["image"]]()

        return Launch(program, ready_at_start=container["image"] != "listens", stand_in=container["image"] == "standin")

    def command(self, name):
        return {"true": lambda ctx: 0, "say": lambda ctx: ctx.stdout.write("said\n") and 3, "sleep": lambda ctx: ctx.sleep(3600) and 0}.get(
            name
        )


class Exits(Handler):
    def __init__(self, code):
        self.code = code

    def on_start(self, ctx):
        ctx.log("started")
        ctx.exit(self.code)


class Deaf(Handler):
    def on_terminate(self, ctx):
        pass


class Listens(Handler):
    """Listens a while after its start."""

    def on_start(self, ctx):
        ctx.call_later(5.0, lambda: ctx.listen_tcp(80))


class Offered(Handler):
    ports = frozenset()

    def on_service_ports(self, ctx, ports):
        Offered.ports = ports


IMAGES = {
    "idle": Handler, "good": lambda: Exits(0), "bad": lambda: Exits(3), "deaf": Deaf, "listens": Listens, "standin": Offered,
    "stuck": lambda: stuck,
}  # fmt: skip
RELEASE = threading.Event()


def stuck(ctx):
    RELEASE.wait(5)


class Pod:
    """A pod at work, with a clock to turn."""

    def __init__(self, node, containers, *, init=(), **spec):
        self.table, self.changes, self.node = Table(**IMAGES), [], node
        annotations = spec.pop("annotations", {})
        pod = {
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1", "annotations": annotations},
            "spec": {"containers": containers, "initContainers": list(init), **spec},
        }
        ns = node.pod(f"p{len(node.machine.cni._pods)}")
        self.runtime = PodRuntime(
            pod,
            ns,
            node.kernel,
            self.table,
            lambda: self.changes.append(1),
            ip=pod_ip(ns),
            node="node-1",
            host_ip="192.168.0.2",
            epoch=EPOCH,
        )
        node.runtimes.append(self.runtime)
        self.runtime.start()

    def after(self, seconds):
        self.node.kernel.skip(seconds)
        self.runtime.poll()
        return self

    def state(self, index=0):
        status = self.runtime.status()["containerStatuses"][index]
        ((kind, detail),) = status["state"].items()
        return kind if kind == "running" else f"{kind} {detail['reason']}"

    def condition(self, kind):
        return next(c for c in self.runtime.status()["conditions"] if c["type"] == kind)


def container(image, name="main", **more):
    return {"name": name, "image": image, **more}


@pytest.fixture
def node():
    node = Node(speed=1e-9)
    yield node
    RELEASE.set()
    node.close()
    RELEASE.clear()


@pytest.mark.parametrize(("crashes", "seconds"), [(1, 0), (2, 10), (3, 20), (4, 40), (5, 80), (6, 160), (7, 300), (8, 300), (500, 300)])
def test_back_off_doubles_from_ten_seconds_to_five_minutes(crashes, seconds):
    assert Backoff().after(crashes) == seconds


def test_a_cluster_may_have_its_containers_restarted_sooner():
    assert [Backoff(0.5, 4.0).after(crashes) for crashes in range(1, 7)] == [0, 0.5, 1.0, 2.0, 4.0, 4.0]


def test_a_running_pod_s_status_is_a_podstatus(node):
    status = Pod(node, [container("idle")]).runtime.status()
    assert status["phase"] == "Running"
    assert status["podIP"] == status["podIPs"][0]["ip"] != ""
    assert status["hostIP"] == "192.168.0.2"
    assert status["startTime"] == "2023-11-14T22:13:20Z"
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"), "True"
    )
    main = status["containerStatuses"][0]
    assert main == {
        "name": "main", "image": "idle", "imageID": "", "state": {"running": {"startedAt": "2023-11-14T22:13:20Z"}}, "lastState": {},
        "ready": True, "started": True, "restartCount": 0,
    }  # fmt: skip


def test_the_status_satisfies_the_published_schema(node):
    validate = pytest.importorskip("kubernetes_validate").validate
    for image in ("idle", "bad", "listens"):
        pod = Pod(node, [container(image, ports=[{"containerPort": 80}])], init=[container("good", "first")])
        pod.after(1)
        document = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [{"name": "main"}]},
            "status": pod.runtime.status(),
        }  # fmt: skip
        validate(document, "1.35", strict=True)


@pytest.mark.parametrize(
    ("policy", "image", "state", "phase"),
    [
        ("Always", "idle", "running", "Running"),
        ("Always", "good", "waiting CrashLoopBackOff", "Running"),
        ("Always", "bad", "waiting CrashLoopBackOff", "Running"),
        ("OnFailure", "good", "terminated Completed", "Succeeded"),
        ("OnFailure", "bad", "waiting CrashLoopBackOff", "Running"),
        ("Never", "good", "terminated Completed", "Succeeded"),
        ("Never", "bad", "terminated Error", "Failed"),
    ],
)
def test_the_restart_policy_decides_what_follows_an_exit(node, policy, image, state, phase):
    pod = Pod(node, [container(image)], restartPolicy=policy)
    assert (pod.state(), pod.runtime.phase) == (state, phase)
    assert pod.condition("Ready")["status"] == str(state == "running")


def test_a_crashing_container_is_restarted_at_once_and_then_later_and_later(node):
    pod = Pod(node, [container("bad")])
    assert len(pod.table.started) == 2
    for wait, runs in [(9.9, 2), (0.2, 3), (19.8, 3), (0.3, 4), (40.1, 5)]:
        pod.after(wait)
        assert len(pod.table.started) == runs
    status = pod.runtime.status()["containerStatuses"][0]
    assert status["restartCount"] == 4
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert status["state"]["waiting"]["message"] == "back-off 1m20s restarting failed container=main pod=web-1_shop(u-1)"
    assert pod.runtime.poll_at() == pytest.approx(node.kernel.now() + 80, abs=0.5)


def test_a_long_run_wipes_the_slate(node):
    pod = Pod(node, [container("idle")])
    for _ in range(3):
        pod.after(601)
        pod.runtime.container("main").process.finish(1)
        pod.runtime.poll()
        assert pod.state() == "running"


def test_each_run_has_its_log_and_the_one_before_is_kept(node):
    pod = Pod(node, [container("bad")])
    assert [line.data for line in pod.runtime.log("main").read()] == [b"started"]
    assert [line.data for line in pod.runtime.log("main", previous=True).read()] == [b"started"]
    with pytest.raises(ExecError, match="previous terminated container"):
        Pod(node, [container("idle")]).runtime.log(None, previous=True)


def test_init_containers_run_one_after_the_other_and_first(node):
    pod = Pod(node, [container("idle")], init=[container("good", "one"), container("good", "two")])
    pod.after(0)
    assert pod.table.started == ["one", "two", "main"]
    assert pod.runtime.status()["initContainerStatuses"][1]["state"]["terminated"]["exitCode"] == 0


def test_a_failing_init_container_holds_up_the_pod(node):
    pod = Pod(node, [container("idle")], init=[container("bad", "one")]).after(30)
    assert set(pod.table.started) == {"one"}
    assert pod.runtime.phase == "Pending"
    assert pod.condition("Initialized")["status"] == "False"
    never = Pod(node, [container("idle")], init=[container("bad", "one")], restartPolicy="Never")
    assert never.runtime.phase == "Failed"


def test_a_sidecar_starts_first_and_stops_last(node):
    pod = Pod(node, [container("deaf")], init=[container("idle", "proxy", restartPolicy="Always")])
    assert pod.table.started == ["proxy", "main"]
    pod.runtime.stop(30)
    sidecar = pod.runtime.status()["initContainerStatuses"][0]["state"]
    assert "running" in sidecar
    pod.after(30.1)
    assert pod.runtime.gone


def test_a_pod_is_ready_once_its_program_listens(node):
    pod = Pod(node, [container("listens", ports=[{"containerPort": 80}])])
    assert pod.condition("Ready") == {
        "type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "containers with unready status: [main]",
        "lastProbeTime": None, "lastTransitionTime": "2023-11-14T22:13:20Z",
    }  # fmt: skip
    pod.after(5.1)
    assert pod.changes, "the agent hears of it"
    assert pod.condition("Ready")["status"] == "True"
    assert pod.condition("Ready")["lastTransitionTime"] == "2023-11-14T22:13:25Z"


def test_without_declared_ports_it_is_ready_at_once(node):
    assert Pod(node, [container("listens")]).condition("Ready")["status"] == "True"


def test_boot_seconds_delay_the_program_and_readiness(node):
    pod = Pod(node, [container("idle")], annotations={"podwire.dev/boot-seconds": "20"})
    assert pod.state() == "running"
    assert not pod.runtime.ready
    assert not pod.after(19.9).runtime.ready
    assert pod.after(0.2).runtime.ready


def test_a_program_that_heeds_sigterm_is_gone_at_once(node):
    pod = Pod(node, [container("idle")])
    pod.runtime.stop(30)
    assert pod.runtime.gone
    assert pod.runtime.status()["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0


def test_one_that_does_not_is_killed_after_the_grace_period(node):
    pod = Pod(node, [container("deaf")], terminationGracePeriodSeconds=10)
    pod.runtime.stop()
    assert pod.runtime.poll_at() == pytest.approx(node.kernel.now() + 10, abs=0.5)
    assert not pod.after(9.8).runtime.gone
    assert pod.after(0.3).runtime.gone
    assert pod.runtime.status()["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_a_second_stop_may_shorten_the_grace(node):
    pod = Pod(node, [container("deaf")])
    pod.runtime.stop(600)
    pod.runtime.stop(0)
    assert pod.after(0).runtime.gone


def test_a_stuck_thread_delays_a_pod_s_end_by_one_second_and_is_counted(node):
    pod = Pod(node, [container("stuck")])
    pod.runtime.stop(0)
    assert not pod.runtime.gone
    assert not pod.after(0.9).runtime.gone
    assert pod.after(0.2).runtime.gone
    assert pod.runtime.abandoned == 1


def test_nothing_is_restarted_while_a_pod_stops(node):
    pod = Pod(node, [container("bad")])
    pod.runtime.stop(30)
    started = len(pod.table.started)
    assert pod.after(300).runtime.gone
    assert len(pod.table.started) == started


def test_stand_ins_hear_of_undeclared_service_ports(node):
    pod = Pod(node, [container("standin", ports=[{"containerPort": 80}])])
    assert pod.runtime.stand_ins == ["main"]
    pod.runtime.set_service_ports(frozenset({("TCP", 80), ("TCP", 9090)}))
    assert Offered.ports == {("TCP", 9090)}


def run_command(pod, argv, **options):
    output, codes = [], []
    done = threading.Event()
    process = pod.runtime.exec(
        None, argv, lambda stream, data: output.append((stream, data)), lambda code: (codes.append(code), done.set()), **options
    )
    return process, output, codes, done


@pytest.mark.parametrize(
    ("argv", "code", "output"),
    [
        (["true"], 0, []),
        (["say"], 3, [("stdout", b"said\n")]),
        (["foo"], 127, [("stderr", b'exec: "foo": executable file not found in $PATH\n')]),
        ([], 127, [("stderr", b'exec: "": executable file not found in $PATH\n')]),
    ],
)
def test_exec_runs_a_command_beside_the_container(node, argv, code, output):
    _, out, codes, done = run_command(Pod(node, [container("idle")]), argv)
    assert done.wait(5)
    assert (codes, out) == ([code], output)


def test_commands_end_with_their_pod(node):
    pod = Pod(node, [container("idle")])
    _, _, codes, done = run_command(pod, ["sleep"])
    time.sleep(0.01)
    assert not codes
    pod.runtime.stop(0)
    assert done.wait(5)
    assert codes == [137]


def test_exec_into_nothing_says_so(node):
    pod = Pod(node, [container("good")], restartPolicy="Never")
    with pytest.raises(ExecError, match='container not found \\("main"\\)'):
        run_command(pod, ["true"])
    with pytest.raises(ExecError, match="container nope is not valid for pod web-1"):
        pod.runtime.log("nope")


def test_the_default_container_is_the_annotated_one(node):
    pod = Pod(node, [container("idle", "a"), container("idle", "b")], annotations={"kubectl.kubernetes.io/default-container": "b"})
    assert pod.runtime.container(None).name == "b"


BOTH = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ([{}], "BestEffort"),
        ([{"requests": {"cpu": "1"}}], "Burstable"),
        ([BOTH], "Guaranteed"),
        ([{"limits": BOTH["limits"]}], "Guaranteed"),
        ([BOTH, {}], "Burstable"),
    ],
)
def test_the_qos_class_follows_requests_and_limits(resources, expected):
    assert qos_class({"spec": {"containers": [{"name": "c", "resources": part} for part in resources]}}) == expected
