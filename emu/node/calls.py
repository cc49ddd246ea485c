"""What the controller may ask of a node: a table of methods. Decides parameters and answers; the doing is kubelet's, stack's, probe's.

An answer is `{"t": "answer", "id", "body", "last"}`; a body `{"error": {code, reason, message}}` is a failure. Calls run on the
control loop and must not block: what takes time (exec, logs that follow, a trace) answers later, from wherever it ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from emu.errors import ApiError
from emu.netfilter import nft_text, text
from emu.netfilter.ruleset import RuleSet
from emu.node import flow
from emu.node.capture import Capture
from emu.node.kubelet import Kubelet
from emu.node.machine import Machine
from emu.node.probe import Probe
from emu.observe.programming import KEPT, Swap
from emu.pod.kernel import Kernel
from emu.stack.bridge import Bridge
from emu.stack.device import Device
from emu.stack.softnet import INFINITY
from emu.stack.vxlan import Vxlan
from emu.wire.addr import SockAddr, format_ip, format_mac, parse_ip

Body = dict[str, Any]
Method = Callable[[int, Body], Body | None]
"""Takes a call's number and parameters; returns the answer, or None if it comes later."""


class Calls:
    """The methods of one node. `stop_proxy` stops its kube-proxy (True) or begins it anew; `more` answer for themselves."""

    def __init__(
        self, kubelet: Kubelet, machine: Machine, kernel: Kernel, post: Callable[[Body], None], stop_proxy: Callable[[bool], None],
        more: Mapping[str, Method] | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._stop_proxy = stop_proxy
        self._kubelet, self._machine, self._kernel, self._post, self._wake = kubelet, machine, kernel, post, wake
        self._running: dict[int, Any] = {}
        self._captures: dict[int, Capture] = {}
        self.swaps: deque[Swap] = deque(maxlen=KEPT)
        self._methods: Mapping[str, Method] = {
            "rules": self._rules, "conntrack": self._conntrack, "routes": self._routes, "trace": self._trace, "forget": self._forget,
            "exec": self._exec, "logs": self._logs, "stats": self._stats, "swaps": self._swaps, "flow": self._flow, "proxy": self._proxy,
            **(more or {}),
            "capture": self._capture,
        }  # fmt: skip

    def on_message(self, message: Body) -> None:
        """A call, or input for one, or its end."""
        number = message["id"]
        if message["t"] == "input":
            running = self._running.get(number)
            if running is not None:
                running.input(message["data"])
            return
        if message["t"] == "cancel":
            running = self._running.pop(number, None)
            if running is not None:
                running.cancel()
            return
        method = self._methods.get(message["method"])
        try:
            if method is None:
                raise ApiError(404, "NotFound", f"a node has no method {message['method']!r}")
            body = method(number, message["params"])
        except ApiError as error:
            body = {"error": {"code": error.code, "reason": error.reason, "message": error.message}}
        if body is not None:
            self._answer(number, body)

    def _answer(self, number: int, body: Body, *, last: bool = True) -> None:
        if last:
            self._running.pop(number, None)
        self._post({"t": "answer", "id": number, "body": body, "last": last})

    # ---- the stack's tables ------------------------------------------------------------------------------------------------------

    def _rules(self, number: int, params: Body) -> Body:
        ruleset = self._machine.node.netfilter.ruleset  # a value: no lock is needed
        formats: dict[str, Callable[[RuleSet], str]] = {"iptables-save": text.save_text, "iptables-restore": text.restore_text}
        if ruleset.nft is not None:
            formats = {"nft": nft_text.ruleset_text, **formats}
        wanted = params.get("format") or next(iter(formats))
        if wanted not in formats:
            others = " (the proxy's mode is not nftables)" if wanted == "nft" else ""
            raise ApiError(400, "BadRequest", f"format {wanted!r} is not one of {', '.join(formats)}{others}")
        self._kernel.enter()
        try:
            for name in ruleset.tables:
                ruleset.tables[name]  # may be made only now, from what packets walk too
        finally:
            self._kernel.leave()
        return {"text": formats[wanted](ruleset)}

    def _conntrack(self, number: int, params: Body) -> Body:
        now = self._kernel.enter()
        try:
            return {"text": self._machine.node.netfilter.conntrack.listing(now)}
        finally:
            self._kernel.leave()

    def _routes(self, number: int, params: Body) -> Body:
        self._kernel.enter()
        try:
            node = self._machine.node
            devices = [
                {
                    "name": device.name, "kind": device.kind, "mtu": device.mtu, "mac": format_mac(device.mac) if device.mac else None,
                    "addresses": [f"{format_ip(ip)}/{prefix.length}" for ip, prefix in device.addresses],
                    "master": device.master.name if device.master is not None else None,
                    # what a bridge has carried, its ports have
                    "rx_packets": sum(part.rx_packets for part in _parts(device)),
                    "tx_packets": sum(part.tx_packets for part in _parts(device)),
                    **({"ports": sorted(device.ports)} if isinstance(device, Bridge) else {}),
                    **({"fdb": {format_mac(mac): format_ip(ip) for mac, ip in device.fdb.items()}} if isinstance(device, Vxlan) else {}),
                }
                for device in node.devices.values()
            ]  # fmt: skip
            return {"routes": [str(route) for route in node.routes], "devices": devices}
        finally:
            self._kernel.leave()

    def _stats(self, number: int, params: Body) -> Body:
        self._kernel.enter()
        try:
            drops = self._machine.drops(self._kubelet.namespaces())
            return {"drops": drops, "conntrack": len(self._machine.node.netfilter.conntrack), "stand_ins": self._kubelet.stand_ins()}
        finally:
            self._kernel.leave()

    def _swaps(self, number: int, params: Body) -> Body:
        return {"items": [swap._asdict() for swap in self.swaps]}

    def _flow(self, number: int, params: Body) -> Body:
        self._kernel.enter()
        try:
            return flow.answer(self._machine, params)
        finally:
            self._kernel.leave()

    # ---- traces --------------------------------------------------------------------------------------------------------------------

    def _trace(self, number: int, params: Body) -> Body | None:
        netns = params["netns"]
        ns = self._machine.node if netns == "node" else self._kubelet.namespace(netns)
        if ns is None:
            raise ApiError(404, "NotFound", f"{netns} is not on node {self._machine.me.name}")
        now = self._kernel.enter()
        try:
            to = SockAddr(parse_ip(params["dst"]), params.get("dport") or 0)
            probe = Probe(
                self._kernel, ns, params["proto"], to, params["id"], now + params["deadline"],
                lambda result: self._answer(number, {"result": result}),
            )  # fmt: skip
            if probe.running:
                self._running[number] = probe
        finally:
            self._kernel.leave()
        return None

    def _forget(self, number: int, params: Body) -> Body:
        self._kernel.enter()
        try:
            return {"forgotten": self._machine.forget(params["id"])}
        finally:
            self._kernel.leave()

    def _proxy(self, number: int, params: Body) -> Body:
        state = params.get("state")
        if state not in ("stopped", "restarted"):
            raise ApiError(422, "Invalid", f"state: Unsupported value: {state!r}: supported values: stopped, restarted")
        self._stop_proxy(state == "stopped")
        return {"proxy": state}

    # ---- captures ------------------------------------------------------------------------------------------------------------------

    def _capture(self, number: int, params: Body) -> None:
        netns = params["netns"]
        ns = self._machine.node if netns == "node" else self._kubelet.namespace(netns)
        if ns is None:
            raise ApiError(404, "NotFound", f"{netns} is not on node {self._machine.me.name}")
        self._running[number] = self._captures[number] = Capture(
            self._machine, self._kernel, ns, params, lambda body, last: self._answer(number, body, last=last), self._wake
        )

    def poll_at(self) -> float:
        """When `turn` has something to do; 0 for at once."""
        return min((capture.poll_at() for capture in self._captures.values()), default=INFINITY)

    def turn(self, now: float) -> None:
        """Let captures send what they have seen."""
        for number, capture in [*self._captures.items()]:
            capture.turn(now)
            if capture.over:
                del self._captures[number]
                self._running.pop(number, None)

    # ---- programs --------------------------------------------------------------------------------------------------------------------

    def _exec(self, number: int, params: Body) -> None:
        running = self._kubelet.exec(params, lambda body, last: self._answer(number, body, last=last))
        if running is not None:
            self._running[number] = running

    def _logs(self, number: int, params: Body) -> Body | None:
        if not params.get("follow"):
            return {"stdout": self._kubelet.logs(params)}
        self._running[number] = self._kubelet.follow(params, lambda body, last: self._answer(number, body, last=last))
        return None


def _parts(device: Device) -> list[Device]:
    return list(device.ports.values()) if isinstance(device, Bridge) else [device]
