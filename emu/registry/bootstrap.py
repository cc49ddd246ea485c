"""What a cluster holds before anybody asks for anything: four namespaces and the Service `kubernetes`.

Spec: pkg/controlplane (system namespaces, the kubernetes Service on the first address of the service network).
"""

from __future__ import annotations

from emu.registry.registry import Registry

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def bootstrap(registry: Registry) -> None:
    """Make what is missing; on a reopened store, nothing."""
    store = registry.store
    with store.transaction():
        for name in NAMESPACES:
            if store.get("namespaces", "", name) is None:
                registry.create("namespaces", {"metadata": {"name": name}})
        if store.get("services", "default", "kubernetes") is None:
            labels = {"component": "apiserver", "provider": "kubernetes"}
            ports = [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]
            address = registry.allocator.first_address
            spec = {"type": "ClusterIP", "clusterIP": address, "ports": ports, "sessionAffinity": "None"}
            registry.create("services", {"metadata": {"name": "kubernetes", "labels": labels}, "spec": spec}, "default")
