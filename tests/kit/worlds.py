"""Worlds: Services, endpoints and proxy settings drawn at random, as odd as the API allows; and the questions that one may ask in them.

A world is a value that YAML can print, and `simpler` lists the worlds that are one thing poorer, for who looks for the smallest that
still shows something. Service names bear the world's number: what the kernel remembers of clients it keeps by them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from emu.netfilter.ruleset import RuleSet
from emu.proxy.changes import ServiceChanges
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.syncer import BUILDERS
from emu.wire.addr import Network, parse_ip
from tests.kit.crossroads import NODE, NODE_IPS, SOURCES, STRAY, Question
from tests.kit.services import endpoint

SERVICE_CIDR, UNALLOCATED = "10.96.0.0/16", "10.96.200.200"
HERE, THERE, FAR = [f"10.244.1.{n}" for n in range(2, 6)], [f"10.244.2.{n}" for n in range(2, 6)], [f"10.244.3.{n}" for n in (2, 3)]
HOSTS = {"192.168.0.2": NODE, "192.168.0.3": "node-2"}  # endpoints of pods in their host's network
PROTOCOLS = ("tcp", "udp", "sctp")
STATES: tuple[tuple[int, dict[str, bool]], ...] = (
    (16, {}),
    (3, {"ready": False, "serving": True, "terminating": True}),
    (2, {"ready": False, "serving": False, "terminating": False}),
    (1, {"ready": False, "serving": False, "terminating": True}),
)
RANGES = (
    "203.0.113.0/25",
    "203.0.113.9/32",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "192.168.0.0/24",
    "192.168.0.2/32",
    "0.0.0.0/0",
    "198.51.100.0/24",
)
DETECTORS: tuple[dict[str, Any], ...] = (
    *({"clusterCIDR": "10.244.0.0/16"},) * 3,
    {"clusterCIDR": ""},
    {"detectLocalMode": "NodeCIDR"},
    {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}},
    {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "cni"}},
    {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}},
)
NODE_PORT_ADDRESSES = (
    None, None, None, ["primary"], ["0.0.0.0/0"], ["192.168.0.0/24"], ["192.168.1.0/24"], ["192.168.0.0/16", "127.0.0.0/8"],
    ["127.0.0.0/8"], ["10.244.1.1/32"], ["172.16.0.0/12"],
)  # fmt: skip

Value = dict[str, Any]


@dataclass(frozen=True)
class World:
    """`settings` are a KubeProxyConfiguration's; `masquerade_all` and the like are under `mode`, whichever it is."""

    services: tuple[Value, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    mode: dict[str, Any] = field(default_factory=dict)
    zone: str = ""
    service_cidr: str = SERVICE_CIDR

    def rules(self, mode: str) -> RuleSet:
        """What the proxy of that mode makes of it."""
        own = {key: value for key, value in self.mode.items() if mode == "iptables" or key != "localhostNodePorts"}
        config = ProxyConfig.parse({"mode": mode, **self.settings, **({mode: own} if own else {})}, service_cidr=self.service_cidr)
        view = NodeView(NODE, tuple(map(parse_ip, NODE_IPS)), self.zone, (Network.parse("10.244.1.0/24"),))
        changes = ServiceChanges(NODE)
        changes.replace({_key(value): value for value in self.services})
        changes.apply()
        return BUILDERS[mode](config, view, 4).build(changes.ports)

    def __str__(self) -> str:
        shown = {
            "settings": {**self.settings, "serviceCIDR": self.service_cidr},
            "mode": self.mode,
            "zone": self.zone,
            "services": list(self.services),
        }
        return yaml.safe_dump(shown, sort_keys=False, width=140, default_flow_style=None)

    def sticky(self, question: Question) -> bool:
        """May rules remember who asked this?"""
        return any(value["service"]["spec"].get("sessionAffinity") == "ClientIP" for value in self.services if _about(value, question))


def _key(value: Value) -> str:
    return f"{value['service']['metadata']['namespace']}/{value['service']['metadata']['name']}"


def _about(value: Value, question: Question) -> bool:
    ports = value["service"]["spec"].get("ports", ())
    return any(question.port in (port["port"], port.get("nodePort")) and question.transport.upper() == port["protocol"] for port in ports)


# ---- drawing -----------------------------------------------------------------------------------------------------------------------


def draw(number: int, seed: int = 0) -> World:
    """The world of that number: 3 to 9 Services."""
    dice = random.Random(f"{seed}/{number}")
    services = tuple(_Drawing(dice, number, index).service() for index in range(dice.randint(3, 9)))
    addresses = dice.choice(NODE_PORT_ADDRESSES)
    settings = {**dice.choice(DETECTORS), **({"nodePortAddresses": addresses} if addresses else {})}
    mode: dict[str, Any] = {}
    if dice.random() < 0.2:
        mode["masqueradeAll"] = True
    if dice.random() < 0.2:
        mode["localhostNodePorts"] = False
    if dice.random() < 0.2:
        mode["masqueradeBit"] = dice.choice((0, 5, 31))
    return World(services, settings, mode, dice.choice(("", "a", "b")), dice.choice((SERVICE_CIDR, SERVICE_CIDR, "")))


class _Drawing:
    """One Service of a world; `index` makes its addresses and node ports its own, but for those that Services may share."""

    def __init__(self, dice: random.Random, number: int, index: int) -> None:
        self.dice, self.number, self.index = dice, number, index

    def chance(self, probability: float) -> bool:
        return self.dice.random() < probability

    def service(self) -> Value:
        kind = self.dice.choices(("ClusterIP", "NodePort", "LoadBalancer", "headless", "ExternalName"), (6, 6, 8, 1, 1))[0]
        ports, spec = self.ports(kind), {"clusterIP": f"10.96.0.{10 + self.index}", "type": kind}
        if kind == "headless":
            spec |= {"clusterIP": "None", "type": "ClusterIP"}
        if kind == "ExternalName":
            spec |= {"externalName": "elsewhere.example"}
        spec |= self.policies(kind) | {"ports": ports}
        ingress = [self.ingress(place) for place in range(self.dice.choice((0, 1, 1, 1, 2)))] if kind == "LoadBalancer" else []
        name, namespace = f"s{self.index}", f"w{self.number}"
        entries = self.endpoints()
        pieces = [part for part in self.split(entries) if part] or [[]]
        slices = [
            {
                "metadata": {"namespace": namespace, "name": f"{name}-{count}", "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": port["name"], "protocol": port["protocol"], "port": port["target"]} for port in ports],
                "endpoints": part,
            }
            for count, part in enumerate(pieces)
        ]
        spec["ports"] = [{key: value for key, value in port.items() if key != "target"} for port in ports]
        metadata = {"namespace": namespace, "name": name}
        return {"service": {"metadata": metadata, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}}, "slices": slices}

    def ports(self, kind: str) -> list[Value]:
        """One port or two; a second one may be the same number by another protocol, as DNS has it."""
        first = self.dice.choices(PROTOCOLS, (6, 3, 2))[0]
        wanted = [(first, self.dice.choice((80, 80, 53, 8080)), self.dice.choice((8080, 8080, 80, 53)))]
        if self.chance(0.25):
            other = self.dice.choice([protocol for protocol in PROTOCOLS if protocol != first])
            wanted.append(
                (other, wanted[0][1], wanted[0][2]) if self.chance(0.5) else (first, wanted[0][1] + 1, self.dice.choice((8080, 9090)))
            )
        has_node_port = kind in ("NodePort", "LoadBalancer") and not (kind == "LoadBalancer" and self.chance(0.2))
        return [
            {
                "name": f"p{place}" if len(wanted) > 1 else "",
                "protocol": protocol.upper(),
                "port": port,
                "target": target,
                **({"nodePort": 30000 + 10 * self.index + place} if has_node_port else {}),
            }
            for place, (protocol, port, target) in enumerate(wanted)
        ]

    def policies(self, kind: str) -> Value:
        spec: Value = {}
        if self.chance(0.3):
            spec["internalTrafficPolicy"] = "Local"
        if self.chance(0.3):
            spec["externalIPs"] = [f"192.168.99.{10 + self.index}"] + (["192.168.0.2"] if self.chance(0.2) else [])
        if (kind in ("NodePort", "LoadBalancer") or "externalIPs" in spec) and self.chance(0.5):
            spec["externalTrafficPolicy"] = "Local"
            if kind == "LoadBalancer":
                spec["healthCheckNodePort"] = 31000 + self.index
        if self.chance(0.2):
            seconds = self.dice.choice((60, 3600, 10800, 86400))
            spec |= {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}}
        if kind == "LoadBalancer" and self.chance(0.5):
            spec["loadBalancerSourceRanges"] = self.dice.sample(RANGES, self.dice.choice((1, 1, 2, 3)))
        return spec

    def ingress(self, place: int) -> Value:
        """An address of a load balancer: its own, one that Services share, or the node's as ServiceLB has it."""
        if self.chance(0.05):
            return {"hostname": "balancer.example"}
        own = f"198.51.100.{10 + 10 * place + self.index}"
        ip = self.dice.choices((own, "198.51.100.1", "192.168.0.2"), (10, 3, 1))[0]
        mode = self.dice.choices((None, "VIP", "Proxy"), (5, 3, 2))[0]
        return {"ip": ip, **({"ipMode": mode} if mode else {})}

    def endpoints(self) -> list[Value]:
        where = self.dice.choices(("here", "there", "both", "none"), (2, 2, 6, 1))[0]
        known = {"here": HERE, "there": THERE + FAR, "both": HERE + THERE + FAR, "none": []}[where]
        chosen = self.dice.sample(known, min(len(known), self.dice.choice((1, 2, 2, 3, 3, 4, 4))))
        chosen += [host for host in HOSTS if known and self.chance(0.05)]
        none_ready, zones, nodes = self.chance(0.15), self.chance(0.15), self.chance(0.1)
        states = STATES[1:] if none_ready else STATES
        return [
            endpoint(
                ip,
                _node_of(ip),
                **self.dice.choices([state for _, state in states], [weight for weight, _ in states])[0],
                zones=["a" if ip in HERE else "b"] if zones else [],
                nodes=[_node_of(ip)] if nodes else [],
            )
            for ip in chosen
        ]

    def split(self, entries: list[Value]) -> list[list[Value]]:
        at = self.dice.randint(0, len(entries)) if self.chance(0.3) else len(entries)
        return [entries[:at], entries[at:]]


def _node_of(ip: str) -> str:
    return HOSTS.get(ip) or f"node-{ip.split('.')[2]}"


# ---- asking ------------------------------------------------------------------------------------------------------------------------


def questions(world: World, count: int, seed: int = 0) -> list[Question]:
    """So many different ones, a Service's turn after the other's: those worth asking first of each."""
    dice = random.Random(f"{seed}/{world}")
    rows = [list(_destinations(value, dice)) for value in world.services]
    asked: dict[Question, None] = {}
    for _ in range(20 * count):
        if len(asked) >= count:
            break
        to, port, protocol = dice.choice(dice.choice(rows) or [(UNALLOCATED, 80, "tcp")])
        asked[Question(dice.choice(list(SOURCES)), to, port, protocol)] = None
    return list(asked)


def _destinations(value: Value, dice: random.Random) -> Iterator[tuple[str, int, str]]:
    """Addresses and ports that have to do with a Service, the usual ones more than once."""
    spec = value["service"]["spec"]
    cluster_ip = spec["clusterIP"] if spec["clusterIP"] != "None" else UNALLOCATED
    vips = [entry["ip"] for entry in value["service"]["status"]["loadBalancer"]["ingress"] if "ip" in entry]
    outer = [*spec.get("externalIPs", ()), *vips]
    for port in spec["ports"]:
        protocol, number, node_port = port["protocol"].lower(), port["port"], port.get("nodePort")
        for _ in range(4):
            yield cluster_ip, number, protocol
            for ip in outer:
                yield ip, number, protocol
            if node_port:
                yield dice.choice((*NODE_IPS[:2], NODE_IPS[0], *NODE_IPS, "127.0.0.1", "127.0.0.1")), node_port, protocol
        yield cluster_ip, number, dice.choice([other for other in PROTOCOLS if other != protocol])
        yield dice.choice((cluster_ip, *outer)), number + 7, protocol
        yield dice.choice((cluster_ip, *outer, NODE_IPS[0])), 0, "icmp"
        if protocol == "tcp":
            yield cluster_ip, number, dice.choice(list(STRAY))
            for ip in outer:
                yield ip, number, dice.choice(list(STRAY))
            yield dice.choice(NODE_IPS), node_port or number, dice.choice(list(STRAY))
        yield (
            dice.choice((UNALLOCATED, "192.168.0.3", "192.168.0.2", "10.244.1.3", "10.244.2.3")),
            dice.choice((number, node_port or number, 8080)),
            protocol,
        )
        if node_port:
            yield dice.choice((cluster_ip, *outer)), node_port, protocol
    if "healthCheckNodePort" in spec:
        yield NODE_IPS[0], spec["healthCheckNodePort"], "tcp"


# ---- making smaller ----------------------------------------------------------------------------------------------------------------


def simpler(world: World) -> Iterator[World]:
    """Every world that is one thing poorer, the greatest things first."""
    for index in range(len(world.services)):
        yield replace(world, services=world.services[:index] + world.services[index + 1 :])
    for key in world.settings.keys() - {"detectLocal"}:  # which goes with the mode that needs it
        gone = {key, "detectLocal"} if key == "detectLocalMode" else {key}
        yield replace(world, settings={k: v for k, v in world.settings.items() if k not in gone})
    for key in world.mode:
        yield replace(world, mode={k: v for k, v in world.mode.items() if k != key})
    if world.zone:
        yield replace(world, zone="")
    for index, value in enumerate(world.services):
        for poorer in _poorer(value):
            yield replace(world, services=(*world.services[:index], poorer, *world.services[index + 1 :]))


_KEPT = frozenset(("clusterIP", "type", "ports"))


def _poorer(value: Value) -> Iterator[Value]:
    spec = value["service"]["spec"]
    for key in spec.keys() - _KEPT:
        yield _without(value, "service", "spec", key)
    for path in (("service", "status", "loadBalancer", "ingress"), ("service", "spec", "ports"), ("slices",)):
        for index in range(len(_at(value, path))):
            if len(_at(value, path)) > (0 if path[-1] == "ingress" else 1):
                yield _without(value, *path, index)
    for number, piece in enumerate(value["slices"]):
        for index, entry in enumerate(piece["endpoints"]):
            yield _without(value, "slices", number, "endpoints", index)
            for key in entry.keys() & {"conditions", "hints"}:
                yield _without(value, "slices", number, "endpoints", index, key)
    for index, port in enumerate(spec["ports"]):
        if "nodePort" in port:
            yield _without(value, "service", "spec", "ports", index, "nodePort")


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def _without(value: Value, *path: Any) -> Value:
    made = copy.deepcopy(value)
    del _at(made, path[:-1])[path[-1]]
    return made
