"""A request as values, and what may come of it: an answer, a watch, a question to a node, or a running program's streams.

The shell on the socket turns HTTP into `Request` and carries out what comes back; so the same code answers in one process.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from emu.api.calls import NodeCalls
from emu.errors import ApiError
from emu.model import manifest

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `query` keeps repeated parameters in order; header names are lower case."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def of(cls, method: str, url: str, body: object = None, **headers: str) -> Request:
        """From a path with its query, as one would type it; `body` is bytes or any JSON value. For tests and in-process clients."""
        split = urlsplit(url)
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        return cls(method, unquote(split.path), tuple(parse_qsl(split.query, keep_blank_values=True)), named, data)

    def first(self, name: str, default: str = "") -> str:
        """A query parameter; of several the first."""
        return next((value for key, value in self.query if key == name), default)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.query if key == name]

    def flag(self, name: str) -> bool:
        """A boolean query parameter, as Go reads it; present without a value is true."""
        return any(key == name and value.lower() in {"", "1", "t", "true"} for key, value in self.query)

    def number(self, name: str) -> int | None:
        """A numeric query parameter, or None; ApiError 400 for anything else."""
        text = self.first(name)
        if not text:
            return None
        if not text.lstrip("-").isdigit():
            raise ApiError(400, "BadRequest", f'strconv.ParseInt: parsing "{text}": invalid syntax (parameter {name})')
        return int(text)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", JSON).partition(";")[0].strip().lower() or JSON

    def wants_table(self) -> bool:
        return "as=Table" in self.headers.get("accept", "")

    def decoded(self) -> Any:
        """The body as a JSON value; 400 if it does not parse, 415 for what is neither JSON nor YAML."""
        if self.media_type in {"application/yaml", "application/apply-patch+yaml"}:
            return manifest.value(self.body.decode())
        if self.media_type != JSON and not self.media_type.endswith("+json"):
            message = "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml"
            if "protobuf" in self.media_type:  # kubectl's generators (create deployment, create configmap ...) know nothing else
                message += "; use: kubectl create ... --dry-run=client -o json | kubectl create -f -"
            raise ApiError(415, "UnsupportedMediaType", message)
        try:
            return json.loads(self.body, object_pairs_hook=_unique)
        except ValueError as error:
            raise ApiError(400, "BadRequest", f"the object provided is unrecognized: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, "BadRequest", f'strict decoding error: duplicate field "{twice}"')
    return made


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. `body` is a JSON value, or bytes of `content_type`."""

    body: Any
    status: int = 200
    content_type: str = JSON
    warnings: Sequence[str] = ()

    def encoded(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body, separators=(",", ":"), ensure_ascii=False).encode()

    def headers(self) -> list[tuple[str, str]]:
        """Warnings as RFC 7234 has them; kubectl prints each."""
        return [("Warning", f'299 - "{_quoted(warning)}"') for warning in self.warnings]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ").encode("ascii", "replace").decode()


def refused(error: ApiError) -> Response:
    """An error as the `Status` that clients expect."""
    return Response(error.status(), error.code)


@dataclass(frozen=True, slots=True)
class Deferred:
    """An answer that takes a call to a node: await `run`."""

    run: Callable[[NodeCalls], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer that goes on, piece by piece, once `run` has begun it."""

    run: Callable[[NodeCalls], Awaitable[AsyncIterator[bytes]]]
    content_type: str


@dataclass(frozen=True, slots=True)
class Logs:
    """A container's output as plain text, streamed until the node ends it."""

    node: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Exec:
    """A program to run in a container, its streams on channels of a WebSocket."""

    node: str
    params: dict[str, Any]
