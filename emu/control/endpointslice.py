"""EndpointSlices: carries out what `endpoints` wants in the layout of `slices`, for each Service with a selector.

Slices of others (made by hand, for Services without a selector) are left alone; ours carry the managed-by label.
Spec: pkg/controller/endpointslice.
"""

from __future__ import annotations

from collections.abc import Iterable

from emu.control import slices
from emu.control.cluster import Cluster, Object, key_of, owner_reference, split
from emu.control.endpoints import Ports, desired, families, selects, weight
from emu.model.objects import HEADLESS_LABEL, SERVICE_NAME_LABEL
from emu.store.store import Change

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
US = "endpointslice-controller.k8s.io"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"


class EndpointSliceController:
    """Keys are Services."""

    name = "endpointslice"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def affected(self, change: Change) -> Iterable[str]:
        obj, previous = change.object, change.previous
        namespace = obj["metadata"].get("namespace", "")
        if change.resource == "services":
            yield key_of(obj)
        elif change.resource == "endpointslices" and _is_ours(obj):
            yield f"{namespace}/{obj['metadata']['labels'].get(SERVICE_NAME_LABEL, '')}"
        elif change.resource == "pods" and not (change.type == "MODIFIED" and previous and weight(previous) == weight(obj)):
            for pod in (obj, previous):
                for service in self._cluster.services_selecting(namespace, (pod or {}).get("metadata", {}).get("labels") or {}):
                    yield f"{namespace}/{service}"

    def reconcile(self, key: str, now: float) -> float | None:
        namespace, name = split(key)
        service = self._cluster.get("services", namespace, name)
        ours = [one for one in self._cluster.slices_of(namespace, name) if _is_ours(one)]
        if service is None or not service["spec"].get("selector") or service["metadata"].get("deletionTimestamp"):
            self._delete(ours)
            return None
        selected = [pod for pod in self._cluster.store.list("pods", namespace)[0] if selects(service, pod)]
        for family in families(service):
            wanted = desired(service, selected, lambda node: self._cluster.get("nodes", "", node), family)
            existing = [one for one in ours if one["addressType"] == family]
            self._carry_out(service, family, slices.plan(existing, wanted))
            self._relabel(service, existing)
        self._delete([one for one in ours if one["addressType"] not in families(service)])
        return None

    def _carry_out(self, service: Object, family: str, plan: slices.Plan) -> None:
        """All of a plan or nothing: a reader must not see an endpoint in two slices, or in none."""
        stamp = self._cluster.timestamp()
        with self._cluster.store.transaction():
            self._delete(plan.delete)
            for ports, endpoints in plan.create:
                self._cluster.registry.create(
                    "endpointslices", _slice(service, family, ports, endpoints, stamp), service["metadata"]["namespace"]
                )
            for old, endpoints in plan.update:
                meta = old["metadata"]
                annotations = {**(meta.get("annotations") or {}), TRIGGER_TIME: stamp}
                changed = {**old, "metadata": {**meta, "annotations": annotations}, "endpoints": endpoints}
                self._cluster.registry.update("endpointslices", changed, meta["namespace"])

    def _relabel(self, service: Object, existing: list[Object]) -> None:
        """A Service's labels are its slices' too."""
        for one in existing:
            meta = one["metadata"]
            current = self._cluster.get("endpointslices", meta["namespace"], meta["name"])
            if current is not None and (current["metadata"].get("labels") or {}) != _labels(service):
                changed = {**current, "metadata": {**current["metadata"], "labels": _labels(service)}}
                self._cluster.registry.update("endpointslices", changed, meta["namespace"])

    def _delete(self, gone: list[Object]) -> None:
        for one in gone:
            self._cluster.registry.delete("endpointslices", one["metadata"]["namespace"], one["metadata"]["name"])


def _is_ours(obj: Object) -> bool:
    return (obj["metadata"].get("labels") or {}).get(MANAGED_BY) == US


def _labels(service: Object) -> dict[str, str]:
    headless = {HEADLESS_LABEL: ""} if service["spec"].get("clusterIP") == "None" else {}
    own = {key: value for key, value in (service["metadata"].get("labels") or {}).items() if key not in (SERVICE_NAME_LABEL, MANAGED_BY)}
    return {**own, **headless, SERVICE_NAME_LABEL: service["metadata"]["name"], MANAGED_BY: US}


def _slice(service: Object, family: str, ports: Ports, endpoints: list[Object], stamp: str) -> Object:
    meta = service["metadata"]
    return {
        "metadata": {
            "generateName": f"{meta['name']}-", "namespace": meta["namespace"], "labels": _labels(service),
            "annotations": {TRIGGER_TIME: stamp}, "ownerReferences": [owner_reference(service)],
        },
        "addressType": family,
        "ports": slices.port_objects(ports),
        "endpoints": endpoints,
    }  # fmt: skip
