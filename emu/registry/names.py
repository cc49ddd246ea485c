"""Names: which are allowed where, with the API server's own explanations (apimachinery/pkg/util/validation)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from emu.registry.invalid import FieldError, invalid


class NameRule(NamedTuple):
    """A form that names must have."""

    pattern: re.Pattern[str]
    longest: int
    explanation: str

    def why_not(self, name: str) -> str | None:
        """What is wrong with `name`, or None."""
        if len(name) > self.longest:
            return f"must be no more than {self.longest} characters"
        return None if self.pattern.fullmatch(name) else self.explanation


DNS_LABEL = NameRule(
    re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"),
    63,
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric "
    "character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
)
DNS_SUBDOMAIN = NameRule(
    re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"),
    253,
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
)
DNS_1035_LABEL = NameRule(
    re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?"),
    63,
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an "
    "alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
)
PORT_NAME = NameRule(
    re.compile(r"(?!.*--)(?=.*[a-z])[a-z0-9]([-a-z0-9]*[a-z0-9])?"),
    15,
    "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-), at least one letter, none of them doubled or at an end",
)
PATH_SEGMENT = NameRule(re.compile(r"(?!\.\.?$)[^/%]+"), 253, "may not contain '/' or '%', and may not be '.' or '..'")
LABEL_VALUE = NameRule(
    re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"),
    63,
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
    "alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
)
_KEY_NAME = NameRule(
    re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"),
    63,
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    "(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
)
CONFIG_KEY = NameRule(re.compile(r"[-._a-zA-Z0-9]+"), 253, "a valid config key must consist of alphanumeric characters, '-', '_' or '.'")
_ANNOTATION_BYTES = 256 * 1024


def check_labels(labels: dict[str, Any] | None, path: str) -> Iterator[FieldError]:
    """Keys are qualified names, values are label values."""
    for key, value in (labels or {}).items():
        if (why := why_no_qualified_name(key)) is not None:
            yield invalid(path, key, why)
        if (why := LABEL_VALUE.why_not(value or "")) is not None:
            yield invalid(path, value, why)


def check_annotations(annotations: dict[str, Any] | None, path: str) -> Iterator[FieldError]:
    """Keys are qualified names in any case; all of them together stay within 256 KiB."""
    for key in annotations or {}:
        if (why := why_no_qualified_name(key.lower())) is not None:
            yield invalid(path, key, why)
    if sum(len(k) + len(v or "") for k, v in (annotations or {}).items()) > _ANNOTATION_BYTES:
        yield FieldError("FieldValueTooLong", path, f"Too long: may not be more than {_ANNOTATION_BYTES} bytes")


def why_no_qualified_name(key: str) -> str | None:
    """What is wrong with a label key such as `example.com/name`, or None."""
    prefix, slash, name = key.rpartition("/")
    if slash and (not prefix or DNS_SUBDOMAIN.why_not(prefix)):
        return f"prefix part {DNS_SUBDOMAIN.explanation}"
    return _KEY_NAME.why_not(name)


def check_port(port: Any, path: str) -> Iterator[FieldError]:
    if not isinstance(port, int) or not 1 <= port <= 65535:
        yield invalid(path, port, "must be between 1 and 65535, inclusive")


def check_ip(text: Any, path: str) -> Iterator[FieldError]:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        yield invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")


def check_cidr(text: Any, path: str) -> Iterator[FieldError]:
    """A network such as 10.9.8.0/24; the prefix length must be there, host bits may be set."""
    try:
        if "/" not in str(text):
            raise ValueError(text)
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        yield invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")
