"""The command line's end of the Kubernetes API: JSON over HTTP, nothing but the standard library.

`Client.of(run)` finds the server through the run directory's api.json, which the controller writes. A refusal is an ApiError
with the Status's fields, as any client of the API sees it; there is no second way in.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from emu.errors import ApiError, PodwireError
from emu.model.kinds import Kind
from launcher.rundir import RunDirectory

PODWIRE = "/apis/podwire.dev/v1alpha1"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
MERGE_PATCH = "application/merge-patch+json"

JsonObject = dict[str, Any]


class Client:
    """Talks to one API server; a connection a request, so that it may be used between any two lives of the controller."""

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        self.url, self.timeout = url, timeout
        self.host = urlsplit(url).netloc

    @classmethod
    def of(cls, run: RunDirectory) -> Client:
        """A client of a cluster that is up. PodwireError if its API does not listen (yet)."""
        try:
            return cls(json.loads(run.api.read_text())["url"])
        except FileNotFoundError:
            raise PodwireError(f"the controller of {run.name!r} is not listening (see podwire status --name {run.name})") from None

    def request(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, Any] | None = None, accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Any:  # fmt: skip
        """The decoded JSON answer. ApiError if it is refused, PodwireError if nobody listens."""
        connection, response = self._send(method, path, body, query, accept, content_type)
        try:
            data = response.read()
        finally:
            connection.close()
        return json.loads(data) if data else None

    def stream(self, path: str, *, query: Mapping[str, Any] | None = None, method: str = "GET", body: Any = None) -> Iterator[bytes]:
        """The answer's body piece by piece, as it comes; endless where the server follows something. PodwireError if it breaks off."""
        self_timeout, self.timeout = self.timeout, None  # type: ignore[assignment]
        try:
            connection, response = self._send(method, path, body, query, "*/*", "application/json")
        finally:
            self.timeout = self_timeout
        try:
            while piece := response.read1(1 << 16):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise PodwireError(f"the API at {self.url} has gone away meanwhile") from error
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: Any, query: Mapping[str, Any] | None, accept: str, content_type: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.host, timeout=self.timeout)
        given = {key: value for key, value in (query or {}).items() if value not in (None, "")}
        target = path + (f"?{urlencode(given, doseq=True)}" if given else "")
        try:
            connection.request(method, target, None if body is None else json.dumps(body), {"Accept": accept, "Content-Type": content_type})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise PodwireError(f"the API at {self.url} does not answer: {getattr(error, 'strerror', None) or error}") from error
        if response.status >= 400:
            try:
                raise refusal(response.status, response.read())
            finally:
                connection.close()
        return connection, response

    # ---- what commands ask most ----

    def get(self, kind: Kind, namespace: str, name: str) -> JsonObject:
        found: JsonObject = self.request("GET", path_of(kind, namespace, name))
        return found

    def list(self, kind: Kind, namespace: str = "", **query: Any) -> list[JsonObject]:
        """All objects of a kind in a namespace ("" for all); `query` is the API's, such as labelSelector."""
        items: list[JsonObject] = self.request("GET", path_of(kind, namespace), query=query)["items"]
        for item in items:  # a list names them once
            item.setdefault("apiVersion", kind.api_version)
            item.setdefault("kind", kind.kind)
        return items

    def podwire(self, method: str, path: str, body: Any = None, **query: Any) -> JsonObject:
        """A request of the group podwire.dev."""
        answer: JsonObject = self.request(method, f"{PODWIRE}/{path}", body, query=query)
        return answer


def path_of(kind: Kind, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The path of a resource or collection as Kubernetes lays them out."""
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    parts = [root, *(("namespaces", quote(namespace, safe="")) if kind.namespaced and namespace else ()), kind.plural]
    parts += [quote(part, safe="") for part in (name, subresource) if part]
    return "/".join(parts)


def refusal(status: int, body: bytes) -> ApiError:
    """The ApiError that a refusing answer tells of."""
    try:
        told = json.loads(body)
        causes = tuple((told.get("details") or {}).get("causes") or ())
        return ApiError(told.get("code", status), told.get("reason", ""), told.get("message", ""), causes=causes)
    except (ValueError, AttributeError):
        return ApiError(status, "", body.decode(errors="replace") or http.client.responses.get(status, str(status)))
