"""A control plane and its nodes in one process: memory bus, manual clock, and kubelets that run any pod at once."""

from __future__ import annotations

from emu.bus.follower import Follower
from emu.bus.memory import MemoryBus
from emu.clock import ManualClock
from emu.control.pods import timestamp_of
from emu.controller.plane import ControlPlane
from emu.model.cluster import ClusterSpec
from emu.registry.bootstrap import bootstrap
from emu.registry.registry import Registry, RegistryConfig
from emu.store.store import Store

EPOCH = 1_700_000_000
BROKEN = "broken"  # an image that never becomes Ready


class FakeNode:
    """A node whose pods run, are Ready and stop at once, unless told otherwise."""

    def __init__(self, spec, bus, incarnation=1):
        self.spec, self.name = spec, spec.name
        hello = {
            "t": "hello", "name": spec.name, "ip": spec.ip, "pod_cidr": spec.pod_cidr, "endpoint": f"mem://{spec.name}",
            "incarnation": incarnation, "labels": dict(spec.labels), "pid": 1000 + incarnation,
        }  # fmt: skip
        self.follower = Follower(hello)
        self.link = bus.connect(spec.name, self.follower.streams)
        self.calls, self.dead, self.readies, self.stops = [], False, True, True
        self.on_call = lambda call: None
        self._ips, self._next, self.reported, self.last_lease = {}, 2, {}, -1e9

    def turn(self, now, period):
        """Read what has come, run and stop pods, renew the lease; True if anything happened."""
        if self.dead:
            return False
        busy = False
        for message in self.link.poll(0):
            busy = True
            step = self.follower.on_message(message)
            for answer in step.send:
                self.link.post(answer)
            if step.welcomed:
                self.reported.clear()
            if step.message is not None:
                self.calls.append(step.message)
                body = self.on_call(step.message) if step.message["t"] == "call" else None
                if body is not None:
                    self.link.post({"t": "answer", "id": step.message["id"], "body": body, "last": True})
            if step.changed:
                self.last_lease = -1e9
        reports = [report for key, pod in self.follower.pods.items() if (report := self._kubelet(key, pod))]
        if reports:
            busy = True
            self.link.post({"t": "pods", "statuses": reports})
        if now - self.last_lease >= period:
            self.last_lease = now
            self.link.post(self.follower.lease())
        return busy

    def _kubelet(self, key, pod):
        meta = pod["metadata"]
        named = {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]}
        if meta.get("deletionTimestamp"):
            if not self.stops or self.reported.get(meta["uid"]) == "gone":
                return None
            self.reported[meta["uid"]] = "gone"
            return {**named, "gone": True}
        if meta["uid"] not in self._ips:
            base = self.spec.pod_cidr.rpartition(".")[0]
            self._ips[meta["uid"]], self._next = f"{base}.{self._next}", self._next + 1
        ip, broken = self._ips[meta["uid"]], pod["spec"]["containers"][0]["image"] == BROKEN
        ready = "True" if self.readies and not broken else "False"
        status = {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": self.spec.ip,
            "conditions": [{"type": "Ready", "status": ready}],
        }  # fmt: skip
        if self.reported.get(meta["uid"]) == status:
            return None
        self.reported[meta["uid"]] = status
        return {**named, "status": status}


class Plane:
    """A whole cluster; `settle` lets everything happen that happens without time passing."""

    def __init__(self, nodes=3, start=True, store=None, clock=None, **spec):
        self.spec = ClusterSpec.from_mapping({"name": "test", "nodes": nodes, **spec}, run_dir="/nowhere")
        self.clock, self.store = clock or ManualClock(), store or Store()
        self.errors = []
        config = RegistryConfig(toleration_seconds=round(self.spec.timings.toleration), seed=1)
        self.registry = Registry(self.store, config, lambda: timestamp_of(EPOCH + self.clock.now()))
        bootstrap(self.registry)
        self.bus = MemoryBus(self.store.revision)
        self.plane = ControlPlane(self.spec, self.registry, self.bus, self.clock.now, on_error=lambda *told: self.errors.append(told))
        self.cluster = self.plane.cluster
        self.nodes = {}
        if start:
            for node in self.spec.nodes:
                self.start_node(node.name)
            self.settle()

    def start_node(self, name, incarnation=1):
        self.nodes[name] = FakeNode(self.spec.node(name), self.bus, incarnation)
        return self.nodes[name]

    def kill_node(self, name):
        self.nodes[name].dead = True
        self.bus.disconnect(name)

    def settle(self, most=2000):
        for _ in range(most):
            self.plane.receive()
            due = self.plane.turn()
            busy = [node.turn(self.clock.now(), self.spec.timings.lease_period) for node in self.nodes.values()]
            if due > 0 and not any(busy) and not self.bus._inbox:
                return
        raise AssertionError("the cluster does not come to rest")

    def advance(self, seconds, step=0.25):
        while seconds > 0:
            self.clock.advance(min(step, seconds))
            seconds -= step
            self.settle()

    # ---- objects -------------------------------------------------------------------------------------------------------------

    def deploy(self, name="web", replicas=3, image="nginx", namespace="default", **spec):
        made = deployment(name, replicas, image, namespace, **spec)
        return self.registry.create("deployments", made, namespace).object

    def get(self, resource, name, namespace="default"):
        return self.store.get(resource, namespace, name)

    def pods(self, namespace="default", **labels):
        found = self.store.list("pods", namespace)[0]
        return [pod for pod in found if labels.items() <= pod["metadata"].get("labels", {}).items()]

    def change(self, resource, name, namespace="default", **spec):
        obj = self.get(resource, name, namespace)
        return self.registry.update(resource, {**obj, "spec": {**obj["spec"], **spec}}, namespace).object

    def endpoints(self, service, namespace="default"):
        return [e for one in self.cluster.slices_of(namespace, service) for e in one.get("endpoints") or ()]


def deployment(name="web", replicas=3, image="nginx", namespace="default", **spec):
    labels = {"app": name}
    container = {"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template, **spec},
    }


def service(name="web", namespace="default", selector=None, **spec):
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"selector": selector or {"app": name}, "ports": ports, **spec}}
