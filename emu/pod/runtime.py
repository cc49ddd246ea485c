"""A pod on a node: its containers in one network namespace, started, watched and stopped as the kubelet does it.

Decides the order of init containers and sidecars, the pod's phase and conditions, and the stages of stopping; a container's
own fate is `container`'s. One owner (the kubelet agent's thread) calls everything here and polls; programs tell it through
`on_change` only. See k8s.io/api/core/v1 PodStatus, KEP-753 (sidecars), "Pod Lifecycle" in the Kubernetes documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from emu.model.objects import BOOT_ANNOTATION
from emu.pod.container import INFINITY, KUBELET_BACKOFF, Backoff, Container, Images, Launch, PortList, rfc3339
from emu.pod.names import Resolver
from emu.pod.output import Log
from emu.pod.process import Process
from emu.pod.program import Handler, PodInfo, Program
from emu.pod.status import pod_status

if TYPE_CHECKING:
    from emu.pod.kernel import Kernel
    from emu.stack.namespace import NetNamespace

DEFAULT_GRACE = 30.0
NOT_FOUND = 127  # sh's exit code for a command that is not there
Output = Callable[[str, bytes], None]


class ExecError(Exception):
    """`exec` or `logs` cannot be: no such container, or it is not running. The text is the kubelet's."""


class PodRuntime:
    """One pod. `epoch` is Unix time at the kernel clock's zero; `on_change` may be called from any thread, without the lock."""

    def __init__(
        self, pod: Mapping[str, Any], ns: NetNamespace, kernel: Kernel, images: Images, on_change: Callable[[], None], *,
        ip: str, node: str, host_ip: str = "", epoch: float = 0.0, resolver: Resolver | None = None, backoff: Backoff = KUBELET_BACKOFF,
    ) -> None:  # fmt: skip
        self.ns, self.kernel, self.images, self._on_change = ns, kernel, images, on_change
        self._pod, self._epoch, self._resolver, self._host_ip, self._backoff = pod, epoch, resolver, host_ip, backoff
        self.info = pod_info(pod, ip, node, epoch)
        spec = pod["spec"]
        self._policy: str = spec.get("restartPolicy") or "Always"
        boot = float(self.info.annotations.get(BOOT_ANNOTATION, 0))
        self._init = [self._container(item, init=True, boot=0.0) for item in spec.get("initContainers") or ()]
        self._main = [self._container(item, init=False, boot=boot) for item in spec["containers"]]
        self._wanted_ports: PortList = frozenset()
        self._execs: list[Process] = []
        self._start_time = ""
        self._stop_at = INFINITY
        self._stopping = False
        self._transitions: dict[str, tuple[str, str]] = {}  # condition -> its status, and since when

    def _container(self, spec: Mapping[str, Any], *, init: bool, boot: float) -> Container:
        sidecar = init and spec.get("restartPolicy") == "Always"
        policy = "Always" if sidecar else ("OnFailure" if self._policy == "Always" else self._policy) if init else self._policy
        return Container(
            spec,
            policy,
            lambda: self.images.launch(self._pod, spec, init=init and not sidecar),
            self._process,
            boot=boot,
            epoch=self._epoch,
            backoff=self._backoff,
        )

    # ---- orders ----------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the pod; what follows is driven by `poll`."""
        self._start_time = rfc3339(self.kernel.now() + self._epoch)
        self.poll()

    def stop(self, grace: float | None = None) -> None:
        """Stop the pod within `grace` seconds (None: its own terminationGracePeriodSeconds); a shorter one later wins."""
        seconds = self._pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE) if grace is None else grace
        self._stop_at = min(self._stop_at, self.kernel.now() + max(0.0, seconds))
        self._stopping = True
        self.poll()

    def poll(self) -> None:
        """Do what is due. Call after `on_change`, and at `poll_at`."""
        now = self.kernel.now()
        for container in self._everyone:
            container.poll(now)
        if self._stopping:
            self._stop_stage(now)
        else:
            self._start_stage(now)
        self._execs = [process for process in self._execs if not process.ended]

    def poll_at(self) -> float:
        """The kernel's time at which `poll` must be called though nothing happens; infinity for never."""
        own = self._stop_at if self._stopping and not self.gone else INFINITY
        return min(own, *(container.poll_at() for container in self._everyone))

    def _start_stage(self, now: float) -> None:
        """Start what may start now: init containers one after the other, then all others."""
        for container in self._init:
            if container.ended and not container.done and container.poll_at() == INFINITY:
                container.start(now)
            if not (container.done and container.exit_code == 0) and not (container.policy == "Always" and container.began):
                return
        for container in self._main:
            if container.ended and not container.done and container.poll_at() == INFINITY:
                container.start(now)

    def _stop_stage(self, now: float) -> None:
        """Main containers first, then sidecars in reverse order; after the grace period none is asked any more."""
        for container in self._main:
            container.stop()
            container.poll(now)  # a handler has ended by now
        if all(container.ended for container in self._main):
            for container in reversed(self._init):
                container.stop()
                container.poll(now)
                if not container.ended:
                    break
        if self._stop_at <= now:
            self._stop_at = INFINITY
            for container in self._everyone:
                container.stop()
                container.kill(now)
                container.poll(now)
        if self.gone:
            for process in self._execs:
                process.kill()

    @property
    def _everyone(self) -> list[Container]:
        return [*self._init, *self._main]

    @property
    def gone(self) -> bool:
        """Stopped, and nothing runs any more (abandoned threads do not count): the namespace can go."""
        return self._stopping and all(container.ended for container in self._everyone)

    @property
    def abandoned(self) -> int:
        """Threads that did not notice their kill; they are cut off from the network."""
        return sum(container.abandoned for container in self._everyone)

    @property
    def stand_ins(self) -> list[str]:
        """Names of the containers whose image is unknown here."""
        return [container.name for container in self._everyone if container.launch is not None and container.launch.stand_in]

    # ---- processes -------------------------------------------------------------------------------------------------------------

    def _process(self, container: Container, launch: Launch, program: Program) -> Process:
        log, listening = container.log, container.listening

        def on_listen(protocol: str, port: int) -> None:
            if (protocol, port) not in listening:
                listening.add((protocol, port))
                self._on_change()

        process = self._new_process(
            program, launch.argv, container,
            output=lambda stream, data: log.write(self.kernel.now() + self._epoch, stream, data),
            on_exit=lambda _: self._on_change(), on_listen=on_listen,
        )  # fmt: skip
        if isinstance(program, Handler) and self._first_stand_in is container:
            program.on_service_ports(process.ctx, self._wanted_ports)
        return process

    def _new_process(self, program: Program, argv: Sequence[str], container: Container, **callbacks: Any) -> Process:
        env = {entry["name"]: entry.get("value") or "" for entry in container.spec.get("env") or ()}
        return Process(
            self.kernel, self.ns, self.info, program, name=f"{self.info.namespace}/{self.info.name}/{container.name}",
            argv=argv, env=env, resolver=self._resolver, commands=self.images.command, **callbacks,
        )  # fmt: skip

    @property
    def _first_stand_in(self) -> Container | None:
        return next((c for c in self._main if c.launch is not None and c.launch.stand_in), None)

    def set_service_ports(self, ports: PortList) -> None:
        """The target ports, ("TCP", 80) and so on, of the Services that select the pod: a stand-in opens those nobody declares."""
        declared = frozenset[tuple[str, int]]().union(*(container.declared for container in self._everyone))
        self._wanted_ports = ports - declared
        container = self._first_stand_in
        process = None if container is None else container.process
        if process is not None and isinstance(process.program, Handler):
            program = process.program
            process.events.post(lambda: program.on_service_ports(process.ctx, self._wanted_ports))

    def container(self, name: str | None) -> Container:
        """A container by name; without one the default (kubectl.kubernetes.io/default-container, else the first)."""
        name = name or self.info.annotations.get("kubectl.kubernetes.io/default-container") or self._main[0].name
        found = next((container for container in self._everyone if container.name == name), None)
        if found is None:
            raise ExecError(f"container {name} is not valid for pod {self.info.name}")
        return found

    def exec(
        self, container: str | None, argv: Sequence[str], output: Output, on_exit: Callable[[int], None], *, stdin: bool = False
    ) -> Process | None:
        """Run a command beside a running container: its process, to feed `stdin` and to kill; None if there is no such command.

        `output(stream, bytes)` and at last `on_exit(code)` come from the program's thread, and must not block.
        """
        inside = self.container(container)
        if not inside.running:
            raise ExecError(f'container not found ("{inside.name}")')
        program = self.images.command(argv[0]) if argv else None
        if program is None:
            output("stderr", f'exec: "{argv[0] if argv else ""}": executable file not found in $PATH\n'.encode())
            on_exit(NOT_FOUND)
            return None
        process = self._new_process(program, argv, inside, output=output, on_exit=lambda ended: on_exit(ended.exit_code or 0), stdin=stdin)
        self._execs.append(process)
        process.start()
        return process

    def log(self, container: str | None, *, previous: bool = False) -> Log:
        """The log of a container's current run, or of the one before."""
        found = self.container(container)
        if previous and not found.restarts:
            raise ExecError(f'previous terminated container "{found.name}" in pod "{self.info.name}" not found')
        return found.previous_log if previous else found.log

    # ---- status ----------------------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        if not all((c.done and c.exit_code == 0) or (c.policy == "Always" and c.began) for c in self._init):
            failed = any(c.done and c.exit_code for c in self._init)
            return "Failed" if failed else "Pending"
        if self._main and all(container.done for container in self._main):
            return "Failed" if any(container.exit_code for container in self._main) else "Succeeded"
        started = all(container.running or container.done or container.restarts for container in self._main)
        return "Running" if started or any(c.poll_at() != INFINITY for c in self._main) else "Pending"

    @property
    def ready(self) -> bool:
        """Every container is ready; readiness gates must be met too for the pod's condition."""
        return self.phase == "Running" and all(container.ready for container in self._main)

    def status(self) -> dict[str, Any]:
        """The PodStatus now."""
        return pod_status(self, self._pod, self._transitions, self._start_time, self._host_ip, self.kernel.now() + self._epoch)

    def container_statuses(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """ContainerStatus of init containers and of the others."""
        pod = f"{self.info.name}_{self.info.namespace}({self.info.uid})"
        return [c.status(pod) for c in self._init], [c.status(pod) for c in self._main]

    @property
    def initialized(self) -> bool:
        return all((c.done and c.exit_code == 0) or (c.policy == "Always" and c.began) for c in self._init)


def pod_info(pod: Mapping[str, Any], ip: str, node: str, epoch: float) -> PodInfo:
    """What a pod's programs may know of it."""
    meta, spec = pod["metadata"], pod["spec"]
    aliases = {name: alias["ip"] for alias in spec.get("hostAliases") or () for name in alias.get("hostnames") or ()}
    return PodInfo(
        name=meta["name"], namespace=meta.get("namespace") or "default", ip=ip, node=node, uid=meta.get("uid", ""),
        hostname=spec.get("hostname") or (node if spec.get("hostNetwork") else meta["name"]),
        labels=meta.get("labels") or {}, annotations=meta.get("annotations") or {}, hosts=aliases, epoch=epoch,
    )  # fmt: skip
