"""Pods and pod templates: what is a valid one, and what of it may change.

Judges meaning only; shapes are the schema's. Spec: ValidatePodSpec and ValidatePodUpdate in pkg/apis/core/validation.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Any

from emu.model.behaviour import ANNOTATION as BEHAVIOUR_ANNOTATION
from emu.model.behaviour import Behaviour
from emu.model.objects import ADDRESS_ANNOTATION, BOOT_ANNOTATION, PROGRAM_ANNOTATION
from emu.registry.invalid import FieldError, duplicate, forbidden, invalid, not_found, required, unsupported
from emu.registry.names import DNS_LABEL, DNS_SUBDOMAIN, PORT_NAME, check_ip, check_port
from emu.store.store import Object

PROTOCOLS = ("SCTP", "TCP", "UDP")
_CHOICES = (  # field, what it may be
    ("restartPolicy", ("Always", "OnFailure", "Never")),
    ("dnsPolicy", ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")),
)
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_CHANGEABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")
_IMMUTABLE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
    "`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` "
    "(allow it to be set to 1 if it was previously negative)"
)


def check_characters(annotations: dict[str, Any] | None, path: str) -> Iterator[FieldError]:
    """The annotations of ours that give a pod a character, where a wrong one could not even begin to run."""
    given = annotations or {}
    if ADDRESS_ANNOTATION in given:
        yield from check_ip(given[ADDRESS_ANNOTATION], f"{path}[{ADDRESS_ANNOTATION}]")
    boot = given.get(BOOT_ANNOTATION, "0")
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", boot or ""):
        yield invalid(f"{path}[{BOOT_ANNOTATION}]", boot, "must be a number of seconds")
    program = given.get(PROGRAM_ANNOTATION, "module:name")
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", program or ""):
        yield invalid(f"{path}[{PROGRAM_ANNOTATION}]", program, "must be MODULE:NAME")
    try:
        Behaviour.parse(given.get(BEHAVIOUR_ANNOTATION) or "")
    except ValueError as error:
        yield invalid(f"{path}[{BEHAVIOUR_ANNOTATION}]", given[BEHAVIOUR_ANNOTATION], str(error).partition(": ")[2])


def check_spec(spec: Object, path: str) -> Iterator[FieldError]:
    """Errors of a Pod's spec or of a template's, which stands at `path`."""
    for field, choices in _CHOICES:
        if spec.get(field) not in (None, *choices):
            yield unsupported(f"{path}.{field}", spec[field], choices)
    if (spec.get("terminationGracePeriodSeconds") or 0) < 0:
        yield invalid(f"{path}.terminationGracePeriodSeconds", spec["terminationGracePeriodSeconds"], "must be greater than or equal to 0")
    if spec.get("nodeName") and (why := DNS_SUBDOMAIN.why_not(spec["nodeName"])):
        yield invalid(f"{path}.nodeName", spec["nodeName"], why)
    if not spec.get("containers"):
        yield required(f"{path}.containers")
    volumes = yield from _check_volumes(spec, path)
    names: set[str] = set()
    taken_host_ports: set[tuple[Any, ...]] = set()
    for field in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(field) or ()):
            where = f"{path}.{field}[{index}]"
            yield from _check_container(container, where, volumes)
            if container.get("name") in names:
                yield duplicate(f"{where}.name", container["name"])
            names.add(container.get("name", ""))
            if field == "containers":
                yield from _check_host_ports(container, where, taken_host_ports, host_network=bool(spec.get("hostNetwork")))


def _check_volumes(spec: Object, path: str) -> Generator[FieldError, None, set[str]]:
    """Yields errors; returns the volumes' names."""
    names: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        where, name = f"{path}.volumes[{index}].name", volume.get("name")
        if not name:
            yield required(where)
        elif (why := DNS_LABEL.why_not(name)) is not None:
            yield invalid(where, name, why)
        if name in names:
            yield duplicate(where, name)
        names.add(name or "")
    return names


def _check_container(container: Object, path: str, volumes: set[str]) -> Iterator[FieldError]:
    name = container.get("name")
    if not name:
        yield required(f"{path}.name")
    elif (why := DNS_LABEL.why_not(name)) is not None:
        yield invalid(f"{path}.name", name, why)
    image = container.get("image")
    if not image:
        yield required(f"{path}.image")
    elif image != image.strip():
        yield invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    if container.get("imagePullPolicy") not in (None, *_PULL_POLICIES):
        yield unsupported(f"{path}.imagePullPolicy", container["imagePullPolicy"], _PULL_POLICIES)
    yield from _check_ports(container, path)
    for index, variable in enumerate(container.get("env") or ()):
        if not variable.get("name"):
            yield required(f"{path}.env[{index}].name")
        if variable.get("value") and variable.get("valueFrom"):
            yield invalid(f"{path}.env[{index}].valueFrom", "", "may not be specified when `value` is not empty")
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        if mount.get("name") not in volumes:
            yield not_found(f"{path}.volumeMounts[{index}].name", mount.get("name"))
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(probe):
            yield from _check_probe(container[probe], f"{path}.{probe}", readiness=probe == "readinessProbe")


def _check_ports(container: Object, path: str) -> Iterator[FieldError]:
    names: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        where, name = f"{path}.ports[{index}]", port.get("name")
        if name:
            if (why := PORT_NAME.why_not(name)) is not None:
                yield invalid(f"{where}.name", name, why)
            if name in names:
                yield duplicate(f"{where}.name", name)
            names.add(name)
        yield from check_port(port.get("containerPort"), f"{where}.containerPort")
        if port.get("hostPort"):
            yield from check_port(port["hostPort"], f"{where}.hostPort")
        if port.get("protocol") not in PROTOCOLS:
            yield unsupported(f"{where}.protocol", port.get("protocol"), PROTOCOLS)


def _check_host_ports(container: Object, path: str, taken: set[tuple[Any, ...]], *, host_network: bool) -> Iterator[FieldError]:
    for index, port in enumerate(container.get("ports") or ()):
        host_port = port.get("hostPort")
        if not host_port:
            continue
        key = (host_port, port.get("protocol"), port.get("hostIP"))
        if key in taken:
            yield duplicate(f"{path}.ports[{index}].hostPort", host_port)
        taken.add(key)
        if host_network and host_port != port.get("containerPort"):
            yield invalid(
                f"{path}.ports[{index}].containerPort", port.get("containerPort"), "must match `hostPort` when `hostNetwork` is true"
            )


def _check_probe(probe: Object, path: str, *, readiness: bool) -> Iterator[FieldError]:
    handlers = [handler for handler in _HANDLERS if probe.get(handler) is not None]
    if not handlers:
        yield required(path, "must specify a handler type")
    for extra in handlers[1:]:
        yield forbidden(f"{path}.{extra}", "may not specify more than 1 handler type")
    for field in ("timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold", "initialDelaySeconds"):
        if (probe.get(field) or 0) < 0:
            yield invalid(f"{path}.{field}", probe[field], "must be greater than or equal to 0")
    if not readiness and probe.get("successThreshold") not in (None, 1):
        yield invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1")


def check_pod(obj: Object) -> Iterator[FieldError]:
    yield from check_characters(obj["metadata"].get("annotations"), "metadata.annotations")
    yield from check_spec(obj.get("spec") or {}, "spec")


def check_update(new: Object, old: Object) -> Iterator[FieldError]:
    """A Pod keeps its spec for life, but for images, deadlines, more tolerations, and the node it is bound to (once)."""
    yield from check_pod(new)
    before, after = _comparable(old["spec"]), _comparable(new.get("spec") or {})
    if not old["spec"].get("nodeName"):  # the scheduler's binding
        before.pop("nodeName", None)
        after.pop("nodeName", None)
    if before != after:
        changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
        yield forbidden("spec", f"{_IMMUTABLE} (changed: {', '.join(changed)})")
    kept = [toleration for toleration in old["spec"].get("tolerations") or () if toleration not in (new["spec"].get("tolerations") or ())]
    if kept:
        yield forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds")


def _comparable(spec: Object) -> Object:
    without: Object = {key: value for key, value in spec.items() if key not in _CHANGEABLE}
    for field in ("containers", "initContainers"):
        if spec.get(field):
            without[field] = [{**container, "image": ""} for container in spec[field]]
    return without


def qos_class(spec: Object) -> str:
    """Guaranteed, Burstable or BestEffort (KEP-less: the node-pressure rules of the documentation)."""
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    resources = [container.get("resources") or {} for container in containers]
    if not any(r.get("requests") or r.get("limits") for r in resources):
        return "BestEffort"
    limits = [(r.get("limits") or {}, r.get("requests") or r.get("limits") or {}) for r in resources]
    guaranteed = all(
        {"cpu", "memory"} <= limit.keys() and all(request.get(k, limit[k]) == limit[k] for k in ("cpu", "memory"))
        for limit, request in limits
    )
    return "Guaranteed" if guaranteed else "Burstable"
