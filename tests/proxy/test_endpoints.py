"""The decision table of the endpoint choice, row by row. Facts: kubernetes `topology.go` and its scenarios, KEP-1669, 2086, 2433, 3015."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from emu.proxy.endpoints import Place, choose
from emu.proxy.serviceport import read_service_ports
from tests.kit.services import endpoint, value

HERE = Place("host-1", "zone-a")
LOCAL_EXTERNAL: dict[str, Any] = {"type": "NodePort", "node_port": 30080, "externalTrafficPolicy": "Local"}
LOCAL_INTERNAL: dict[str, Any] = {"internalTrafficPolicy": "Local"}


def here(address: str, **fields: Any) -> dict[str, Any]:
    return endpoint(address, "host-1", **fields)


def there(address: str, **fields: Any) -> dict[str, Any]:
    return endpoint(address, "host-2", **fields)


LEAVING = {"ready": False, "serving": True, "terminating": True}
GONE = {"ready": False, "serving": False, "terminating": True}
UNREADY = {"ready": False, "serving": False, "terminating": False}


class Row(NamedTuple):
    claim: str
    endpoints: list[dict[str, Any]]
    cluster: str | None  # last digits of the addresses; None: the set is not used
    local: str | None
    has_any: bool = True
    service: dict[str, Any] = {}  # noqa: RUF012 - never changed
    place: Place = HERE


ROWS = [
    Row("with default policies every ready endpoint is a candidate", [here("10.0.0.1"), there("10.0.0.2")], "12", None),
    Row("an endpoint that is not ready is never used", [here("10.0.0.1"), there("10.0.0.2", **UNREADY)], "1", None),
    Row("no endpoints at all", [], "", None, has_any=False),
    Row("only unready endpoints are as good as none", [here("10.0.0.1", **UNREADY)], "", None, has_any=False),
    Row("terminating endpoints are left out while ready ones exist", [here("10.0.0.1"), there("10.0.0.2", **LEAVING)], "1", None),
    Row("terminating endpoints that still serve are the last resort", [here("10.0.0.1", **LEAVING), there("10.0.0.2", **GONE)], "1", None),
    Row("terminating endpoints that no longer serve are no resort", [here("10.0.0.1", **GONE)], "", None, has_any=False),
    # traffic policies
    Row("iTP Local uses this node's endpoints only", [here("10.0.0.1"), there("10.0.0.2")], None, "1", service=LOCAL_INTERNAL),
    Row("iTP Local with none here, some elsewhere: empty, but not nothing", [there("10.0.0.2")], None, "", service=LOCAL_INTERNAL),
    Row("iTP Local with none anywhere", [], None, "", has_any=False, service=LOCAL_INTERNAL),
    Row("an endpoint of no known node is not local", [endpoint("10.0.0.1")], None, "", service=LOCAL_INTERNAL),
    Row("eTP Local uses both sets: ClusterIP traffic all, outside traffic local", [here("10.0.0.1"), there("10.0.0.2")], "12", "1",
        service=LOCAL_EXTERNAL),
    Row("eTP Local on a Service nobody can reach from outside does nothing", [here("10.0.0.1"), there("10.0.0.2")], "12", None,
        service={"externalTrafficPolicy": "Local"}),
    Row("eTP Local counts for a ClusterIP Service with external IPs", [here("10.0.0.1"), there("10.0.0.2")], "12", "1",
        service={"externalTrafficPolicy": "Local", "externalIPs": ["192.168.99.1"]}),
    Row("iTP Local with a node port still needs the cluster set, for outside traffic", [here("10.0.0.1"), there("10.0.0.2")], "12", "1",
        service={**LOCAL_INTERNAL, "type": "NodePort", "node_port": 30080}),
    Row("the sets fall back to terminating endpoints independently", [here("10.0.0.1", **LEAVING), there("10.0.0.2")], "2", "1",
        service=LOCAL_EXTERNAL),
    Row("only terminating ones anywhere: both sets fall back", [here("10.0.0.1", **LEAVING), there("10.0.0.2", **LEAVING)], "12", "1",
        service=LOCAL_EXTERNAL),
    # hints
    Row("zone hints narrow the choice when all have them", [here("10.0.0.1", zones=["zone-a"]), there("10.0.0.2", zones=["zone-b"])],
        "1", None),
    Row("an endpoint may be meant for several zones", [here("10.0.0.1", zones=["zone-a"]), there("10.0.0.2", zones=["zone-a", "zone-b"])],
        "12", None),
    Row("one ready endpoint without a hint turns zone hints off", [here("10.0.0.1", zones=["zone-a"]), there("10.0.0.2")], "12", None),
    Row("an unready endpoint without a hint does not", [here("10.0.0.1", zones=["zone-a"]), there("10.0.0.2", zones=["zone-b"]),
        there("10.0.0.3", **UNREADY)], "1", None),
    Row("a zone that no endpoint is meant for gets all",
        [here("10.0.0.1", zones=["zone-b"]), there("10.0.0.2", zones=["zone-c"])], "12", None),
    Row("a node without a zone gets all", [here("10.0.0.1", zones=["zone-a"]), there("10.0.0.2", zones=["zone-b"])], "12", None,
        place=Place("host-1")),
    Row("node hints win over zone hints", [here("10.0.0.1", nodes=["host-1"], zones=["zone-a"]),
        there("10.0.0.2", nodes=["host-2"], zones=["zone-a"])], "1", None),
    Row("without an endpoint hinted for the node, its zone counts", [there("10.0.0.2", nodes=["host-2"], zones=["zone-a"]),
        there("10.0.0.3", nodes=["host-3"], zones=["zone-b"])], "2", None),
    Row("one ready endpoint without a node hint turns node hints off", [here("10.0.0.1", nodes=["host-1"], zones=["zone-a"]),
        there("10.0.0.2", zones=["zone-a"])], "12", None),
    Row("hints do not touch the local set", [here("10.0.0.1", zones=["zone-b"]), there("10.0.0.2", zones=["zone-a"])], "2", "1",
        service=LOCAL_EXTERNAL),
    Row("hints are not looked at among terminating endpoints", [here("10.0.0.1", **LEAVING, zones=["zone-a"]),
        there("10.0.0.2", **LEAVING, zones=["zone-b"])], "12", None),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.claim for row in ROWS])
def test_the_decision_table(row):
    (port,) = read_service_ports(value("ns1/svc1", row.endpoints, **row.service), row.place.node)
    choice = choose(port, row.place)
    digits = [None if found is None else "".join(e.text.split(":")[0][-1] for e in found) for found in (choice.cluster, choice.local)]
    assert (*digits, choice.has_any) == (row.cluster, row.local, row.has_any)


def test_used_endpoints_are_those_of_both_sets_once_each():
    (port,) = read_service_ports(value("ns1/svc1", [there("10.0.0.2"), here("10.0.0.1")], **LOCAL_EXTERNAL), "host-1")
    assert [e.text for e in choose(port, HERE).used] == ["10.0.0.1:8080", "10.0.0.2:8080"]
