"""Stale UDP flows. Decides which conntrack entries must go after a sync; deleting them is the caller's.

UDP has no end of connection: a client that keeps its source port would keep its dead endpoint for as long as it sends.
So after a sync that changed endpoints of a UDP port, entries that go through a Service to an endpoint which no longer
serves are deleted, and the next datagram draws anew. TCP is left alone: its peer answers or resets.
As kube-proxy 1.35 does it: a service port with no serving endpoint at all is skipped (kubernetes issue 139628), and
policies and topology play no part. Spec: kubernetes `pkg/proxy/conntrack/cleanup.go`.
"""

from __future__ import annotations

from collections.abc import Iterable

from emu.netfilter.conn import Conn, parts
from emu.netfilter.conntrack import Conntrack
from emu.netfilter.skb import UDP
from emu.proxy.serviceport import ServicePortInfo
from emu.wire.addr import SockAddr

MANY = 200  # connections; with more, nobody looks which they are


def may_have(conntrack: Conntrack) -> bool:
    """May there be flows of UDP through a Service, which a sync could make stale?"""
    return len(conntrack) > MANY or any(conn.proto == UDP and parts(conn.original)[2:] != parts(conn.reply)[:2] for conn in conntrack)


class StaleUdp:
    """A predicate for `Conntrack.delete_matching`, made from the service ports that were just synced."""

    def __init__(self, ports: Iterable[ServicePortInfo]) -> None:
        self._by_address: dict[SockAddr, frozenset[SockAddr]] = {}
        self._by_node_port: dict[int, frozenset[SockAddr]] = {}
        for port in ports:
            if port.protocol != UDP:
                continue
            serving = frozenset(endpoint.to for endpoint in port.endpoints if endpoint.serving)
            if not serving:
                continue
            for ip in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
                self._by_address[SockAddr(ip, port.port)] = serving
            if port.node_port:
                self._by_node_port[port.node_port] = serving

    def __call__(self, conn: Conn) -> bool:
        """Is this entry a flow through a Service to an endpoint that serves no more?"""
        if conn.proto != UDP:
            return False
        _, _, ip, port = parts(conn.original)
        serving = self._by_address.get(SockAddr(ip, port)) or self._by_node_port.get(port)
        if serving is None:
            return False
        answering_ip, answering_port, _, _ = parts(conn.reply)
        return SockAddr(answering_ip, answering_port) not in serving
