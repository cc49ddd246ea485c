"""Logs and exec: from a request on a Pod to what its node is asked.

Checks here what the API server checks (does the container exist, has the pod a node); the rest is the node's answer.
Spec: pkg/registry/core/pod/strategy.go LogLocation and streamLocation.
"""

from __future__ import annotations

from typing import Any

from emu.api.request import Exec, Logs, Request
from emu.errors import ApiError
from emu.store.store import Object

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"


def logs_of_pod(request: Request, pod: Object) -> Logs:
    """GET pods/NAME/log. Asks the node for `logs` {namespace, pod, container, follow, tail, previous, timestamps, since}."""
    container = _container(request, pod, several_need_a_name=True)
    params = {
        **_place(pod, container),
        "follow": request.flag("follow"),
        "tail": request.number("tailLines"),
        "since": request.number("sinceSeconds"),
        "previous": request.flag("previous"),
        "timestamps": request.flag("timestamps"),
    }
    return Logs(_node(pod), params)


def exec_in_pod(request: Request, pod: Object) -> Exec:
    """GET pods/NAME/exec. Asks the node for `exec` {namespace, pod, container, command, stdin, tty}."""
    command = request.all("command")
    if not command:
        raise ApiError(400, "BadRequest", "you must specify at least one command for the container")
    phase = (pod.get("status") or {}).get("phase")
    if phase in {"Succeeded", "Failed"}:
        raise ApiError(400, "BadRequest", f"cannot exec into a container in a completed pod; current phase is {phase}")
    container = _container(request, pod, several_need_a_name=False)
    return Exec(_node(pod), {**_place(pod, container), "command": command, "stdin": request.flag("stdin"), "tty": request.flag("tty")})


def _place(pod: Object, container: str) -> dict[str, Any]:
    return {"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"], "container": container}


def _node(pod: Object) -> str:
    node = pod["spec"].get("nodeName")
    if not node:
        raise ApiError(400, "BadRequest", f"pod {pod['metadata']['name']} does not have a host assigned")
    return str(node)


def _container(request: Request, pod: Object, *, several_need_a_name: bool) -> str:
    names = [container["name"] for field in ("initContainers", "containers") for container in pod["spec"].get(field) or ()]
    wanted = request.first("container") or (pod["metadata"].get("annotations") or {}).get(_DEFAULT_CONTAINER, "")
    name = pod["metadata"]["name"]
    if wanted:
        if wanted not in names:
            raise ApiError(400, "BadRequest", f"container {wanted} is not valid for pod {name}")
        return str(wanted)
    if several_need_a_name and len(names) > 1:
        raise ApiError(400, "BadRequest", f"a container name must be specified for pod {name}, choose one of: [{' '.join(names)}]")
    return str(pod["spec"]["containers"][0]["name"])
