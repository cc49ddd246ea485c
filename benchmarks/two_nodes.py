"""Two nodes without a controller: the real data path between two pods, each node a process on a CPU of its choice.

Decides what stands around the path measured: flannel, the proxy's rules for one Service on both nodes, leader/follower, one
pod a node, and in it one program that answers and one that asks. Nodes are wired as `emu.node.main` does it, their peers told once.
"""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from benchmarks.harness import Child, Round, answer, commands
from emu.cni.plugin import NodeAddress
from emu.model.links import Fault
from emu.node.kernel import LeaderFollower
from emu.node.machine import Machine
from emu.overlay.zeromq import ZmqCarrier, open_context
from emu.pod.process import Process
from emu.pod.program import SOCK_DGRAM, Connection, Context, DatagramPort, Handler, PodInfo, Program
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.syncer import Proxy
from emu.wire.addr import Network, parse_ip

SIZE, PORT = 64, 7
POD, SERVICE = ("10.244.2.2", PORT), ("10.96.0.10", PORT)  # the answering pod, and the Service it is the only endpoint of
POD_NETWORK = "10.244.0.0/16"
Target = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of writing both programs."""

    transport: str  # "tcp" or "udp"
    program: str  # "blocking" or "handler"


def ping_pong(stack: ExitStack, directory: str, cpus: tuple[int, int], kind: Kind) -> dict[str, Round]:
    """Start the two nodes; rounds by way of the pod's address ("pod") and of the Service's ("service")."""
    prefix = f"{directory}/{kind.transport[0]}{kind.program[0]}{cpus[1]}"

    def far(_: int, out: int) -> None:
        process = start_pod(prefix, 2, _server(kind))
        os.write(out, b"+")
        process.run()

    def near(orders: int, out: int) -> None:
        client = _client(kind, orders, out)
        process = start_pod(prefix, 1, client)
        os.write(out, b"+")
        if isinstance(client, Asking):
            client.obey(process.process)
        process.run()

    server = stack.enter_context(Child(cpus[1], far))
    server.ready()
    client = stack.enter_context(Child(cpus[0], near))
    client.ready()
    return {"pod": lambda count: client.round(count, b"pod"), "service": lambda count: client.round(count, b"service")}


class Running:
    """A node that is up, and the process in its pod."""

    def __init__(self, machine: Machine, kernel: LeaderFollower, process: Process) -> None:
        self.machine, self.kernel, self.process = machine, kernel, process
        self.ended = threading.Event()

    def run(self) -> None:
        """Until killed, or until the program has ended, which it should not."""
        self.ended.wait()
        raise RuntimeError(f"{self.process.name} ended with {self.process.exit_code}")


def start_pod(prefix: str, index: int, program: Program, faults: Sequence[Fault] = ()) -> Running:
    """Bring up node `index` of two with one pod that runs `program`; `faults` are on their links."""
    carrier = ZmqCarrier(open_context(), f"ipc://{prefix}{index}")
    nodes = [
        {
            "name": f"node-{n}",
            "ip": f"192.168.0.{n + 1}",
            "pod_cidr": f"10.244.{n}.0/24",
            "endpoint": f"ipc://{prefix}{n}",
            "incarnation": 1,
        }
        for n in (1, 2)
    ]
    me = NodeAddress(f"node-{index}", parse_ip(f"192.168.0.{index + 1}"), Network.parse(f"10.244.{index}.0/24"))
    machine = Machine(me, carrier, incarnation=1, pod_network=Network.parse(POD_NETWORK))
    kernel = LeaderFollower(machine.softnet, carrier, machine.underlay.receive_message)
    kernel.enter()
    machine.set_peers(nodes)
    machine.set_faults(faults)
    _install_rules(machine)
    ns = machine.cni.add_pod(f"pod/default/{me.name}", parse_ip(f"10.244.{index}.2"))
    kernel.leave()
    kernel.start()
    pod = PodInfo(name=me.name, namespace="default", ip=f"10.244.{index}.2", node=me.name)
    running = Running(
        machine, kernel, Process(kernel, ns, pod, program, name=me.name, output=_to_stderr, on_exit=lambda _: running.ended.set())
    )
    running.process.start()
    return running


def _install_rules(machine: Machine) -> None:
    """kube-proxy's rules of a cluster that has the one Service."""
    proxy = Proxy(ProxyConfig.parse({"mode": "iptables"}, cluster_cidr=POD_NETWORK), NodeView(machine.me.name, (machine.me.ip,)))
    ports = [{"name": protocol.lower(), "protocol": protocol, "port": PORT} for protocol in ("TCP", "UDP")]
    metadata = {"namespace": "default", "name": "echo"}
    value = {
        "service": {"metadata": metadata, "spec": {"clusterIP": SERVICE[0], "ports": ports}, "status": {}},
        "slices": [{
            "metadata": {**metadata, "name": "echo-1", "labels": {"kubernetes.io/service-name": "echo"}}, "addressType": "IPv4",
            "ports": ports, "endpoints": [{"addresses": [POD[0]], "nodeName": "node-2"}],
        }],
    }  # fmt: skip
    proxy.on_services([("default/echo", value)], 0.0)
    proxy.on_listed(0.0)
    result = proxy.sync(0.0)
    assert result is not None, "a first sync is always due"
    machine.node.swap(result.ruleset)


def _to_stderr(stream: str, data: bytes) -> None:
    os.write(2, data)


# ---- programs that answer ------------------------------------------------------------------------------------------------------


def serve_tcp(ctx: Context) -> int:
    """One connection after the other, so that one thread does it all."""
    listener = ctx.socket()
    listener.bind(("0.0.0.0", PORT))
    listener.listen()
    while True:
        conn, _ = listener.accept()
        while data := conn.recv(SIZE):
            conn.sendall(data)
        conn.close()


def serve_udp(ctx: Context) -> int:
    sock = ctx.socket(type=SOCK_DGRAM)
    sock.bind(("0.0.0.0", PORT))
    while True:
        data, peer = sock.recvfrom(SIZE)
        sock.sendto(data, peer)


class Answering(Handler):
    """Sends back what comes, by events."""

    def on_start(self, ctx: Context) -> None:
        ctx.listen_tcp(PORT)
        ctx.listen_udp(PORT)

    def on_data(self, ctx: Context, conn: Connection, data: bytes) -> None:
        conn.send(data)

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Target) -> None:
        port.send_to(data, address)


# ---- programs that ask ---------------------------------------------------------------------------------------------------------


def target_of(command: bytes) -> Target:
    return SERVICE if command == b"service" else POD


def ask(orders: int, out: int, transport: str) -> Callable[[Context], int]:
    """Blocking code: a new socket for every round, its set-up not measured."""

    def main(ctx: Context) -> int:
        now, payload = time.perf_counter_ns, bytes(SIZE)
        for count, command in commands(orders):
            sock = ctx.socket(type=SOCK_DGRAM) if transport == "udp" else ctx.socket()
            sock.connect(target_of(command))
            times: array[int] = array("Q")
            for _ in range(count):
                start = now()
                sock.send(payload)
                sock.recv(SIZE)
                times.append(now() - start)
            sock.close()
            answer(out, times)
        return 0

    return main


class Asking(Handler):
    """The same by events: each answer sends the next question."""

    def __init__(self, orders: int, out: int, transport: str) -> None:
        self._orders, self._out, self._transport = orders, out, transport
        self._times: array[int] = array("Q")
        self._count = self._start = 0
        self._payload = bytes(SIZE)
        self._send: Callable[[bytes], object] = len

    def obey(self, process: Process) -> None:
        """Carry out the commands, from a thread that is not the program's."""
        for count, command in commands(self._orders):
            process.events.post(partial(self._begin, process.ctx, count, target_of(command)))

    def _begin(self, ctx: Context, count: int, target: Target) -> None:
        self._count, self._times = count, array("Q")
        if self._transport == "tcp":
            ctx.connect_tcp(target)
            return
        port = ctx.listen_udp(0)
        self._send = lambda data: port.send_to(data, target)
        self._next()

    def _next(self) -> None:
        self._start = time.perf_counter_ns()
        self._send(self._payload)

    def _answered(self) -> bool:
        """Note one answer and ask again; False when that was the last."""
        self._times.append(time.perf_counter_ns() - self._start)
        if len(self._times) < self._count:
            self._next()
            return True
        answer(self._out, self._times)
        return False

    def on_connect(self, ctx: Context, conn: Connection) -> None:
        self._send = conn.send
        self._next()

    def on_data(self, ctx: Context, conn: Connection, data: bytes) -> None:
        if not self._answered():
            conn.close()

    def on_datagram(self, ctx: Context, port: DatagramPort, data: bytes, address: Target) -> None:
        self._answered()


def kinds() -> Iterator[Kind]:
    """Every row of the benchmark, the headline's first."""
    return (Kind(transport, program) for transport in ("tcp", "udp") for program in ("blocking", "handler"))


def _server(kind: Kind) -> Program:
    if kind.program == "handler":
        return Answering()
    return serve_tcp if kind.transport == "tcp" else serve_udp


def _client(kind: Kind, orders: int, out: int) -> Program:
    return Asking(orders, out, kind.transport) if kind.program == "handler" else ask(orders, out, kind.transport)
