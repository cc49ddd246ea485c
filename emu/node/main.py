"""The node process: `run` is what the zygote's child calls. Decides the wiring of one process and its end; nothing else."""

from __future__ import annotations

import os
import signal
from typing import Any

from emu.bus.follower import Follower
from emu.bus.zeromq import NodeBus
from emu.cni.plugin import NodeAddress
from emu.model.cluster import ClusterSpec, NodeSpec
from emu.model.links import read_links
from emu.model.objects import ZONE_LABEL
from emu.node.agent import Agent
from emu.node.kernel import LeaderFollower
from emu.node.machine import Machine
from emu.overlay.carrier import Carrier
from emu.overlay.zeromq import ZmqCarrier, open_context
from emu.wire.addr import Network, parse_ip


def run(spec: ClusterSpec, name: str, incarnation: int, life_fd: int) -> None:
    """Be the node `name` of the cluster until SIGTERM or the end of the life pipe. Called in a fresh single-threaded process."""
    me = spec.node(name)
    context = open_context()
    carrier = ZmqCarrier(context, data_endpoint(spec, name))
    machine = make_machine(spec, me, carrier, incarnation)
    kernel = LeaderFollower(machine.softnet, carrier, machine.underlay.receive_message)
    follower = Follower(hello(me, carrier.endpoint, incarnation))
    link = NodeBus(name, f"ipc://{spec.run_dir}/bus.pub", f"ipc://{spec.run_dir}/bus.ctl", follower.streams, context)
    agent = Agent(spec, me, machine, kernel, link, follower)
    signal.signal(signal.SIGTERM, lambda number, frame: agent.stop())
    kernel.start()
    agent.run(life_fd)  # what it raises ends the process as it stands, for its next life: it may hold the kernel's lock
    kernel.stop()
    link.close()
    carrier.close()
    context.term()


def data_endpoint(spec: ClusterSpec, name: str) -> str:
    """Where a node's data socket is bound: a path on one machine, a loopback port where tcp is asked for."""
    if spec.transport == "tcp":
        return "tcp://127.0.0.1:0"
    os.makedirs(f"{spec.run_dir}/n", exist_ok=True)
    return f"ipc://{spec.run_dir}/n/{name}.data"


def hello(me: NodeSpec, endpoint: str, incarnation: int) -> dict[str, Any]:
    """How a node registers: what the others must know to send to it."""
    return {
        "t": "hello", "name": me.name, "ip": me.ip, "pod_cidr": me.pod_cidr, "endpoint": endpoint, "incarnation": incarnation,
        "labels": dict(me.labels), "pid": os.getpid(), "addresses": list(me.addresses or (me.ip,)),
    }  # fmt: skip


def make_machine(spec: ClusterSpec, me: NodeSpec, carrier: Carrier, incarnation: int) -> Machine:
    """The data plane of a node as the cluster's settings want it."""
    address = NodeAddress(me.name, parse_ip(me.ip), Network.parse(me.pod_cidr))
    machine = Machine(
        address, carrier, incarnation, pod_network=Network.parse(spec.pod_cidr), seed=spec.seed, checks=spec.debug_assertions,
        node_network=Network.parse(spec.node_cidr), zone=me.labels.get(ZONE_LABEL, ""),
    )  # fmt: skip
    for extra in me.addresses[1:]:
        machine.node.add_address("eth0", Network.parse(f"{extra}/32"), parse_ip(extra))
    machine.set_faults(read_links(spec.links))
    return machine
