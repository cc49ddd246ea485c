"""Which program an image stands for: a table, the user's annotations, and a stand-in for everything else.

Decides by the last parts of an image's name, never by registry or tag. A program that cannot be had (no such module, a
misspelt behaviour) becomes one that crashes saying so, since that is where a container's user looks.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from emu.model.behaviour import ANNOTATION as BEHAVIOUR
from emu.model.behaviour import Behaviour
from emu.model.objects import PROGRAM_ANNOTATION as PROGRAM
from emu.pod.container import Launch
from emu.pod.program import Context, Handler, Program
from emu.programs.agnhost import agnhost
from emu.programs.behaviour import behave
from emu.programs.commands import command
from emu.programs.echo import Done, Echo, Idle
from emu.programs.netexec import NetExec
from emu.programs.standin import Ports, StandIn

DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
Args = tuple[str, ...]


def _echo(args: Args, ports: Ports) -> Program:
    return Echo(_numbers(ports, "TCP") or (() if ports else (7,)), _numbers(ports, "UDP"))


def _netexec(args: Args, ports: Ports) -> Program:
    """Without flags it serves the ports that the container declares."""
    tcp, udp = _numbers(ports, "TCP"), _numbers(ports, "UDP")
    return NetExec(args or (*(f"--http-port={port}" for port in tcp[:1]), *(f"--udp-port={port}" for port in udp[:1])))


def _agnhost(args: Args, ports: Ports) -> Program:
    return agnhost(args[1:] if args and args[0].endswith("agnhost") else args)


IMAGES: dict[str, Callable[[Args, Ports], Program]] = {
    "podwire/echo": _echo,
    "podwire/netexec": _netexec,
    "podwire/idle": lambda args, ports: Idle(),
    "podwire/pause": lambda args, ports: Idle(),
    "e2e-test-images/agnhost": _agnhost,
    "agnhost": _agnhost,
    "pause": lambda args, ports: Idle(),
}


def image_key(image: str) -> str:
    """The row of `IMAGES` for an image name; "" for none. `registry.k8s.io/pause:3.9` and `pause@sha256:…` are both `pause`."""
    path = re.sub(r"(:[^:/@]+)?(@.*)?$", "", image)
    tail = "/".join(path.split("/")[-2:])
    if tail in IMAGES:
        return tail
    name = path.rpartition("/")[2]
    official = "/" not in path or "." in path.split("/", 1)[0]  # not somebody's own image of that name
    return name if name in IMAGES and official else ""


class ImageTable:
    """The `emu.pod.container.Images` of a node; `program_path` are the directories of users' programs."""

    def __init__(self, program_path: Sequence[str] = ()) -> None:
        self._path = tuple(program_path)

    def command(self, name: str) -> Program | None:
        return command(name)

    def launch(self, pod: Mapping[str, Any], container: Mapping[str, Any], *, init: bool) -> Launch:
        annotations = (pod.get("metadata") or {}).get("annotations") or {}
        ports = frozenset((port.get("protocol") or "TCP", int(port["containerPort"])) for port in container.get("ports") or ())
        args = (*(container.get("command") or ()), *(container.get("args") or ()))
        if PROGRAM in annotations and not init and container["name"] == _default_container(pod, annotations):
            return Launch(_guarded(lambda: self._load(annotations[PROGRAM]), annotations), args, ready_at_start=False)
        key = image_key(container.get("image") or "")
        if key:
            return Launch(_guarded(lambda: IMAGES[key](args, ports), annotations), args)
        if init:
            return Launch(Done, args, stand_in=True)
        image = container.get("image") or ""
        return Launch(_guarded(lambda: StandIn(image, ports), annotations), args, stand_in=True)

    def _load(self, where: str) -> Program:
        """`package.module:name` of a user, imported from the program path."""
        module, colon, name = where.partition(":")
        if not colon or not module or not name:
            raise ValueError(f"{PROGRAM}: {where!r} is not MODULE:NAME")
        for directory in self._path:
            if directory not in sys.path:
                sys.path.append(directory)  # behind everything installed: a user's `json.py` must not become ours
        found = getattr(importlib.import_module(module), name)
        if isinstance(found, type):
            handler = found if issubclass(found, Handler) else type(found.__name__, (found, Handler), {})
            made = handler()
            assert isinstance(made, Handler)
            return made
        if not callable(found):
            raise TypeError(f"{PROGRAM}: {where} is neither a function nor a class")
        main: Callable[[Context], int | None] = found
        return main


def _default_container(pod: Mapping[str, Any], annotations: Mapping[str, str]) -> str:
    return annotations.get(DEFAULT_CONTAINER) or pod["spec"]["containers"][0]["name"]


def _guarded(make: Callable[[], Program], annotations: Mapping[str, str]) -> Callable[[], Program]:
    """Make a program and let it behave as annotated; one that cannot be made crashes with the reason."""

    def program() -> Program:
        try:
            made, behaviour = make(), Behaviour.parse(annotations.get(BEHAVIOUR, ""))
            if isinstance(made, Handler):
                return behave(made, behaviour)
            if behaviour != Behaviour():
                raise ValueError(f"{BEHAVIOUR} needs a handler: blocking code behaves as it does")
            return made
        except Exception as error:
            return _Broken(error)

    return program


class _Broken(Handler):
    """A program that could not be made."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def on_start(self, ctx: Context) -> NoReturn:
        raise self._error


def _numbers(ports: Ports, protocol: str) -> tuple[int, ...]:
    return tuple(sorted(port for kind, port in ports if kind == protocol))
