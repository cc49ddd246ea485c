"""Running conversations with containers: a command with its input and output, a log that is followed.

Decides how they are put into answers (`{"stdout": bytes}`, `{"stderr": bytes}`, last `{"exit": int}`) and which errors a user gets;
output comes from programs' threads, so `reply` must be callable from any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from emu.errors import ApiError
from emu.pod.output import LogLine
from emu.pod.runtime import ExecError, PodRuntime

Reply = Callable[[dict[str, Any], bool], None]
"""Takes an answer's body, and whether it is the last."""


def pod_not_running(pod: str) -> ApiError:
    """The error for a pod that its node does not run (yet)."""
    return ApiError(400, "BadRequest", f"pod {pod} has no running container on its node")


def _refused(error: ExecError) -> ApiError:
    return ApiError(400, "BadRequest", str(error))


class ExecSession:
    """One `exec`."""

    def __init__(self, runtime: PodRuntime, params: Mapping[str, Any], reply: Reply) -> None:
        self._reply = reply
        try:
            self._process = runtime.exec(
                params.get("container"), params["command"], lambda stream, data: reply({stream: data}, False),
                lambda code: reply({"exit": code}, True), stdin=bool(params.get("stdin")),
            )  # fmt: skip
        except ExecError as error:
            raise _refused(error) from error

    def input(self, data: Mapping[str, Any]) -> None:
        """`{"stdin": bytes}` or `{"stdin_eof": True}`."""
        if self._process is None:
            return
        if data.get("stdin"):
            self._process.stdin.feed(data["stdin"])
        if data.get("stdin_eof"):
            self._process.stdin.feed_eof()

    def cancel(self) -> None:
        if self._process is not None:
            self._process.kill()


class LogSession:
    """One log that is followed."""

    def __init__(self, runtime: PodRuntime, params: Mapping[str, Any], reply: Reply) -> None:
        timestamps = bool(params.get("timestamps"))

        def tell(line: LogLine | None) -> None:
            if line is None:
                reply({"exit": 0}, True)
            else:
                reply({"stdout": line.render(timestamps=timestamps)}, False)

        self._stop = _log(runtime, params).follow(tell, params.get("tail"))

    @staticmethod
    def text(runtime: PodRuntime, params: Mapping[str, Any]) -> bytes:
        """The kept lines at once."""
        timestamps = bool(params.get("timestamps"))
        return b"".join(line.render(timestamps=timestamps) for line in _log(runtime, params).read(params.get("tail"), params.get("since")))

    def input(self, data: Mapping[str, Any]) -> None:
        """A log takes none."""

    def cancel(self) -> None:
        self._stop()


def _log(runtime: PodRuntime, params: Mapping[str, Any]) -> Any:
    try:
        return runtime.log(params.get("container"), previous=bool(params.get("previous")))
    except ExecError as error:
        raise _refused(error) from error
