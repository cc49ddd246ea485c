"""Field errors, worded as the API server words them, and the `Status` they add up to.

A check yields `FieldError`s; one request's errors become one ApiError: 422 Invalid for what an object means, 400 BadRequest for
what does not even decode (unknown fields, wrong types), each error a cause with its field. Spec: apimachinery field.ErrorList and
api/errors.NewInvalid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from emu.errors import ApiError
from emu.model.kinds import Kind
from emu.model.schema import Fault, shown


class FieldError(NamedTuple):
    """One thing wrong with one field; `reason` is a CauseType such as FieldValueInvalid."""

    reason: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def cause(self) -> dict[str, str]:
        return {"reason": self.reason, "message": self.message, "field": self.path}


def invalid(path: str, value: Any, why: str) -> FieldError:
    return FieldError("FieldValueInvalid", path, f"Invalid value: {shown(value)}: {why}")


def required(path: str, why: str = "") -> FieldError:
    return FieldError("FieldValueRequired", path, "Required value" + (f": {why}" if why else ""))


def duplicate(path: str, value: Any) -> FieldError:
    return FieldError("FieldValueDuplicate", path, f"Duplicate value: {shown(value)}")


def unsupported(path: str, value: Any, supported: Iterable[str]) -> FieldError:
    return FieldError(
        "FieldValueNotSupported", path, f"Unsupported value: {shown(value)}: supported values: {', '.join(map(shown, supported))}"
    )


def forbidden(path: str, why: str) -> FieldError:
    return FieldError("FieldValueForbidden", path, f"Forbidden: {why}")


def not_found(path: str, value: Any) -> FieldError:
    return FieldError("FieldValueNotFound", path, f"Not found: {shown(value)}")


def refusal(kind: Kind, name: str, errors: Sequence[FieldError]) -> ApiError:
    """422: `Service "web" is invalid: spec.ports: Required value`."""
    listed = str(errors[0]) if len(errors) == 1 else f"[{', '.join(map(str, errors))}]"
    qualified = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    return ApiError(
        422,
        "Invalid",
        f'{qualified} "{name}" is invalid: {listed}',
        causes=tuple(error.cause() for error in errors),
        details={"name": name, "kind": kind.kind, **({"group": kind.group} if kind.group else {})},
    )


def undecodable(kind: Kind, name: str, faults: Sequence[Fault]) -> ApiError:
    """400: what the strict decoder refuses; the only errors where a field name may be one that Kubernetes does not have."""
    listed = ", ".join(fault.message if fault.reason == "unknown" else f"{fault.path}: {fault.message}" for fault in faults)
    return ApiError(
        400,
        "BadRequest",
        f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: strict decoding error: {listed}',
        causes=tuple(FieldError("FieldValueInvalid", fault.path, fault.message).cause() for fault in faults),
        details={"name": name, "kind": kind.kind, **({"group": kind.group} if kind.group else {})},
    )


def of_schema(fault: Fault) -> FieldError:
    """A shape fault that is not about decoding, as a field error."""
    return FieldError("FieldValueRequired" if fault.reason == "required" else "FieldValueNotSupported", fault.path, fault.message)
