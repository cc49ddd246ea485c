"""kube-proxy's flow tables once more, as users write them: a scenario each, run whole, in both modes."""

from __future__ import annotations

import copy

import pytest
import yaml

from launcher.scenarios import document, runner
from tests.proxy.test_flows import FLOWS, IN_NFTABLES, NODE_IPS, Flow

DIRECT = "a pod's own address is none of the proxy's business"
"""What the proxy leaves alone arrives all the same, if a pod has the address."""


def written(flow: Flow, mode: str) -> str:
    """The flow as a scenario's text."""
    service, (piece,) = copy.deepcopy(flow.value["service"]), copy.deepcopy(flow.value["slices"])
    settings = {key: item for key, item in flow.settings.items() if key != "iptables"}
    own = {key: item for key, item in flow.settings.get("iptables", {}).items() if mode == "iptables" or key != "localhostNodePorts"}
    expected = IN_NFTABLES.get(flow.claim) if mode == "nftables" else None
    outcome, to, masquerade = expected or (flow.outcome, flow.to, flow.masq)
    if flow.claim == DIRECT:
        outcome, to = "delivered", {flow.dst}
    step = {
        "flow": {"from": flow.src, "to": flow.dst, "protocol": flow.protocol.upper(), "at": "test-node"},
        "expect": {"outcome": outcome, **({"backends": sorted(to), "masquerade": masquerade} if to else {})},
    }
    proxy = {"mode": mode, "clusterCIDR": "10.0.0.0/8", **settings, **({mode: own} if own else {})}
    spec = {
        "cluster": {
            "nodes": [{"name": "test-node", "addresses": list(NODE_IPS)}, {"name": "node2"}],
            "podCIDR": "10.0.0.0/8", "serviceCIDR": "172.30.0.0/16", "proxy": proxy,
        },
        "manifests": [
            {"apiVersion": "v1", "kind": "Service", **service},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", **piece},
        ],
        "steps": [step],
    }  # fmt: skip
    return yaml.safe_dump({"apiVersion": "podwire.dev/v1alpha1", "kind": "Scenario", "metadata": {"name": "flow"}, "spec": spec})


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize("flow", FLOWS, ids=[flow.claim for flow in FLOWS])
def test_a_flow_is_judged_alike_as_a_scenario(flow, mode, tmp_path):
    (tmp_path / "flow.yaml").write_text(written(flow, mode))
    (scenario,) = document.read(str(tmp_path / "flow.yaml"))
    result = runner.run(scenario, runner.Options())
    assert result.passed, [result.problem, *(step.json() for step in result.steps)]
