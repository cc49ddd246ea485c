"""No packet reaches a pod that does not own its destination: pods go and their addresses are taken by others, nodes are restarted and
paused, while packets of all of them are in queues, flow caches, shortcuts and conntrack tables. Deterministic, on the memory carrier.

A datagram says whom its sender meant: the address it was sent to. Whoever receives it must own that address at that moment; that the
address may have passed to another pod meanwhile is as on Linux. A stream says which pod it was opened to: nobody else may get its bytes.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from emu.cni.plugin import NodeAddress
from emu.errors import DropReason
from emu.node.machine import Machine
from emu.stack.namespace import NetNamespace
from emu.stack.sockets import UdpSocket
from emu.stack.tcp_sockets import TcpListener, TcpSocket
from emu.wire.addr import ANY, SockAddr, format_ip, parse_ip
from tests.kit.fabric import POD_NETWORK, Fabric
from tests.kit.services import value

PORT, VIP = 7000, "10.96.0.50"
ADDRESSES = [f"10.244.{node}.{host}" for node in (1, 2, 3) for host in range(10, 14)]  # few, so that they are reused at once
SERVICES = {
    "default/s": value("default/s", ADDRESSES, cluster_ip=VIP, port=PORT, target=PORT),
    "default/d": value("default/d", ADDRESSES, cluster_ip=VIP, port=PORT, target=PORT, protocol="UDP"),
}


@dataclass
class Stream:
    """A connection of a client's, and whom the greeting said it was opened to."""

    sock: TcpSocket
    owner: str = ""


class Pod:
    """A pod that answers datagrams and streams, and complains of what is not its own."""

    def __init__(self, name: str, ns: NetNamespace) -> None:
        self.name, self.ns = name, ns
        self.ip = ns.devices["eth0"].addresses[0][0]
        self.udp = UdpSocket(ns)
        self.udp.bind(SockAddr(ANY, PORT))
        self.listener = TcpListener(ns, SockAddr(ANY, PORT))
        self.accepted: list[TcpSocket] = []
        self.streams: list[Stream] = []
        self.got = self.read = 0

    def look(self) -> None:
        """Judge everything that has come."""
        while self.udp.queue:
            data, _ = self.udp.queue.popleft()
            assert not self.ns.closed, f"{self.name} is gone and received {data!r}"
            meant = data.decode().split()[0]
            assert meant in (format_ip(self.ip), VIP), f"{self.name} ({format_ip(self.ip)}) received what was for {meant}"
            self.got += 1
        while (sock := self.listener.accept()) is not None:
            self.accepted.append(sock)
            if not sock.error:
                sock.write(f"{self.name}\n".encode())
        for sock in self.accepted:
            if sock.readable and not sock.error:
                data = sock.read(1 << 16)
                assert all(line == self.name for line in data.decode().split()), f"{self.name} read {data!r}"
                self.read += bool(data)


class World:
    """A fabric whose nodes take turns by chance. A paused node takes none; a restarted one finds what was queued for its former life."""

    def __init__(self, seed: int) -> None:
        self.fabric = Fabric(3)
        self.fabric.services(SERVICES)
        self.chance = random.Random(seed)
        self.pods: dict[str, Pod] = {}
        self.paused: dict[int, float] = {}
        self.born = 0
        self.gone: list[Pod] = []

    def machine(self, node: int) -> Machine:
        return self.fabric.machines[f"node-{node}"]

    def enter(self, node: int) -> Machine:
        machine = self.machine(node)
        machine.softnet.now = self.fabric.clock.now()
        return machine

    def awake(self) -> list[int]:
        return [node for node in (1, 2, 3) if node not in self.paused]

    def of(self, node: int) -> list[Pod]:
        return [pod for pod in self.pods.values() if pod.ns.softnet is self.machine(node).softnet]

    # ---- what happens -----------------------------------------------------------------------------------------------------------

    def create(self) -> None:
        node = self.chance.choice(self.awake())
        wanted = self.chance.choice([ip for ip in ADDRESSES if ip.startswith(f"10.244.{node}.")])
        if wanted in self.pods:
            return
        machine = self.enter(node)
        self.born += 1
        name = f"p{self.born}"
        self.pods[wanted] = Pod(name, machine.cni.add_pod(f"pod/default/{name}", parse_ip(wanted)))

    def remove(self) -> None:
        gone = [ip for node in self.awake() for ip in (format_ip(pod.ip) for pod in self.of(node))]
        if not gone:
            return
        ip = self.chance.choice(gone)
        pod = self.pods.pop(ip)
        machine = self.enter(int(ip.split(".")[2]))
        pod.look()
        machine.cni.remove_pod(f"pod/default/{pod.name}")
        assert pod.ns.closed
        self.gone.append(pod)

    def datagram(self) -> None:
        self.send(lambda pod, ip: pod.udp.send_to(f"{ip} from {pod.name}".encode(), SockAddr(parse_ip(ip), PORT)))

    def send(self, how: Callable[[Pod, str], object]) -> None:
        senders = [pod for node in self.awake() for pod in self.of(node)]
        if not senders:
            return
        pod = self.chance.choice(senders)
        ip = self.chance.choice([*self.pods, *self.pods, *ADDRESSES[::2], VIP, VIP])
        machine = self.enter(int(format_ip(pod.ip).split(".")[2]))
        try:
            how(pod, ip)
        except OSError as error:
            assert error.errno in {errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT}
        self.fabric.settle(machine)

    def stream(self) -> None:
        """Open a stream to whoever has the address now, or say more on those that are open: the name of him who greeted."""

        def act(pod: Pod, ip: str) -> None:
            if len(pod.streams) < 3:
                sock = TcpSocket(pod.ns)
                pod.streams.append(Stream(sock))
                sock.connect(SockAddr(parse_ip(ip), PORT))
            pod.streams = [stream for stream in pod.streams if not stream.sock.error]
            for stream in pod.streams:
                if stream.owner:
                    stream.sock.write(f"{stream.owner}\n".encode())
                elif stream.sock.connected and stream.sock.readable:
                    stream.owner = stream.sock.read(100).decode().strip()

        self.send(act)

    def travel(self) -> None:
        """Nodes take some of what has come, in any order."""
        for node in self.chance.sample(self.awake(), len(self.awake())):
            machine = self.enter(node)
            for _ in range(self.chance.choice((0, 1, 20))):
                message = machine.carrier.recv_nowait()
                if message is None:
                    break
                machine.underlay.receive_message(message)
                self.fabric.settle(machine)
            for pod in self.of(node):
                pod.look()
            self.fabric.settle(machine)

    def time(self) -> None:
        self.fabric.clock.advance(self.chance.choice((0.001, 0.05, 0.3, 2.0)))
        for node in self.awake():
            self.enter(node).softnet.expire()
            self.fabric.settle(self.machine(node))

    def pause(self) -> None:
        if len(self.paused) < 1:
            self.paused[self.chance.choice((1, 2, 3))] = self.fabric.clock.now()

    def resume(self) -> None:
        """After a minute, as often as not; what it was told meanwhile it hears only later."""
        for node in list(self.paused):
            if self.chance.random() < 0.5:
                self.fabric.clock.advance(60)
            del self.paused[node]

    def restart(self) -> None:
        """SIGKILL and the next incarnation. What peers had queued is still there; some of them hear of the new life late."""
        node = self.chance.choice((1, 2, 3))
        self.paused.pop(node, None)
        name, old = f"node-{node}", self.machine(node)
        for pod in self.of(node):
            self.gone.append(self.pods.pop(format_ip(pod.ip)))
        inbox = self.fabric.network.inbox(name)
        queued = list(inbox.messages)
        inbox.bound = False
        carrier = self.fabric.network.carrier(name)
        inbox.messages.extend(queued[len(inbox.messages) :])
        record = next(record for record in self.fabric.records if record["name"] == name)
        record["incarnation"] += 1
        me = NodeAddress(name, old.me.ip, old.me.pod_cidr)
        machine = Machine(me, carrier, record["incarnation"], pod_network=POD_NETWORK, checks=True)
        self.fabric.machines[name] = machine
        self.enter(node)
        machine.set_peers(self.fabric.records)
        del self.fabric._proxies[name]
        self.fabric.services(SERVICES)
        for peer in self.awake():
            if self.chance.random() < 0.7:
                self.hear(peer)

    def hear(self, node: int | None = None) -> None:
        """A node learns which lives its peers are in."""
        self.enter(node or self.chance.choice(self.awake())).set_peers(self.fabric.records)

    def step(self) -> None:
        acts = {
            self.datagram: 30, self.stream: 60, self.travel: 60, self.create: 6, self.remove: 3, self.time: 3, self.pause: 0.5,
            self.resume: 2, self.restart: 0.5, self.hear: 3,
        }  # fmt: skip
        if not self.awake():
            self.resume()
            return
        self.chance.choices(list(acts), list(acts.values()))[0]()
        for node in self.awake():
            self.enter(node)
            for pod in self.of(node):
                pod.look()
            self.fabric.settle(self.machine(node))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_goes_and_comes_only_the_owner_of_an_address_receives_what_was_sent_to_it(seed: int) -> None:
    world = World(seed)
    for _ in range(2000):
        world.step()
    for pod in world.gone:
        if pod.ns.closed:
            pod.look()  # and find nothing
    everybody = [*world.gone, *world.pods.values()]
    assert sum(pod.got for pod in everybody) > 10
    assert sum(pod.read for pod in everybody) > 10
    drops = [machine.node.drops for machine in world.fabric.machines.values()]
    assert sum(sum(drop.values()) for drop in drops) > 0


# ---- each stale path by itself ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fabric() -> Fabric:
    made = Fabric(2)
    made.services({"default/other": value("default/other", ["10.244.2.9"])})  # with rules there are connections, hence caches
    return made


def reuse(fabric: Fabric, old: Pod) -> Pod:
    """Another pod with the address of one that goes."""
    node = fabric.machines["node-2"]
    node.softnet.now = fabric.clock.now()
    node.cni.remove_pod(f"pod/default/{old.name}")
    return Pod("successor", node.cni.add_pod("pod/default/successor", old.ip))


def warm(fabric: Fabric) -> tuple[UdpSocket, Pod]:
    """A flow that takes every cache and shortcut there is."""
    server = Pod("server", fabric.pod(2, "server"))
    client = UdpSocket(fabric.pod(1, "client"))
    client.connect(SockAddr(server.ip, PORT))
    for _ in range(6):
        client.send_to(f"{format_ip(server.ip)} x".encode())
        fabric.run()
        server.look()
        server.udp.send_to(b"answer", SockAddr(client.local.ip, client.local.port))
        fabric.run()
    assert any(entry.sock is server.udp for entry in fabric.machines["node-2"].softnet.shortcuts.values())
    return client, server


def send_five(fabric: Fabric, client: UdpSocket, server: Pod) -> None:
    """Five messages that node-2 has not taken yet."""
    for _ in range(5):
        client.send_to(f"{format_ip(server.ip)} x".encode())
        fabric.settle(fabric.machines["node-1"])


def test_what_was_on_the_wire_when_a_pod_went_comes_to_the_new_owner_of_its_address_and_never_to_the_old(fabric: Fabric) -> None:
    client, server = warm(fabric)
    send_five(fabric, client, server)
    after = reuse(fabric, server)
    fabric.run()
    server.look()
    after.look()
    assert (server.got, after.got) == (6, 5)


def test_what_waited_for_a_paused_node_for_longer_than_a_wire_would_hold_it_reaches_nobody(fabric: Fabric) -> None:
    client, server = warm(fabric)
    send_five(fabric, client, server)
    fabric.clock.advance(60)  # node-2 stands still, and then finds its queue full of this
    after = reuse(fabric, server)
    fabric.run()
    after.look()
    assert after.got == 0
    assert fabric.machines["node-2"].node.drops[DropReason.STALE_AGE] == 5


def test_what_waited_for_a_node_s_former_life_reaches_nobody(fabric: Fabric) -> None:
    client, server = warm(fabric)
    send_five(fabric, client, server)
    fabric.machines["node-2"].underlay.incarnation = 2
    after = reuse(fabric, server)
    fabric.run()
    after.look()
    assert after.got == 0
    assert fabric.machines["node-2"].node.drops[DropReason.STALE_INCARNATION] == 5


@pytest.mark.parametrize("by", ["address", "service"])
def test_a_stream_to_a_pod_that_went_is_reset_by_the_new_owner_of_its_address(fabric: Fabric, by: str) -> None:
    server = Pod("server", fabric.pod(2, "server"))
    fabric.services({"default/s": value("default/s", [format_ip(server.ip)], cluster_ip=VIP, port=PORT, target=PORT)})
    sock = TcpSocket(fabric.pod(1, "client"))
    sock.connect(SockAddr(server.ip if by == "address" else parse_ip(VIP), PORT))
    fabric.run()
    for _ in range(3):
        sock.write(b"server\n")
        fabric.run()
        server.look()
    sock.write(b"server\n")
    fabric.settle(fabric.machines["node-1"])  # on its way
    after = reuse(fabric, server)
    fabric.run()
    sock.write(b"server\n") if not sock.error else None
    fabric.run()
    fabric.advance(1)
    after.look()
    assert after.accepted == []
    assert sock.error == errno.ECONNRESET


def test_a_resumed_node_with_stale_tables_and_timers_sends_into_streams_that_nobody_else_reads(fabric: Fabric) -> None:
    """Its retransmissions of a minute ago find the successor, who resets them."""
    server = Pod("server", fabric.pod(2, "server"))
    sock = TcpSocket(fabric.pod(1, "client"))
    sock.connect(SockAddr(server.ip, PORT))
    fabric.run()
    server.look()
    sock.write(b"server\n")
    fabric.settle(fabric.machines["node-1"])  # which is paused from here on
    after = reuse(fabric, server)
    fabric.clock.advance(60)
    fabric.run()
    assert fabric.machines["node-2"].node.drops[DropReason.STALE_AGE] >= 1
    fabric.advance(2)  # its timer is overdue: it sends again
    after.look()
    assert after.accepted == []
    assert sock.error == errno.ECONNRESET
