"""The control loop of a node: follows the broadcast, feeds kubelet, proxy and CNI, answers the controller's calls, renews the lease.

One thread, one loop; in one process with others, `look` is called instead of `run`. Decides who is told of what and when to look
again; what a kubelet or a proxy does about it is decided there. Everything that touches the stack happens between the kernel's
`enter` and `leave`, and the loop sleeps without the lock.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from typing import Any

from emu.bus.follower import Follower, Step
from emu.bus.link import NodeLink
from emu.model.cluster import ClusterSpec, NodeSpec
from emu.model.links import read_fault, read_links
from emu.model.objects import ZONE_LABEL
from emu.node.calls import Calls
from emu.node.health import HealthPorts
from emu.node.kubelet import Kubelet
from emu.node.machine import Machine
from emu.node.tuns import Tuns
from emu.observe.hops import pack
from emu.observe.programming import Swap
from emu.pod.kernel import Kernel
from emu.pod.program import PodInfo
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.stale import may_have
from emu.proxy.syncer import Proxy
from emu.wire.addr import LOOPBACK, Network, format_ip, parse_ip

EXPIRY_PERIOD = 1.0  # seconds between looks at conntrack's deadlines, at least: nothing depends on when an expired entry goes
EARLY_LEASE = 2e-3  # seconds, times nodes, between leases that only say how far this node has come: they all say so at once
PIPE_PERIOD = 30.0  # seconds, at least, until the pipe to a peer that nothing is sent to is closed: 60 KiB and 3 descriptors each
IDLE_PERIOD = 10.0  # seconds the loop sleeps at most


class Agent:
    """One node's kubelet, kube-proxy and CNI daemon, as tasks of one loop."""

    def __init__(
        self, spec: ClusterSpec, me: NodeSpec, machine: Machine, kernel: Kernel, link: NodeLink, follower: Follower,
        *, epoch: float | None = None,
    ) -> None:  # fmt: skip
        self._spec, self._machine, self._kernel, self._link, self._follower = spec, machine, kernel, link, follower
        self.kubelet = Kubelet(spec, me, machine, kernel, link.wake, epoch)
        self.view = NodeView(
            me.name, tuple(parse_ip(ip) for ip in (me.addresses or (me.ip,))), me.labels.get(ZONE_LABEL, ""), (Network.parse(me.pod_cidr),)
        )
        self._proxy_config = ProxyConfig.parse(spec.proxy, cluster_cidr=spec.pod_cidr, service_cidr=spec.service_cidr)
        self.proxy = Proxy(self._proxy_config, self.view)
        self._proxy_stopped = False
        places = self._proxy_config.node_ports_on((*self.view.ips, LOOPBACK))
        self._health = HealthPorts(
            kernel, machine.node, PodInfo("kube-proxy", "kube-system", me.ip, me.name, epoch=self.kubelet.epoch),
            ["0.0.0.0"] if places is None else [format_ip(ip) for ip in places], self.kubelet.events.append,
        )  # fmt: skip
        machine.node.route_localnet = self.proxy.route_localnet
        self._early_lease = min(EARLY_LEASE * len(spec.nodes), spec.timings.lease_period)
        self._listed = False
        self.tuns = Tuns(spec, machine, kernel, self.kubelet.namespace, link.wake)
        self._calls = Calls(self.kubelet, machine, kernel, link.post, self.stop_proxy, self.tuns.methods(), link.wake)
        # a lease before the hello would only have it asked for again
        self._lease_at, self._leased_at = kernel.now() + spec.timings.lease_period, 0.0
        self._expired_at = self._pipes_at = 0.0
        self._heard_at = self._read_at = 0.0  # of the Services' changes that no sync has taken in
        self._told: dict[str, Any] = {"drops": {}, "faults": {}}  # by the leases so far
        self.stopping = False
        machine.softnet.hops_recorded = link.wake

    def stop(self) -> None:
        """End the loop; from a signal handler."""
        self.stopping = True
        self._link.wake()

    def run(self, life_fd: int) -> None:
        """Loop until `stop` is called or the life pipe ends."""
        while not self.stopping:
            now = self._kernel.now()
            self.look(max(0.0, min(self.next_at(), now + IDLE_PERIOD) - now))
            if life_fd >= 0 and select.select([life_fd], [], [], 0)[0] and not os.read(life_fd, 1):
                break
        self._health.close()
        self.kubelet.shut_down()
        self.tuns.close()

    def look(self, patience: float) -> None:
        """Take in what has come, waiting up to `patience` seconds for it, and do what is due."""
        messages = self._link.poll(patience)
        now = self._kernel.now()
        for message in messages:
            self._on_step(self._follower.on_message(message), now)
        self._turn(self._kernel.now())

    def next_at(self) -> float:
        """When something is due although nothing comes in."""
        candidates = [self._lease_at, self._expire_at(), self.kubelet.poll_at(), self._calls.poll_at()]
        if not self._proxy_stopped and (proxy := self.proxy.poll_at()) is not None:
            candidates.append(proxy)
        return min(candidates)

    def up_to_date(self, published: Mapping[str, int]) -> bool:
        """Has everything been applied that was published, by these sequences, down to the rules?"""
        mirrors = self._follower.mirrors.items()
        heard = all(mirror.synced and mirror.sequence >= published.get(stream, -1) for stream, mirror in mirrors)
        return heard and not self._sync_is_due()

    def _sync_is_due(self) -> bool:
        """Has the proxy heard what its rules do not say yet?"""
        return not self._proxy_stopped and self.proxy.poll_at() is not None

    def _expire_at(self) -> float:
        """When conntrack has something to forget. Read without the lock: a stale answer is corrected at the next turn."""
        due = self._machine.node.netfilter.conntrack.next_look
        return max(due, self._expired_at + EXPIRY_PERIOD)

    def _turn(self, now: float) -> None:
        """Everything that is due by now."""
        self._sync_proxy(now)
        statuses = self.kubelet.turn(now)
        if statuses:
            self._link.post({"t": "pods", "statuses": statuses})
        while self.kubelet.events:
            self._link.post({"t": "event", **self.kubelet.events.pop(0)})
        self.tuns.turn()
        if now >= self._lease_at:
            self._close_idle_pipes(now)
            self._leased_at, self._lease_at = now, now + self._spec.timings.lease_period
            told = {"stand_ins": self.kubelet.stand_ins(), "pending": self._sync_is_due(), **self._news()}
            self._link.post(self._follower.lease(self.kubelet.abandoned, **told))
        if now >= self._expire_at():
            self._expired_at = now
            self._kernel.enter()
            self._machine.expire()
            self._kernel.leave()
        self._calls.turn(now)
        if self._machine.softnet.hops:
            self._kernel.enter()
            hops = self._machine.take_hops()
            self._kernel.leave()
            self._link.post({"t": "hops", "hops": [pack(hop) for hop in hops]})

    def _news(self) -> dict[str, Any]:
        """Drops by reason, and what faults on links have done, where they are not what the last lease said."""
        self._kernel.enter()
        found = {"drops": self._machine.drops(self.kubelet.namespaces()), "faults": self._machine.carrier.counters()}
        self._kernel.leave()
        news = {name: counts for name, counts in found.items() if counts != self._told.get(name)}
        self._told.update(news)
        return news

    def _close_idle_pipes(self, now: float) -> None:
        """With a lease, for nobody should wake up for it."""
        if now >= self._pipes_at:
            self._pipes_at = now + PIPE_PERIOD
            self._kernel.enter()
            self._machine.carrier.close_idle()
            self._kernel.leave()

    def _on_step(self, step: Step, now: float) -> None:
        for answer in step.send:
            self._link.post(answer)
        if step.welcomed:
            self.kubelet.report_all()
            self._told = {"drops": {}, "faults": {}}
        for stream, keys in step.changed.items():
            mirror = self._follower.mirrors[stream]
            if mirror is self._follower.nodes:
                self._kernel.enter()
                self._machine.update_peers((key, mirror.packed(key)) for key in keys)
                self._kernel.leave()
            elif mirror is self._follower.links:
                self._set_faults()
            elif mirror is self._follower.services:
                services = [(key, mirror.late(key)) for key in keys]
                if not self._proxy_stopped:
                    self._kernel.enter()
                    self.proxy.on_late(services, now)
                    self._kernel.leave()
                    self._health.on_services((key, mirror.packed(key)) for key in keys)
                self._heard_at, self._read_at = self._heard_at or now, self._kernel.now()
                self.kubelet.on_services(services)
            else:
                self.kubelet.on_pods((key, mirror.get(key)) for key in keys)
        if not self._listed and self._follower.services.synced:
            self._listed = True
            self.proxy.on_listed(now)
        if step.changed:
            self._tell_soon(now)
        if step.message is not None:
            self._calls.on_message(step.message)

    def _tell_soon(self, now: float) -> None:
        """Have a lease early, so that the controller learns how far this node has come."""
        self._lease_at = min(self._lease_at, max(now, self._leased_at + self._early_lease))

    def _set_faults(self) -> None:
        """The whole truth of trouble on links: the cluster file's, and what the broadcast has now."""
        told = [read_fault(value["spec"], key, value["order"]) for key, value in self._follower.links.items()]
        self._kernel.enter()
        self._machine.set_faults([*read_links(self._spec.links), *told])
        self._kernel.leave()

    def stop_proxy(self, stop: bool) -> None:
        """kube-proxy ends: its rules stay, updates stop, its ports close. Or (False) it begins anew, and reads all before it writes."""
        self._proxy_stopped = stop
        self._health.close()
        if not stop:
            self.proxy = Proxy(self._proxy_config, self.view)
            services = self._follower.services
            known = services.keys()
            self._health.on_services((key, services.packed(key)) for key in known)
            if services.synced:
                self.proxy.on_snapshot(dict(services.items()), self._kernel.now())

    def _sync_proxy(self, now: float) -> None:
        """Swap in what the proxy makes of the changes so far, if a sync is due."""
        if self._proxy_stopped or (due := self.proxy.poll_at()) is None or due > now:
            return
        self._kernel.enter()
        conntrack = self._machine.node.netfilter.conntrack
        late, seen = not may_have(conntrack), self.proxy.seen
        if seen:
            self._kernel.leave()  # what takes long is done beside the packets: what they look at is made
        result = self.proxy.sync(now, late=late)
        built = self._kernel.now()
        if seen:
            self._kernel.enter()
        if result is None:
            self._kernel.leave()
            return
        self._machine.swap(result.ruleset)
        if result.stale is not None:
            conntrack.delete_matching(result.stale)
        self._kernel.leave()
        swapped = self._kernel.now()
        self.proxy.on_swapped(swapped - now)
        self._health.sync()
        self._tell_soon(now)
        if self._heard_at:
            self._calls.swaps.append(Swap(self._follower.services.sequence, self._heard_at, self._read_at, built, swapped))
            self._heard_at = 0.0
