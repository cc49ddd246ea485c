"""Which kinds Kubernetes 1.35 publishes, how each is named on the wire, and what the emulator does with it.

One row a kind; `resource` is the key under which the store keeps its objects: the plural, except where two groups or versions
share a plural, when all but the preferred one carry their version and group. Spec: the published schemas of 1.35 (a test holds
this table to them) and `kubectl api-resources`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum

KUBERNETES_VERSION = "1.35.2"


class Treatment(StrEnum):
    """What becomes of an object of this kind."""

    EMULATED = "emulated"  # something in the cluster acts on it
    STORED = "stored"  # validated, kept whole, and nothing reads it
    REQUEST = "request"  # a question or a subresource, never kept (TokenReview, Eviction ...)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind in one API version."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    short_names: tuple[str, ...]
    treatment: Treatment
    resource: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def singular(self) -> str:
        return self.kind.lower()

    @property
    def group_resource(self) -> str:
        """`deployments.apps`, as error messages of the API name a resource."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


E, S, R = Treatment.EMULATED, Treatment.STORED, Treatment.REQUEST

# API versions, preferred first -> rows of (kind, namespaced, short names, treatment). Plurals are regular but for _IRREGULAR.
_PUBLISHED: tuple[tuple[str, tuple[tuple[str, bool, str, Treatment], ...]], ...] = (
    ("v1", (
        ("Binding", True, "", R), ("ComponentStatus", False, "cs", R), ("ConfigMap", True, "cm", E), ("Endpoints", True, "ep", S),
        ("Event", True, "ev", E), ("LimitRange", True, "limits", S), ("Namespace", False, "ns", E), ("Node", False, "no", E),
        ("PersistentVolume", False, "pv", S), ("PersistentVolumeClaim", True, "pvc", S), ("Pod", True, "po", E),
        ("PodTemplate", True, "", S), ("ReplicationController", True, "rc", S), ("ResourceQuota", True, "quota", S),
        ("Secret", True, "", S), ("Service", True, "svc", E), ("ServiceAccount", True, "sa", S),
    )),
    ("apps/v1", (
        ("ControllerRevision", True, "", S), ("DaemonSet", True, "ds", S), ("Deployment", True, "deploy", E),
        ("ReplicaSet", True, "rs", E), ("StatefulSet", True, "sts", S),
    )),
    ("discovery.k8s.io/v1", (("EndpointSlice", True, "", E),)),
    ("coordination.k8s.io/v1", (("Lease", True, "", E),)),
    ("networking.k8s.io/v1", (
        ("Ingress", True, "ing", S), ("IngressClass", False, "", S), ("IPAddress", False, "ip", S), ("NetworkPolicy", True, "netpol", S),
        ("ServiceCIDR", False, "", S),
    )),
    ("networking.k8s.io/v1beta1", (("IPAddress", False, "ip", S), ("ServiceCIDR", False, "", S))),
    ("events.k8s.io/v1", (("Event", True, "ev", S),)),
    ("admissionregistration.k8s.io/v1", (
        ("MutatingWebhookConfiguration", False, "", S), ("ValidatingAdmissionPolicy", False, "", S),
        ("ValidatingAdmissionPolicyBinding", False, "", S), ("ValidatingWebhookConfiguration", False, "", S),
    )),
    ("admissionregistration.k8s.io/v1beta1", (
        ("MutatingAdmissionPolicy", False, "", S), ("MutatingAdmissionPolicyBinding", False, "", S),
    )),
    ("admissionregistration.k8s.io/v1alpha1", (
        ("MutatingAdmissionPolicy", False, "", S), ("MutatingAdmissionPolicyBinding", False, "", S),
    )),
    ("apiextensions.k8s.io/v1", (("CustomResourceDefinition", False, "crd crds", S),)),
    ("apiregistration.k8s.io/v1", (("APIService", False, "", S),)),
    ("authentication.k8s.io/v1", (("SelfSubjectReview", False, "", R), ("TokenRequest", True, "", R), ("TokenReview", False, "", R))),
    ("authorization.k8s.io/v1", (
        ("LocalSubjectAccessReview", True, "", R), ("SelfSubjectAccessReview", False, "", R), ("SelfSubjectRulesReview", False, "", R),
        ("SubjectAccessReview", False, "", R),
    )),
    ("autoscaling/v2", (("HorizontalPodAutoscaler", True, "hpa", S),)),
    ("autoscaling/v1", (("HorizontalPodAutoscaler", True, "hpa", S), ("Scale", True, "", R))),
    ("batch/v1", (("CronJob", True, "cj", S), ("Job", True, "", S))),
    ("certificates.k8s.io/v1", (("CertificateSigningRequest", False, "csr", S),)),
    ("certificates.k8s.io/v1beta1", (("ClusterTrustBundle", False, "", S), ("PodCertificateRequest", True, "", S))),
    ("certificates.k8s.io/v1alpha1", (("ClusterTrustBundle", False, "", S),)),
    ("coordination.k8s.io/v1beta1", (("LeaseCandidate", True, "", S),)),
    ("coordination.k8s.io/v1alpha2", (("LeaseCandidate", True, "", S),)),
    ("flowcontrol.apiserver.k8s.io/v1", (("FlowSchema", False, "", S), ("PriorityLevelConfiguration", False, "", S))),
    ("internal.apiserver.k8s.io/v1alpha1", (("StorageVersion", False, "", S),)),
    ("node.k8s.io/v1", (("RuntimeClass", False, "", S),)),
    ("policy/v1", (("Eviction", True, "", R), ("PodDisruptionBudget", True, "pdb", S))),
    ("rbac.authorization.k8s.io/v1", (
        ("ClusterRole", False, "", S), ("ClusterRoleBinding", False, "", S), ("Role", True, "", S), ("RoleBinding", True, "", S),
    )),
    ("resource.k8s.io/v1", (
        ("DeviceClass", False, "", S), ("ResourceClaim", True, "", S), ("ResourceClaimTemplate", True, "", S),
        ("ResourceSlice", False, "", S),
    )),
    ("resource.k8s.io/v1beta2", (
        ("DeviceClass", False, "", S), ("ResourceClaim", True, "", S), ("ResourceClaimTemplate", True, "", S),
        ("ResourceSlice", False, "", S),
    )),
    ("resource.k8s.io/v1beta1", (
        ("DeviceClass", False, "", S), ("ResourceClaim", True, "", S), ("ResourceClaimTemplate", True, "", S),
        ("ResourceSlice", False, "", S),
    )),
    ("resource.k8s.io/v1alpha3", (("DeviceTaintRule", False, "", S),)),
    ("scheduling.k8s.io/v1", (("PriorityClass", False, "pc", S),)),
    ("scheduling.k8s.io/v1alpha1", (("Workload", True, "", S),)),
    ("storage.k8s.io/v1", (
        ("CSIDriver", False, "", S), ("CSINode", False, "", S), ("CSIStorageCapacity", True, "", S), ("StorageClass", False, "sc", S),
        ("VolumeAttachment", False, "", S), ("VolumeAttributesClass", False, "vac", S),
    )),
    ("storage.k8s.io/v1beta1", (("VolumeAttributesClass", False, "vac", S),)),
    ("storagemigration.k8s.io/v1beta1", (("StorageVersionMigration", False, "", S),)),
)  # fmt: skip
_IRREGULAR = {"Endpoints": "endpoints", "ComponentStatus": "componentstatuses"}


def _plural(kind: str) -> str:
    word = kind.lower()
    if kind in _IRREGULAR:
        return _IRREGULAR[kind]
    if word.endswith(("s", "ch", "x")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def _kinds() -> tuple[Kind, ...]:
    kinds, taken = [], set()
    for api_version, rows in _PUBLISHED:
        group, _, version = api_version.rpartition("/")
        for kind, namespaced, short_names, treatment in rows:
            plural = _plural(kind)
            resource = f"{plural}.{version}.{group}" if plural in taken else plural
            taken.add(plural)
            kinds.append(Kind(group, version, kind, plural, namespaced, tuple(short_names.split()), treatment, resource))
    return tuple(kinds)


KINDS: tuple[Kind, ...] = _kinds()
BY_RESOURCE: dict[str, Kind] = {kind.resource: kind for kind in KINDS}
BY_GVK: dict[tuple[str, str], Kind] = {(kind.api_version, kind.kind): kind for kind in KINDS}
BY_PATH: dict[tuple[str, str, str], Kind] = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}


def kind_named(word: str) -> Kind | None:
    """The kind that a person means by `po`, `pod`, `Pods` or `deployments.apps`; None if there is none. Preferred versions win."""
    wanted = word.lower()
    for kind in KINDS:
        if wanted in (kind.plural, kind.singular, kind.group_resource, *kind.short_names):
            return kind
    return None


def unknown_kind(api_version: str, kind: str) -> str:
    """Why `kind` of `api_version` is no Kubernetes kind, with the nearest one that is."""
    versions = [known.api_version for known in KINDS if known.kind == kind]
    if versions:
        return f'no matches for kind "{kind}" in version "{api_version}": its version is {" or ".join(versions)}'
    near = difflib.get_close_matches(kind, sorted({known.kind for known in KINDS}), n=1)
    return f'no matches for kind "{kind}" in version "{api_version}"' + (f" (did you mean {near[0]}?)" if near else "")
