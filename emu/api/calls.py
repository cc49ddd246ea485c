"""What the API asks of nodes: the one seam between a request for logs, exec, rules or a trace and whoever can reach a node.

The API declares it, the controller process implements it over the bus. Every method is a coroutine or returns an asynchronous
stream; errors are `ApiError` (404 for no such node, 504 for one that stays silent).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol


class NodeStream(Protocol):
    """One running call on a node whose answer comes in pieces, such as `exec` or `logs` that follow.

    Yields `{"stdout": bytes}`, `{"stderr": bytes}` and last `{"exit": int}`; a node that dies meanwhile raises ApiError 504.
    """

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]: ...

    async def send(self, data: dict[str, Any]) -> None:
        """`{"stdin": bytes}`, or `{"stdin_eof": True}` when there is no more."""

    async def close(self) -> None:
        """Stop the call; the node ends the program. No error if it has ended."""


class NodeCalls(Protocol):
    """Calls to nodes, by name, and the cluster's own answers that no Kubernetes object holds."""

    async def call(self, node: str, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        """One question, one answer within `timeout` seconds: `rules` {format}, `conntrack`, `routes`, `swaps`, `logs`."""

    def stream(self, node: str, method: str, params: dict[str, Any]) -> NodeStream:
        """Start `exec` {namespace, pod, container, command} or `logs` {namespace, pod, container, follow, tail}."""

    async def trace(self, params: dict[str, Any]) -> dict[str, Any]:
        """Send one packet that carries a trace flag; the path it took and its reply's."""

    async def capture(self, params: dict[str, Any]) -> AsyncIterator[bytes]:
        """Listen at devices of nodes; a pcapng stream, in whole blocks, until it is closed or has what was asked for."""

    async def fault(self, node: str, state: str) -> dict[str, Any]:
        """Bring a node to `killed`, `paused`, `resumed` or `started`."""

    def publications(self) -> list[dict[str, Any]]:
        """The last updates of the broadcast, oldest first: stream, sequence, revision, and when."""

    def fault_counters(self) -> dict[str, dict[str, int]]:
        """How many segments each fault on links has lost, cut, delayed and so on, by its name, as nodes last said."""

    def status(self) -> dict[str, Any]:
        """The cluster as the controller sees it now."""
