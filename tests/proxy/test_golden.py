"""kube-proxy's published world, line by line: what our rule set prints as is what kube-proxy feeds to iptables-restore."""

from __future__ import annotations

from pathlib import Path

import yaml

from emu.netfilter.text import restore_text
from emu.proxy.changes import ServiceChanges
from emu.proxy.config import ProxyConfig
from emu.proxy.detector import NodeView
from emu.proxy.iptables import build
from emu.wire.addr import parse_ip

GOLDEN = Path(__file__).parents[1] / "golden"


def published_world():
    changes = ServiceChanges("test-node")
    changes.replace(yaml.safe_load((GOLDEN / "published-world.yaml").read_text()))
    changes.apply()
    node = NodeView("test-node", (parse_ip("192.168.0.2"), parse_ip("192.168.1.2")))
    return build(changes.ports, ProxyConfig.parse("iptables", cluster_cidr="10.0.0.0/8"), node)


def test_the_published_world_prints_as_kube_proxy_writes_it():
    lines = [line for line in restore_text(published_world()).splitlines() if line.startswith(("-A", "*")) and line != "*mangle"]
    assert lines == [line for line in (GOLDEN / "published-world.rules").read_text().splitlines() if not line.startswith("#")]


def test_the_canary_stands_in_every_table():
    assert all("KUBE-PROXY-CANARY" in table.chains for table in published_world().tables.values())
