"""The fate of a first packet: who sends it and to what, asked of the node that sees it first, followed to the next node it reaches.

Decides where FROM and TO are, what the ends told by a node's rules come to for the client, and when a real packet is sent as well: if
the sender and every backend exist, what the pod itself does (a closed port, silence) is the outcome. Backends and their shares are
read from the rules, never sampled. A sender that is only an address is judged by kube-proxy's rules alone: who invents his packet
asks about Services, not about what the network plugin would do with a stranger's source.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from emu.errors import ApiError, ConfigError
from emu.model.cluster import ClusterSpec
from emu.model.objects import SERVICE_NAME_LABEL
from emu.wire.addr import SockAddr
from launcher import startup
from launcher.client import Client

OUTSIDE_DEVICE, POD_DEVICE = "eth0", "cni0"
FARTHEST = 4  # nodes a packet may pass before it must have ended
TRACED = frozenset(("tcp", "udp", "icmp"))

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sender:
    """Where a packet comes from. `name` is what a trace calls it, "" if nobody is there who could send; `iif` "" means the node itself."""

    node: str
    ip: str
    iif: str
    name: str = ""


@dataclass(slots=True)
class Fact:
    """What a flow came to. `backends` maps ip:port to its share, `sources` are those that backends (or the end) see."""

    outcome: str
    backends: dict[str, float] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    masquerade: bool = False
    rules: int = 0
    nodes: list[str] = field(default_factory=list)
    backend: str | None = None  # the one that the real packet went to
    trace: Json | None = None
    detail: str = ""


class Asker:
    """Asks a cluster what becomes of packets. `outside` names hosts beyond it."""

    def __init__(self, client: Client, spec: ClusterSpec, outside: Mapping[str, str]) -> None:
        self._client, self._spec, self._outside = client, spec, outside
        self._node_of = {ip: node.name for node in spec.nodes for ip in node.addresses or (node.ip,)}
        # what a node's own tunnel and bridge have of its pod network: a state seen elsewhere may have pods there
        self._of_devices = {str(ipaddress.ip_network(node.pod_cidr)[place]) for node in spec.nodes for place in (0, 1)}
        self._endpoints: set[str] = set()

    def ask(self, fields: Mapping[str, Any], *, send: bool, where: str) -> Fact:
        """The fact of one `flow` step. `send`: a real packet is wanted where one can be sent. ConfigError if FROM or TO mean nothing."""
        self._endpoints = {address for endpoint in self._all_endpoints() for address in endpoint.get("addresses") or ()}
        proto = str(fields.get("protocol", "TCP")).lower()
        ip, port = self._target(fields["to"], proto, f"{where}.to")
        sender = self._sender(fields, ip, where)
        fact = self._by_rules(sender, ip, port, proto)
        if send and sender.name and proto in TRACED and self._all_here(fact, ip):
            self._send(sender, ip, port, proto, fact)
        return fact

    def trace(self, fields: Mapping[str, Any], where: str) -> Json | None:
        """What a real packet meets on its way, if there is somebody to send it."""
        proto = str(fields.get("protocol", "TCP")).lower()
        ip, port = self._target(fields["to"], proto, f"{where}.to")
        sender = self._sender(fields, ip, where)
        return self._posted(sender, ip, port, proto) if sender.name and proto in TRACED else None

    # ---- places ------------------------------------------------------------------------------------------------------------------

    def _sender(self, fields: Mapping[str, Any], to: str, where: str) -> Sender:
        text, at, device = fields["from"], fields.get("at"), fields.get("in_interface")
        kind, _, rest = text.partition("/")
        if at is not None and at not in {node.name for node in self._spec.nodes}:
            raise ConfigError(f"there is no node {at!r}", where=f"{where}.at")
        if kind in ("pod", "pods") and rest:
            pod = self._object("pods", rest, f"{where}.from")
            ip = (pod.get("status") or {}).get("podIP")
            home = pod["spec"].get("nodeName") or ""
            if not ip or not home:
                raise ConfigError(f"{text} has no address yet", where=f"{where}.from")
            here = not at or at == home
            host = bool(pod["spec"].get("hostNetwork"))
            iif = device or ("" if host and here else POD_DEVICE if here else OUTSIDE_DEVICE)
            name = f"pod/{rest if '/' in rest else f'default/{rest}'}" if here and device is None and "metadata" in pod else ""
            return Sender(at or home, ip, iif, name)
        if kind in ("node", "nodes") and rest:
            node = next((node for node in self._spec.nodes if node.name == rest), None)
            if node is None:
                raise ConfigError(f"there is no node {rest!r}", where=f"{where}.from")
            own = not at or at == rest
            return Sender(at or rest, node.ip, device or ("" if own else OUTSIDE_DEVICE), f"node/{rest}" if own and device is None else "")
        return self._plain_sender(self._host(text, f"{where}.from"), to, at, device)

    def _plain_sender(self, ip: str, to: str, at: str | None, device: str | None) -> Sender:
        """An address as the sender: a node's own, one of a node's pod network, or one that comes in from outside."""
        if ip.startswith("127."):
            return Sender(at or self._spec.nodes[0].name, ip, device or "")
        home = self._node_of.get(ip) or next((node.name for node in self._spec.nodes if _within(ip, node.pod_cidr)), None)
        node = at or home or self._node_of.get(to) or self._spec.nodes[0].name
        own, ours = self._node_of.get(ip) == node, self._spec.node(node)
        here = any(ip in (each.get("addresses") or ()) and each.get("nodeName") == node for each in self._all_endpoints())
        inside = home is None and (here or _within(ip, self._spec.pod_cidr))
        iif = "" if own else POD_DEVICE if _within(ip, ours.pod_cidr) or inside else OUTSIDE_DEVICE
        return Sender(node, ip, iif if device is None else device)

    def _host(self, text: str, where: str) -> str:
        if text == "outside" and self._outside:
            return next(iter(self._outside.values()))
        if text in self._outside:
            return self._outside[text]
        try:
            return str(ipaddress.IPv4Address(text.partition(":")[0]))
        except ValueError:
            known = ", ".join(self._outside) or "none"
            raise ConfigError(
                f"{text!r} is not pod/NS/NAME, node/NAME, an address or a name under outside.addresses ({known})", where=where
            ) from None

    def _target(self, text: str, proto: str, where: str) -> tuple[str, int]:
        place, _, port = text.partition(":")
        kind, _, rest = place.partition("/")
        if kind in ("svc", "service", "services") and rest:
            return self._service(rest, port, proto, where)
        if kind in ("pod", "pods") and rest:
            pod = self._object("pods", rest, where)
            ip = (pod.get("status") or {}).get("podIP")
            if not ip:
                raise ConfigError(f"{place} has no address yet", where=where)
            return ip, self._port(_container_ports(pod), port, proto, place, where)
        if kind in ("node", "nodes") and rest:
            node = next((node for node in self._spec.nodes if node.name == rest), None)
            if node is None:
                raise ConfigError(f"there is no node {rest!r}", where=where)
            return node.ip, self._port((), port, proto, place, where)
        return self._host(place, where), self._port((), port, proto, place, where)

    def _service(self, rest: str, port: str, proto: str, where: str) -> tuple[str, int]:
        service = self._object("services", rest, where)
        spec = service["spec"]
        ip = spec.get("clusterIP")
        if not ip or ip == "None":
            raise ConfigError(f"svc/{rest} has no cluster IP", where=where)
        ports = [(p.get("name", ""), p["port"]) for p in spec.get("ports") or () if p.get("protocol", "TCP").lower() == proto]
        return ip, self._port(ports, port, proto, f"svc/{rest}", where)

    @staticmethod
    def _port(named: Iterable[tuple[str, int]], wanted: str, proto: str, place: str, where: str) -> int:
        """A port by number or name; without one, the only port there is."""
        known = list(named)
        if proto == "icmp":
            return 0
        if wanted.isdigit() and 0 < int(wanted) < 65536:
            return int(wanted)
        fitting = [number for name, number in known if name == wanted] if wanted else [number for _, number in known]
        if len(fitting) != 1:
            offered = ", ".join(f"{number}" + (f" ({name})" if name else "") for name, number in known) or "none"
            raise ConfigError(f"{place}:{wanted} names no port; there are {offered}", where=where)
        return fitting[0]

    def _object(self, resource: str, rest: str, where: str) -> Json:
        namespace, _, name = rest.rpartition("/")
        try:
            return self._client.get(startup.resource(resource), namespace or "default", name)
        except ApiError as error:
            known = self._pod_of_a_slice(namespace or "default", name) if resource == "pods" and error.code == 404 else None
            if known is None:
                raise ConfigError(error.message, where=where) from error
            return known

    def _pod_of_a_slice(self, namespace: str, name: str) -> Json | None:
        """A pod that only an EndpointSlice tells of."""
        for piece in self._client.list(startup.resource("endpointslices"), namespace):
            for endpoint in piece.get("endpoints") or ():
                if (endpoint.get("targetRef") or {}).get("name") == name:
                    spec = {"nodeName": endpoint.get("nodeName"), "containers": []}
                    return {"spec": spec, "status": {"podIP": endpoint["addresses"][0]}}
        return None

    # ---- what the rules say ------------------------------------------------------------------------------------------------------

    def _by_rules(self, sender: Sender, ip: str, port: int, proto: str) -> Fact:
        """Follow every end that the first node's rules leave, over the nodes that it leads to."""
        fact, outcomes = Fact(""), dict[str, float]()
        pods = sorted(self._endpoints & self._of_devices)
        pending: list[tuple[str, str, str, str, int, float, bool, tuple[str, ...]]] = [
            (sender.node, sender.ip, sender.iif, ip, port, 1.0, False, (sender.node,))
        ]
        while pending:
            node, src, iif, dst, dport, share, changed, path = pending.pop()
            asked = {"src": src, "dst": dst, "proto": proto, "dport": dport, "iif": iif, "pods": pods, "proxy_only": not sender.name}
            for fate in self._client.podwire("POST", f"nodes/{node}/flow", asked)["fates"]:
                fact.rules = max(fact.rules, fate["rules"])
                to = SockAddr.parse(fate["destination"])
                end_ip, end_port = fate["destination"].rpartition(":")[0], to.port
                weight, masked = share * fate["probability"], changed or fate["masqueraded"]
                outcome = self._outcome(fate, end_ip)
                onward = self._node_of.get(end_ip)
                if outcome == "onward" and onward is not None and len(path) < FARTHEST:
                    pending.append((onward, fate["source"], OUTSIDE_DEVICE, end_ip, end_port, weight, masked, (*path, onward)))
                    continue
                outcome = "unrouted" if outcome == "onward" else outcome
                outcomes[outcome] = outcomes.get(outcome, 0.0) + weight
                fact.nodes = list(path)
                if outcome == "delivered":
                    key = fate["destination"] if proto != "icmp" else end_ip
                    fact.backends[key] = fact.backends.get(key, 0.0) + weight
                if outcome in ("delivered", "local"):
                    fact.sources.add(fate["source"])
                    fact.masquerade = fact.masquerade or masked
        fact.outcome = max(outcomes, key=lambda name: outcomes[name])
        if len(outcomes) > 1:
            fact.detail = "it depends on chance: " + ", ".join(f"{name} {share:.3g}" for name, share in sorted(outcomes.items()))
        return fact

    def _outcome(self, fate: Json, ip: str) -> str:
        """What this end means to the client; "onward" for a packet that leaves for another node's own address."""
        if fate["verdict"] != "ACCEPT":
            return "rejected" if fate["verdict"] == "REJECT" else "dropped"
        if fate["device"] == "lo":
            return "local"
        if ip in self._node_of:
            return "onward"
        if self._pod_at(ip) or ip in self._endpoints:
            return "delivered"
        unowned_pod = not fate["outside"] and _within(ip, self._spec.pod_cidr)
        return "rejected" if unowned_pod else "unrouted"  # its node says "host unreachable", where the rest of the world is silent

    def _pod_at(self, ip: str) -> Json | None:
        pods = self._client.list(startup.resource("pods"))
        return next((pod for pod in pods if (pod.get("status") or {}).get("podIP") == ip and not pod["spec"].get("hostNetwork")), None)

    def _all_endpoints(self) -> Iterable[Json]:
        """Every endpoint of every Service's slices."""
        for piece in self._client.list(startup.resource("endpointslices")):
            if SERVICE_NAME_LABEL in (piece["metadata"].get("labels") or {}):
                yield from piece.get("endpoints") or ()

    # ---- what a real packet finds ------------------------------------------------------------------------------------------------

    def _all_here(self, fact: Fact, ip: str) -> bool:
        """Would a real packet tell more? Only pods that run can refuse, or stay silent."""
        if fact.outcome == "delivered":
            return all(self._pod_at(backend.rpartition(":")[0] or backend) for backend in fact.backends)
        return False

    def _send(self, sender: Sender, ip: str, port: int, proto: str, fact: Fact) -> None:
        trace = self._posted(sender, ip, port, proto)
        fact.trace, fact.backend = trace, trace["backend"]
        fact.outcome = "delivered" if trace["outcome"] == "local" and fact.outcome == "delivered" else trace["outcome"]
        fact.rules = trace["rules_evaluated"]
        fact.nodes = list(dict.fromkeys(hop["node"] for hop in trace["request"]))

    def _posted(self, sender: Sender, ip: str, port: int, proto: str) -> Json:
        asked: Json = {"from": sender.name, "to": ip, "proto": proto, **({"port": port} if proto != "icmp" else {})}
        return self._client.podwire("POST", "traces", asked)


def _container_ports(pod: Json) -> list[tuple[str, int]]:
    return [(p.get("name", ""), p["containerPort"]) for c in pod["spec"]["containers"] for p in c.get("ports") or ()]


def _within(ip: str, network: str) -> bool:
    return ipaddress.ip_address(ip) in ipaddress.ip_network(network)
