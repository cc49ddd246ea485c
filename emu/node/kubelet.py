"""The kubelet of one node: which pods should be here, which are, and what is reported of them.

Decides when a pod's namespace is made and taken away, and what the controller hears; how its containers live is `pod.runtime`'s.
Runs on the node's control loop alone. Level-triggered: `on_pods` says what is wanted, `turn` brings the node closer to it.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emu.model.cluster import ClusterSpec, NodeSpec
from emu.model.objects import ADDRESS_ANNOTATION, Service
from emu.model.selector import from_map
from emu.node.machine import Machine
from emu.node.sessions import ExecSession, LogSession, Reply, pod_not_running
from emu.pod.container import Backoff
from emu.pod.kernel import Kernel
from emu.pod.output import route_prints
from emu.pod.runtime import PodRuntime
from emu.programs.images import ImageTable
from emu.stack.namespace import NetNamespace
from emu.stack.softnet import INFINITY
from emu.wire.addr import format_ip, parse_ip

SANDBOX_RETRY = 1.0  # seconds until a pod that could not get its address is tried again
SHUT_DOWN_GRACE = 0.2  # seconds for programs to notice that the node's process ends

Pod = dict[str, Any]


@dataclass(slots=True)
class Held:
    """A pod of this node. `runtime` is None while its namespace could not be made, for the reason in `trouble`."""

    pod: Pod
    runtime: PodRuntime | None = None
    trouble: str = ""
    failed: str = ""  # why it cannot be run at all
    retry_at: float = INFINITY
    stopping: bool = False
    reported: dict[str, Any] = field(default_factory=dict)

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"].get("uid", ""))


class Kubelet:
    """All pods of one node. `wake` makes the control loop take a turn; callable from any thread. `epoch` is Unix time at the kernel
    clock's zero, None for the machine's own."""

    def __init__(
        self, spec: ClusterSpec, me: NodeSpec, machine: Machine, kernel: Kernel, wake: Callable[[], None], epoch: float | None = None
    ) -> None:
        self._me, self._machine, self._kernel, self._wake_loop = me, machine, kernel, wake
        self._changed = True  # has anything happened since the last turn?
        self._images = ImageTable(spec.program_paths)
        self._backoff = Backoff(spec.timings.restart_backoff, spec.timings.restart_backoff_max)
        self.epoch = time.time() - kernel.now() if epoch is None else epoch
        self._wanted: dict[str, Pod] = {}
        self._held: dict[str, Held] = {}
        self._services: dict[str, Callable[[], Mapping[str, Any]] | Service] = {}
        self._gone: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        """What users should hear of; whoever posts them takes them away."""
        self._abandoned = 0
        route_prints()

    def _wake(self) -> None:
        """Something has happened to a pod: take a turn soon. Called from any thread."""
        self._changed = True
        self._wake_loop()

    # ---- what is wanted ----------------------------------------------------------------------------------------------------------

    def on_pods(self, changes: Iterable[tuple[str, Pod | None]]) -> None:
        """Changed keys of this node's stream, None for a pod that is no longer ours."""
        for key, pod in changes:
            if pod is None:
                self._wanted.pop(key, None)
            else:
                self._wanted[key] = pod
                if key not in self._held and pod["metadata"].get("deletionTimestamp"):
                    self._report_gone(pod)  # it never ran here, or did in an earlier life of this node
        self._wake()

    def on_services(self, changes: Iterable[tuple[str, Callable[[], Mapping[str, Any]] | None]]) -> None:
        """Changed Services (None: gone): stand-ins open the target ports of those that select them. Nobody else has them read."""
        for key, read in changes:
            if read is None:
                self._services.pop(key, None)
            else:
                self._services[key] = read
        for held in self._held.values():
            if held.runtime is not None and held.runtime.stand_ins:
                held.runtime.set_service_ports(self._service_ports(held.pod))

    def _service_ports(self, pod: Pod) -> frozenset[tuple[str, int]]:
        meta = pod["metadata"]
        return frozenset(
            (port.protocol, port.target_port)
            for service in map(self._service, list(self._services))
            if service.namespace == meta["namespace"] and service.selector and from_map(service.selector).matches(meta.get("labels"))
            for port in service.ports
            if isinstance(port.target_port, int)
        )

    def _service(self, key: str) -> Service:
        found = self._services[key]
        if not isinstance(found, Service):
            found = self._services[key] = Service.from_object(found()["service"])
        return found

    # ---- a turn ------------------------------------------------------------------------------------------------------------------

    def turn(self, now: float) -> list[dict[str, Any]]:
        """Bring what is here closer to what is wanted; the status reports to send."""
        if not self._changed and now < self.poll_at():
            return []
        self._changed = False
        for key, pod in self._wanted.items():
            held = self._held.get(key)
            if held is None:
                self._begin(key, pod, now)
            elif held.uid == pod["metadata"].get("uid"):
                held.pod = pod
                self._stop_if_deleted(held)
        statuses = []
        for key, held in list(self._held.items()):
            try:
                self._advance(key, held, now)
                report = self._report(key, held) if key in self._held else None
            except AssertionError:  # a bug of ours in what all pods share: the node dies loudly
                raise
            except Exception as error:  # the pod's own matter, which must not take the others' node along
                self._give_up(key, held, error)
                report = self._report(key, held)
            if report is not None:
                statuses.append(report)
        statuses += self._gone
        self._gone = []
        return statuses

    def _advance(self, key: str, held: Held, now: float) -> None:
        """Bring one pod closer to what is wanted of it."""
        wanted = self._wanted.get(key)
        if wanted is None or wanted["metadata"].get("uid") != held.uid:
            self._stop(held, 0.0)
        if held.retry_at <= now and not held.stopping:
            self._make(key, held, now)
        if held.runtime is not None:
            held.runtime.poll()
        if held.stopping and (held.runtime is None or held.runtime.gone):
            self._end(key, held)

    def _give_up(self, key: str, held: Held, error: Exception) -> None:
        """The pod cannot be run: it ends as Failed, and an Event says why."""
        traceback.print_exception(error)
        held.failed = f"{type(error).__name__}: {error}"
        runtime, held.runtime, held.retry_at = held.runtime, None, INFINITY
        if runtime is not None:
            with contextlib.suppress(Exception):  # it has failed already; what it still holds goes with its namespace
                runtime.stop(0.0)
        self._remove_namespace(key)
        self._held[key] = held
        meta = held.pod["metadata"]
        about = {"kind": "Pod", "namespace": meta["namespace"], "name": meta["name"], "uid": held.uid}
        self.events.append({"object": about, "type": "Warning", "reason": "Failed", "message": f"the pod cannot be run: {held.failed}"})

    def poll_at(self) -> float:
        """When the next turn is due although nothing happens."""
        return min(
            (min(held.retry_at, held.runtime.poll_at() if held.runtime is not None else INFINITY) for held in self._held.values()),
            default=INFINITY,
        )

    def _begin(self, key: str, pod: Pod, now: float) -> None:
        meta = pod["metadata"]
        if meta.get("deletionTimestamp") or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return
        self._held[key] = Held(pod, retry_at=now)

    def _make(self, key: str, held: Held, now: float) -> None:
        """Give the pod its namespace and start it, or say why not and try again later."""
        held.retry_at = INFINITY
        host_network = bool(held.pod["spec"].get("hostNetwork"))
        try:
            ns, ip = (self._machine.node, self._me.ip) if host_network else self._namespace_for(key, held.pod)
        except ValueError as error:
            held.trouble, held.retry_at = str(error), now + SANDBOX_RETRY
            return
        held.trouble = ""
        held.runtime = PodRuntime(
            held.pod, ns, self._kernel, self._images, self._wake, ip=ip, node=self._me.name, host_ip=self._me.ip, epoch=self.epoch,
            backoff=self._backoff,
        )  # fmt: skip
        held.runtime.start()
        if held.runtime.stand_ins:
            held.runtime.set_service_ports(self._service_ports(held.pod))

    def _namespace_for(self, key: str, pod: Pod) -> tuple[NetNamespace, str]:
        wanted = (pod["metadata"].get("annotations") or {}).get(ADDRESS_ANNOTATION)
        self._kernel.enter()
        try:
            ns = self._machine.cni.add_pod(f"pod/{key}", parse_ip(wanted) if wanted else None)
        finally:
            self._kernel.leave()
        return ns, format_ip(ns.devices["eth0"].addresses[0][0])

    def _stop_if_deleted(self, held: Held) -> None:
        meta = held.pod["metadata"]
        if meta.get("deletionTimestamp"):
            self._stop(held, meta.get("deletionGracePeriodSeconds"))

    def _stop(self, held: Held, grace: float | None) -> None:
        if not held.stopping or grace == 0.0:
            held.stopping = True
            if held.runtime is not None and not held.runtime.gone:
                held.runtime.stop(grace)

    def _end(self, key: str, held: Held) -> None:
        """Nothing of the pod runs any more: its namespace goes, and the controller hears of it."""
        del self._held[key]
        if held.runtime is not None:
            self._abandoned += held.runtime.abandoned
            if held.runtime.ns is not self._machine.node:
                self._remove_namespace(key)
        self._report_gone(held.pod)

    def _remove_namespace(self, key: str) -> None:
        self._kernel.enter()
        try:
            self._machine.cni.remove_pod(f"pod/{key}")
        finally:
            self._kernel.leave()

    # ---- reports -----------------------------------------------------------------------------------------------------------------

    def _report(self, key: str, held: Held) -> dict[str, Any] | None:
        if held.failed:
            status: dict[str, Any] = {"phase": "Failed", "reason": "KubeletError", "message": held.failed}
        else:
            status = held.runtime.status() if held.runtime is not None else _sandbox_trouble(held)
        if status == held.reported:
            return None
        held.reported = status
        namespace, _, name = key.partition("/")
        return {"namespace": namespace, "name": name, "uid": held.uid, "status": status}

    def _report_gone(self, pod: Pod) -> None:
        meta = pod["metadata"]
        self._gone.append({"namespace": meta["namespace"], "name": meta["name"], "uid": meta.get("uid", ""), "gone": True})

    def report_all(self) -> None:
        """Report every pod again: the controller may have forgotten."""
        for held in self._held.values():
            held.reported = {}
        for key, pod in self._wanted.items():
            if key not in self._held and pod["metadata"].get("deletionTimestamp"):
                self._report_gone(pod)
        self._wake()

    @property
    def abandoned(self) -> int:
        """Threads that did not notice their kill, of all pods so far."""
        return self._abandoned + sum(held.runtime.abandoned for held in self._held.values() if held.runtime is not None)

    def stand_ins(self) -> list[str]:
        """The containers whose image is unknown, as NAMESPACE/POD/CONTAINER."""
        return [f"{key}/{name}" for key, held in self._held.items() if held.runtime is not None for name in held.runtime.stand_ins]

    def namespaces(self) -> list[NetNamespace]:
        return [held.runtime.ns for held in self._held.values() if held.runtime is not None]

    def namespace(self, netns: str) -> NetNamespace | None:
        """The namespace named pod/NAMESPACE/NAME, if it is here."""
        held = self._held.get(netns.removeprefix("pod/"))
        return held.runtime.ns if held is not None and held.runtime is not None else None

    # ---- what users ask of containers ----------------------------------------------------------------------------------------------

    def _runtime(self, params: Mapping[str, Any]) -> PodRuntime:
        held = self._held.get(f"{params['namespace']}/{params['pod']}")
        if held is None or held.runtime is None:
            raise pod_not_running(params["pod"])
        return held.runtime

    def exec(self, params: Mapping[str, Any], reply: Reply) -> ExecSession:
        """Run a command in a container; output and exit code go to `reply`."""
        return ExecSession(self._runtime(params), params, reply)

    def logs(self, params: Mapping[str, Any]) -> bytes:
        """What a container has written so far."""
        return LogSession.text(self._runtime(params), params)

    def follow(self, params: Mapping[str, Any], reply: Reply) -> LogSession:
        """What a container has written and writes, until its run ends."""
        return LogSession(self._runtime(params), params, reply)

    def cut_off(self) -> None:
        """Tell every program that it is killed."""
        for held in self._held.values():
            if held.runtime is not None:
                held.runtime.stop(0.0)

    def shut_down(self) -> None:
        """The process ends: tell every program, and wait a moment."""
        self.cut_off()
        end = self._kernel.now() + SHUT_DOWN_GRACE
        while self._kernel.now() < end and any(held.runtime is not None and not held.runtime.gone for held in self._held.values()):
            time.sleep(0.005)
            for held in self._held.values():
                if held.runtime is not None:
                    held.runtime.poll()


def _sandbox_trouble(held: Held) -> dict[str, Any]:
    """The status of a pod that has no network namespace yet."""
    waiting = {"reason": "ContainerCreating", "message": f"failed to create pod sandbox: {held.trouble}"}
    return {
        "phase": "Pending",
        "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": waiting["message"]}],
        "containerStatuses": [
            {
                "name": container["name"], "image": container.get("image", ""), "imageID": "", "ready": False, "restartCount": 0,
                "state": {"waiting": waiting},
            }
            for container in held.pod["spec"]["containers"]
        ],
    }  # fmt: skip
